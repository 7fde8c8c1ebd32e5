"""Progress of a search: a plain line for each ended trial, and on a terminal a live view below them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mixtune.metrics import duration, find_metric, setting
from mixtune.run.accounting import account
from mixtune.run.directory import RunFacts
from mixtune.run.ledger import COUNTED, ENDED, TrialRecord
from mixtune.run.result import Result
from mixtune.tuning.search import RunningSearch

SHOWN = ("failed", "rejected")  # of the states, besides running
ROWS = 8  # of the front
REFRESH_S = 0.5  # between two views


class Progress:
    """A context manager whose ``update`` is a search's ``on_change``."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._told: dict[str, tuple[str, float | None]] = {}  # by trial: its state, and when it started
        self._live: Live | None = None
        self._drawn_at = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, search: RunningSearch) -> None:
        """Count what has ended before as reported, and start the live view where there is a terminal."""
        self._told = {trial: (record.state, record.started_time) for trial, record in search.records.items()}
        if self._console.is_interactive:
            view = view_search(search)
            self._live = Live(view, console=self._console, transient=True, refresh_per_second=1 / REFRESH_S)
            self._live.start()

    def update(self, search: RunningSearch, record: TrialRecord) -> None:
        """Show what changed of a record."""
        is_old = record.state in ENDED or time.monotonic() - self._drawn_at > REFRESH_S
        if self._live is not None and is_old:
            self._drawn_at = time.monotonic()
            self._live.update(view_search(search))
        now = record.state, record.started_time
        if self._told.get(record.trial) != now and record.state in ENDED:
            self._console.print(Text(ended_line(search, record)), soft_wrap=self._live is None)
        self._told[record.trial] = now


def view_search(search: RunningSearch) -> Group:
    """Return what a terminal shows of a search now: counts, time trained and saved, the front so far."""
    records = list(search.records.values())
    states = Counter(record.state for record in records)
    running = [record for record in search.active if record.state == "running"]
    counts = [f"{len(running)} running", *(f"{states[state]} {state}" for state in SHOWN)]
    whole = account(r for r in records if r.metrics.get("forecast_latency_s") is not None)
    cut_s = max(0.0, whole.asked_s - whole.trained_s - whole.reused_s)
    spent = f"device time: {duration(whole.trained_s)} trained"
    saved = f"saved: {duration(whole.reused_s)} reused, {duration(cut_s)} cut short"
    lines = [
        " · ".join([f"{search.done}/{search.budget} trials done", *counts, _time_left(search, running)]),
        f"{spent} · {saved}",
    ]
    result = Result(Path(), search.space, RunFacts(), search.state, search.space.objectives)
    members = [str(trial) for trial in result.pareto_front()["trial"]]
    if not members:
        return Group(*map(Text, lines))
    shown = spread(members, result.knee())
    of_them = f", {len(shown)} of them here" if len(shown) < len(members) else ""
    lines.append(f"the front so far: {len(members)} of {len(result.complete())} complete trials{of_them}")
    return Group(*map(Text, lines), _front_table(result, shown))


def spread(members: Sequence[str], knee: str | None) -> list[str]:
    """Return at most ROWS members, evenly spread over the front, its ends and its knee among them."""
    if len(members) <= ROWS:
        return list(members)
    shown = {round(i * (len(members) - 1) / (ROWS - 1)) for i in range(ROWS)}
    at_knee = members.index(knee) if knee in members else 0
    if at_knee not in shown:
        shown.remove(min(shown - {0, len(members) - 1}, key=lambda other: abs(other - at_knee)))
        shown.add(at_knee)
    return [members[i] for i in sorted(shown)]


def ended_line(search: RunningSearch, record: TrialRecord) -> str:
    """Return the line of a trial that has ended."""
    if record.state == "complete":
        said = "  ".join(f"{name} {record.metrics[name]:.4g}" for name in search.space.objectives)
    else:
        said = f"{record.state}: {record.reason}"
    params = " ".join(f"{path}={setting(value)}" for path, value in record.params.items())
    kind = "baseline" if record.baseline else "trial"
    return f"[{search.done}/{search.budget}] {kind} {record.trial}  {said}  ({params})"


def _front_table(result: Result, shown: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="none")
    for title in ("trial", *(find_metric(name).title for name in result.objectives)):
        table.add_column(Text(title), justify="right" if table.columns else "left", no_wrap=bool(not table.columns))
    table.add_column(Text("parameters"), no_wrap=True, overflow="ellipsis")
    for trial in shown:
        record, is_knee = result.records[trial], trial == result.knee() and len(result.objectives) > 1
        figures = [find_metric(name).text(record.metrics[name]) for name in result.objectives]
        params = " ".join(f"{path}={setting(value)}" for path, value in record.params.items())
        cells = [f"{trial} (knee)" if is_knee else trial, *figures, params]
        table.add_row(*map(Text, cells), style="bold" if is_knee else None)
    return table


def _time_left(search: RunningSearch, running: Sequence[TrialRecord]) -> str:
    """Say how long the search will take, from the mean wall time of the trials that have ended."""
    took = [record.wall_s for record in search.records.values() if record.wall_s is not None]
    if not took:
        return "time left: not known yet"
    mean, now = sum(took) / len(took), time.time()
    to_come = search.budget + len(search.baselines) - sum(r.state in COUNTED for r in search.records.values())
    to_do = mean * max(to_come, len(running)) - sum(min(now - (r.started_time or now), mean) for r in running)
    return f"about {duration(max(to_do, 0.0) / max(1, search.slots))} left"
