"""Where a run stands, read from its directory: what is done, what failed and why, and how to continue."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mixtune.metrics import counted, duration, find_metric
from mixtune.run.accounting import Account, paused_note
from mixtune.run.directory import RunDirectory
from mixtune.run.frames import plain
from mixtune.run.ledger import AT_REST, COUNTED, ENDED, TrialRecord
from mixtune.run.recommendation import Recommendation
from mixtune.run.remaining import ended_early, time_left, wanted_trials
from mixtune.run.result import Result
from mixtune.space.foreign import to_train
from mixtune.space.space import SearchSpace

MORE_TRIALS = 20  # suggested for a finished search
_IDS_SHOWN = 3


@dataclass(frozen=True)
class Best:
    """The complete trial that is best in an objective; value and standard error in the metric's own unit."""

    trial: str
    value: float
    error: float | None


@dataclass(frozen=True)
class Failure:
    """Failures that differ in numbers alone: the first one's reason, and the trials and baselines, in order."""

    reason: str
    trials: tuple[str, ...]


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands; trials and baselines are counted apart, by state.

    ``to_train``: the folder as the arguments of a command that trains; ``state``: running while somebody drives it
    (``holder``), else finished when as many trials have ended as the ``budget`` says, or it ended ``early``, for this
    reason, and nothing is unfinished, else interrupted; trials that began or wait are "unfinished" where nobody drives
    them. ``last_event``: unix seconds; ``wall_s``: seconds from start to end, of all ended trials and baselines
    together; ``train_latency_s``: their sum of it; ``account``: what of it was trained; ``stages_mb``: of all files in
    stages/, ``stages``: how many are states; ``confirmed``: how many seeds, by trial; ``extend_to``: a larger budget to
    suggest, None where a grid has no more; ``recommendation``: by what is known so far; of a search that runs
    ``running`` says how far its trials are, as in "7/30", and ``left_s`` the wall seconds that it will still take, None
    where that is not known.
    """

    directory: Path
    to_train: str
    state: Literal["running", "interrupted", "finished"]
    holder: str | None
    budget: int
    extend_to: int | None
    trials: dict[str, int]
    baselines: dict[str, int]
    front: int
    best: dict[str, Best]
    failures: tuple[Failure, ...]
    last_event: float | None
    wall_s: float
    train_latency_s: float
    account: Account
    stages: int
    stages_mb: float
    confirmed: dict[str, int]
    recommendation: Recommendation
    running: dict[str, str] = field(default_factory=dict)
    left_s: float | None = None
    early: str | None = None

    @property
    def done(self) -> int:
        """How many trials of the budget have ended."""
        return sum(self.trials.get(state, 0) for state in COUNTED)

    def commands(self) -> list[str]:
        """Return the commands that continue from here; none while the run continues by itself."""
        name = self.to_train
        if self.state == "running":
            return []
        if self.state == "interrupted":
            return [f"mixtune resume {name}"]
        return [] if self.extend_to is None else [f"mixtune resume {name} --trials {self.extend_to}"]

    def lines(self) -> list[str]:
        """Return it all as lines for a terminal."""
        by = f" ({self.holder})" if self.holder else ""
        lines = [f"{self.directory}: {self.state}{by}, {self.done} of {self.budget} trials done"]
        lines += [self.early] if self.early else []
        counts = {"trials": self.trials, "baselines": self.baselines}
        lines += [
            f"{kind}: {', '.join(f'{count} {state}' for state, count in found.items())}"
            for kind, found in counts.items()
            if found
        ]
        lines += [f"paused: {note}"] if (note := paused_note(self.trials)) else []
        if self.running:
            epochs = ", ".join(f"{trial} epoch {epoch}" for trial, epoch in self.running.items())
            lines.append(f"running: {epochs}")
        if self.left_s is not None:
            lines.append(f"about {duration(self.left_s)} left")
        if self.front:
            lines.append(f"front: {counted(self.front, 'member')}")
        lines += [
            f"best {find_metric(name).title}: {find_metric(name).text(best.value, best.error)} ({best.trial})"
            for name, best in self.best.items()
        ]
        for failure in self.failures:
            trials = [*failure.trials[:_IDS_SHOWN], *(["..."] if len(failure.trials) > _IDS_SHOWN else [])]
            lines.append(f"failed: {len(failure.trials)} x {failure.reason} ({', '.join(trials)})")
        if self.confirmed:
            few, many = min(self.confirmed.values()), max(self.confirmed.values())
            seeds = f"{few} to {many} seeds" if few < many else counted(many, "seed")
            lines.append(f"confirmed: {counted(len(self.confirmed), 'trial')} with {seeds} each")
        if self.wall_s:
            training = duration(self.train_latency_s)
            lines.append(f"ended trials took {duration(self.wall_s)}; training time of their recipes: {training}")
        if self.account.epochs_asked:
            lines.append(str(self.account))
        if self.stages_mb:
            lines.append(f"stages: {counted(self.stages, 'state')}, {self.stages_mb:,.1f} MB")
        if self.last_event is not None:
            lines.append(f"last event: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.last_event))}")
        lines += [f"continue: {command}" for command in self.commands()]
        return [*lines, *self.recommendation.lines()]


def run_status(result: Result, holder: str | None) -> RunStatus:
    """Return where a run stands; ``holder`` says who drives it now, None for nobody (``mixtune.run.lock.holder``)."""
    records = list(result.records.values())
    trials = [record for record in records if record.baseline is None]
    baselines = [record for record in records if record.baseline is not None]
    counts = _count(trials, holder)
    budget = result.state.budget or result.space.budget
    done = sum(counts.get(state, 0) for state in COUNTED)
    ended = [record for record in records if record.state in ENDED]
    is_met = done >= wanted_trials(result.state, result.space)
    is_left = any(record.state not in AT_REST for record in records)
    stages, stages_mb = _measure_stages(RunDirectory(result.directory).stages)
    seeds: dict[str, set[Any]] = {}  # one that was trained again counts once
    for event in result.state.confirmed:
        if event.get("trial") is not None:
            seeds.setdefault(str(event["trial"]), set()).add(event.get("seed"))
    searches = holder is not None and not holder.startswith("confirm")
    return RunStatus(
        directory=result.directory,
        to_train=to_train(result.directory, result.space),
        state="running" if holder else "finished" if is_met and not is_left else "interrupted",
        holder=holder,
        budget=budget,
        extend_to=_more_trials(result.space, budget),
        trials=counts,
        baselines=_count(baselines, holder),
        front=len(result.pareto_front()),
        best=_best(result),
        failures=_group_failures(records),
        last_event=result.state.last_time,
        wall_s=sum(record.wall_s or 0.0 for record in ended),
        train_latency_s=sum(r.metrics.get("train_latency_s") or 0.0 for r in ended),
        account=result.account(),
        stages=stages,
        stages_mb=stages_mb,
        confirmed={trial: len(known) for trial, known in seeds.items()},
        recommendation=result.recommendation(),
        running={r.trial: _epoch(r) for r in records if r.state == "running"} if searches else {},
        left_s=time_left(result.state, result.space, time.time()).search if searches else None,
        early=ended_early(result.state, result.space),
    )


def _more_trials(space: SearchSpace, budget: int) -> int | None:
    """Return what the budget may be extended to, or None where a grid is requested in full."""
    size = space.grid_size() if space.search.sampler == "grid" else None
    if size is None:
        return budget + MORE_TRIALS
    return min(budget + MORE_TRIALS, size) if budget < size else None


def shown_state(record: TrialRecord, is_driven: bool) -> str:
    """Return a trial's state as it is shown: one that began or waits is "unfinished" where nobody drives the search."""
    return record.state if is_driven or record.state in AT_REST else "unfinished"


def _count(records: Iterable[TrialRecord], holder: str | None) -> dict[str, int]:
    states = Counter(shown_state(record, is_driven=bool(holder)) for record in records)
    order = ("complete", "stopped", "failed", "rejected", "known", "paused", "running", "asked", "unfinished")
    return {state: states[state] for state in order if states[state]}


def _epoch(record: TrialRecord) -> str:
    """Return how many epochs are done, of how many where a search wrote that down."""
    done = str(record.epochs[-1].get("epoch") or 0) if record.epochs else "0"
    return done if record.epochs_asked is None else f"{done}/{record.epochs_asked}"


def _best(result: Result) -> dict[str, Best]:
    """Return the front's best member in each objective."""
    members, best = result.pareto_front(), {}
    for name, mode in result.objectives.items() if len(members) else ():
        row = members.sort_values(name, ascending=mode == "min", kind="stable").iloc[0]
        best[name] = Best(str(row["trial"]), float(row[name]), plain(row.get(f"{name}_se")))
    return best


def _group_failures(records: Iterable[TrialRecord]) -> tuple[Failure, ...]:
    """Return the failures, the most frequent first; a memory's size or a step's number makes no other failure."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state == "failed":
            groups.setdefault(re.sub(r"\d+", "0", record.reason or ""), []).append(record)
    failures = [
        Failure(" ".join((same[0].reason or "no reason given").split()), tuple(r.trial for r in same))
        for same in groups.values()
    ]
    return tuple(sorted(failures, key=lambda failure: -len(failure.trials)))


def _measure_stages(folder: Path) -> tuple[int, float]:
    """Return how many states are stored, and the megabytes of all files; a search may remove some meanwhile."""
    total = 0
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
    return sum(1 for _ in folder.glob("*.state")), total / 1e6
