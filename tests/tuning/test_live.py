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

from mixtune.run.ledger import RunState
from mixtune.space.space import load_space, space_from_dict
from mixtune.streams import CurrentStderrHandler
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES
from mixtune.tuning.live import ROWS, Progress, SearchView, fit, fold, spread
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import EpochReport

HEIGHT = 24


def finish(search: RunningSearch, trial: str, accuracy: float, seconds: float = 0.1) -> None:
    metrics = {"epoch": 1, "epochs_asked": 1, "epochs_trained": 1, "epochs_reused": 0, "val_accuracy": accuracy}
    signature = f"steps of {seconds} s"
    bill = Bill(dict.fromkeys(PHASES, 20), (("sl", signature, 1.0),), "inference")
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
    assert (
        lines[2]
        == "[1/6] trial t0001  validation accuracy 82.0 %, training time 2.0 ± 0.3 s  (alpha=0.5 rho=0.5 epochs.sl=3)"
    )
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
        assert "0 running · 1 failed" in text.replace("\n", " · "), columns
        assert text.count("(knee)") == 1, columns
        assert "trials done" not in "\n".join(terminal.lines()), columns  # it is gone when the search is over


def test_what_cannot_be_drawn_over_gets_plain_lines(small_space: Any, tmp_path: Path) -> None:
    file, coloured, shown = io.StringIO(), io.StringIO(), list[str]()
    log = Console(file=coloured, _environ={"FORCE_COLOR": "1"}, width=100)
    dumb = Console(file=file, force_terminal=True, _environ={"TERM": "dumb"}, width=100)
    notebook = Console(force_jupyter=True)
    notebook.print = lambda *objects, **_: shown.extend(map(str, objects))  # type: ignore[method-assign]
    disk = open("/dev/full", "w", buffering=1)  # noqa: SIM115  full when it is closed, too
    full = Console(file=disk, width=100)
    for name, console in (("dumb", dumb), ("log", log), ("notebook", notebook), ("full", full)):
        (tmp_path / name).mkdir()
        with Progress(console=console) as progress:
            run_trials(progress, small_space, tmp_path / name)
    with pytest.raises(OSError, match="No space left"):
        disk.close()
    for lines in (file.getvalue().splitlines(), coloured.getvalue().splitlines(), shown):
        assert len(lines) == 8
        assert "\x1b" not in "".join(lines)


def test_the_view_counts_what_was_trained_and_shows_the_front(small_space: Any, tmp_path: Path) -> None:
    def said(search: RunningSearch) -> str:
        file = io.StringIO()
        Console(file=file, width=120).print(SearchView(search))
        return file.getvalue()

    search = RunningSearch(space_from_dict(small_space(baselines=[])), tmp_path / "ledger.jsonl")
    assert "0/6 trials done · elapsed 0:00 · time left: not known yet · 0 running · 0 failed · 0 rejected" in said(
        search
    )
    assert "front" not in said(search)
    for accuracy, seconds in ((0.5, 1.0), (0.9, 2.0), (0.6, 3.0), (math_nan := float("nan"), 1.5)):
        asked = search.ask()
        assert asked
        search.start(asked.trial)
        finish(search, asked.trial, accuracy, seconds)
    assert math_nan != math_nan
    text = said(search)
    assert re.search(r"4/6 trials done · elapsed 0:0\d · about \d:\d\d left · 0 running · 1 failed", text)
    assert "best so far: t0002, 90.0 %, 40 ± 6 s" in text
    assert "device time: 2:30 trained · saved: 0:00 reused, 0:00 cut short" in text
    assert "the front so far: 2 of 3 complete trials" in text
    assert "t0001" in text
    assert "t0002" in text
    assert "t0003" not in text


@pytest.fixture
def busy_search(tmp_path: Path) -> RunningSearch:
    """A made-up search of 2,000 trials of which 1,200 are done, on sixteen slots, with parameters of its own length."""
    space = load_space("search_spaces/digits.yaml").with_search(trials=2000)
    state, began = RunState(), time.time() - 36_000
    state.apply({"event": "opened", "time": began, "slots": 16, "forecast_s": {"trial": 60.0}})
    for number in range(1, 1217):
        trial, start = f"t{number:04d}", began + 480.0 * (number // 16)
        params = {"alpha": 0.1 + number / 2000, "rho": 0.25, "epochs.ssl": 5 + 5 * (number % 3), "epochs.sl": 115}
        state.apply({"event": "asked", "trial": trial, "time": start, "params": params, "forecast_s": 60.0})
        state.apply({"event": "started", "trial": trial, "time": start})
        scores = {"val_accuracy": number / 1300, "val_accuracy_se": 0.0123, "forecast_latency_s": 60.0 + number}
        metrics = {**scores, "epoch": 7, "train_latency_s": 20.0 + number, "latency_reused_s": 0.0}
        if number <= 1200:
            metrics |= {"epochs_asked": 7, "epochs_trained": 7, "epochs_reused": 0}
            state.apply({"event": "complete", "trial": trial, "time": start + 470.0, "metrics": metrics})
        elif number % 2:
            state.apply({"event": "epoch", "trial": trial, "time": time.time(), "metrics": metrics})
    search = RunningSearch(space, tmp_path / "ledger.jsonl", state=state, slots=16)
    for _ in range(16):
        search.ask()
    return search


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_at_any_width_a_row_is_a_line_and_no_number_is_cut(busy_search: RunningSearch, columns: int) -> None:
    file = io.StringIO()
    Console(file=file, width=columns, height=30).print(SearchView(busy_search))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    assert re.search(r"1200/2000 trials done · elapsed \d+:\d\d · ", text)
    assert re.search(r"about \d+:\d\d:\d\d left", text)
    assert "16 running · 0 failed" in text.replace("\n", " · ")
    assert "best so far: t1200, 92.3 ± 1.2 %, 1220 s" in text
    rows = [line for line in lines if re.match(r"t\d{4} (SL|MixTraining) ", line)]
    said = r"t\d{4} +\S+ +(mix|ssl|sl) +[07]/1\d\d +\S* +(-|9\d\.\d %) +(\d+:)?\d+:\d\d"
    assert all(re.match(said, row) for row in rows), text
    assert len(rows) == 13
    assert "... and 3 more" in lines
    params = {f"alpha={0.1 + number / 2000:.3g}" for number in range(1, 1217)}
    shown = re.findall(r"alpha=\S*", text)
    assert set(shown) <= params
    assert bool(shown) == (columns > 60)
    assert ("epochs.sl=115" in text) == (columns == 140)
    fronts = [line for line in lines if " s " in f"{line} " and " ± " in line and "best" not in line]
    assert len(fronts) == ROWS


def test_parts_are_whole_however_narrow_it_is() -> None:
    assert [str(line) for line in fold(["12 trials", "3 failed", "0:12 left"], 20)] == [
        "12 trials · 3 failed",
        "0:12 left",
    ]
    assert fit(["alpha=0.25", "rho=0.5"], 18) == "alpha=0.25 rho=0.5"
    assert fit(["alpha=0.25", "rho=0.5"], 17) == "alpha=0.25 …"
    assert fit(["alpha=0.25", "rho=0.5"], 11) == "…"


def test_a_log_is_told_how_far_it_is_while_nothing_ends(small_space: Any, tmp_path: Path) -> None:
    log = io.StringIO()
    with Progress(console=Console(file=log, width=60), quiet_s=0.01) as progress:
        search = RunningSearch(space_from_dict(small_space(baselines=[])), tmp_path / "ledger.jsonl", progress.update)
        progress.begin(search)
        asked = search.ask()
        assert asked
        search.start(asked.trial)
        deadline = time.monotonic() + 60
        while "t0001" not in log.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    last = log.getvalue().splitlines()[-1]
    assert re.fullmatch(r"0/6 trials done · elapsed 0:\d\d · time left: not known yet · t0001 epoch 0/\d", last)


def test_of_a_long_front_some_members_are_shown_its_ends_and_its_knee_among_them() -> None:
    members = [f"t{i:04d}" for i in range(30)]
    for knee in members:
        shown = spread(members, knee)
        assert len(shown) == ROWS
        assert {members[0], members[-1], knee} <= set(shown), knee
        assert shown == sorted(shown)
    assert spread(members[:ROWS], members[3]) == members[:ROWS]
