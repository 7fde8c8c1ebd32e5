"""Cleaning takes what nobody needs, and the least recently used first."""

from __future__ import annotations

import os
import time

import pytest
import torch

from mixtune.errors import RequestError
from mixtune.run.ledger import fold
from mixtune.stages.clean import clean_run, clean_states, needed_states
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
    assert clean_states(tmp_path / "stages", {KEYS[1], "absent"}, None) == (4, 4 * size)
    assert kept(store) == [1]
    assert clean_states(tmp_path / "stages", {KEYS[1]}, None) == (0, 0)
    assert store.load(KEYS[1]) is not None


def test_with_a_bound_the_least_recently_used_go_until_the_rest_fits(store, tmp_path):
    size = store.sizes()[KEYS[0]]
    assert clean_states(tmp_path / "stages", {KEYS[0]}, 5 * size) == (0, 0)
    assert clean_states(tmp_path / "stages", {KEYS[0]}, 3 * size) == (2, 2 * size)
    assert kept(store) == [0, 3, 4]
    assert clean_states(tmp_path / "stages", {KEYS[0]}, 3 * size - 1) == (1, size)
    assert kept(store) == [0, 4]
    assert clean_states(tmp_path / "stages", {KEYS[0]}, 0) == (1, size)
    assert kept(store) == [0]  # needed, though it does not fit


def test_what_killed_writers_left_and_earlier_versions_set_aside_goes_though_all_fits(store, tmp_path):
    for name in (f"{KEYS[0]}.damaged", f".{KEYS[0]}-0123.tmp", f".{KEYS[0]}.state.123.tmp"):
        (store.folder / name).write_bytes(b"half")
    assert clean_states(tmp_path / "stages", (), 10**9) == (3, 12)
    assert kept(store) == [0, 1, 2, 3, 4]


def test_a_run_without_stages_is_clean(tmp_path):
    assert clean_states(tmp_path / "stages", (), None) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def epoch(trial, key=None, number=1):
    return {"event": "epoch", "trial": trial, "metrics": {"epoch": number}} | ({} if key is None else {"state": key})


def test_the_latest_state_of_each_unfinished_trial_is_needed():
    events = [{"event": "asked", "trial": "t1"}, {"event": "waited", "seconds": 1}, {"event": "extended", "trials": 9}]
    events += [epoch("t1", "a"), epoch("t2", "b"), epoch("t1", "c", 2), epoch("t1", number=3), epoch("t3")]
    assert needed_states(fold(events)) == {"b", "c"}
    assert needed_states(fold([])) == set()


@pytest.mark.parametrize("ending", ["complete", "baseline", "stopped", "rejected", "failed"])
def test_an_ended_trial_needs_no_state_unless_it_is_retried(ending):
    events = [epoch("t1", "a"), epoch("t2", "b"), {"event": ending, "trial": "t1"}]
    assert needed_states(fold(events)) == {"b"}
    events += [{"event": "retried", "trial": "t1"}]
    assert needed_states(fold(events)) == {"a", "b"}
    events += [epoch("t1", "c"), {"event": ending, "trial": "t1"}]
    assert needed_states(fold(events)) == {"b"}


def test_what_has_another_name_or_lies_behind_a_link_stays(store, tmp_path):
    others = {"thesis.tmp", ".cache.tmp", "georgia.state", "a-b.state", "notes.damaged"}
    for name in others:
        (store.folder / name).write_text("precious")
    assert clean_states(store.folder, (), None)[0] == len(KEYS)
    assert {path.name for path in store.folder.iterdir()} == others

    (run := tmp_path / "run").mkdir()
    (run / "space.yaml").write_text("objectives: {val_accuracy: max}")
    store.save(KEYS[0], {"weights": torch.zeros(10)})
    (store.folder / f".{KEYS[0]}.state.999999.tmp").touch()
    before = {path.name: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    with pytest.raises(RequestError, match=r"run holds no ledger\.jsonl, which says what its trials need$"):
        clean_run(run, None)
    (run / "ledger.jsonl").touch()
    (run / "stages").symlink_to(store.folder)
    with pytest.raises(RequestError, match=r"run/stages is a link to .*, and nothing is written through it: "):
        clean_run(run, None)
    linked = StateStore(run / "stages", max_bytes=1000)
    linked.remove(KEYS[0])
    assert linked.load(KEYS[0]) is not None
    assert not linked.save(KEYS[1], {"weights": torch.zeros(1)})
    assert "is a link" in linked.warnings[0]
    assert {path.name: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before
