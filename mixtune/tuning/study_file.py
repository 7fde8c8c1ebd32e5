"""DIR/study.db: the search's trials as an Optuna study in SQLite, for optuna-dashboard and the ``optuna`` command.

It is a copy of the study that the search holds, with the baselines and the first score's value after each epoch, and
nothing reads it back: whatever is wrong with it, the next copy replaces it. A trial's name in the ledger is its user
attribute ``trial``; Optuna's own numbers count differently. While the search runs, trials are added as they end, as far
as that takes a hundredth of its time; the rest follow at its end.
"""

from __future__ import annotations

import copy
import logging
import math
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, Pool, StaticPool

from mixtune.errors import DataError, one_line
from mixtune.files import write_whole
from mixtune.metrics import learned_scores, metric_value
from mixtune.run.ledger import TrialRecord

MAX_POINTS = 20  # of a trial's curve, or a few more: Optuna stores each by a query of its own
SHARE = 0.01  # of a search's time, for the trials that are added while it runs

# what SQLite, SQLAlchemy and Optuna raise for a file that is damaged, read-only or on a full disk
UNUSABLE = (DataError, OSError, sqlite3.Error, SQLAlchemyError, optuna.exceptions.OptunaError, KeyError, ValueError)

_log = logging.getLogger("mixtune.tuning")


class StudyFile:
    """The file of a study; where it cannot be written, one warning says so, and the search continues without it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._name = self.path.parent.name  # the run's
        self._file: optuna.Study | None = None
        self._held: set[str] = set()
        self._began, self._took, self._warned = time.monotonic(), 0.0, False

    def copy(self, study: optuna.Study, records: Mapping[str, TrialRecord]) -> None:
        """Put a copy of a study's ended trials in the place of whatever is there."""
        self._file = None
        try:
            with closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
                storage = storage_on(lambda: memory, StaticPool, skip_table_creation=False)
                copied = optuna.create_study(study_name=self._name, storage=storage, directions=study.directions)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    copied.set_metric_names(study.metric_names or [])
                ended = _ended(study, records)
                copied.add_trials(ended.values())
                content = memory.serialize()
                storage.engine.dispose()
            for suffix in ("-journal", "-wal", "-shm"):  # of the old file: SQLite would play them into the new one
                self.path.with_name(f"{self.path.name}{suffix}").unlink(missing_ok=True)
            write_whole(self.path, content)
            self._held = set(ended)
            self._file = optuna.load_study(
                study_name=self._name, storage=storage_on(self._connect, NullPool, skip_table_creation=True)
            )
        except UNUSABLE as error:
            self._warn(error)

    def add(self, study: optuna.Study, records: Mapping[str, TrialRecord]) -> None:
        """Add one ended trial that is not there yet, while that takes a small share of the search's time."""
        started = time.monotonic()
        if self._took <= SHARE * (started - self._began):
            self._add_missing(study, records, most=1)
        self._took += time.monotonic() - started

    def close(self, study: optuna.Study, records: Mapping[str, TrialRecord]) -> None:
        """Add whatever is missing; a file that cannot be added to is copied again."""
        self._add_missing(study, records)
        if self._file is None:
            self.copy(study, records)

    def _add_missing(self, study: optuna.Study, records: Mapping[str, TrialRecord], most: int | None = None) -> None:
        if self._file is None:
            return
        missing = [(name, trial) for name, trial in _ended(study, records).items() if name not in self._held]
        try:
            for name, trial in missing[:most]:
                self._file.add_trial(trial)
                self._held.add(name)
        except UNUSABLE as error:
            self._file = None
            self._warn(error)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True)
        connection.execute("PRAGMA synchronous = OFF")  # what a power cut damages is copied again
        return connection

    def _warn(self, error: BaseException) -> None:
        if not self._warned:
            _log.warning("%s is not up to date: %s; the search continues without it", self.path, one_line(error))
        self._warned = True


def _ended(study: optuna.Study, records: Mapping[str, TrialRecord]) -> dict[str, FrozenTrial]:
    """Return the ended trials and baselines by their names in the ledger, in the order in which they ended there."""
    trials = (trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    named = {str(trial.user_attrs["trial"]): trial for trial in trials}
    found = {name: copy.copy(trial) for name, trial in named.items() if name in records}  # without what was learned
    names = study.metric_names or []
    for record in records.values():
        if record.baseline is not None and record.state == "complete":
            values = [metric_value(record.metrics, name) for name in names]
            attributes = {"trial": record.trial, "baseline": record.baseline, "state": record.state}
            found[record.trial] = optuna.trial.create_trial(values=values, user_attrs=attributes)
    score = next((name for name in names if name in learned_scores()), None)
    for name, trial in found.items():
        record = records[name]
        ended = record.ended_time or record.asked_time or 0.0  # the study in memory has the times of this process
        trial.datetime_start = datetime.fromtimestamp(record.started_time or record.asked_time or ended)
        trial.datetime_complete = datetime.fromtimestamp(ended)
        epochs = record.epochs if score is not None else ()
        curve = {int(epoch["epoch"]): metric_value(epoch, str(score)) for epoch in epochs}
        known = [(epoch, value) for epoch, value in curve.items() if math.isfinite(value)]
        trial.intermediate_values = dict(known[:: -max(1, len(known) // MAX_POINTS)][::-1])  # the last among them
    return dict(sorted(found.items(), key=lambda pair: records[pair[0]].ended_time or 0.0))


def storage_on(
    connect: Callable[[], sqlite3.Connection], pool: type[Pool], *, skip_table_creation: bool
) -> optuna.storages.RDBStorage:
    """Return Optuna's storage on a connection of ours: in an URL, ``{``, ``%`` and ``?`` of a path would be read."""
    return optuna.storages.RDBStorage(
        "sqlite://",
        engine_kwargs={"creator": connect, "poolclass": pool},
        skip_table_creation=skip_table_creation,
    )
