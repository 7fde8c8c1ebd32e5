"""Progress of a search: a plain line for each ended trial, and on a terminal a live view below them."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread
from types import TracebackType

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mixtune.metrics import duration, quantity, setting
from mixtune.run.accounting import account
from mixtune.run.front import knee, pareto_front
from mixtune.run.ledger import COUNTED, ENDED, TrialRecord
from mixtune.tuning.search import RunningSearch

DRAW_S = 0.5  # between two drawings
_REMEMBERED = 200  # lines, to be printed again when the window was narrowed


class Progress:
    """A context manager whose ``update`` is a search's ``on_change``."""

    def __init__(self, slots: int, console: Console | None = None) -> None:
        self._slots = slots
        self._console = console or Console()
        self._told: dict[str, tuple[str, float | None]] = {}  # by trial: its state, and when it started
        self._screen: _Screen | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen is not None:
            self._screen.stop()
            self._screen = None

    def begin(self, search: RunningSearch) -> None:
        """Take what has ended before for told, and start the live view where there is a terminal."""
        self._told = {trial: (record.state, record.started_time) for trial, record in search.records.items()}
        if self._console.is_interactive:
            self._screen = _Screen(self._console, view_search(search, self._slots))

    def update(self, search: RunningSearch, record: TrialRecord) -> None:
        """Show what changed of a record; an epoch changes nothing that is shown."""
        now = record.state, record.started_time
        if self._told.get(record.trial) == now:
            return
        self._told[record.trial] = now
        if self._screen is not None:
            self._screen.view = view_search(search, self._slots)
        if record.state not in ENDED:
            return
        line = Text(_ended_line(search, record))
        if self._screen is not None:
            self._screen.print(line)
        else:
            self._console.print(line, soft_wrap=True)


class _Screen:
    """The foot of a terminal: ``view`` is drawn twice a second, and lines are printed above it."""

    def __init__(self, console: Console, view: LiveView) -> None:
        self.view = view
        self._console = console
        self._printed: deque[Text] = deque(maxlen=_REMEMBERED)
        self._lock, self._stopped = Lock(), Event()
        self._start()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def print(self, line: Text) -> None:
        with self._lock:
            self._printed.append(line)
            self._console.print(line)

    def stop(self) -> None:
        """Draw the last state, and leave the printed lines alone on the terminal."""
        self._stopped.set()
        self._thread.join()
        self._draw()
        self._end()

    def _run(self) -> None:
        while not self._stopped.wait(DRAW_S):
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            if self._console.width < self._width:
                self._draw_anew()
            self._live.refresh()

    def _draw_anew(self) -> None:
        """Clear the window and print what stood there: some terminals have wrapped what was too wide, some cut it."""
        self._end()
        self._console.clear()
        for line in list(self._printed)[-self._console.height :]:
            self._console.print(line)
        self._start()

    def _start(self) -> None:
        self._width = self._console.width
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
            get_renderable=lambda: self.view,
        )
        self._stderr = sys.stderr
        self._live.start(refresh=True)
        _move_logs(self._stderr, sys.stderr)

    def _end(self) -> None:
        _move_logs(sys.stderr, self._stderr)
        self._live.stop()


def _move_logs(before: object, after: object) -> None:
    """Let log handlers that write to one stream write to another: above the live view, not into it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(after)


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


SHOWN = ("running", "failed", "rejected")  # of the states
ROWS = 8  # of the front
GAP = 2  # columns of a terminal between those of the table


@dataclass(frozen=True)
class Pace:
    """How fast trials end: in ``mean`` seconds each. ``waiting`` have to begin, the running ones began at ``since``."""

    mean: float
    waiting: int
    since: tuple[float, ...]
    slots: int

    def seconds_left(self, now: float) -> float:
        """Return a forecast for the whole search; ``now`` and ``since`` are unix seconds."""
        to_do = self.mean * (self.waiting + len(self.since))
        return max(to_do - sum(min(now - began, self.mean) for began in self.since), 0.0) / self.slots


@dataclass(frozen=True)
class LiveView:
    """A search at one moment. Rich draws it as wide as the window is then, with the seconds that are left then.

    counts: trials and baselines by state, of running ones those of this process; trained_s: seconds of training steps
    behind the ended ones; reused_s, cut_s: seconds that they asked for and that were not trained, because a stored
    state had them or a scheduler ended the trial; front: its members in order, at most ROWS; members, complete: how
    many there are in all; parameters: what the search varies.
    """

    done: int
    budget: int
    counts: Mapping[str, int]
    trained_s: float
    reused_s: float
    cut_s: float
    front: tuple[TrialRecord, ...]
    knee: str | None
    members: int
    complete: int
    objectives: tuple[str, ...]
    parameters: tuple[str, ...]
    pace: Pace | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        counts = [f"{self.counts[state]} {state}" for state in SHOWN]
        left = "time left: not known yet"
        if self.pace is not None:
            left = f"about {duration(self.pace.seconds_left(time.time()))} left"
        yield _packed([f"{self.done}/{self.budget} trials done", *counts, left], width)
        saved = f"saved: {duration(self.reused_s)} reused, {duration(self.cut_s)} cut short"
        yield _packed([f"device time: {duration(self.trained_s)} trained", saved], width)
        if self.front:
            shown = f", {len(self.front)} of them here" if len(self.front) < self.members else ""
            yield Text(f"the front so far: {self.members} of {self.complete} complete trials{shown}", overflow="fold")
            yield self._table(width)

    def _table(self, width: int) -> Table:
        """Return the front with as many parameters as fit; titles are stacked where they have to be."""
        titles = ["trial", *(quantity(name).title for name in self.objectives)]
        rows = [self._cells(record) for record in self.front]
        columns = [(title, [row[i] for row in rows]) for i, title in enumerate(titles)]
        settings = [(path, [setting(record.params.get(path)) for record in self.front]) for path in self.parameters]
        if _width([*columns, *settings]) > width:
            columns = [(title.replace(" ", "\n"), cells) for title, cells in columns]
        for column in settings:
            if _width([*columns, column]) <= width:
                columns.append(column)
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="none")
        for i, (title, _) in enumerate(columns):
            table.add_column(Text(title), justify="right" if i else "left", no_wrap=True)
        for i, record in enumerate(self.front):
            style = "bold" if record.trial == self.knee else None
            table.add_row(*(Text(cells[i]) for _, cells in columns), style=style)
        return table

    def _cells(self, record: TrialRecord) -> list[str]:
        mark = " (knee)" if record.trial == self.knee and len(self.objectives) > 1 else ""
        return [f"{record.trial}{mark}", *(quantity(name).text(record.metrics[name]) for name in self.objectives)]


def view_search(search: RunningSearch, slots: int) -> LiveView:
    """Return what is to be shown of a search now; ``slots`` trials run at once."""
    records = list(search.records.values())
    running = [r for r in search.active if r.state == "running"]
    trained, reused, cut = _seconds(records)
    complete = [r for r in records if r.state == "complete" and r.baseline is None]
    members, at_knee = _front(search, complete)
    return LiveView(
        done=search.done,
        budget=search.budget,
        counts={**dict.fromkeys(SHOWN, 0), **Counter(r.state for r in records), "running": len(running)},
        trained_s=trained,
        reused_s=reused,
        cut_s=cut,
        front=tuple(_spread(members, at_knee)),
        knee=at_knee,
        members=len(members),
        complete=len(complete),
        objectives=tuple(search.space.objectives),
        parameters=tuple(search.space.space),
        pace=_pace(search, running, slots),
    )


def _front(search: RunningSearch, complete: Iterable[TrialRecord]) -> tuple[list[TrialRecord], str | None]:
    """Return the members of the front and the knee's id."""
    limits, objectives = search.space.constraints, search.space.objectives
    kept = {r.trial: r for r in complete if all(c.holds(_number(r, name)) for name, c in limits.items())}
    frame = pd.DataFrame({name: [_number(r, name) for r in kept.values()] for name in objectives}, index=list(kept))
    front = pareto_front(frame, objectives)
    at_knee = knee(front, objectives)
    return [kept[str(trial)] for trial in front.index], None if at_knee is None else str(at_knee)


def _spread(members: Sequence[TrialRecord], at_knee: str | None) -> Sequence[TrialRecord]:
    """Return at most ROWS members, evenly spread over the front, its ends and its knee among them."""
    if len(members) <= ROWS:
        return members
    shown = {round(i * (len(members) - 1) / (ROWS - 1)) for i in range(ROWS)}
    knees = [i for i, record in enumerate(members) if record.trial == at_knee and i not in shown]
    for i in knees:
        inner = shown - {0, len(members) - 1}
        shown.remove(min(inner, key=lambda other: abs(other - i)))
        shown.add(i)
    return [members[i] for i in sorted(shown)]


def _seconds(records: Iterable[TrialRecord]) -> tuple[float, float, float]:
    """Return LiveView's trained_s, reused_s and cut_s, over the records that were timed."""
    timed = [r for r in records if r.state in ENDED and r.metrics.get("forecast_latency_s") is not None]
    timed = [r for r in timed if r.metrics.get("train_latency_s") is not None]
    whole = account(timed)
    wanted = account(r for r in timed if r.state != "failed")  # what a failure left out is not saved
    return whole.trained_s, wanted.reused_s, max(0.0, wanted.asked_s - wanted.trained_s - wanted.reused_s)


def _pace(search: RunningSearch, running: Iterable[TrialRecord], slots: int) -> Pace | None:
    """Return the pace from the mean wall time of the trials that ended, or None before the first."""
    records = search.records.values()
    took = [r.ended_time - r.started_time for r in records if r.ended_time and r.started_time]
    if not took:
        return None
    since = tuple(r.started_time for r in running if r.started_time)
    to_come = search.budget + len(search.baselines) - sum(r.state in COUNTED for r in records)
    return Pace(sum(took) / len(took), max(0, to_come - len(since)), since, slots)


def _number(record: TrialRecord, metric: str) -> float:
    value = record.metrics.get(metric)
    return math.nan if value is None else float(value)


def _packed(parts: Iterable[str], width: int) -> Text:
    """Return parts as text whose lines end between parts, where they do not all go into one."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines[-1] else part
        if cell_len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(part)
    return Text("\n".join(lines), overflow="fold")


def _width(columns: Sequence[tuple[str, list[str]]]) -> int:
    """Return how many columns of a terminal the table's columns take."""
    widths = (max(map(cell_len, [*title.split("\n"), *cells])) for title, cells in columns)
    return sum(widths) + GAP * (len(columns) - 1)
