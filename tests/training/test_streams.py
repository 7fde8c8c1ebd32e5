"""Every draw is a pure function of (seed, stream, epoch)."""

from __future__ import annotations

import hashlib
from itertools import product
from typing import get_args

import torch

from mixtune.training.loop import train
from mixtune.training.streams import Stream, stream_seed, torch_generator


def test_a_streams_seed_is_pinned():
    first_eight = hashlib.sha256(b"0/order/3").digest()[:8]
    assert stream_seed(0, "order", 3) == int.from_bytes(first_eight, "big") // 2 == 2723741169552378311


def test_seeds_streams_and_epochs_all_differ():
    keys = list(product((0, 1, 2, 12), get_args(Stream), (0, 1, 2, 12, 120)))
    assert len({stream_seed(*key) for key in keys}) == len(keys)
    draws = {tuple(torch.rand(4, generator=torch_generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_training_neither_reads_nor_moves_the_global_generator(make_state):
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        state = make_state({"rho": 0.5})
        list(train(state))
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(torch.cat([p.detach().flatten() for p in state.backbone.parameters()]))
    assert torch.equal(*ends)
