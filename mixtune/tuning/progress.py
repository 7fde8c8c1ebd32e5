"""Progress of a search: a plain line for each ended trial, and on a terminal a live view below them."""

from __future__ import annotations

import logging
import sys
from collections import deque
from threading import Event, Lock, Thread
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mixtune.ledger import ENDED, TrialRecord
from mixtune.tuning.live_view import LiveView, view_search
from mixtune.tuning.state import RunningSearch

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
