"""What a search notes, in which order, and what it tells Optuna; no Ray needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from mixtune.ledger import read_ledger
from mixtune.space import space_from_dict
from mixtune.tuning.state import RunningSearch

WHOLE = {"val_accuracy": 0.9, "train_latency_s": 2.0, "epochs_trained": 5, "epochs_asked": 5}


@pytest.fixture
def search(small_space: Any, tmp_path: Path) -> RunningSearch:
    return RunningSearch(space_from_dict(small_space()), tmp_path / "ledger.jsonl", lambda _: None)


def first_trial(search: RunningSearch) -> str:
    """Return the first trial of the budget; the baselines before it are asked too."""
    while (asked := search.ask()) and asked[0] in search.baselines:
        pass
    assert asked
    return asked[0]


def optuna_states(search: RunningSearch) -> list[optuna.trial.TrialState]:
    """Return the states of the trials that Optuna has been asked for; the paper's point waits from the start."""
    states = [trial.state for trial in search.suggester.study.trials]
    return [state for state in states if state != optuna.trial.TrialState.WAITING]


def test_baselines_come_first_and_do_not_count_in_the_budget(search: RunningSearch) -> None:
    asked = []
    while next_one := search.ask():
        asked.append(next_one)
    assert asked[:2] == [("sl", {"epochs.ssl": 0}), ("ssl_sl", {"rho": 0.0})]
    assert [trial for trial, _ in asked[2:]] == [f"t{i:04d}" for i in range(1, 7)]


def test_every_event_is_on_the_disk_before_anyone_hears_of_it(small_space: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    heard = []
    search = RunningSearch(space_from_dict(small_space()), path, lambda _: heard.append(len(read_ledger(path))))
    trial = first_trial(search)
    search.start(trial)
    search.report(trial, WHOLE)
    search.end(trial, WHOLE)
    assert heard == list(range(1, 7))
    assert [event["event"] for event in read_ledger(path)] == [
        "asked",
        "asked",
        "asked",
        "started",
        "epoch",
        "complete",
    ]


def test_a_trial_that_ran_its_recipe_is_complete(search: RunningSearch) -> None:
    trial = first_trial(search)
    search.end(trial, WHOLE)
    assert search.records[trial].state == "complete"
    assert optuna_states(search) == [optuna.trial.TrialState.COMPLETE]


def test_a_trial_ended_early_is_stopped_whatever_it_reported(search: RunningSearch) -> None:
    trial = first_trial(search)
    search.end(trial, {**WHOLE, "epochs_trained": 4})
    assert search.records[trial].state == "stopped"
    assert optuna_states(search) == [optuna.trial.TrialState.PRUNED]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_objective_that_is_not_finite_fails_the_trial(search: RunningSearch, value: float) -> None:
    trial = first_trial(search)
    search.end(trial, {**WHOLE, "val_accuracy": value})
    assert search.records[trial].state == "failed"
    assert search.records[trial].reason == f"val_accuracy is {value}"
    assert optuna_states(search) == [optuna.trial.TrialState.FAIL]


def test_a_missing_objective_fails_the_trial(search: RunningSearch) -> None:
    trial = first_trial(search)
    search.end(trial, {"val_accuracy": 0.5, "epochs_trained": 5, "epochs_asked": 5})
    assert search.records[trial].reason == "train_latency_s is missing"


def test_a_failed_baseline_is_noted_and_optuna_hears_nothing(search: RunningSearch) -> None:
    asked = search.ask()
    assert asked
    search.fail(asked[0], "DivergedError: the loss is nan")
    assert search.records["sl"].state == "failed"
    assert search.records["sl"].baseline == "sl"
    assert optuna_states(search) == []
