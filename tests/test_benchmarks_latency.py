"""The benchmark of the latency meter measures and writes what it promises; its figures are not judged here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = ("bench", "cost", "fresh", "processes", "reference")


@pytest.fixture
def latency_meter() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        before = set(sys.modules)
        yield importlib.import_module("latency_meter")
        for name in {"latency_meter", "training_report", *(f"meter_{part}" for part in PARTS)} - before:
            sys.modules.pop(name, None)


def test_processes_alone_and_packed_are_compared(latency_meter: ModuleType) -> None:
    """Its parts a, d and e; b and c train by the same processes, c by a search too."""
    said: list[str] = []
    bench = latency_meter.Bench("cpu", latency_meter.SMALL, [], said.append)
    sections = [
        latency_meter.report_packed(*latency_meter.measure_packed(bench)),
        latency_meter.measure_fresh(bench),
        latency_meter.measure_reference(bench),
    ]
    text = latency_meter.write_report(sections, ["about"])
    for title in ("Four recipes, alone and packed", "Fresh processes, alone", "A reference step alongside"):
        assert f"## {title}" in text
    goals = sum(len(section.goals) for section in sections)
    assert goals > 1
    assert text.count("- met: ") + text.count("- missed: ") == goals
    assert f"of {goals} goals are met" in text
    assert {part[0] for part, *_ in bench.rows} == {"a", "d", "e"}
    assert all(row[-1] > 0 for row in bench.rows if row[-2] in ("clock_s", "meter_s", "window_s"))
