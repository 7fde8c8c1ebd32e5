"""What two recipes' seconds tell apart: by the steps that one takes more of than the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtune.report.tables import front_notes
from mixtune.report.words import baselines
from mixtune.run.latency import is_distinguishable, latency_difference
from mixtune.run.ledger import Ledger
from mixtune.run.result import load

SECONDS = {"ssl": 0.01, "sl": 0.02, "mix": 0.025}
RECIPES = {  # accuracy and steps
    "t0001": (0.90, {"ssl": 500, "sl": 500}),
    "t0002": (0.91, {"ssl": 500, "sl": 520}),  # 20 steps more of a kind that both take: a sure difference
    "t0003": (0.92, {"ssl": 100, "sl": 100, "mix": 510}),  # others' steps, and nearly as many seconds
}


@pytest.fixture
def timed(make_run: Callable[..., Path]) -> Path:
    run = make_run([])
    ledger = Ledger(run / "ledger.jsonl")
    for kind, seconds in SECONDS.items():
        for _ in range(3):
            ledger.append("step_time", trial="t0001", signature=kind, seconds=seconds, quiet=True)
    for trial, (accuracy, steps) in RECIPES.items():
        latency = sum(SECONDS[kind] * count for kind, count in steps.items())
        ledger.append("asked", trial=trial, params={"alpha": accuracy, "epochs.sl": 20})
        ledger.append("started", trial=trial)
        metrics = {"val_accuracy": accuracy, "train_latency_s": latency}
        ledger.append("complete", trial=trial, metrics=metrics, steps={kind: {kind: n} for kind, n in steps.items()})
    return run


def test_steps_in_common_err_for_both(timed: Path) -> None:
    state = load(timed).state
    one, more, other = (state.records[trial] for trial in RECIPES)
    sure, unsure = (latency_difference(state.step_times, each, one) for each in (more, other))
    assert sure is not None
    assert unsure is not None
    assert sure.mean == pytest.approx(0.4)
    assert sure.error == pytest.approx(20 * state.step_times.error("sl"))
    assert unsure.error == pytest.approx(
        math.hypot(*(n * state.step_times.error(kind) for kind, n in {"ssl": 400, "sl": 400, "mix": 510}.items()))
    )
    assert is_distinguishable(sure)
    assert not is_distinguishable(unsure)
    one.steps = {}  # of a ledger that does not say
    assert latency_difference(state.step_times, more, one) is None


def test_tables_say_what_seconds_do_not_tell_apart(timed: Path) -> None:
    (line,) = (note for note in front_notes(load(timed)) if "distinguishable" in note)
    assert line == (
        "not distinguishable in training time, as the 95 % interval of the difference holds 0: "
        "t0002 and t0003: 0.35 ± 2.4 s apart"
    )


def test_a_baseline_that_is_hardly_slower_is_told_so(timed: Path) -> None:
    ledger = Ledger(timed / "ledger.jsonl")
    ledger.append("asked", trial="ssl_sl", baseline="ssl_sl", params={"rho": 0.0})
    metrics = {"val_accuracy": 0.91, "train_latency_s": 16.0}
    steps = {"ssl": {"ssl": 100}, "sl": {"sl": 112}, "mix": {"mix": 510}}
    ledger.append("baseline", trial="ssl_sl", method="ssl_sl", metrics=metrics, steps=steps)
    (line,) = baselines(load(timed))
    assert line.endswith("1.04x as fast, which may be nothing: not distinguishable.")
