"""The benchmark of the latency meter runs end to end and writes what it promises; its figures are not judged here."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "latency_meter.py"


def test_it_runs_end_to_end_and_writes_both_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", tmp_path / "results", "--small", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "results" / "latency_meter.md").read_text()
    assert "`python benchmarks/latency_meter.py --device cpu --small`" in text
    for title in ("Four recipes, alone and packed", "Copies of one recipe", "What it costs", "Fresh processes"):
        assert f"## {title}" in text
    assert text.count("- met: ") + text.count("- missed: ") == 8
    assert "of 8 goals are met" in text

    with (tmp_path / "results" / "latency_meter.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"][0] for row in rows} == set("abcd")
    assert all(float(row["value"]) > 0 for row in rows if row["quantity"] in ("clock_s", "meter_s", "window_s"))
