"""What tests of resumption share: the states of a training, and a comparison to the last bit."""

from __future__ import annotations

from copy import deepcopy

import torch

from mixtune.training.loop import train


def boundaries(state):
    """Train to the end; return the state at each epoch boundary, the start included."""
    return [deepcopy(state.state_dict()), *(deepcopy(state.state_dict()) for _ in train(state))]


def assert_equal_bits(one, other, path=""):
    """Assert that nested plain values and tensors are equal, seconds excepted."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            if not str(key).endswith("seconds"):
                assert_equal_bits(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal_bits(*pair, f"{path}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    else:
        assert one == other, path
