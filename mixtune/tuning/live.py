"""Progress of a search: a plain line for each ended trial, and on a terminal a live view below them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mixtune.errors import RequestError
from mixtune.metrics import METHODS, duration, find_metric, learned_scores, metric_text, setting
from mixtune.run.accounting import account
from mixtune.run.directory import RunFacts
from mixtune.run.ledger import ENDED, TrialRecord
from mixtune.run.remaining import TimeLeft, time_left
from mixtune.run.result import Result
from mixtune.space.effective import idle_settings
from mixtune.space.recipe import flatten
from mixtune.training.plan import Phase, make_plan, method_of
from mixtune.tuning.search import RunningSearch

SHOWN = ("failed", "rejected")  # of the states, besides running
ROWS = 8  # of the front
REFRESH_S = 0.5  # between two views
QUIET_S = 180.0  # in which a log gets no line; then it gets one that says how far the running trials are
BAR = 24  # columns, where there is room
LEAST = (5, 11, 3, 5, 7, 7)  # columns of each cell of a running trial but its bar, so that they stand still
PARAMETERS = 16  # columns, at least, or they are not shown


class Progress:
    """A context manager whose ``update`` is a search's ``on_change``."""

    def __init__(self, console: Console | None = None, quiet_s: float = QUIET_S) -> None:
        self._console, self._quiet_s = console or Console(), quiet_s
        self._told: dict[str, tuple[str, float | None]] = {}  # by trial: its state, and when it started
        self._live: Live | None = None
        self._view: SearchView | None = None
        self._over, self._said = threading.Event(), threading.Event()
        self._heartbeat: threading.Thread | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._said.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._heartbeat is not None:
            self._heartbeat.join()
            self._heartbeat = None

    def begin(self, search: RunningSearch) -> None:
        """Count what has ended before as reported, and start the live view, or in a log its clock."""
        self._told = {trial: (record.state, record.started_time) for trial, record in search.records.items()}
        view = self._view = SearchView(search)
        if self._console.is_interactive and self._console.file.isatty():  # FORCE_COLOR makes no terminal of a log
            self._live = Live(
                console=self._console,
                transient=True,
                refresh_per_second=1 / REFRESH_S,
                get_renderable=lambda: view,
            )
            self._live.start()
        else:
            self._heartbeat = threading.Thread(target=self._beat, args=(view,), daemon=True)
            self._heartbeat.start()

    def update(self, search: RunningSearch, record: TrialRecord) -> None:
        """Show what changed of a record."""
        now = record.state, record.started_time
        is_news = record.state in ENDED and (record.state != "known" or record.given)
        if self._told.get(record.trial) != now and is_news:
            if self._view is not None:
                self._view.settle()
            print_line(self._console, ended_line(search, record), soft_wrap=self._live is None)
            self._said.set()
        self._told[record.trial] = now

    def _beat(self, view: SearchView) -> None:
        while not self._over.is_set():
            if self._said.wait(self._quiet_s):
                self._said.clear()
            else:
                print_line(self._console, view.line())


def print_line(console: Console, text: str, soft_wrap: bool = True) -> None:
    """Print text as it is; a log that is full, or that nobody reads any more, ends no search."""
    with suppress(OSError, ValueError):
        console.print(Text(text), soft_wrap=soft_wrap)


class SearchView:
    """What a terminal of 60 columns or more shows of a search now.

    It is drawn twice a second, from a thread of its own. What changes only where a trial ends is computed then, by
    settle(), in the search's thread.
    """

    def __init__(self, search: RunningSearch) -> None:
        self._search, self._began = search, time.monotonic()
        self._base = flatten(search.space.values)
        self._plans: dict[str, tuple[str, list[Phase]]] = {}  # by trial: its method, and each epoch's phase
        self.settle()

    def settle(self) -> None:
        """Take in what has ended."""
        search = self._search
        records = list(search.records.values())
        states = Counter(record.state for record in records)
        self._counts = [f"{states[state]} {state}" for state in SHOWN]
        self._counts += [f"{states[state]} {state}" for state in ("known", "paused") if states[state]]
        whole = account(r for r in records if r.metrics.get("forecast_latency_s") is not None)
        cut_s = max(0.0, whole.asked_s - whole.trained_s - whole.reused_s)
        self._spent = [
            f"device time: {duration(whole.trained_s)} trained",
            f"saved: {duration(whole.reused_s)} reused, {duration(cut_s)} cut short",
        ]
        self._done = search.done
        result = Result(Path(), search.space, RunFacts(), search.state, search.space.objectives)
        members = [str(trial) for trial in result.pareto_front()["trial"]]
        shown = spread(members, result.knee()) if members else []
        self._best = best_line(result) if members else ""
        self._front = [f"the front so far: {len(members)} of {len(result.complete())} complete trials"]
        self._front += [f"{len(shown)} of them here"] if len(shown) < len(members) else []
        self._result, self._shown = result, shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, with fewer of the running trials where the terminal is low."""
        width = options.max_width
        running, left = self._now()
        head = [*self._where(left), f"{len(running)} running", *self._counts]
        shown_rows = max(2, console.height - ROWS - 9)
        parts: list[RenderableType] = [
            *fold(head, width),
            *([Text(self._best, no_wrap=True, overflow="ellipsis")] if self._best else []),
            *([self._running_table(running[:shown_rows], left, width)] if running else []),
            *([Text(f"... and {len(running) - shown_rows} more")] if len(running) > shown_rows else []),
            *fold(self._spent, width),
        ]
        if self._shown:
            parts += [*fold(self._front, width), _front_table(self._result, self._shown, width)]
        yield Group(*parts)

    def line(self) -> str:
        """Return one line for a log."""
        running, left = self._now()
        epochs = ", ".join(f"{record.trial} epoch {'/'.join(self._epochs(record))}" for record in running[:4])
        return " · ".join([*self._where(left), *([epochs] if epochs else [])])

    def _now(self) -> tuple[list[TrialRecord], TimeLeft]:
        search, now = self._search, time.time()
        left = time_left(search.state, search.space, now, search.slots)
        if search.deadline is not None and left.search is not None:
            left = TimeLeft(min(left.search, max(0.0, search.deadline - time.monotonic())), left.trials)
        return [record for record in search.active if record.state == "running"], left

    def _where(self, left: TimeLeft) -> list[str]:
        said = "time left: not known yet" if left.search is None else f"about {duration(left.search)} left"
        done = f"{self._done}/{self._search.budget} trials done"
        return [done, f"elapsed {duration(time.monotonic() - self._began)}", said]

    def _plan(self, record: TrialRecord) -> tuple[str, list[Phase]]:
        if record.trial not in self._plans:
            try:
                recipe = self._search.space.recipe_at(record.params)
                self._plans[record.trial] = METHODS[method_of(recipe)], [epoch.phase for epoch in make_plan(recipe)]
            except RequestError:  # its trial will say so
                self._plans[record.trial] = "", []
        return self._plans[record.trial]

    def _epochs(self, record: TrialRecord) -> tuple[str, str]:
        return str(_done(record)), str(len(self._plan(record)[1]))

    def _running_table(self, running: Sequence[TrialRecord], left: TimeLeft, width: int) -> Table:
        """Return a row a trial: name, method, phase, epochs, a bar, the latest score, seconds left, parameters."""
        score = next((name for name in self._search.space.objectives if name in learned_scores()), "val_accuracy")
        rows = []
        for record in running:
            (method, phases), done = self._plan(record), _done(record)
            phase = phases[min(done, len(phases) - 1)] if phases else ""
            latest = find_metric(score).text(record.epochs[-1].get(score) if record.epochs else None)
            seconds = duration(left.trials[record.trial]) if record.trial in left.trials else "-"
            rows.append([record.trial, method, phase, "/".join(self._epochs(record)), latest, seconds])
        widths = [max(least, *map(len, cells)) for least, cells in zip(LEAST, zip(*rows, strict=True), strict=True)]
        room = width - sum(widths) - len(widths)
        bar = max(4, min(BAR, room))
        table = Table.grid(padding=(0, 1, 0, 0))
        for index, wide in enumerate([*widths[:4], bar, *widths[4:]]):
            table.add_column(justify="right" if index in (3, 5, 6) else "left", no_wrap=True, width=wide)
        has_room = room - bar > PARAMETERS
        if has_room:
            table.add_column(no_wrap=True)
        for record, cells in zip(running, rows, strict=True):
            total = max(1, len(self._plan(record)[1]))
            drawn = ProgressBar(total, min(total, _done(record)), width=bar)
            settings = _parameters(record, self._base)
            params = [Text(fit(settings, room - bar - 1))] if has_room else []
            table.add_row(*map(Text, cells[:4]), drawn, *map(Text, cells[4:]), *params)
        return table


def fold(parts: Sequence[str], width: int) -> list[Text]:
    """Return lines of parts, each whole."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines[-1] else part
        if len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(part)
    return [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]


def fit(parts: Sequence[str], width: int) -> str:
    """Return as many of the parts as there is room for, each whole, and a sign where some are left out."""
    text = ""
    for number, part in enumerate(parts, start=1):
        longer = f"{text} {part}".lstrip()
        if len(longer) + 2 * (number < len(parts)) > width:
            return f"{text} …".lstrip()
        text = longer
    return text


def best_line(result: Result) -> str:
    """Return what is best so far, the recipe of the front that is best in the first objective, and the recommended."""
    name, mode = next(iter(result.objectives.items()))
    front = result.pareto_front().sort_values(name, ascending=mode == "min", kind="stable")
    trial = str(front.iloc[0]["trial"])
    recommended = result.recommendation().trial
    said = "" if recommended in (None, trial) else f"; recommended so far: {recommended}"
    return f"best so far: {trial}, {', '.join(_figures(result, trial))}{said}"


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
        named = search.space.objectives
        said = ", ".join(f"{find_metric(name).title} {metric_text(record.metrics, name)}" for name in named)
    else:
        said = f"{record.state}: {record.reason}"
    kind = "baseline" if record.baseline else "trial"
    settings = " ".join(_parameters(record, flatten(search.space.values)))
    return f"[{search.done}/{search.budget}] {kind} {record.trial}  {said}  ({settings})"


def _front_table(result: Result, shown: Sequence[str], width: int) -> Table:
    knee = result.knee() if len(result.objectives) > 1 else None
    titles = ["trial", *(find_metric(name).title for name in result.objectives)]
    rows = [[f"{trial} (knee)" if trial == knee else trial, *_figures(result, trial)] for trial in shown]
    needed = [max(map(len, column)) for column in zip(*rows, strict=True)]
    wanted = [max(len(title), wide) for title, wide in zip(titles, needed, strict=True)]
    room = width - sum(wanted) - 2 * len(wanted)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="none")
    for title, wide in zip(titles, needed, strict=True):
        table.add_column(Text(title), justify="right" if table.columns else "left", min_width=wide)
    if room >= PARAMETERS:
        table.add_column(Text("parameters"), no_wrap=True)
    for trial, cells in zip(shown, rows, strict=True):
        settings = _parameters(result.records[trial], flatten(result.space.values))
        params = [fit(settings, room)] if room >= PARAMETERS else []
        table.add_row(*map(Text, [*cells, *params]), style="bold" if trial == knee else None)
    return table


def _figures(result: Result, trial: str) -> list[str]:
    return [metric_text(result.records[trial].metrics, name) for name in result.objectives]


def _parameters(record: TrialRecord, base: Mapping[str, Any]) -> list[str]:
    """Return a trial's settings that have an effect; base: the base recipe's values by dotted path."""
    idle = idle_settings({**base, **record.params})
    return [f"{path}={setting(value)}" for path, value in record.params.items() if path not in idle]


def _done(record: TrialRecord) -> int:
    return int(record.epochs[-1].get("epoch") or 0) if record.epochs else 0
