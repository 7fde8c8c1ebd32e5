"""The ledger: what a search asked and what came back, one JSON object a line, append-only.

Everything else in a run directory is derived from it. A line counts once its newline is on the disk; what a
crash leaves after the last newline, or as an unreadable last line, was never acknowledged to anyone: readers
skip it and the next writer moves it to ledger.torn. A line that is damaged does not count, and costs no other one.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mixtune.errors import RequestError
from mixtune.files import open_regular, read_regular
from mixtune.meter.times import StepTimes
from mixtune.run.events import why_wrong
from mixtune.run.lines import DAMAGED, Lines, read_lines, seal, with_printable_text
from mixtune.run.predictions import HeldOut

_STATE_AFTER = {
    "complete": "complete",
    "baseline": "complete",
    "stopped": "stopped",
    "rejected": "rejected",
    "known": "known",
    "failed": "failed",
}
_OF_A_TRIAL = {"asked", "started", "epoch", "paused", "continued", "retried", "brought", *_STATE_AFTER}
_ASKING = {"asked", "known", "rejected"}
ENDED = frozenset(_STATE_AFTER.values())
AT_REST = ENDED | {"paused"}  # a trial that nothing waits for
MAX_BYTES = 2**30  # of a ledger that is read
_TOLD = 3  # damaged lines that are named
_log = logging.getLogger("mixtune")
COUNTED = frozenset({"complete", "stopped", "failed"})  # in a search's budget


class Ledger:
    """The one writer of a ledger file. The folder must exist; the file appears with the first line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._before: Lines | None = None  # what the file holds, as long as it is known to be whole

    def append(self, event: str, *, durable: bool = True, **fields: Any) -> dict[str, Any]:
        """Write one line and return its event, as a reader will see it, once it is on the disk.

        ``time`` (unix seconds) is added if not given. durable: whether the line must outlive a power cut by itself;
        else it does so with the next line that must, and outlives the end of this process in any case.
        Raises ValueError for a NaN or an infinity (see ``finite_or_none``) and for what the table of events denies, and
        TypeError for what is not JSON; neither writes anything. After an OSError (a full disk) the next call first cuts
        off what was left. Raises RequestError where the file is a link or no file at all.
        """
        content = {"event": event, "time": time.time(), **fields}
        text = json.dumps(content, allow_nan=False)
        written = with_printable_text(json.loads(text), text.encode())
        if wrong := why_wrong(written):
            raise ValueError(f"{event}: {wrong}")
        before = self._before or _cut_torn_line(self.path)
        self._before = None
        line = seal(written, before)
        is_new = not self.path.exists()
        with _open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            file.write(line + b"\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if is_new:
            _sync_folder(self.path.parent)
        self._before = before.followed_by(line)
        return written


@dataclass
class TrialRecord:
    """What the ledger says of one trial or baseline; times are unix seconds, None where not reached.

    ``state`` is asked, running, paused, complete, stopped, rejected, known or failed; a paused one is left where a
    stage of it ended, as long as others promise more: ``left`` has the epochs and the seconds of training steps of its
    earlier attempts; a known one's recipe is that of the trial
    ``same_as``, and is not trained; ``cause`` is what made a failed one fail, "permanent" where it is the recipe.
    ``metrics`` are those of the ending
    event, before that of the latest epoch. ``epochs`` holds each epoch's metrics once, the latest report of
    it. ``started_time`` is the latest start, so that ended - started is the wall time of the last attempt.
    ``crashes`` counts attempts that ended so and were made again; ``gpus`` is the fraction of a GPU that the next one
    gets, where it is not the search's; ``sampler`` is what the sampler wants to find with its trial again.
    ``follows`` is the earlier trial whose path through the stage tree this one's begins with, and for how many epochs;
    None where there is none. ``stored`` are the keys of its checkpoints by how many epochs are behind them, the latest
    last, and ``nodes`` the addresses of the nodes that have them, where that is not the run directory; ``stage`` the
    key of what it has trained in all, once it has ended; ``begun_time`` is its first start; ``losses`` counts attempts
    in a row whose node was lost. ``predictions`` are the classes that it gives the images of which ``validation`` is
    the digest, by task (see mixtune.run.predictions), once it is complete. ``forecast_s`` are the seconds of its
    training steps as forecast when it was asked, ``epochs_asked`` its recipe's epochs; ``epoch_time`` is when the last
    attempt's latest epoch was reported, and ``reused`` with how many epochs that attempt began. ``given`` counts how
    often its recipe came from ``search.first`` or ``--try``. ``steps`` are how many steps of each cost signature a
    complete one has, in all phases together.
    """

    trial: str
    state: str = "asked"
    reason: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    baseline: str | None = None
    asked_time: float | None = None
    started_time: float | None = None
    ended_time: float | None = None
    crashes: int = 0
    gpus: float | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    follows: tuple[str, int] | None = None
    stored: dict[int, str] = field(default_factory=dict)
    nodes: dict[int, str] = field(default_factory=dict)
    losses: int = 0
    begun_time: float | None = None
    stage: str | None = None
    validation: str | None = None
    predictions: dict[str, str] = field(default_factory=dict)
    forecast_s: float | None = None
    epochs_asked: int | None = None
    epoch_time: float | None = None
    reused: int = 0
    left: tuple[int, float] = (0, 0.0)
    same_as: str | None = None
    cause: str | None = None
    given: int = 0
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def wall_s(self) -> float | None:
        """Seconds from the last attempt's start to its end, None for a trial that never started or has not ended."""
        if self.started_time is None or self.ended_time is None:
            return None
        return self.ended_time - self.started_time


@dataclass
class RunState:
    """What a ledger's events come to; ``apply`` takes one more.

    records: each trial's and baseline's, in the order in which they first appear; budget: how many trials may end, if
    the search was extended; waited_s: for which slots had nothing to do but wait for a stage; confirmed, opened: these
    events; held_out: the images that accuracies are of, by digest; device: what step times are of; last_time: of the
    latest event, unix seconds; exhausted: why nothing is left to try, None where something may be; converged: the event
    of a search that its ``search.stop`` ended, None where it was extended since; converged_after: how many trials had
    ended by the latest such event, 0 without one; memory: what the sampler remembers; given: parameters of the recipes
    of ``--try``; learned: results of other runs, by where they are from, as records whose state is "learned"; sources:
    what was copied in full, by its name in ``search.learn_from``; edited: what space.yaml holds since it was edited
    last, and before_edit how many records there were then; None and 0 where it never was; varied: the dotted paths that
    the spaces before its edits varied, None where an older version did not note them; documents: all that space.yaml
    held, the present one last, as far as it was noted; damaged: places in the file that do not count (see
    mixtune.run.lines), and unasked the trials that were asked for in one of them.
    """

    records: dict[str, TrialRecord] = field(default_factory=dict)
    step_times: StepTimes = field(default_factory=StepTimes)
    budget: int | None = None
    waited_s: float = 0.0
    confirmed: list[Mapping[str, Any]] = field(default_factory=list)
    opened: list[Mapping[str, Any]] = field(default_factory=list)
    held_out: dict[str, HeldOut] = field(default_factory=dict)
    device: str | None = None
    last_time: float | None = None
    exhausted: str | None = None
    converged: Mapping[str, Any] | None = None
    converged_after: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    given: list[Mapping[str, Any]] = field(default_factory=list)
    learned: dict[str, TrialRecord] = field(default_factory=dict)
    sources: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    edited: Mapping[str, Any] | None = None
    documents: list[Mapping[str, Any]] = field(default_factory=list)
    before_edit: int = 0
    varied: frozenset[str] | None = frozenset()
    damaged: list[Mapping[str, Any]] = field(default_factory=list)
    unasked: set[str] = field(default_factory=set)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Fold one more event in; the first ending of a trial counts, a later one only after ``retried``."""
        kind = event["event"]
        self.last_time = event.get("time", self.last_time)
        self.memory = (event.get("sampler") or {}).get("memory", self.memory)
        if kind == DAMAGED:
            self.damaged.append(event)
        elif kind in _OF_A_TRIAL and event.get("trial") is not None:
            trial = str(event["trial"])
            if self.damaged and trial not in self.records and kind not in _ASKING:
                self.unasked.add(trial)  # nobody knows its recipe
            else:
                _apply(self.records.setdefault(trial, TrialRecord(trial)), event)
        elif kind == "extended":
            self.budget, self.exhausted, self.converged = int(event["trials"]), None, None
        elif kind == "exhausted":
            self.exhausted = str(event["reason"])
        elif kind == "converged":
            self.converged, self.converged_after = event, int(event["trials"])
        elif kind == "given":
            self.given, self.exhausted = [*self.given, *event["recipes"]], None
        elif kind == "edited":
            self._edit(event)
        elif kind == "learned" and event.get("source") is not None:
            self.sources[event["source"]] = event
        elif kind == "learned" and event.get("from") is not None:
            name = "/".join(event["from"])
            copied = {field: event[field] for field in ("params", "metrics", "epochs")}
            stored = {int(epoch): key for epoch, key in event["stored"].items()}
            self.learned[name] = TrialRecord(name, "learned", stored=stored, **copied)
        elif kind == "waited":
            self.waited_s += float(event["seconds"])
        elif kind == "step_time" and event.get("signature") is not None:  # of the first versions it has none
            add = self.step_times.add_later if event.get("later") else self.step_times.add
            add(event["signature"], float(event["seconds"]), event.get("quiet", True))
            self.step_times.looked_at[event["signature"]] = event.get("time", math.inf)
            self.device = self.device or (event.get("factors") or {}).get("device")
        elif kind == "step_time_fixed":
            self.step_times.fix([event["signature"]])
        elif kind == "confirmed":
            self.confirmed.append(event)
        elif kind == "opened":
            self.opened.append(event)
            self.documents += [event["document"]] if event.get("document") is not None else []
        elif kind == "validation":
            held_out = HeldOut.read(event)
            self.held_out[held_out.digest] = held_out

    def _edit(self, event: Mapping[str, Any]) -> None:
        """Take another space: what the sampler noted of the former one is of no use, and something may be left."""
        self.edited, self.before_edit = event["document"], len(self.records)
        self.documents.append(self.edited)
        varied = event.get("varied")
        self.varied = None if self.varied is None or varied is None else self.varied.union(varied)
        self.budget = event.get("trials", self.budget)
        self.exhausted, self.memory = None, {}
        for name, record in {**self.records, **self.learned}.items():
            record.params, record.sampler = {**record.params, **event["kept"].get(name, {})}, {}


def read_ledger(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return every event of the file in order, without a torn last line; safe while a search writes.

    In place of lines that are damaged, missing or not what the table of events says stands an event ``damaged``.
    Raises RequestError where the file is missing, no regular file or longer than MAX_BYTES.
    """
    path = Path(path)
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise RequestError(f"{path.parent} holds no run: {path.name} is missing") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    return read_lines(data).events


def read_state(path: str | os.PathLike[str]) -> RunState:
    """Return what a ledger's events come to; a line in the log names damage. Raises RequestError, as read_ledger()."""
    state = fold(read_ledger(path))
    if state.damaged:
        _log.warning("%s: %s", path, describe_damage(state))
    return state


def describe_damage(state: RunState) -> str:
    """Return in a line which places of a ledger do not count, and why."""
    lines = [_describe(event) for event in state.damaged[:_TOLD]]
    if more := len(state.damaged) - _TOLD:
        lines += [f"{more} more"] * (more > 0)
    lost = f"; of {', '.join(sorted(state.unasked))} the recipe is not known" if state.unasked else ""
    return f"{', '.join(lines)}: what is damaged does not count{lost}"


def _describe(event: Mapping[str, Any]) -> str:
    last = event["line"] + event["count"] - 1
    if event["count"] > 1:
        return f"lines {event['line']} to {last} are missing"
    return f"line {event['line']} {event['reason']}"


def fold(events: Iterable[Mapping[str, Any]]) -> RunState:
    """Return what events come to; unknown ones are skipped."""
    state = RunState()
    for event in events:
        state.apply(event)
    return state


def finite_or_none(value: Any) -> Any:
    """Return ``value`` fit for a ledger line: NaN and infinities are None, numpy's types plain Python's."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    if hasattr(value, "tolist"):
        return finite_or_none(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _apply(record: TrialRecord, event: Mapping[str, Any]) -> None:
    kind, moment = event["event"], event.get("time")
    record.given += bool(event.get("given"))
    if kind == "retried":
        record.state, record.reason, record.ended_time, record.cause = "asked", event.get("reason"), None, None
        cause = event.get("cause")
        asked_for = cause == "asked for"
        record.crashes = 0 if asked_for else record.crashes + (cause == "crash")
        record.losses = 0 if asked_for else record.losses + (cause == "node lost")
        record.gpus = event.get("gpus_per_trial", record.gpus)
        record.metrics = record.epochs[-1] if record.epochs else {}
    elif kind == "paused":
        record.state, record.metrics = "paused", dict(event.get("metrics") or {})
        epochs, seconds = record.left
        trained_s = (record.metrics.get("train_latency_s") or 0.0) - (record.metrics.get("latency_reused_s") or 0.0)
        record.left = epochs + int(record.metrics.get("epochs_trained") or 0), seconds + trained_s
    elif kind == "continued":
        record.state = "asked"
    elif kind == "brought":  # to the run directory, from the node that had it
        record.nodes.pop(int(event["epoch"]), None)
    elif record.state in ENDED:
        return
    elif kind == "asked":
        record.baseline = event.get("baseline")
        _keep_asked(record, event)
    elif kind == "started":
        record.state, record.started_time = "running", moment
        record.begun_time = moment if record.begun_time is None else record.begun_time
        record.epoch_time, record.reused = None, 0
        if follows := event.get("follows"):
            record.follows = str(follows[0]), int(follows[1])
    elif kind == "epoch":
        record.state, record.metrics = "running", dict(event.get("metrics") or {})
        if record.metrics.get("epoch", 0) > max((epoch.get("epoch") or 0 for epoch in record.epochs), default=0):
            record.losses = 0  # it gets on
        _keep_epoch(record.epochs, record.metrics)
        record.epoch_time, record.reused = moment, int(event.get("reused") or record.reused)
        if "state" in event:
            epoch = int(record.metrics["epoch"])
            record.stored[epoch] = str(event["state"])
            record.nodes.pop(epoch, None)
            if event.get("node") is not None:
                record.nodes[epoch] = str(event["node"])
    else:
        record.state, record.reason, record.ended_time = _STATE_AFTER[kind], event.get("reason"), moment
        record.metrics = dict(event.get("metrics") or {})
        # a search of 22a46e9 told the key with the last epoch alone
        record.validation, record.predictions = event.get("validation"), dict(event.get("predictions") or {})
        record.stage = event.get("stage", record.stored.get(record.metrics.get("epoch", 0)))
        record.cause = event.get("cause")
        record.steps = {s: n for of_phase in (event.get("steps") or {}).values() for s, n in of_phase.items()}
        if kind in ("rejected", "known"):
            _keep_asked(record, event)
        if kind == "known":
            record.same_as = str(event["same_as"])
            record.reason = f"the recipe of {record.same_as}"
        if kind == "baseline":
            record.baseline = event.get("method", record.trial)


def _keep_asked(record: TrialRecord, event: Mapping[str, Any]) -> None:
    record.params = dict(event.get("params") or {})
    record.sampler = dict(event.get("sampler") or {})
    record.forecast_s, record.epochs_asked = event.get("forecast_s"), event.get("epochs")
    record.asked_time = event.get("time")


def _keep_epoch(epochs: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    """Put an epoch in its place; one that was trained again, after a crash, replaces its first report."""
    number = metrics.get("epoch")
    if number is not None and epochs and (epochs[-1].get("epoch") or 0) >= number:
        for i, earlier in enumerate(epochs):
            if (earlier.get("epoch") or 0) >= number:
                epochs[i : i + (earlier.get("epoch") == number)] = [metrics]
                return
    epochs.append(metrics)


def _open(path: Path, flags: int) -> IO[bytes]:
    """Open a ledger to write. Raises RequestError where it is a link or no file, else OSError."""
    try:
        return os.fdopen(open_regular(path, flags), "ab" if flags & os.O_APPEND else "r+b")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO):
            raise RequestError(f"{path} cannot be written: {error.strerror}") from error
        raise


def _cut_torn_line(path: Path) -> Lines:
    """Move what was never acknowledged from a ledger's end to ledger.torn; return what the file holds then."""
    try:
        file = _open(path, os.O_RDWR)
    except FileNotFoundError:
        return Lines()
    with file:
        data = file.read()
        found = read_lines(data)
        if torn := data[found.size :]:
            kept = path.with_suffix(".torn")
            with _open(kept, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as aside:
                aside.write(torn + b"\n")
            file.truncate(found.size)
            os.fsync(file.fileno())
            _log.warning("%s: %d bytes of a line that was never finished are moved to %s", path, len(torn), kept.name)
    return found


def _sync_folder(folder: Path) -> None:
    """Make a new file's name survive a power cut: on POSIX it belongs to the folder, not to the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
