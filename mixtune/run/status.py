"""Where a run stands, read from its directory: what is done, what failed and why, and how to go on."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixtune.errors import RequestError
from mixtune.metrics import duration, quantity
from mixtune.run.accounting import Account, account
from mixtune.run.directory import read_space
from mixtune.run.frames import plain, trial_frame
from mixtune.run.front import pareto_front
from mixtune.run.ledger import (
    COUNTED,
    ENDED,
    TrialRecord,
    extended_budget,
    read_ledger,
    trial_states,
    waited_seconds,
)
from mixtune.space.constraints import Constraint
from mixtune.space.distributions import parse_distribution

Event = Mapping[str, Any]
MORE_TRIALS = 20  # suggested for a finished search
_IDS_SHOWN = 3
_STATE_FILES = "*.state"


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

    ``state``: running while somebody drives it (``holder``), else finished when as many trials have ended as the
    ``budget`` says and nothing is unfinished, else interrupted; trials that began or wait are "unfinished" where
    nobody drives them.
    ``last_event``: unix seconds; ``wall_s``: seconds from start to end, of all ended trials and baselines together;
    ``train_latency_s``: their sum of it; ``account``: what of it was trained; ``stages_mb``: of all files
    in stages/, ``stages``: how many are states; ``confirmed``: how many seeds, by trial; ``extend_to``: a larger
    budget to suggest, None where a grid has no more.
    """

    directory: Path
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

    @property
    def done(self) -> int:
        """How many trials of the budget have ended."""
        return sum(self.trials.get(state, 0) for state in COUNTED)

    def commands(self) -> list[str]:
        """Return the commands that go on from here; none while the run goes on by itself."""
        name = shlex.quote(str(self.directory))
        if self.state == "running":
            return []
        if self.state == "interrupted":
            return [f"mixtune resume {name}"]
        extend = [] if self.extend_to is None else [f"mixtune resume {name} --trials {self.extend_to}"]
        return [*extend, f"mixtune confirm {name}"] if self.front else extend

    def lines(self) -> list[str]:
        """Return it all as lines for a terminal."""
        by = f" ({self.holder})" if self.holder else ""
        lines = [f"{self.directory}: {self.state}{by}, {self.done} of {self.budget} trials done"]
        counts = {"trials": self.trials, "baselines": self.baselines}
        lines += [f"{kind}: {_counted(found)}" for kind, found in counts.items() if found]
        if self.front:
            lines.append(f"front: {_number(self.front, 'member')}")
        lines += [
            f"best {name}: {quantity(name).text(best.value, best.error)} ({best.trial})"
            for name, best in self.best.items()
        ]
        lines += [f"failed: {len(f.trials)} x {f.reason} ({_listed(f.trials)})" for f in self.failures]
        if self.confirmed:
            lines.append(f"confirmed: {_seeds(self.confirmed)}")
        if self.wall_s:
            training = duration(self.train_latency_s)
            lines.append(f"ended trials took {duration(self.wall_s)}; training time of their recipes: {training}")
        if self.account.epochs_asked:
            lines.append(str(self.account))
        if self.stages_mb:
            lines.append(f"stages: {_number(self.stages, 'state')}, {self.stages_mb:,.1f} MB")
        if self.last_event is not None:
            lines.append(f"last event: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.last_event))}")
        return lines + [f"go on: {command}" for command in self.commands()]


def run_status(directory: Path, holder: str | None) -> RunStatus:
    """Return where a run stands; ``holder`` says who drives it now, None for nobody (``mixtune.run.lock.holder``).

    Raises RequestError where the directory holds no run, and where its space.yaml or its ledger is damaged.
    """
    directory = Path(directory)
    space = read_space(directory)
    ledger = directory / "ledger.jsonl"
    events = read_ledger(ledger) if ledger.exists() else []  # it comes with the first trial
    records = list(trial_states(events).values())
    trials = [record for record in records if record.baseline is None]
    baselines = [record for record in records if record.baseline is not None]
    counts = _count(trials, holder)
    budget = extended_budget(events, _asked_budget(directory, space))
    done = sum(counts.get(state, 0) for state in COUNTED)
    front, best = _front(trials, space["objectives"], space["constraints"])
    ended = [record for record in records if record.state in ENDED]
    stages, stages_mb = _measure_stages(directory / "stages")
    return RunStatus(
        directory=directory,
        state="running" if holder else "finished" if done >= budget and len(ended) == len(records) else "interrupted",
        holder=holder,
        budget=budget,
        extend_to=_more_trials(space, budget),
        trials=counts,
        baselines=_count(baselines, holder),
        front=front,
        best=best,
        failures=_group_failures(records),
        last_event=events[-1].get("time") if events else None,
        wall_s=sum(_wall_s(record) for record in ended),
        train_latency_s=sum(r.metrics.get("train_latency_s") or 0.0 for r in ended),
        account=account(ended, waited_seconds(events)),
        stages=stages,
        stages_mb=stages_mb,
        confirmed=_count_confirmed(events),
    )


def _asked_budget(directory: Path, space: Mapping[str, Any]) -> int:
    search = space.get("search")
    budget = search.get("trials") if isinstance(search, dict) else None
    if not isinstance(budget, int):
        raise RequestError(f"{directory / 'space.yaml'}: search.trials should be a number of trials, got {budget!r}")
    return budget


def _more_trials(space: Mapping[str, Any], budget: int) -> int | None:
    """Return what the budget may be extended to, or None where a grid is asked for in full."""
    if space["search"].get("sampler") != "grid":
        return budget + MORE_TRIALS
    size = math.prod(len(parse_distribution(given).grid() or ()) for given in space["space"].values())
    return min(budget + MORE_TRIALS, size) if budget < size else None


def _count(records: Iterable[TrialRecord], holder: str | None) -> dict[str, int]:
    states = Counter(r.state if holder or r.state in ENDED else "unfinished" for r in records)
    order = ("complete", "stopped", "failed", "rejected", "running", "asked", "unfinished")
    return {state: states[state] for state in order if states[state]}


def _front(
    trials: Iterable[TrialRecord], objectives: Mapping[str, str], constraints: Mapping[str, Constraint]
) -> tuple[int, dict[str, Best]]:
    """Return how many trials that keep the constraints no other dominates, and the best of each objective."""
    feasible = (r for r in trials if r.state == "complete" and _keeps(r, constraints))
    members = pareto_front(trial_frame(feasible, (), objectives, ["trial"]), objectives)
    best = {}
    for name, mode in objectives.items() if len(members) else ():
        row = members.sort_values(name, ascending=mode == "min", kind="stable").iloc[0]
        best[name] = Best(str(row["trial"]), float(row[name]), plain(row.get(f"{name}_se")))
    return len(members), best


def _keeps(record: TrialRecord, constraints: Mapping[str, Constraint]) -> bool:
    values = {name: record.metrics.get(name) for name in constraints}
    return all(value is not None and constraints[name].holds(value) for name, value in values.items())


def _wall_s(record: TrialRecord) -> float:
    """Return seconds; 0 for a trial that never started, as a rejected one."""
    if record.started_time is None or record.ended_time is None:
        return 0.0
    return record.ended_time - record.started_time


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


def _count_confirmed(events: Iterable[Event]) -> dict[str, int]:
    """Return how many seeds each trial was confirmed with; one that was trained again counts once."""
    seeds: dict[str, set[Any]] = {}
    for event in events:
        if event["event"] == "confirmed" and event.get("trial") is not None:
            seeds.setdefault(str(event["trial"]), set()).add(event.get("seed"))
    return {trial: len(known) for trial, known in seeds.items()}


def _measure_stages(folder: Path) -> tuple[int, float]:
    """Return how many states are stored, and the megabytes of all files; a search may remove some meanwhile."""
    total = 0
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
    return sum(1 for _ in folder.glob(_STATE_FILES)), total / 1e6


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _listed(trials: Sequence[str]) -> str:
    return ", ".join(trials[:_IDS_SHOWN]) + (", ..." if len(trials) > _IDS_SHOWN else "")


def _seeds(confirmed: Mapping[str, int]) -> str:
    few, many = min(confirmed.values()), max(confirmed.values())
    seeds = f"{few} to {many} seeds" if few < many else _number(many, "seed")
    return f"{_number(len(confirmed), 'trial')} with {seeds} each"


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
