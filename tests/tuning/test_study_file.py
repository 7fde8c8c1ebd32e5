"""DIR/study.db as Optuna and its command line read it."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import resource
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

import mixtune
from mixtune.run.ledger import TrialRecord
from mixtune.space.space import space_from_dict
from mixtune.tuning.study_file import STUDY_NAME, StudyFile
from mixtune.tuning.suggestions import to_optuna

STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "rejected": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
SPACE = {
    "alpha": {"uniform": [0.05, 0.95]},
    "rho": {"quniform": [0.0, 1.0, 0.05]},
    "epochs.sl": {"randint": [1, 5]},
    "optim.sl.betas": {"choice": [[0.9, 0.95], [0.9, 0.999]]},
    "optim.sl.weight_decay": {"loguniform": [1e-4, 1e-1]},
}


@pytest.fixture
def space(small_space: Any) -> Any:
    return space_from_dict(small_space(space=SPACE))


@pytest.fixture(scope="module")
def sound(small_space_values: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the content of a file that holds some_records()."""
    path = tmp_path_factory.mktemp("sound") / "study.db"
    StudyFile(path, space_from_dict(small_space_values | {"space": SPACE})).sync(some_records())
    return path.read_bytes()


def record(number: int, state: str = "complete", **changes: Any) -> TrialRecord:
    params = {
        "alpha": 0.05 + number / 100,
        "rho": 0.15,
        "epochs.sl": 1 + number % 4,
        "optim.sl.betas": [0.9, 0.999],
        "optim.sl.weight_decay": 0.1 / (1 + number),
    }
    metrics = {"val_accuracy": number / 30, "train_latency_s": number / 7, "epoch": 3, "sl_loss": None, "device": "cpu"}
    known: dict[str, Any] = {
        "params": params,
        "metrics": metrics if state in ("complete", "stopped") else {},
        "reason": None if state == "complete" else f"why {number}",
        "asked_time": 1.7e9 + number,
        "started_time": None if state == "rejected" else 1.7e9 + number + 1,
        "ended_time": 1.7e9 + number + 5,
    }
    return TrialRecord(f"t{number:04d}", state, **(known | changes))


def some_records() -> list[TrialRecord]:
    return [record(number, list(STATES)[number % 4]) for number in range(1, 9)]


@contextmanager
def study_at(path: Path) -> Iterator[optuna.Study]:
    """Open the file as anyone does, and close it again."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        yield optuna.load_study(study_name=STUDY_NAME, storage=storage)
    finally:
        storage.engine.dispose()


def trials_at(path: Path) -> list[FrozenTrial]:
    with study_at(path) as study:
        return study.get_trials()


def assert_is_ours(path: Path, space: Any) -> None:
    better = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    with study_at(path) as study:
        assert study.metric_names == list(space.objectives)
        assert study.directions == [better[direction] for direction in space.objectives.values()]
        assert study.user_attrs == {"mixtune": mixtune.__version__}


def assert_holds(path: Path, records: list[TrialRecord], space: Any) -> None:
    trials = trials_at(path)
    assert [trial.user_attrs["trial"] for trial in trials] == [r.trial for r in records]
    assert [trial.number for trial in trials] == list(range(len(records)))
    for trial, known in zip(trials, records, strict=True):
        assert trial.state == STATES[known.state]
        assert trial.user_attrs["state"] == known.state
        assert trial.user_attrs.get("reason") == known.reason
        objectives = [known.metrics[name] for name in space.objectives] if known.state == "complete" else None
        assert trial.values == objectives
        assert trial.params == {**known.params, "optim.sl.betas": json.dumps(known.params["optim.sl.betas"])}
        assert trial.distributions == {name: to_optuna(d) for name, d in space.space.items()}
        plain = {name: value for name, value in known.metrics.items() if isinstance(value, int | float)}
        assert {name: value for name, value in trial.user_attrs.items() if name in known.metrics} == plain
        assert trial.datetime_complete is not None
        assert trial.datetime_complete.timestamp() == known.ended_time


def change(path: Path, edit: str) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(edit)
        other.commit()


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records]


def test_the_study_agrees_with_the_records(tmp_path: Path, space: Any, caplog: pytest.LogCaptureFixture) -> None:
    path, records = tmp_path / "study.db", some_records()
    file = StudyFile(path, space)
    file.sync([])
    assert trials_at(path) == []
    for known in records:
        file.add(known)
    assert_holds(path, records, space)
    StudyFile(tmp_path / "at once.db", space).sync(records)
    assert_holds(tmp_path / "at once.db", records, space)
    assert warned(caplog) == []


def test_the_study_says_what_it_is(tmp_path: Path, space: Any) -> None:
    StudyFile(tmp_path / "study.db", space).sync(some_records())
    assert_is_ours(tmp_path / "study.db", space)
    with study_at(tmp_path / "study.db") as study:
        assert {trial.user_attrs["state"] for trial in study.best_trials} == {"complete"}
        table = study.trials_dataframe()
    assert {"values_val_accuracy", "params_alpha", "user_attrs_trial"} <= set(table.columns)


def test_a_dashboard_finds_plain_values_alone(tmp_path: Path, space: Any) -> None:
    StudyFile(tmp_path / "study.db", space).sync(some_records())
    for trial in trials_at(tmp_path / "study.db"):
        for value in [*trial.params.values(), *trial.user_attrs.values(), *(trial.values or [])]:
            assert type(value) in (int, float, str)


def test_adding_needs_no_sync_before_and_adds_once(tmp_path: Path, space: Any) -> None:
    path = tmp_path / "study.db"
    StudyFile(path, space).add(record(1))
    again = StudyFile(path, space)
    again.add(record(1))
    again.add(record(2, "failed"))
    again.add(record(2, "failed"))
    assert_holds(path, [record(1), record(2, "failed")], space)


def test_baselines_and_trials_that_have_not_ended_are_not_in_it(tmp_path: Path, space: Any) -> None:
    path = tmp_path / "study.db"
    others = [record(2, "asked"), record(3, "running"), record(4, baseline="sl", params={"epochs.ssl": 0})]
    file = StudyFile(path, space)
    file.sync([record(1), *others])
    for other in others:
        file.add(other)
    assert_holds(path, [record(1)], space)


def test_sync_does_not_touch_a_file_that_is_right(tmp_path: Path, space: Any) -> None:
    path, records = tmp_path / "study.db", some_records()
    file = StudyFile(path, space)
    file.sync(reversed(records))
    before = path.read_bytes(), path.stat()
    file.sync(records)
    StudyFile(path, space).sync(iter(records))
    assert (path.read_bytes(), path.stat()) == before
    assert os.listdir(tmp_path) == ["study.db"]


def test_sync_appends_what_is_missing_and_leaves_a_note_alone(tmp_path: Path, space: Any) -> None:
    path, records = tmp_path / "study.db", some_records()
    StudyFile(path, space).sync(records[:5])
    change(path, "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, 'note', '\"mine\"')")
    inode = path.stat().st_ino
    StudyFile(path, space).sync(records)
    assert_holds(path, records, space)
    assert path.stat().st_ino == inode
    assert trials_at(path)[0].user_attrs["note"] == "mine"


@pytest.mark.parametrize(
    "changed",
    [
        {"state": "failed"},
        {"metrics": {"val_accuracy": 0.5, "train_latency_s": 1.0}},
        {"params": record(9).params},
        {"trial": "t0099"},
    ],
    ids=lambda changed: "".join(changed),
)
def test_a_trial_that_the_file_holds_differently_is_put_right(tmp_path: Path, space: Any, changed: Any) -> None:
    path, records = tmp_path / "study.db", some_records()
    StudyFile(path, space).sync([replace(records[3], **changed), *records[4:]])
    StudyFile(path, space).sync(records)
    assert_holds(path, records, space)


def test_a_trial_that_is_tried_again_leaves_and_comes_back(tmp_path: Path, space: Any) -> None:
    path = tmp_path / "study.db"
    file = StudyFile(path, space)
    file.sync([record(1), record(2, "failed")])
    file.sync([record(1), record(2, "asked")])
    assert_holds(path, [record(1)], space)
    file.add(record(2))
    assert_holds(path, [record(1), record(2)], space)


@pytest.mark.parametrize("kept", [0, 1, 60, 512, 4096, 4097, 50_000, 0.5, 0.9, -4096, -1])
def test_a_truncated_file_is_built_anew(tmp_path: Path, space: Any, sound: bytes, kept: float) -> None:
    path, records = tmp_path / "study.db", some_records()
    path.write_bytes(sound[: int(kept * len(sound)) if isinstance(kept, float) else kept])
    StudyFile(path, space).sync(records)
    assert_holds(path, records, space)
    assert os.listdir(tmp_path) == ["study.db"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 10_000, b"SQLite format 3\0" + b"x" * 9_000])
def test_a_file_that_is_something_else_is_replaced(tmp_path: Path, space: Any, content: bytes) -> None:
    path, records = tmp_path / "study.db", some_records()
    path.write_bytes(content)
    StudyFile(path, space).sync(records)
    assert_holds(path, records, space)


@pytest.mark.parametrize("name", ["mixtune", "my own study"])
def test_another_study_is_not_joined(tmp_path: Path, space: Any, name: str) -> None:
    path = tmp_path / "study.db"
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    optuna.create_study(study_name=name, storage=storage, directions=["maximize", "minimize"])
    storage.engine.dispose()
    StudyFile(path, space).add(record(1))
    assert_holds(path, [record(1)], space)
    assert_is_ours(path, space)


def test_the_file_of_another_search_is_not_joined(tmp_path: Path, space: Any, small_space: Any) -> None:
    path = tmp_path / "study.db"
    other = space_from_dict(small_space(objectives={"train_latency_s": "min", "val_accuracy": "max"}))
    StudyFile(path, other).sync([record(1, "failed")])
    StudyFile(path, space).sync([record(1, "failed")])
    assert_holds(path, [record(1, "failed")], space)
    assert_is_ours(path, space)


@pytest.mark.parametrize(
    "edit",
    [
        "DROP TABLE trial_params",
        "DELETE FROM trials",
        "DELETE FROM trials WHERE number = 3",
        "UPDATE trials SET number = NULL",
        "DELETE FROM version_info",
        "UPDATE alembic_version SET version_num = 'v9.9.9'",
        "UPDATE trials SET state = 'ASLEEP'",
        "UPDATE trials SET state = 'RUNNING' WHERE number = 2",
        "UPDATE trial_params SET distribution_json = '{}'",
        "UPDATE trial_user_attributes SET value_json = NULL",
        "UPDATE trial_values SET objective = 7 WHERE trial_value_id = 1",
        "UPDATE study_user_attributes SET value_json = '{'",
        "INSERT INTO trials (study_id, number, state) VALUES (1, 8, 'WAITING')",
        "PRAGMA journal_mode = WAL",
    ],
)
def test_whatever_is_done_to_its_tables_is_put_right(tmp_path: Path, space: Any, sound: bytes, edit: str) -> None:
    path, records = tmp_path / "study.db", some_records()
    path.write_bytes(sound)
    change(path, edit)
    StudyFile(path, space).sync(records)
    assert_holds(path, records, space)


@pytest.mark.parametrize("table", ["trial_user_attributes", "trial_heartbeats"])
def test_a_damaged_page_is_found_though_no_trial_is_on_it(tmp_path: Path, space: Any, sound: bytes, table: str) -> None:
    path, records = tmp_path / "study.db", some_records()
    path.write_bytes(sound)
    find = f"SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = '{table}'"
    with closing(sqlite3.connect(path)) as other:
        ((page,),) = other.execute(find).fetchall()
    start = (page - 1) * 4096
    path.write_bytes(sound[:start] + b"\xaa" * 4096 + sound[start + 4096 :])
    StudyFile(path, space).sync(records)
    assert_holds(path, records, space)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_an_old_journal_is_not_played_into_the_new_file(tmp_path: Path, space: Any) -> None:
    path, records = tmp_path / "study.db", some_records()
    StudyFile(path, space).sync(records[:6])
    code = f"""
        import os, sqlite3
        other = sqlite3.connect({str(path)!r})
        other.execute("PRAGMA cache_size = 1")
        other.execute("PRAGMA cache_spill = 1")
        other.execute("UPDATE trial_user_attributes SET value_json = '\\"{"x" * 999}\\"'")
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    assert (tmp_path / "study.db-journal").stat().st_size > 0
    path.unlink()
    StudyFile(path, space).sync(records)
    assert os.listdir(tmp_path) == ["study.db"]
    assert_holds(path, records, space)


def test_a_trial_whose_parameters_the_space_no_longer_holds_stays_in_it(tmp_path: Path, small_space: Any) -> None:
    path = tmp_path / "study.db"
    before = space_from_dict(small_space(space=SPACE))
    StudyFile(path, before).sync(some_records())
    narrower = SPACE | {"alpha": {"uniform": [0.05, 0.1]}, "optim.sl.betas": {"choice": [[0.9, 0.95], [0.8, 0.9]]}}
    del narrower["epochs.sl"]
    after = space_from_dict(small_space(space=narrower))
    file = StudyFile(path, after)
    file.sync(some_records())
    content = path.read_bytes()
    file.sync(some_records())
    assert path.read_bytes() == content
    first, last = trials_at(path)[0], trials_at(path)[-1]
    assert first.params.keys() == {"alpha", "rho", "optim.sl.weight_decay"}
    assert last.params.keys() == {"rho", "optim.sl.weight_decay"}
    assert last.user_attrs["alpha"] == record(8).params["alpha"]
    assert last.user_attrs["optim.sl.betas"] == [0.9, 0.999]
    assert first.user_attrs["epochs.sl"] == record(1).params["epochs.sl"]
    file.add(record(13, params={}))
    assert trials_at(path)[-1].params == {}


def test_a_space_that_became_wider_has_its_trials_in_it(tmp_path: Path, small_space: Any, sound: bytes) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(sound)
    space = space_from_dict(small_space(space=SPACE | {"optim.sl.betas": {"choice": [[0.9, 0.999], [0.8, 0.99]]}}))
    file = StudyFile(path, space)
    file.sync(some_records())
    file.add(record(20))
    assert_holds(path, [*some_records(), record(20)], space)


def test_a_complete_trial_that_lacks_an_objective_has_no_values(tmp_path: Path, space: Any) -> None:
    path = tmp_path / "study.db"
    StudyFile(path, space).sync([record(1, metrics={"val_accuracy": 0.5, "train_latency_s": None})])
    (trial,) = trials_at(path)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["state"] == "complete"
    assert trial.user_attrs["val_accuracy"] == 0.5


def test_a_constraints_violation_is_known_where_a_whole_recipe_is(tmp_path: Path, small_space: Any) -> None:
    path = tmp_path / "study.db"
    space = space_from_dict(small_space(space=SPACE, constraints={"train_latency_s": "<= 60"}))
    forecast, result = {"train_latency_s": 61.5}, {"val_accuracy": 0.5, "train_latency_s": 59.0}
    records = [record(1, metrics=result), record(2, "rejected", metrics=forecast), record(3, "stopped", metrics=result)]
    StudyFile(path, space).sync(records)
    assert [trial.constraints for trial in trials_at(path)] == [{"train_latency_s": v} for v in (-1.0, 1.5)] + [{}]
    stricter = space_from_dict(small_space(space=SPACE, constraints={"train_latency_s": "<= 50"}))
    StudyFile(path, stricter).sync(records)
    assert trials_at(path)[0].constraints == {"train_latency_s": 9.0}


def test_a_single_objective_is_a_study_too(tmp_path: Path, small_space: Any) -> None:
    path = tmp_path / "study.db"
    space = space_from_dict(small_space(space=SPACE, objectives={"val_accuracy": "max"}))
    file = StudyFile(path, space)
    file.sync([record(1)])
    file.add(record(2))
    assert_holds(path, [record(1), record(2)], space)


def test_a_path_with_odd_characters_is_a_path(tmp_path: Path, space: Any) -> None:
    folder = tmp_path / "a {b} 50%?x#y"
    folder.mkdir()
    file = StudyFile(folder / "study.db", space)
    file.sync([record(1)])
    file.add(record(2))
    assert os.listdir(folder) == ["study.db"]
    os.replace(folder / "study.db", tmp_path / "study.db")
    assert_holds(tmp_path / "study.db", [record(1), record(2)], space)


def test_no_connection_stays_open(tmp_path: Path, space: Any) -> None:
    path = tmp_path / "study.db"
    file = StudyFile(path, space)
    file.sync(some_records())
    file.add(record(20))
    gc.collect()
    opened = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd)}
    assert str(path) not in opened


def is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


@pytest.mark.parametrize("edit", [None, "DROP TABLE trials", "UPDATE trial_params SET distribution_json = '{'"])
def test_a_file_that_is_damaged_meanwhile_costs_one_warning_until_the_next_sync(
    tmp_path: Path, space: Any, caplog: pytest.LogCaptureFixture, edit: str | None
) -> None:
    path, records = tmp_path / "study.db", some_records()
    file = StudyFile(path, space)
    file.sync(records[:2])
    if edit is None:
        path.unlink()
    else:
        change(path, edit)
    began = time.monotonic()
    file.add(records[2])
    file.add(records[3])
    assert time.monotonic() - began < 1  # Optuna alone would try again for seconds
    (message,) = warned(caplog)
    assert str(path) in message
    assert caplog.records[0].name == "mixtune.tuning"
    assert caplog.records[0].levelno == logging.WARNING
    file.sync(records)
    assert_holds(path, records, space)


@pytest.mark.parametrize("there", ["nothing", "a folder", "a file in place of its folder"])
def test_a_place_that_takes_no_file_costs_one_warning(
    tmp_path: Path, space: Any, caplog: pytest.LogCaptureFixture, there: str
) -> None:
    path = tmp_path / "run" / "study.db"
    if there == "a folder":
        path.mkdir(parents=True)
    elif there == "a file in place of its folder":
        path.parent.touch()
    file = StudyFile(path, space)
    file.sync(some_records())
    file.add(record(20))
    file.sync(some_records())
    assert len(warned(caplog)) == 1


def test_a_full_disk_costs_one_warning_and_the_next_sync_repairs_it(
    tmp_path: Path, space: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path, records = tmp_path / "study.db", [record(number) for number in range(1, 60)]
    file = StudyFile(path, space)
    file.sync(records[:2])
    with files_end_at(path.stat().st_size + 8192):
        began = time.monotonic()
        for known in records[2:50]:
            file.add(known)
        file.sync(records[:50])
        assert time.monotonic() - began < 20
    (message,) = warned(caplog)
    assert str(path) in message
    assert 2 < len(trials_at(path)) < 50
    file.sync(records[:55])
    for known in records[55:]:
        file.add(known)
    assert_holds(path, records, space)
    assert len(warned(caplog)) == 1


def test_a_disk_that_is_full_from_the_start_leaves_nothing_behind(
    tmp_path: Path, space: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = StudyFile(tmp_path / "study.db", space)
    with files_end_at(8192):
        file.sync(some_records())
        file.add(record(20))
    assert os.listdir(tmp_path) == []
    assert len(warned(caplog)) == 1


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let no file grow past a size in bytes: to SQLite and to Python a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere, and another user may not import everything")
def test_a_folder_that_may_not_be_written_costs_one_line_on_the_terminal(tmp_path: Path, space: Any) -> None:
    pickled = tmp_path / "given.pickle"
    pickled.write_bytes(pickle.dumps((space, some_records())))
    code = """
        import logging, os, pickle, sys, tempfile
        from pathlib import Path
        from mixtune.tuning.study_file import StudyFile

        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(name)s %(levelname)s")
        space, records = pickle.loads(Path(sys.argv[1]).read_bytes())
        with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
            path = Path(folder) / "study.db"
            path.write_bytes(b"garbage")
            file = StudyFile(path, space)
            file.sync(records[:2])
            file.add(records[2])
            path.chmod(0o444)
            os.chmod(folder, 0o555)
            file = StudyFile(path, space)
            file.sync(records[:3])
            print("right as it is")
            file.sync(records)
            file.add(records[-1])
            os.chmod(folder, 0o755)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), pickled]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["right as it is", "mixtune.tuning WARNING"]


def test_optunas_command_reads_it(tmp_path: Path, space: Any) -> None:
    path, records = tmp_path / "study.db", some_records()
    StudyFile(path, space).sync(records)

    def ask(command: str, *arguments: str) -> Any:
        optuna_command = Path(sys.executable).with_name("optuna")
        line = [optuna_command, command, "--storage", f"sqlite:///{path}", "-f", "json", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout)

    assert [study["name"] for study in ask("studies")] == [STUDY_NAME]
    trials = ask("trials", "--study-name", STUDY_NAME)
    assert [trial["user_attrs"]["trial"] for trial in trials] == [r.trial for r in records]
    assert [trial["state"] for trial in trials] == [STATES[r.state].name for r in records]
