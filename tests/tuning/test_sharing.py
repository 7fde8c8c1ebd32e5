"""The stage tree in a search: no epoch is trained twice, shared trials are the same bits, and nobody waits in vain."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from plain_search import search_here

import mixtune
from mixtune.run.ledger import read_ledger
from mixtune.space.space import load_space, space_from_dict
from mixtune.stages.paths import RecipePaths
from mixtune.stages.table import TrialPath
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES
from mixtune.tuning.search import MIN_WAITED_S, RunningSearch
from mixtune.tuning.trial import EpochReport

BILL = Bill(dict.fromkeys(PHASES, 4), (("sl", "sl steps", 1.0),) * 5, "inference")
WINDOWS = [("sl steps", 0.05, True, {"device": "a CPU"}), ("inference", 0.01, True, {"device": "a CPU"})]


def shared_trunk(small_space: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A space whose recipes have their SSL phase in common, and much of their SL phase."""
    values = small_space(
        space={
            "alpha": {"choice": [0.3, 0.5]},
            "rho": {"quniform": [0.0, 1.0, 0.25]},
            "epochs.ssl": {"qrandint": [4, 12, 4]},
            "epochs.sl": {"qrandint": [4, 12, 4]},
        },
        search={"trials": 12, "sampler": "random"},
    )
    values["recipe"]["epochs"] = {"ssl": 8, "sl": 8}
    for loss in ("ssl", "sl"):
        values["recipe"]["optim"][loss] |= {"schedule": "wsd", "warmup_epochs": 1}
    return values


@pytest.fixture(scope="module", params=[1, 4], ids=["one at a time", "4 in turns"])
def run(
    request: pytest.FixtureRequest, small_space_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> mixtune.Result:
    values = shared_trunk(lambda **sections: {**_copied(small_space_values), **sections})
    return search_here(values, tmp_path_factory.mktemp("runs") / "shared", slots=request.param)


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def trained_epochs(run: mixtune.Result) -> list[tuple[str, str]]:
    """Return (key of the state after it, trial) of each epoch that a trial trained itself."""
    paths = RecipePaths(load_space(run.directory / "space.yaml"))
    return [
        (paths(record.params).keys[epoch], trial)
        for trial, record in run.records.items()
        for epoch in range(record.metrics["epochs_reused"] + 1, record.metrics["epoch"] + 1)
    ]


def test_no_epoch_is_trained_twice(run: mixtune.Result) -> None:
    trained = trained_epochs(run)
    assert len({key for key, _ in trained}) == len(trained) == run.account().epochs_trained
    assert run.account().epochs_trained < 0.7 * run.account().epochs_asked


def test_a_trial_on_shared_stages_is_the_same_trial_trained_alone(run: mixtune.Result) -> None:
    space = load_space(run.directory / "space.yaml")
    shared = [record for record in run.records.values() if record.metrics["epochs_reused"] > 0]
    assert len(shared) >= 5
    for record in shared[:5]:
        alone = mixtune.train(space.recipe_at(record.params)).metrics.to_dict()
        for name in ("val_accuracy", "sl_loss", "epoch", "train_flops"):
            assert record.metrics[name] == alone[name], (record.trial, name)


def test_what_was_reused_is_in_the_trials_latency_and_not_in_what_was_trained(run: mixtune.Result) -> None:
    account = run.account()
    assert account.epochs_trained + account.epochs_reused == account.epochs_asked
    assert account.trained_s + account.reused_s == pytest.approx(account.asked_s)
    assert 0 < account.reused_s < account.asked_s
    rows = run.trials
    assert (rows["latency_reused_s"] <= rows["train_latency_s"] * (1 + 1e-9)).all()
    assert ((rows["epochs_reused"] > 0) == (rows["latency_reused_s"] > 0)).all()


@pytest.fixture
def search(small_space: Callable[..., dict[str, Any]], tmp_path: Path) -> RunningSearch:
    """A search of two slots and no baselines; trials that differ in rho alone share two epochs."""
    values = small_space(baselines=[], space={"alpha": {"choice": [0.1, 0.2, 0.3]}}, search={"trials": 4})
    return RunningSearch(space_from_dict(values), tmp_path / "ledger.jsonl", paths=lambda params: SAME, slots=2)


SAME = TrialPath("abcdef", {3, 5})


def train_epochs(search: RunningSearch, trial: str, *epochs: int, stored: tuple[int, ...] = ()) -> None:
    for epoch in epochs:
        metrics = {"epoch": epoch, "phase": "sl", "epochs_asked": 5, "val_accuracy": 0.9}
        key = f"{epoch:040x}" if epoch in stored else None
        search.report(trial, EpochReport([metrics], metrics, WINDOWS, BILL, stored=key))


def test_nobody_waits_for_more_where_a_state_could_not_be_stored(search: RunningSearch) -> None:
    first = search.ask()
    assert first
    assert search.ask() is None
    train_epochs(search, first.trial, 1, 2, 3)  # a full disk
    second = search.ask()
    assert second
    assert second.trial == "t0002"
    train_epochs(search, first.trial, 4, 5, stored=(5,))  # there is room again
    search.end(first.trial)
    third = search.ask()
    assert third
    assert search.stages.stored(third.params) == 5


def test_a_trial_waits_until_what_it_needs_is_stored(search: RunningSearch) -> None:
    first = search.ask()
    assert first
    assert search.ask() is None  # it would train the same
    assert [r.state for r in search.records.values()] == ["asked", "asked", "asked"]  # no more than there are slots
    train_epochs(search, first.trial, 1, 2, 3, stored=(3,))
    assert search.ask() is None  # the end is still to come
    train_epochs(search, first.trial, 4, 5, stored=(5,))
    second = search.ask()
    assert second
    assert second.trial == "t0002"


def test_a_builder_that_fails_blocks_nobody(search: RunningSearch) -> None:
    first = search.ask()
    assert first
    assert search.ask() is None
    train_epochs(search, first.trial, 1)
    search.fail(first.trial, "killed", "crash")
    again = search.ask()
    assert again
    assert again.trial == first.trial  # tried again, and the builder again
    assert search.ask() is None
    search.fail(first.trial, "NaN")
    heir = search.ask()
    assert heir
    assert heir.trial == "t0002"


def test_seconds_for_which_slots_wait_are_noted(search: RunningSearch, tmp_path: Path) -> None:
    first = search.ask()
    assert first
    before = time.monotonic()
    assert search.ask() is None
    began = time.monotonic()
    while time.monotonic() - began < 2 * MIN_WAITED_S:
        train_epochs(search, first.trial, 1)
    train_epochs(search, first.trial, 2, 3, 4, 5, stored=(3, 5))
    assert search.ask()
    (waited,) = [e for e in read_ledger(tmp_path / "ledger.jsonl") if e["event"] == "waited"]
    assert 2 * MIN_WAITED_S <= waited["seconds"] <= time.monotonic() - before
    assert waited["trial"] == "t0002"


def test_a_search_that_goes_on_knows_what_is_stored(search: RunningSearch, tmp_path: Path) -> None:
    first = search.ask()
    assert first
    train_epochs(search, first.trial, 1, 2, 3, 4, stored=(3,))
    again = RunningSearch(search.space, tmp_path / "ledger.jsonl", paths=lambda params: SAME, slots=2)
    assert again.stages.reusable({}) == 3
    assert again.ask() == first
    assert again.ask() is None
