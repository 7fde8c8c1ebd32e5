"""A short version of benchmarks/reliability.py: kills, faults in trials, damaged states, a cut ledger."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def disturbances() -> Iterator[SimpleNamespace]:
    """The modules of benchmarks/disturbances."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        names = ("searches", "checks", "damage", "faults", "kills")
        yield SimpleNamespace(**{name: importlib.import_module(f"disturbances.{name}") for name in names})
        for name in [name for name in sys.modules if name.split(".")[0] == "disturbances"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def harness(disturbances: SimpleNamespace) -> Iterator[Any]:
    with disturbances.searches.make_harness() as harness:
        yield harness


@pytest.fixture(scope="module")
def undisturbed(disturbances: SimpleNamespace, harness: Any) -> Any:
    """A finished search of four trials, with its figures."""
    return disturbances.checks.run_undisturbed(harness, disturbances.searches.small_space(trials=4, epochs=6))


def test_a_killed_search_loses_nothing_even_if_its_states_are_damaged(
    disturbances: SimpleNamespace, harness: Any, undisturbed: Any
) -> None:
    rows = disturbances.kills.kill_searches(harness, undisturbed, 2, random.Random(3), print, damaged=0.5)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.times for row in rows if row.done.startswith("SIGKILL")) == 2


def test_damaged_states_are_never_taken_for_whole_ones(disturbances: SimpleNamespace, undisturbed: Any) -> None:
    rows = disturbances.damage.check_damaged_store(undisturbed, 30, random.Random(1), print)
    assert [problem for row in rows for problem in row.problems] == []
    assert [row.times for row in rows] == [30, 4]


def test_readers_of_a_cut_ledger_see_a_prefix(disturbances: SimpleNamespace, undisturbed: Any) -> None:
    assert disturbances.damage.cut_ledger(undisturbed, 10, random.Random(1), print).problems == []


def test_faults_end_as_they_should(disturbances: SimpleNamespace, harness: Any) -> None:
    fault = disturbances.faults.Fault
    faults = [fault("kill", always=False), fault("oom", always=False)]
    wanted = disturbances.faults.train_undisturbed(disturbances.faults.fault_space(faults)[0])
    assert disturbances.faults.inject(harness, faults, 3, wanted, random.Random(1)) == []


@pytest.mark.parametrize(
    ("found", "words"), [({"t0001": {"figures": 1}}, "differs from the undisturbed run"), ({}, "is lost")]
)
def test_what_is_lost_or_other_is_said(disturbances: SimpleNamespace, found: dict[str, Any], words: str) -> None:
    (line,) = disturbances.checks.differences({"t0001": {"figures": 2}}, found)
    assert words in line
