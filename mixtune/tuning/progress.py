"""Progress of a search: one live line on a terminal, a plain line for each ended trial in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mixtune.ledger import COUNTED, ENDED, TrialRecord
from mixtune.training.report import duration
from mixtune.tuning.state import RunningSearch


class Progress:
    """A context manager whose ``update`` is a search's ``on_change``."""

    def __init__(self, slots: int, console: Console | None = None) -> None:
        self._slots = slots
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._reported: set[str] = set()

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, search: RunningSearch) -> None:
        """Take what has ended before for told."""
        self._reported = {trial for trial, record in search.records.items() if record.state in ENDED}

    def update(self, search: RunningSearch) -> None:
        """Show what changed."""
        for trial, record in search.records.items():
            if record.state in ENDED and trial not in self._reported:
                self._reported.add(trial)
                self._console.print(_ended_line(search, record), highlight=False, markup=False, soft_wrap=True)
        if self._console.is_terminal:
            self._live.update(Text(status_line(search, self._slots, time.time())))


def status_line(search: RunningSearch, slots: int, now: float) -> str:
    """Return counts (running and failed ones with the baselines), the best of the first objective, the time left."""
    records = search.records.values()
    counts = {state: sum(r.state == state for r in records) for state in ("running", "failed", "rejected")}
    parts = [
        f"{search.done}/{search.budget} trials done",
        f"{counts['running']} running",
        f"{counts['failed']} failed",
    ]
    if counts["rejected"]:
        parts.append(f"{counts['rejected']} rejected")
    if best := best_so_far(search):
        parts.append(best)
    left = seconds_left(search, slots, now)
    parts.append("time left: not known yet" if left is None else f"about {duration(left)} left")
    return " · ".join(parts)


def best_so_far(search: RunningSearch) -> str | None:
    """Return the best complete value of the first objective, as text; baselines are left out."""
    name, direction = next(iter(search.space.objectives.items()))
    values = [
        r.metrics[name] for key, r in search.records.items() if key not in search.baselines and r.state == "complete"
    ]
    if not values:
        return None
    return f"best {name} {max(values) if direction == 'max' else min(values):.4g}"


def seconds_left(search: RunningSearch, slots: int, now: float) -> float | None:
    """Return a forecast from the mean wall time of the trials that ended, or None before the first."""
    records = search.records.values()
    took = [r.ended_time - r.started_time for r in records if r.ended_time and r.started_time]
    if not took:
        return None
    mean = sum(took) / len(took)
    spent = sum(min(now - r.started_time, mean) for r in records if r.state == "running" and r.started_time)
    waiting = search.budget + len(search.baselines) - sum(r.state in COUNTED for r in records)
    return max(mean * waiting - spent, 0.0) / slots


def _ended_line(search: RunningSearch, record: TrialRecord) -> str:
    if record.state == "complete":
        said = "  ".join(f"{name} {record.metrics[name]:.4g}" for name in search.space.objectives)
    else:
        said = f"{record.state}: {record.reason}"
    params = " ".join(f"{path}={_short(value)}" for path, value in record.params.items())
    kind = "baseline" if record.baseline else "trial"
    return f"[{search.done}/{search.budget}] {kind} {record.trial}  {said}  ({params})"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
