"""What a search shows while it runs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mixtune.space import space_from_dict
from mixtune.tuning.progress import Progress, seconds_left, status_line
from mixtune.tuning.state import RunningSearch

WHOLE = {"val_accuracy": 0.91, "train_latency_s": 2.0, "epoch": 5, "epochs_asked": 5}
STEPS = {"steps": {"sl": (20, "signature")}, "reused_steps": {}, "infer": "inference"}


@pytest.fixture
def search(small_space: Any, tmp_path: Path) -> RunningSearch:
    """A search of six trials: the baselines are done, t0001 complete, t0002 failed, t0003 running."""
    search = RunningSearch(space_from_dict(small_space()), tmp_path / "ledger.jsonl")
    search.step_times.add("signature", 0.1)
    for _ in range(5):
        asked = search.ask()
        assert asked
        search.start(asked.trial)
    for trial in ("sl", "ssl_sl", "t0001"):
        search.end(trial, WHOLE, STEPS)
    search.fail("t0002", "OSError: [/data/x.png] is gone")
    for i, record in enumerate(search.records.values()):
        record.started_time = 100.0 + i
        if record.ended_time:
            record.ended_time = record.started_time + 10.0
    return search


def test_the_status_counts_and_forecasts(search: RunningSearch) -> None:
    now = 107.0  # t0003 has run for three of the ten seconds that a trial takes
    assert seconds_left(search, slots=2, now=now) == pytest.approx((10.0 * 4 - 3.0) / 2)
    assert status_line(search, 2, now) == (
        "2/6 trials done · 1 running · 1 failed · best val_accuracy 0.91 · about 0:18 left"
    )


def test_nothing_is_forecast_before_a_trial_has_ended(small_space: Any, tmp_path: Path) -> None:
    search = RunningSearch(space_from_dict(small_space()), tmp_path / "ledger.jsonl")
    assert status_line(search, 2, 0.0) == "0/6 trials done · 0 running · 0 failed · time left: not known yet"


def test_a_log_gets_one_plain_line_for_each_ended_trial(search: RunningSearch) -> None:
    log = io.StringIO()
    with Progress(slots=2, console=Console(file=log, width=60)) as progress:
        progress.update(search)
        progress.update(search)
    lines = log.getvalue().splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["[2/6]", "baseline", "sl"],
        ["[2/6]", "baseline", "ssl_sl"],
        ["[2/6]", "trial", "t0001"],
        ["[2/6]", "trial", "t0002"],
    ]
    assert lines[2] == "[2/6] trial t0001  val_accuracy 0.91  train_latency_s 2  (alpha=0.5 rho=0.5 epochs.sl=3)"
    assert "failed: OSError: [/data/x.png] is gone" in lines[3]  # brackets are text, not markup
