"""What the live view of a search shows, at any width."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mixtune.space.space import space_from_dict
from mixtune.tuning.live import ROWS, LiveView, Pace, view_search
from mixtune.tuning.search import RunningSearch

STEPS = {"steps": {"sl": {"signature": 20}}, "reused_steps": {}, "infer": "inference"}


def end_next(search: RunningSearch, accuracy: float, seconds: float, **metrics: Any) -> str:
    """Let the next trial of a search end with these objectives; return its id."""
    asked = search.ask()
    assert asked
    search.start(asked.trial)
    search.step_times.add(f"signature of {seconds}", seconds / 20)
    steps = {**STEPS, "steps": {"sl": {f"signature of {seconds}": 20}}}
    whole = {"epoch": 5, "epochs_asked": 5, "epochs_trained": 5, "epochs_reused": 0}
    search.end(asked.trial, {**whole, "val_accuracy": accuracy, **metrics}, steps)
    return asked.trial


@pytest.fixture
def search(small_space: Any, tmp_path: Path) -> RunningSearch:
    return RunningSearch(space_from_dict(small_space(baselines=[])), tmp_path / "ledger.jsonl")


def drawn(view: LiveView, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_forecast_is_of_the_mean_and_of_what_the_running_trials_have_behind_them() -> None:
    pace = Pace(mean=10.0, waiting=3, since=(103.0,), slots=2)
    assert pace.seconds_left(now=107.0) == (10.0 * 4 - 4.0) / 2
    assert pace.seconds_left(now=1e6) == 10.0 * 3 / 2  # one that takes longer than the mean is about to end


def test_before_the_first_end_there_are_counts_and_no_front(search: RunningSearch) -> None:
    assert drawn(view_search(search, slots=2), 100) == [
        "0/6 trials done · 0 running · 0 failed · 0 rejected · time left: not known yet",
        "device time: 0:00 trained · saved: 0:00 reused, 0:00 cut short",
    ]


def test_the_counts_are_of_now(search: RunningSearch) -> None:
    end_next(search, 0.9, 2.0)
    for _ in range(2):
        asked = search.ask()
        assert asked
        search.start(asked.trial)
    search.fail(asked.trial, "OSError: a file is gone")
    counts = drawn(view_search(search, slots=2), 100)[0]
    assert counts.startswith("2/6 trials done · 1 running · 1 failed · 0 rejected · about 0:00 left")


def test_a_trial_that_an_earlier_process_left_is_not_running(search: RunningSearch, tmp_path: Path) -> None:
    asked = search.ask()
    assert asked
    search.start(asked.trial)
    again = RunningSearch(search.space, tmp_path / "ledger.jsonl")
    assert view_search(again, slots=2).counts["running"] == 0


def test_seconds_are_trained_reused_or_cut_short(search: RunningSearch) -> None:
    """Equal step times: half of the second trial's ten seconds were reused, and the third was stopped in the middle."""
    end_next(search, 0.9, 10.0)
    for reused, epochs in ((10, 5), (0, 3)):
        asked = search.ask()
        assert asked
        search.start(asked.trial)
        steps = {**STEPS, "steps": {"sl": {"signature of 10.0": 4 * epochs}}}
        steps["reused_steps"] = {"sl": {"signature of 10.0": reused}}
        metrics = {"val_accuracy": 0.8, "epoch": epochs, "epochs_asked": 5, "epochs_trained": 1, "epochs_reused": 0}
        search.end(asked.trial, {**metrics, "forecast_latency_s": 10.0}, steps)
    assert drawn(view_search(search, slots=1), 100)[1] == (
        "device time: 0:21 trained · saved: 0:05 reused, 0:04 cut short"
    )


def test_the_front_has_its_knee_marked_and_as_many_parameters_as_fit(search: RunningSearch) -> None:
    for accuracy, seconds in ((0.80, 2.0), (0.90, 3.0), (0.92, 10.0), (0.70, 9.0)):
        end_next(search, accuracy, seconds)
    view = view_search(search, slots=1)
    assert view.knee == "t0002"
    wide = drawn(view, 80)
    assert wide[2] == "the front so far: 3 of 4 complete trials"
    assert wide[3].split() == ["trial", "validation", "accuracy", "training", "time", "alpha", "rho", "epochs.sl"]
    assert [line.split()[0] for line in wide[4:]] == ["t0001", "t0002", "t0003"]
    assert "t0002 (knee)" in wide[5]
    assert "90.0 %" in wide[5]
    assert "3.00 s" in wide[5]
    narrow = drawn(view, 40)
    header = " ".join(narrow[4:6])
    assert ("validation" in header, "rho" in header, "epochs.sl" in header) == (True, False, False)


@pytest.mark.parametrize("width", [20, 40, 60, 100])
def test_no_line_is_wider_than_the_window(search: RunningSearch, width: int) -> None:
    for i in range(6):
        end_next(search, 0.5 + i / 20, 1.0 + i)
    assert max(map(len, drawn(view_search(search, slots=1), width))) <= width


def test_of_a_long_front_some_members_are_shown_its_ends_and_its_knee_among_them(
    small_space: Any, tmp_path: Path
) -> None:
    values = small_space(search={"trials": 40, "sampler": "random"}, baselines=[])
    search = RunningSearch(space_from_dict(values), tmp_path / "ledger.jsonl")
    for i in range(30):  # a bulge at the third member
        end_next(search, 0.5 + 0.01 * i + (0.2 if i == 2 else 0) + (0.2 if i > 2 else 0), 1.0 + i)
    view = view_search(search, slots=1)
    shown = [record.trial for record in view.front]
    assert len(shown) == ROWS
    assert (shown[0], shown[-1], view.knee) == ("t0001", "t0030", "t0003")
    assert view.knee in shown
    assert "the front so far: 30 of 30 complete trials, 8 of them here" in drawn(view, 80)


def test_what_breaks_a_constraint_is_not_on_the_front(small_space: Any, tmp_path: Path) -> None:
    values = small_space(constraints={"train_latency_s": "<= 5"}, baselines=[])
    search = RunningSearch(space_from_dict(values), tmp_path / "ledger.jsonl")
    end_next(search, 0.9, 4.0)
    end_next(search, 0.99, 40.0)
    view = view_search(search, slots=1)
    assert [record.trial for record in view.front] == ["t0001"]
    assert view.complete == 2


def test_a_trial_without_a_finite_objective_is_not_on_the_front(search: RunningSearch) -> None:
    end_next(search, math.nan, 1.0)
    assert view_search(search, slots=1).members == 0
