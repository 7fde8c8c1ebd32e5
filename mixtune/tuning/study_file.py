"""DIR/study.db: the search's trials as an Optuna study in SQLite, for optuna-dashboard and the ``optuna`` command.

It is derived from the ledger and nothing reads it back: whatever is wrong with it, it is built anew.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, Pool, StaticPool

from mixtune._version import __version__
from mixtune.errors import DataError, one_line
from mixtune.files import write_whole
from mixtune.run.ledger import ENDED, TrialRecord
from mixtune.space.space import SearchSpace
from mixtune.tuning.suggestions import encode, to_optuna

STUDY_NAME = "mixtune"
_MARK = "mixtune"  # a user attribute of every study of ours: the version that built it
_STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "rejected": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}

# a file that cannot be read or written
_UNUSABLE = (OSError, sqlite3.Error, SQLAlchemyError, optuna.exceptions.StorageInternalError)
# what Optuna raises on reading a file whose content it did not write
_DAMAGED = (*_UNUSABLE, AssertionError, LookupError, RuntimeError, TypeError, ValueError)

_log = logging.getLogger("mixtune.tuning")


class StudyFile:
    """An Optuna study of a search's ended trials; baselines are not in it.

    It is a convenience: where it cannot be read or written, one warning is logged, add() does nothing more, and the
    next sync() tries again. A trial's user attributes are ``trial`` (our id), ``state`` (our word), ``reason``, its
    finite metrics, and those of its parameters that the space does not hold.
    """

    def __init__(self, path: str | os.PathLike[str], space: SearchSpace) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.path = Path(path).absolute()
        better = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
        self._space = space
        self._goals = {name: better[direction] for name, direction in space.objectives.items()}
        self._distributions = {name: to_optuna(d) for name, d in space.space.items()}
        self._study: optuna.Study | None = None
        self._held: set[str] = set()
        self._gave_up = self._warned = False

    def add(self, record: TrialRecord) -> None:
        """Append one ended trial; one that the file holds already is left to sync()."""
        if self._gave_up or not _belongs(record):
            return
        trial = self._to_trial(record)
        with self._one_warning():
            if self._study is None and self._read() is None:
                self._build([])
            self._append(trial)

    def sync(self, records: Iterable[TrialRecord]) -> None:
        """Make the file hold the ended trials among ``records`` and nothing else; a right file is not touched."""
        ended = sorted(filter(_belongs, records), key=lambda record: record.ended_time or 0.0)
        wanted = {record.trial: self._to_trial(record) for record in ended}
        self._gave_up = False
        with self._one_warning():
            held = self._read()
            if held is None or not _is_part(held, wanted) or not self._takes(wanted.values()):
                self._build(wanted.values())

    @contextmanager
    def _one_warning(self) -> Iterator[None]:
        try:
            yield
        except (DataError, *_UNUSABLE) as error:
            self._gave_up, self._study = True, None
            if not self._warned:
                _log.warning("%s is not up to date: %s; the search goes on without it", self.path, one_line(error))
            self._warned = True

    def _read(self) -> list[FrozenTrial] | None:
        """Open the file and return its trials, or None where it is missing, damaged or not of this search."""
        self._study = None
        if not self.path.exists():
            return None
        try:
            _check_pages(self.path)
            study = self._load()
            trials = study.get_trials(deepcopy=False)
            aims_alike = (study.metric_names, study.directions) == (list(self._goals), list(self._goals.values()))
            is_ours = _MARK in study.user_attrs and aims_alike
        except _DAMAGED:
            return None
        if not is_ours:
            return None
        self._keep(study, trials)
        return trials

    def _build(self, trials: Iterable[FrozenTrial]) -> None:
        """Put a new file in the place of whatever is there."""
        content = self._content(trials)
        for suffix in ("-journal", "-wal", "-shm"):  # of the old file: SQLite would play them into the new one
            self.path.with_name(f"{self.path.name}{suffix}").unlink(missing_ok=True)
        write_whole(self.path, content)
        study = self._load()
        self._keep(study, study.get_trials(deepcopy=False))

    def _content(self, trials: Iterable[FrozenTrial]) -> bytes:
        """Return the bytes of a file that holds the trials."""
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
            storage = _storage(lambda: memory, StaticPool, skip_table_creation=False)
            try:
                study = optuna.create_study(
                    study_name=STUDY_NAME,
                    storage=storage,
                    directions=list(self._goals.values()),
                    sampler=optuna.samplers.RandomSampler(),
                )
                study.set_user_attr(_MARK, __version__)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    study.set_metric_names(list(self._goals))
                study.add_trials(trials)
                return memory.serialize()
            finally:
                storage.engine.dispose()

    def _load(self) -> optuna.Study:
        storage = _storage(lambda: _connect(self.path), NullPool, skip_table_creation=True)
        return optuna.load_study(study_name=STUDY_NAME, storage=storage, sampler=optuna.samplers.RandomSampler())

    def _keep(self, study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
        self._study, self._held = study, {_name(trial) for trial in trials}

    def _takes(self, trials: Iterable[FrozenTrial]) -> bool:
        """Append what the file lacks, and return whether it took it: what it should not hold may be in the way."""
        try:
            for trial in trials:
                self._append(trial)
        except _UNUSABLE:
            return False
        return True

    def _append(self, trial: FrozenTrial) -> None:
        assert self._study is not None
        if _name(trial) in self._held:
            return
        try:
            self._study.add_trial(trial)
        except _DAMAGED as error:  # Optuna reads an earlier trial's distributions
            raise sqlite3.DatabaseError(one_line(error)) from error
        self._held.add(_name(trial))

    def _to_trial(self, record: TrialRecord) -> FrozenTrial:
        """Return Optuna's form of an ended trial."""
        state = _STATES[record.state]
        metrics = {name: value for name, value in record.metrics.items() if _is_finite(value)}
        if state is TrialState.COMPLETE and not self._goals.keys() <= metrics.keys():
            state = TrialState.FAIL  # an objective that this trial was not asked for: the space was edited
        held = {path: encode(value) for path, value in record.params.items() if self._holds(path, value)}
        trial = optuna.trial.create_trial(
            state=state,
            values=[float(metrics[name]) for name in self._goals] if state is TrialState.COMPLETE else None,
            params=held,
            distributions={path: self._distributions[path] for path in held},
            user_attrs={
                **{path: value for path, value in record.params.items() if path not in held},
                **metrics,
                "trial": record.trial,
                "state": record.state,
                **({"reason": record.reason} if record.reason else {}),
            },
            constraints=self._violations(metrics) if record.state in ("complete", "rejected") else None,
        )
        ended = record.ended_time or record.started_time or 0.0
        trial.datetime_start = datetime.fromtimestamp(record.started_time or record.asked_time or ended)
        trial.datetime_complete = datetime.fromtimestamp(ended)
        return trial

    def _violations(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Return how far past its bounds a trial's whole recipe is, or would be, each in its metric's unit."""
        bounded = {name: bound for name, bound in self._space.constraints.items() if name in metrics}
        return {name: bound.violation(metrics[name]) for name, bound in bounded.items()}

    def _holds(self, path: str, value: Any) -> bool:
        """Return whether the space has a parameter; it may have been edited since the trial was asked."""
        if path not in self._distributions or not self._space.space[path].contains(value):
            return False
        params, distributions = {path: encode(value)}, {path: self._distributions[path]}
        try:  # Optuna allows less rounding than we do in what is a multiple of a step
            optuna.trial.create_trial(state=TrialState.FAIL, params=params, distributions=distributions)
        except ValueError:
            return False
        return True


def _belongs(record: TrialRecord) -> bool:
    return record.state in ENDED and record.baseline is None


def _is_part(held: list[FrozenTrial], wanted: dict[str, FrozenTrial]) -> bool:
    """Return whether every trial that is held is a wanted one, as it is wanted, and there once, in unbroken numbers."""
    names = {_name(trial) for trial in held}
    numbered = [trial.number for trial in held] == list(range(len(names)))
    return numbered and names <= wanted.keys() and all(_agree(trial, wanted[_name(trial)]) for trial in held)


def _agree(held: FrozenTrial, wanted: FrozenTrial) -> bool:
    """Return whether two trials say the same; attributes that others added, such as a note, may stay."""
    return (
        held.state == wanted.state
        and held.values == wanted.values
        and held.params == wanted.params
        and held.distributions == wanted.distributions
        and held.user_attrs == held.user_attrs | wanted.user_attrs
        and held.system_attrs == held.system_attrs | wanted.system_attrs
    )


def _name(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("trial"))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _storage(
    connect: Callable[[], sqlite3.Connection], pool: type[Pool], *, skip_table_creation: bool
) -> optuna.storages.RDBStorage:
    """Return Optuna's storage on a connection of ours: in an URL, ``{``, ``%`` and ``?`` of a path would be read."""
    storage = optuna.storages.RDBStorage(
        "sqlite://",
        engine_kwargs={"creator": connect, "poolclass": pool},
        skip_table_creation=skip_table_creation,
    )
    event.listen(storage.engine, "handle_error", _fail_at_once)
    return storage


def _fail_at_once(context: ExceptionContext) -> None:
    """Raise SQLite's own error: on SQLAlchemy's, Optuna sleeps and tries again, some 4 s in all on a full disk."""
    raise context.original_exception


def _connect(path: Path) -> sqlite3.Connection:
    """Open an existing file."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)
    connection.execute("PRAGMA synchronous = OFF")  # what a power cut damages is built anew
    return connection


def _check_pages(path: Path) -> None:
    """Raise sqlite3.DatabaseError where SQLite finds damage."""
    with closing(_connect(path)) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != ("ok",):
        raise sqlite3.DatabaseError(found)
