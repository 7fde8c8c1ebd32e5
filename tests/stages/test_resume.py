"""A training continues from its last checkpoint, and a lost step time is measured again."""

from __future__ import annotations

import pytest
import torch
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


ODD = {
    "its backbone has other tensors": [
        lambda state: state.pop("backbone"),
        lambda state: state["backbone"].update({"extra": torch.zeros(1)}),
        lambda state: state["backbone"].update({next(iter(state["backbone"])): torch.zeros(40, 40, 40)}),
        lambda state: state.update(backbone=[1, 2]),
    ],
    "its classifiers has other tensors": [lambda state: state["classifiers"].update({"0.linear.bias": 3.0})],
    "its optimizer has other tensors": [
        lambda state: state["optimizer"].pop("state"),
        lambda state: state["optimizer"]["param_groups"].pop(),
        lambda state: state["optimizer"]["state"].update({10**6: {}}),
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(7)),
        lambda state: state["optimizer"]["param_groups"].__setitem__(0, 5),
    ],
    "it is not of 6 epochs": [lambda state: state["history"].pop(), lambda state: state.update(history={"a": 1})],
    "its history is not one": [
        lambda state: state["history"].__setitem__(0, None),
        lambda state: state["history"][1].update(epoch=5),
        lambda state: state["history"][1].update(more=5),
        lambda state: state.update(predictions=5),
    ],
    "its predictions are of other images": [lambda state: state.update(predictions=[torch.zeros(3)])],
}


def test_a_sound_file_with_another_content_is_set_aside_and_trained_again(make_state, tmp_path, caplog):
    """Someone else's run directory may hold anything that has a right digest."""
    first = make_state(PHASES)
    train_and_store(first, tmp_path)
    key = Recovery(make_state(PHASES), tmp_path).keys[6]
    store = StateStore(tmp_path)
    whole = store.path(key).read_bytes()
    for words, changes in ODD.items():
        for change in changes:
            state = store.load(key)
            change(state)
            store.remove(key)
            assert store.save(key, state)
            caplog.clear()
            again = gone_on(make_state(PHASES), tmp_path, first.step_times)
            assert len(again.history) == 4, words
            assert f"({words})" in caplog.text
            assert not store.path(key).exists()
            store.path(key).write_bytes(whole)
    list(train(again))
    assert_equal_bits(first.state_dict(), again.state_dict())
