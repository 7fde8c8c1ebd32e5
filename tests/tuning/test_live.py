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

from mixtune.cli import CurrentStderrHandler
from mixtune.space.space import space_from_dict
from mixtune.training.bill import Bill
from mixtune.tuning.live import ROWS, Progress, spread, view_search
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import EpochReport

HEIGHT = 24


def finish(search: RunningSearch, trial: str, accuracy: float, seconds: float = 0.1) -> None:
    metrics = {"epoch": 1, "epochs_asked": 1, "epochs_trained": 1, "epochs_reused": 0, "val_accuracy": accuracy}
    signature = f"steps of {seconds} s"
    bill = Bill(20, (("sl", signature, 1.0),), "inference")
    search.report(trial, EpochReport([metrics], metrics, [(signature, seconds, True, {"device": "a CPU"})], bill))
    search.end(trial)


def run_trials(
    progress: Progress, small_space: Any, folder: Path, after: Callable[[int], None] = lambda i: None
) -> RunningSearch:
    """Run a search of six trials, the third of which fails, its baselines before; ``after`` each end."""
    search = RunningSearch(space_from_dict(small_space()), folder / "ledger.jsonl", progress.update)
    progress.begin(search)
    for i in range(8):
        asked = search.ask()
        assert asked
        search.start(asked.trial)
        if i == 4:
            search.fail(asked.trial, "OSError: [/data/x.png] is gone")
        else:
            finish(search, asked.trial, 0.8 + i / 100)
        after(i)
    return search


class Terminal(io.StringIO):
    """A window: what is written to it, as a terminal emulator shows it."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, HEIGHT, history=1000)
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self.stream.feed(text)
        return len(text)

    def isatty(self) -> bool:
        return True

    def console(self) -> Console:
        environment = {"TERM": "xterm", "COLUMNS": str(self.screen.columns), "LINES": str(HEIGHT)}
        return Console(file=self, force_terminal=True, _environ=environment, legacy_windows=False)

    def lines(self) -> list[str]:
        """Return all lines, those that have scrolled out at the top included."""
        above = ["".join(line[x].data for x in range(len(line))) for line in self.screen.history.top]
        return [line.rstrip() for line in [*above, *self.screen.display] if line.strip()]

    def wait_for(self, text: str) -> list[str]:
        """Return the lines once ``text`` is among them: the view is drawn by a thread, on a busy machine late."""
        deadline = time.monotonic() + 60
        while True:
            lines = self.lines()
            if any(text in line for line in lines):
                return lines
            assert time.monotonic() < deadline, "\n".join(lines)
            time.sleep(0.01)


def test_a_log_gets_one_plain_line_for_each_ended_trial(small_space: Any, tmp_path: Path) -> None:
    log = io.StringIO()
    with Progress(console=Console(file=log, width=60)) as progress:
        run_trials(progress, small_space, tmp_path)
        lines = log.getvalue().splitlines()
        again = RunningSearch(space_from_dict(small_space()), tmp_path / "ledger.jsonl", progress.update)
        again.retry_failed()
        progress.begin(again)
        asked = again.ask()
        assert asked
        again.start(asked.trial)
        again.fail(asked.trial, "OSError: still gone")
    assert [line.split()[:3] for line in lines] == [
        ["[0/6]", "baseline", "sl"],
        ["[0/6]", "baseline", "ssl_sl"],
        *([f"[{i}/6]", "trial", f"t{i:04d}"] for i in range(1, 7)),
    ]
    assert lines[2] == "[1/6] trial t0001  val_accuracy 0.82  train_latency_s 2  (alpha=0.5 rho=0.5 epochs.sl=3)"
    assert "failed: OSError: [/data/x.png] is gone" in lines[4]  # brackets are text, not markup
    assert [line.split()[2] for line in log.getvalue().splitlines()[8:]] == ["t0003"]  # that of another attempt, again
    assert "\x1b" not in log.getvalue()


def test_a_terminal_shows_the_lines_the_warnings_and_the_last_state_below_them(
    small_space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (60, 100):
        (folder := tmp_path / str(columns)).mkdir()
        terminal = Terminal(columns)
        monkeypatch.setattr(sys, "stderr", terminal)
        handler = CurrentStderrHandler()
        logging.getLogger().addHandler(handler)
        try:
            with Progress(console=terminal.console()) as progress:
                warn = logging.getLogger("mixtune.tests").warning
                run_trials(progress, small_space, folder, lambda i, warn=warn: warn("it is odd") if i == 3 else None)
                text = "\n".join(terminal.wait_for("6/6 trials done"))
        finally:
            logging.getLogger().removeHandler(handler)
        told = re.findall(r"\[\d/6\] (?:trial|baseline) (\w+)", text)
        assert told == ["sl", "ssl_sl", *(f"t{i:04d}" for i in range(1, 7))], columns
        assert text.count("it is odd") == 1, columns
        assert text.count("trials done") == 1, columns  # one view, and nothing left of those before it
        assert "0 running · 1 failed" in text.replace("\n", " "), columns
        assert text.count("(knee)") == 1, columns
        assert "trials done" not in "\n".join(terminal.lines()), columns  # it is gone when the search is over


def test_what_cannot_be_drawn_over_gets_plain_lines(small_space: Any, tmp_path: Path) -> None:
    file, shown = io.StringIO(), list[str]()
    dumb = Console(file=file, force_terminal=True, _environ={"TERM": "dumb"}, width=100)
    notebook = Console(force_jupyter=True)
    notebook.print = lambda *objects, **_: shown.extend(map(str, objects))  # type: ignore[method-assign]
    for name, console in (("dumb", dumb), ("notebook", notebook)):
        (tmp_path / name).mkdir()
        with Progress(console=console) as progress:
            run_trials(progress, small_space, tmp_path / name)
    for lines in (file.getvalue().splitlines(), shown):
        assert len(lines) == 8
        assert "\x1b" not in "".join(lines)


def test_the_view_counts_what_was_trained_and_shows_the_front(small_space: Any, tmp_path: Path) -> None:
    def said(search: RunningSearch) -> str:
        file = io.StringIO()
        Console(file=file, width=120).print(view_search(search))
        return file.getvalue()

    search = RunningSearch(space_from_dict(small_space(baselines=[])), tmp_path / "ledger.jsonl")
    assert "0/6 trials done · 0 running · 0 failed · 0 rejected · time left: not known yet" in said(search)
    assert "front" not in said(search)
    for accuracy, seconds in ((0.5, 1.0), (0.9, 2.0), (0.6, 3.0), (math_nan := float("nan"), 1.5)):
        asked = search.ask()
        assert asked
        search.start(asked.trial)
        finish(search, asked.trial, accuracy, seconds)
    assert math_nan != math_nan
    text = said(search)
    assert "4/6 trials done · 0 running · 1 failed" in text
    assert "device time: 2:30 trained · saved: 0:00 reused, 0:00 cut short" in text
    assert "the front so far: 2 of 3 complete trials" in text
    assert "t0001" in text
    assert "t0002" in text
    assert "t0003" not in text


def test_of_a_long_front_some_members_are_shown_its_ends_and_its_knee_among_them() -> None:
    members = [f"t{i:04d}" for i in range(30)]
    for knee in members:
        shown = spread(members, knee)
        assert len(shown) == ROWS
        assert {members[0], members[-1], knee} <= set(shown), knee
        assert shown == sorted(shown)
    assert spread(members[:ROWS], members[3]) == members[:ROWS]
