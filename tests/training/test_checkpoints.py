"""A state continues bit for bit, and what does not belong to an epoch leaves its bits."""

from __future__ import annotations

from copy import deepcopy
from itertools import islice

import pytest
from same_bits import assert_equal_bits, boundaries

from mixtune.training.loop import train
from mixtune.training.measure import measure

LONG = {"epochs.ssl": 4, "epochs.sl": 4, "rho": 0.5}  # two epochs of each phase


@pytest.fixture(scope="module")
def uninterrupted(make_state):
    return boundaries(make_state(LONG))


def test_a_saved_state_goes_on_as_if_it_had_not_been_interrupted(make_state, uninterrupted):
    for epochs, held in enumerate(uninterrupted):
        state = make_state(LONG)
        state.load_state_dict(deepcopy(held))
        assert len(state.history) == epochs
        assert_equal_bits(state.state_dict(), held)
        for after, result in enumerate(train(state), start=epochs + 1):
            assert result.epoch == after
            assert_equal_bits(state.state_dict(), uninterrupted[after])
        assert [result.phase for result in state.history] == ["ssl", "ssl", "mix", "mix", "sl", "sl"]
        assert list(train(state)) == []


def test_a_state_that_has_gone_on_can_be_set_back(make_state, uninterrupted):
    state = make_state(LONG)
    assert len(list(islice(train(state), 4))) == 4
    state.load_state_dict(deepcopy(uninterrupted[1]))
    list(train(state))
    assert_equal_bits(state.state_dict(), uninterrupted[-1])


def test_validation_does_not_change_training(make_state, uninterrupted):
    state = make_state(LONG)
    for _ in train(state):
        measure(state)
        state.backbone.eval()  # as a validation leaves it
    assert_equal_bits(state.state_dict(), uninterrupted[-1])


def test_supervised_epochs_do_not_depend_on_the_ssl_objective(make_state):
    one, other = (boundaries(make_state({"epochs.ssl": 0, **changes})) for changes in ({}, {"ssl.mask_ratio": 0.5}))
    assert_equal_bits(one[-1]["backbone"], other[-1]["backbone"])
