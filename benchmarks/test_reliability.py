"""A short version of reliability.py, for pytest benchmarks: kills, faults in trials, damaged states, a cut ledger."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent


@pytest.fixture(scope="module")
def reliability() -> Iterator[ModuleType]:
    """benchmarks/reliability.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("reliability")
        del sys.modules["reliability"]


@pytest.fixture(scope="module")
def harness(reliability: ModuleType) -> Iterator[Any]:
    with reliability.make_harness() as harness:
        yield harness


@pytest.fixture(scope="module")
def undisturbed(reliability: ModuleType, harness: Any) -> Any:
    """A finished search of four trials, with its figures."""
    return reliability.run_undisturbed(harness, reliability.small_space(trials=4, epochs=6))


def test_a_killed_search_loses_nothing_even_if_its_states_are_damaged(
    reliability: ModuleType, harness: Any, undisturbed: Any
) -> None:
    rows = reliability.kill_searches(harness, undisturbed, 2, random.Random(3), print, damaged=0.5)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.times for row in rows if row.done.startswith("SIGKILL")) == 2


def test_damaged_states_are_never_taken_for_whole_ones(reliability: ModuleType, undisturbed: Any) -> None:
    rows = reliability.check_damaged_store(undisturbed, 30, random.Random(1), print)
    assert [problem for row in rows for problem in row.problems] == []
    assert [row.times for row in rows] == [30, 4]


def test_readers_of_a_cut_ledger_see_a_prefix(reliability: ModuleType, undisturbed: Any) -> None:
    assert reliability.cut_ledger(undisturbed, 10, random.Random(1), print).problems == []


def test_faults_end_as_they_should(reliability: ModuleType, harness: Any) -> None:
    fault = reliability.Fault
    faults = [fault("nan"), fault("kill", always=False), fault("oom", always=False)]
    wanted = reliability.train_undisturbed(reliability.fault_space(faults)[0])
    assert reliability.inject(harness, faults, 3, wanted, random.Random(1)) == []


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"figures": 1}, "differs from the undisturbed run"),
        ({}, "is lost"),
    ],
)
def test_what_is_lost_or_other_is_said(reliability: ModuleType, params: dict[str, int], words: str) -> None:
    (line,) = reliability.differences({"t0001": {"figures": 2}}, {"t0001": params} if params else {})
    assert words in line
