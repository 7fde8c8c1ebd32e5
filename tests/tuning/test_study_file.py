"""DIR/study.db as Optuna and its command line read it."""

from __future__ import annotations

import gc
import json
import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from mixtune.ledger import TrialRecord
from mixtune.space import space_from_dict
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
    return [record(number, list(STATES)[number % 4]) for number in range(1, 13)]


def study_at(path: Path) -> optuna.Study:
    return optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}")


def trials_at(path: Path) -> list[FrozenTrial]:
    """Return the trials as Optuna reads them, with its connection closed again."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        return optuna.load_study(study_name=STUDY_NAME, storage=storage).get_trials()
    finally:
        storage.engine.dispose()


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
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    assert study.metric_names == list(space.objectives)
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert {trial.user_attrs["state"] for trial in study.best_trials} == {"complete"}
    table = study.trials_dataframe()
    assert {"values_val_accuracy", "params_alpha", "user_attrs_trial"} <= set(table.columns)
    storage.engine.dispose()


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
    with closing(sqlite3.connect(path)) as other:
        other.execute("INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, 'note', '\"mine\"')")
        other.commit()
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
def test_a_truncated_file_is_built_anew(tmp_path: Path, space: Any, kept: float) -> None:
    path, records = tmp_path / "study.db", some_records()
    StudyFile(path, space).sync(records)
    size = path.stat().st_size
    os.truncate(path, int(kept * size) if isinstance(kept, float) else kept % size)
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


def test_the_file_of_another_search_is_not_joined(tmp_path: Path, space: Any, small_space: Any) -> None:
    path = tmp_path / "study.db"
    other = space_from_dict(small_space(objectives={"train_latency_s": "min", "val_accuracy": "max"}))
    StudyFile(path, other).sync([record(1)])
    StudyFile(path, space).sync([record(2)])
    assert_holds(path, [record(2)], space)


@pytest.mark.parametrize(
    "edit",
    [
        "DROP TABLE trial_params",
        "DELETE FROM version_info",
        "UPDATE alembic_version SET version_num = 'v9.9.9'",
        "UPDATE trials SET state = 'ASLEEP'",
        "UPDATE trials SET state = 'RUNNING' WHERE number = 2",
        "UPDATE trial_params SET distribution_json = '{}'",
        "UPDATE trial_user_attributes SET value_json = NULL",
        "UPDATE trial_values SET objective = 7",
        "UPDATE study_user_attributes SET value_json = '{'",
        "INSERT INTO trials (study_id, number, state) VALUES (1, 12, 'WAITING')",
        "PRAGMA journal_mode = WAL",
    ],
)
def test_whatever_is_done_to_its_tables_is_put_right(tmp_path: Path, space: Any, edit: str) -> None:
    path, records = tmp_path / "study.db", some_records()
    StudyFile(path, space).sync(records)
    with closing(sqlite3.connect(path)) as other:
        other.execute(edit)
        other.commit()
    StudyFile(path, space).sync(records)
    assert_holds(path, records, space)


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
    path.write_bytes(b"")
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
    assert last.user_attrs["alpha"] == record(12).params["alpha"]
    assert last.user_attrs["optim.sl.betas"] == [0.9, 0.999]
    assert first.user_attrs["epochs.sl"] == record(1).params["epochs.sl"]
    file.add(record(13, params={}))
    assert trials_at(path)[-1].params == {}


def test_a_complete_trial_that_lacks_an_objective_has_no_values(tmp_path: Path, space: Any) -> None:
    path = tmp_path / "study.db"
    StudyFile(path, space).sync([record(1, metrics={"val_accuracy": 0.5, "train_latency_s": None})])
    (trial,) = trials_at(path)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["state"] == "complete"
    assert trial.user_attrs["val_accuracy"] == 0.5


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


def test_a_file_that_is_gone_costs_one_warning_until_the_next_sync(
    tmp_path: Path, space: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path, records = tmp_path / "study.db", some_records()
    file = StudyFile(path, space)
    file.sync(records[:2])
    path.unlink()
    began = time.monotonic()
    file.add(records[2])
    file.add(records[3])
    assert time.monotonic() - began < 0.5  # Optuna alone would try again for seconds
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


SEARCH = """
    import logging, os, pickle, resource, sys, tempfile, time
    from pathlib import Path
    from mixtune.tuning.study_file import StudyFile

    logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
    path, pickled = Path(sys.argv[1]), Path(sys.argv[2])
    space, records = pickle.loads(pickled.read_bytes())
    file = StudyFile(path, space)
"""


def in_another_process(tmp_path: Path, space: Any, records: list[TrialRecord], code: str) -> str:
    """Return what the code, which has path, space, records and file, writes on its terminal."""
    import pickle

    pickled = tmp_path / "given.pickle"
    pickled.write_bytes(pickle.dumps((space, records)))
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(SEARCH) + textwrap.dedent(code)]
    done = subprocess.run([*command, tmp_path / "study.db", pickled], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_full_disk_costs_one_warning_and_the_next_sync_repairs_it(tmp_path: Path, space: Any) -> None:
    records = [record(number) for number in range(1, 90)]
    code = """
        file.sync(records[:2])
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20_000, unlimited[1]))
        began = time.monotonic()
        for record in records[2:40]:
            file.add(record)
        file.sync(records)
        assert time.monotonic() - began < 20
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        file.sync(records[:60])
        for record in records[60:]:
            file.add(record)
    """
    output = in_another_process(tmp_path, space, records, code)
    assert output.startswith("mixtune.tuning WARNING ")
    assert output.count("\n") == 1
    assert_holds(tmp_path / "study.db", records, space)


def test_a_folder_that_may_not_be_written_costs_one_warning(tmp_path: Path, space: Any) -> None:
    code = """
        with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
            path = Path(folder) / "study.db"
            StudyFile(path, space).sync(records[:2])
            path.chmod(0o444)
            os.chmod(folder, 0o555)
            if os.geteuid() == 0:
                os.seteuid(65534)
            file = StudyFile(path, space)
            file.sync(records[:2])
            print("right as it is")
            file.sync(records)
            file.add(records[-1])
            if os.getuid() == 0:
                os.seteuid(0)
            os.chmod(folder, 0o755)
    """
    first, second = in_another_process(tmp_path, space, some_records(), code).splitlines()
    assert first == "right as it is"
    assert second.startswith("mixtune.tuning WARNING ")


def test_nothing_is_said_on_the_terminal(tmp_path: Path, space: Any) -> None:
    code = """
        logging.getLogger().setLevel(logging.INFO)
        path.write_bytes(b"garbage")
        file.sync(records[:-1])
        file.add(records[-1])
    """
    assert in_another_process(tmp_path, space, some_records(), code) == ""


def test_optunas_command_reads_it(tmp_path: Path, space: Any) -> None:
    path, records = tmp_path / "study.db", some_records()
    StudyFile(path, space).sync(records)

    def ask(command: str, *arguments: str) -> Any:
        line = [sys.executable, "-m", "optuna.cli", command, "--storage", f"sqlite:///{path}", "-f", "json", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout)

    assert [study["name"] for study in ask("studies")] == [STUDY_NAME]
    trials = ask("trials", "--study-name", STUDY_NAME)
    assert [trial["user_attrs_trial"] for trial in trials] == [r.trial for r in records]
    assert [trial["state"] for trial in trials] == [STATES[r.state].name for r in records]
