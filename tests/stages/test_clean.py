"""Cleaning takes what nobody needs, and the least recently used first."""

from __future__ import annotations

import fcntl
import os
import time

import pytest
import torch

from mixtune.stages.clean import clean_states, needed_states
from mixtune.stages.store import StateStore

KEYS = [f"{number:040x}" for number in range(5)]


@pytest.fixture
def store(tmp_path):
    """Five states, the first one not used for longest."""
    store = StateStore(tmp_path / "stages")
    for number, key in enumerate(KEYS):
        store.save(key, {"weights": torch.zeros(1000)})
        then = time.time() - 1000 + number
        os.utime(store.folder / f"{key}.state", (then, then))
    return store


def kept(store):
    return [KEYS.index(key) for key in store.sizes()]


def test_without_a_bound_all_go_that_are_not_needed(store, tmp_path):
    size = store.sizes()[KEYS[0]]
    assert clean_states(tmp_path, {KEYS[1], "absent"}, None) == (4, 4 * size)
    assert kept(store) == [1]
    assert clean_states(tmp_path, {KEYS[1]}, None) == (0, 0)
    assert store.load(KEYS[1]) is not None


def test_with_a_bound_the_least_recently_used_go_until_the_rest_fits(store, tmp_path):
    size = store.sizes()[KEYS[0]]
    assert clean_states(tmp_path, {KEYS[0]}, 5 * size) == (0, 0)
    assert clean_states(tmp_path, {KEYS[0]}, 3 * size) == (2, 2 * size)
    assert kept(store) == [0, 3, 4]
    assert clean_states(tmp_path, {KEYS[0]}, 3 * size - 1) == (1, size)
    assert kept(store) == [0, 4]
    assert clean_states(tmp_path, {KEYS[0]}, 0) == (1, size)
    assert kept(store) == [0]  # needed, though it does not fit


def test_damaged_states_and_what_dead_writers_left_go_though_all_fits(store, tmp_path):
    (store.folder / f"{KEYS[0]}.state").write_bytes(b"damaged")
    assert store.load(KEYS[0]) is None
    (store.folder / ".dead.tmp").write_bytes(b"half")
    living = store.folder / ".living.tmp"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"half")
        file.flush()
        assert clean_states(tmp_path, (), 10**9) == (2, len(b"damaged" + b"half"))
        assert living.exists()
    assert kept(store) == [1, 2, 3, 4]


def test_a_run_without_stages_is_clean(tmp_path):
    assert clean_states(tmp_path, (), None) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def epoch(trial, key=None):
    return {"event": "epoch", "trial": trial, "metrics": {}} | ({} if key is None else {"state": key})


def test_the_latest_state_of_each_unfinished_trial_is_needed():
    events = [{"event": "asked", "trial": "t1"}, {"event": "step_time"}, {"event": "extended", "trials": 9}]
    events += [epoch("t1", "a"), epoch("t2", "b"), epoch("t1", "c"), epoch("t1"), epoch("t3")]
    assert needed_states(events) == {"b", "c"}
    assert needed_states([]) == set()


@pytest.mark.parametrize("ending", ["complete", "baseline", "stopped", "rejected", "failed"])
def test_an_ended_trial_needs_no_state_unless_it_is_retried(ending):
    events = [epoch("t1", "a"), epoch("t2", "b"), {"event": ending, "trial": "t1"}]
    assert needed_states(events) == {"b"}
    events += [{"event": "retried", "trial": "t1"}]
    assert needed_states(events) == {"a", "b"}
    events += [epoch("t1", "c"), {"event": ending, "trial": "t1"}]
    assert needed_states(events) == {"b"}
