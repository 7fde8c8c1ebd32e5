"""What a search prints while it runs: to a log, to a terminal, to a notebook."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.console import Console

from mixtune.space.space import space_from_dict
from mixtune.tuning import live as module
from mixtune.tuning.live import Progress
from mixtune.tuning.search import RunningSearch

WHOLE = {"epoch": 5, "epochs_asked": 5, "epochs_trained": 5, "epochs_reused": 0}
STEPS = {"steps": {"sl": {"signature": 20}}, "reused_steps": {}, "infer": "inference"}
ROWS = 24
DRAW_S = 0.03


@pytest.fixture(autouse=True)
def _draw_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAW_S", DRAW_S)


def run_trials(
    progress: Progress, small_space: Any, folder: Path, after: Callable[[int], None] = lambda i: None
) -> None:
    """Run a search of six trials, the third of which fails, its baselines before; ``after`` each end."""
    search = RunningSearch(space_from_dict(small_space()), folder / "ledger.jsonl", progress.update)
    search.step_times.add("signature", 0.1)
    progress.begin(search)
    for i in range(8):
        asked = search.ask()
        assert asked
        search.start(asked.trial)
        if i == 4:
            search.fail(asked.trial, "OSError: [/data/x.png] is gone")
        else:
            search.end(asked.trial, {**WHOLE, "val_accuracy": 0.8 + i / 100}, STEPS)
        after(i)


def drawn(terminal: Terminal, is_there: Callable[[list[str]], bool]) -> list[str]:
    """Return a window's lines once they are there and stay: the view is drawn by a thread, on a busy machine late."""
    before: list[str] = []
    for _ in range(1000):
        lines = terminal.lines()
        if lines == before and is_there(lines):
            return lines
        before = lines
        time.sleep(3 * DRAW_S)
    raise AssertionError("the view was not drawn:\n" + "\n".join(before))


class Terminal(io.StringIO):
    """A window: what is written to it, as a terminal emulator shows it."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, ROWS, history=1000)
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self.stream.feed(text)
        return len(text)

    def isatty(self) -> bool:
        return True

    def console(self) -> Console:
        environment = {"TERM": "xterm", "COLUMNS": str(self.screen.columns), "LINES": str(ROWS)}
        return Console(file=self, force_terminal=True, _environ=environment, legacy_windows=False)

    def lines(self) -> list[str]:
        """Return all lines, those that have scrolled out at the top included."""
        above = ["".join(line[x].data for x in range(len(line))) for line in self.screen.history.top]
        return [line.rstrip() for line in [*above, *self.screen.display] if line.strip()]


def test_a_log_gets_one_plain_line_for_each_ended_trial(small_space: Any, tmp_path: Path) -> None:
    log = io.StringIO()
    with Progress(slots=2, console=Console(file=log, width=60)) as progress:
        run_trials(progress, small_space, tmp_path)
    lines = log.getvalue().splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["[0/6]", "baseline", "sl"],
        ["[0/6]", "baseline", "ssl_sl"],
        *([f"[{i}/6]", "trial", f"t{i:04d}"] for i in range(1, 7)),
    ]
    assert lines[2] == "[1/6] trial t0001  val_accuracy 0.82  train_latency_s 2  (alpha=0.5 rho=0.5 epochs.sl=3)"
    assert "failed: OSError: [/data/x.png] is gone" in lines[4]  # brackets are text, not markup
    assert "\x1b" not in log.getvalue()


def test_an_end_is_told_once_and_that_of_another_attempt_again(small_space: Any, tmp_path: Path) -> None:
    log = io.StringIO()
    with Progress(slots=1, console=Console(file=log, width=100)) as progress:
        run_trials(progress, small_space, tmp_path)
        told = len(log.getvalue().splitlines())
        search = RunningSearch(space_from_dict(small_space()), tmp_path / "ledger.jsonl", progress.update)
        search.retry_failed()
        progress.begin(search)
        asked = search.ask()
        assert asked
        search.start(asked.trial)
        search.fail(asked.trial, "OSError: still gone")
    assert [line.split()[2] for line in log.getvalue().splitlines()[told:]] == ["t0003"]


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_a_terminal_shows_the_lines_and_the_last_state_below_them(
    small_space: Any, tmp_path: Path, columns: int
) -> None:
    terminal = Terminal(columns)
    with Progress(slots=2, console=terminal.console()) as progress:
        run_trials(progress, small_space, tmp_path)
        while_it_ran = drawn(terminal, lambda lines: any("6/6 trials done" in line for line in lines))
    text = "\n".join(while_it_ran)
    assert [found for found in re.findall(r"\[\d/6\] (?:trial|baseline) (\w+)", text)] == [
        *("sl", "ssl_sl"),
        *(f"t{i:04d}" for i in range(1, 7)),
    ]
    assert text.count("trials done") == 1  # one view, and nothing left of those before it
    assert "6/6 trials done · 0 running · 1 failed" in text
    assert text.count("(knee)") == 1
    assert "trials done" not in "\n".join(terminal.lines())  # it is gone when the search is over
    assert terminal.lines() == [line for line in while_it_ran if line in terminal.lines()]


def test_a_window_that_is_made_narrower_is_drawn_anew(small_space: Any, tmp_path: Path) -> None:
    """Some terminals wrap what was wider, as here; what is left of it then is not the view's to erase line by line."""
    terminal = Terminal(100)
    console = terminal.console()
    with Progress(slots=2, console=console) as progress:

        def make_narrower(i: int) -> None:
            if i == 4:
                drawn(terminal, lambda lines: sum("trials done" in line for line in lines) == 1)
                wrap(terminal, 50)
                console._environ["COLUMNS"] = "50"  # type: ignore[index]
                console._width = None
                drawn(terminal, lambda lines: progress._screen is not None and progress._screen._width == 50)

        run_trials(progress, small_space, tmp_path, make_narrower)
        drawn(terminal, lambda lines: any("6/6 trials done" in line for line in lines))
        text = "\n".join(line.rstrip() for line in terminal.screen.display)
    assert text.count("trials done") == 1
    assert text.count("(knee)") == 1
    assert max(map(len, text.splitlines())) <= 50


def wrap(terminal: Terminal, columns: int) -> None:
    """Make the window narrower as most terminals do: lines that are too long go on in the next."""
    old = terminal.screen
    lines = [line.rstrip() for line in old.display[: old.cursor.y + 1]]
    last = lines.pop()
    terminal.screen = pyte.HistoryScreen(columns, ROWS, history=1000)
    terminal.screen.set_mode(pyte.modes.LNM)
    terminal.stream = pyte.Stream(terminal.screen)
    terminal.stream.feed("".join(f"{line}\n" for line in lines) + last)


def test_warnings_stand_above_the_view(small_space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(60)
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        with Progress(slots=2, console=terminal.console()) as progress:
            warn = logging.getLogger("mixtune.tests").warning
            run_trials(progress, small_space, tmp_path, lambda i: warn("something is odd") if i == 3 else None)
            lines = terminal.lines()
        assert handler.stream is terminal
    finally:
        logging.getLogger().removeHandler(handler)
    assert lines.count("something is odd") == 1
    assert sum("trials done" in line for line in lines) == 1


@pytest.mark.parametrize("kind", ["dumb terminal", "notebook"])
def test_what_cannot_be_drawn_over_gets_plain_lines(small_space: Any, tmp_path: Path, kind: str) -> None:
    shown: list[str] = []
    if kind == "notebook":
        console = Console(force_jupyter=True)
        console.print = lambda *objects, **_: shown.extend(map(str, objects))  # type: ignore[method-assign]
    else:
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, _environ={"TERM": "dumb"}, width=100)
    with Progress(slots=2, console=console) as progress:
        run_trials(progress, small_space, tmp_path)
    shown = shown or file.getvalue().splitlines()
    assert len(shown) == 8
    assert "\x1b" not in "".join(shown)
