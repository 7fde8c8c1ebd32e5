"""Run directories as a search writes them, without a search."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixtune.ledger import Ledger

Metrics = Mapping[str, Any]
MakeRun = Callable[..., Path]
OBJECTIVES = {"val_accuracy": "max", "train_latency_s": "min"}
SPACE = {"alpha": {"uniform": [0.0, 1.0]}, "epochs.sl": {"qrandint": [10, 50, 10]}}
REFERENCE = {"val_accuracy": 0.1, "train_latency_s": 60.0}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes runs/<name> with a complete trial for each of ``metrics`` and baselines.

    A pair in ``metrics`` stands for accuracy and seconds. Trial i has alpha i / 10 and takes 42 seconds.
    """

    def make(
        metrics: list[Metrics | tuple[float, float]],
        baselines: Mapping[str, Metrics] | None = None,
        objectives: Mapping[str, str] = OBJECTIVES,
        reference: Mapping[str, Any] | None = REFERENCE,
        name: str = "digits",
        constraints: Mapping[str, str] | None = None,
    ) -> Path:
        directory = tmp_path / "runs" / name
        directory.mkdir(parents=True)
        space = {"space": SPACE, "objectives": dict(objectives), "run": {"reference_point": reference}}
        space |= {"constraints": dict(constraints)} if constraints else {}
        (directory / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        (directory / "ledger.jsonl").touch()
        ledger = Ledger(directory / "ledger.jsonl")
        for i, given in enumerate(metrics, start=1):
            found = given if isinstance(given, Mapping) else dict(zip(OBJECTIVES, given, strict=True))
            trial = f"t{i:04d}"
            params = {"alpha": i / 10, "epochs.sl": 20}
            ledger.append("asked", trial=trial, time=100.0 * i - 1, params=params)
            ledger.append("started", trial=trial, time=100.0 * i)
            ledger.append("complete", trial=trial, time=100.0 * i + 42, metrics=found)
        for method, found in (baselines or {}).items():
            ledger.append("asked", trial=method, baseline=method, params={"rho": 0.0})
            ledger.append("baseline", trial=method, method=method, metrics=found)
        return directory

    return make


@pytest.fixture(scope="session")
def write_run() -> Iterator[Callable[..., Path]]:
    """The writer of made-up searches of any size that benchmarks/reporting.py measures with."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("reporting").write_run
        for name in {"reporting", "training_report"} - before:
            sys.modules.pop(name, None)
