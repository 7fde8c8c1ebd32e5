"""A training continues from its last checkpoint, and a lost step time is measured again."""

from __future__ import annotations

import pytest
from same_bits import assert_equal_bits

from mixtune.meter.times import StepTimes
from mixtune.stages import resume as recovery
from mixtune.stages.resume import Recovery
from mixtune.stages.store import StateStore
from mixtune.training.loop import train

PHASES = {"epochs.ssl": 4, "epochs.sl": 4, "rho": 0.5}  # two epochs of each phase


def train_and_store(state, folder, epochs=6, **options):
    """Train ``epochs`` of six epochs with a store; return after which ones a state was stored."""
    stored = Recovery(state, folder, **options)
    stored_after = []
    for result in train(state):
        if stored.save_if_due():
            stored_after.append(result.epoch)
        if result.epoch == epochs:
            break
    return stored_after


def gone_on(state, folder, times):
    """Return a fresh state after it has looked for what is stored."""
    state.step_times = times.copy()
    Recovery(state, folder)
    return state


def test_states_are_stored_at_phase_boundaries_and_at_the_end(make_state, tmp_path):
    assert train_and_store(make_state(PHASES), tmp_path) == [2, 4, 6]
    assert len(StateStore(tmp_path).sizes()) == 3


def test_a_training_goes_on_from_the_last_border_that_it_shares_with_one_that_ended_anywhere(make_state, tmp_path):
    for alpha, shared in ((0.5, 6), (0.9, 2)):  # alpha comes into play with the mix phase
        changes = {**PHASES, "alpha": alpha}
        whole = make_state(changes)
        list(train(whole))
        for epochs in range(1, 7):
            first, folder = make_state(PHASES), tmp_path / f"{alpha} {epochs}"
            train_and_store(first, folder, epochs)
            again = gone_on(make_state(changes), folder, first.step_times)
            reused = min(epochs // 2 * 2, shared)
            assert len(again.history) == again.epochs_reused == reused, (alpha, epochs)
            assert len(list(train(again))) == 6 - reused, (alpha, epochs)
            assert_equal_bits(whole.state_dict(), again.state_dict())


def test_between_borders_the_latest_state_replaces_the_one_before(make_state, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(recovery, "SAVE_SHARE", float("inf"))  # storing may take any time
    assert train_and_store(make_state(PHASES), tmp_path, epochs=5) == [1, 2, 3, 4, 5]
    assert len(StateStore(tmp_path).sizes()) == 3  # of two boundaries, and after the fifth epoch


def test_after_the_deadline_every_epoch_may_be_the_last(make_state, tmp_path):
    assert train_and_store(make_state(PHASES), tmp_path, epochs=3, deadline=0.0) == [1, 2, 3]


@pytest.mark.parametrize(("lost", "reused"), [("ssl", 0), ("mix", 2), ("sl", 4), ("infer", 6)])
def test_a_phase_whose_seconds_were_lost_is_trained_again(make_state, tmp_path, lost, reused):
    first = make_state(PHASES)
    train_and_store(first, tmp_path)
    kept = [first.signature(phase) for phase in ("ssl", "mix", "sl", "infer") if phase != lost]
    again = gone_on(make_state(PHASES), tmp_path, StepTimes({key: [1.0] for key in kept}))
    assert again.epochs_reused == reused
    list(train(again))
    assert all(map(again.step_times.is_known, [*kept, first.signature(lost)]))
