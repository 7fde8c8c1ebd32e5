"""study.db is an Optuna study of the ledger's ended trials, whatever was there before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from mixtune.cost.model import Cost
from mixtune.run.ledger import TrialRecord
from mixtune.space.space import space_from_dict
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.study_file import StudyFile
from mixtune.tuning.trial import EpochReport

BILL = Bill(dict.fromkeys(PHASES, 10), (("sl", "sl steps", 1.0),), "inference")


def limited(params: Any, *_: Any) -> Cost:
    return Cost({"train_latency_s": 4.0 * params.get("alpha", 0.0)}, 1.0, 1.0)


@pytest.fixture
def search(small_space: Callable[..., dict[str, Any]], tmp_path: Path) -> RunningSearch:
    """A search whose trials end in every way; its constraint rejects some."""
    space = space_from_dict(
        small_space(constraints={"train_latency_s": "<= 2"}, search={"trials": 9, "sampler": "tpe"})
    )
    search = RunningSearch(space, tmp_path / "ledger.jsonl", costs=limited)
    while (asked := search.ask()) is not None:
        search.start(asked.trial)
        metrics = {"epoch": 1, "epochs_asked": 1, "val_accuracy": 0.5 + asked.params.get("alpha", 0.0) / 3}
        number = len(search.records)
        if number % 4 == 0:
            metrics["epochs_asked"] = 2  # ended early
        windows = [("sl steps", 0.1, True, {"device": "a CPU"})]
        search.report(asked.trial, EpochReport([metrics], metrics, windows, BILL))
        if number % 5 == 0:
            search.fail(asked.trial, "DivergedError: the loss is nan")
        else:
            search.end(asked.trial)
    return search


def trials_of(path: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of a file whose only study has the name of its folder."""
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{path}")
    assert study.study_name == path.parent.name
    return study.trials


def assert_it_agrees(path: Path, records: dict[str, TrialRecord]) -> None:
    states = {"complete": "COMPLETE", "stopped": "PRUNED", "rejected": "PRUNED", "known": "FAIL", "failed": "FAIL"}
    held = {trial.user_attrs["trial"]: trial for trial in trials_of(path)}
    wanted = {trial: record for trial, record in records.items() if record.ended_time}
    assert held.keys() == wanted.keys()
    for name, record in wanted.items():
        trial = held[name]
        assert trial.intermediate_values == {epoch["epoch"]: epoch["val_accuracy"] for epoch in record.epochs}
        if record.baseline is not None:  # its recipe need not be one of the space
            assert trial.user_attrs["baseline"] == record.baseline
            assert trial.values == [record.metrics["val_accuracy"], record.metrics["train_latency_s"]]
            continue
        assert trial.state.name == states[record.state]
        assert trial.params == record.params
        assert trial.user_attrs["state"] == record.state
        assert trial.user_attrs.get("reason") == record.reason
        assert trial.datetime_complete is not None
        assert trial.datetime_complete.timestamp() == pytest.approx(record.ended_time)
        if record.state == "complete":
            assert trial.values == [record.metrics["val_accuracy"], record.metrics["train_latency_s"]]
        if record.state == "rejected":
            assert trial.constraints["train_latency_s"] > 0


def test_a_copy_replaces_whatever_is_there_and_says_what_the_ledger_says(search: RunningSearch, tmp_path: Path) -> None:
    assert {record.state for record in search.records.values()} == {"complete", "stopped", "rejected", "failed"}
    path = tmp_path / "odd {name} %20?" / "study.db"
    path.parent.mkdir()
    file = StudyFile(path)
    file.copy(search.suggester.study, search.records)
    whole = path.read_bytes()
    plain = tmp_path / "study.db"
    for before in (whole, whole[: len(whole) // 2], b"not a database at all", b""):
        plain.write_bytes(before)
        (tmp_path / "study.db-journal").write_bytes(b"of the old file")
        StudyFile(plain).copy(search.suggester.study, search.records)
        assert_it_agrees(plain, search.records)
        assert not (tmp_path / "study.db-journal").exists()
    again = RunningSearch(search.space, tmp_path / "ledger.jsonl", costs=limited)
    StudyFile(plain).copy(again.suggester.study, again.records)
    assert_it_agrees(plain, search.records)  # with the times of the ledger, not of this process


def test_trials_are_added_as_they_end_and_what_is_missing_at_the_end(search: RunningSearch, tmp_path: Path) -> None:
    path, study = tmp_path / "study.db", search.suggester.study
    empty = RunningSearch(search.space, tmp_path / "none.jsonl")
    file = StudyFile(path)
    file.copy(empty.suggester.study, {})
    file._began -= 10_000  # the search has taken a while
    file.add(study, search.records)
    file.add(study, search.records)
    assert len(trials_of(path)) == 2
    file._took = 10_000.0  # more than its share
    file.add(study, search.records)
    assert len(trials_of(path)) == 2
    file.close(study, search.records)
    assert_it_agrees(path, search.records)
    path.write_bytes(b"not a database at all")
    file._held.clear()
    file.close(study, search.records)
    assert_it_agrees(path, search.records)


def test_a_place_that_takes_no_file_costs_one_warning(
    search: RunningSearch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "study.db").mkdir()
    file = StudyFile(tmp_path / "study.db")
    for _ in range(2):
        file.copy(search.suggester.study, search.records)
        file.add(search.suggester.study, search.records)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{tmp_path / 'study.db'} is not up to date: ")
    assert warning.endswith("the search continues without it")


def test_optunas_command_reads_it(search: RunningSearch, tmp_path: Path) -> None:
    StudyFile(tmp_path / "study.db").copy(search.suggester.study, search.records)
    optuna_command = Path(sys.executable).with_name("optuna")
    words = ["best-trials", "--storage", f"sqlite:///{tmp_path / 'study.db'}", "--study-name", tmp_path.name]
    done = subprocess.run([optuna_command, *words], capture_output=True, text=True, check=True)
    assert "val_accuracy" in done.stdout or "values" in done.stdout
