"""How long a search will still take: answers that a reader can work out."""

from __future__ import annotations

from typing import Any

import pytest

from mixtune.run.ledger import RunState, fold
from mixtune.run.remaining import time_left, wanted_trials
from mixtune.space.space import SearchSpace, space_from_dict


@pytest.fixture
def space(small_space: Any) -> SearchSpace:
    return space_from_dict(small_space(baselines=[]))  # a budget of six trials


def opened(**fields: Any) -> dict[str, Any]:
    return {"event": "opened", "time": 0.0, "slots": 2, "forecast_s": {"trial": 10.0}, **fields}


def begun(trial: str, start: float, forecast: float = 10.0) -> list[dict[str, Any]]:
    asked = {"event": "asked", "trial": trial, "time": start, "params": {}, "forecast_s": forecast, "epochs": 10}
    return [asked, {"event": "started", "trial": trial, "time": start}]


def epoch(
    trial: str, moment: float, number: int, seconds: float, forecast: float = 10.0, **more: Any
) -> dict[str, Any]:
    metrics = {"epoch": number, "train_latency_s": seconds, "forecast_latency_s": forecast}
    return {"event": "epoch", "trial": trial, "time": moment, "metrics": metrics, **more}


def complete(trial: str, moment: float, seconds: float = 10.0, reused: float = 0.0) -> dict[str, Any]:
    metrics = {"epoch": 10, "train_latency_s": seconds, "forecast_latency_s": seconds, "latency_reused_s": reused}
    return {"event": "complete", "trial": trial, "time": moment, "metrics": metrics}


def left(space: SearchSpace, now: float, *events: dict[str, Any]) -> float:
    seconds = time_left(fold(events), space, now).search
    assert seconds is not None
    return seconds


def test_before_the_first_epoch_forecasts_alone_say_it(space: SearchSpace) -> None:
    assert left(space, 0.0, opened()) == pytest.approx(30)  # six trials of 10 s in two slots
    assert left(space, 0.0, opened(slots=1)) == pytest.approx(60)
    assert left(space, 0.0, opened(), {"event": "extended", "trials": 8}) == pytest.approx(40)
    assert left(space, 4.0, opened(), *begun("t0001", 0.0), *begun("t0002", 0.0)) == pytest.approx(26)
    assert time_left(RunState(), space, 0.0).search is None


def test_baselines_have_their_own_forecast(small_space: Any) -> None:
    space = space_from_dict(small_space(baselines=["sl", "ssl_sl"]))
    drawn = {"trial": 10.0, "sl": 4.0, "ssl_sl": 6.0}
    assert left(space, 0.0, opened(slots=1, forecast_s=drawn)) == pytest.approx(70)


def test_the_pace_and_the_share_of_what_is_trained_are_learned(space: SearchSpace) -> None:
    """Whatever the trial that stands in for what is not seen yet: as trials end, it counts for less and less."""
    slow = [opened(slots=1)]
    for number in range(5):  # one after the other, 30 s for 10 s of steps
        slow += [*begun(f"t000{number + 1}", 30.0 * number), complete(f"t000{number + 1}", 30.0 * (number + 1))]
    assert left(space, 150.0, *slow) == pytest.approx(10 * (150 + 10) / (50 + 10))
    many = space.with_search(trials=200)
    reusing = [opened(slots=1)]
    for number in range(100):  # half of each came from a stage
        trial = f"t{number + 1:04d}"
        reusing += [*begun(trial, 5.0 * number), complete(trial, 5.0 * (number + 1), reused=5.0)]
    assert left(many, 500.0, *reusing) == pytest.approx(500, rel=0.05)


def test_a_running_trial_has_what_its_epochs_leave_and_what_it_reused_is_no_pace(space: SearchSpace) -> None:
    one = space.with_search(trials=1)
    events = [opened(), *begun("t0001", 0.0), epoch("t0001", 2.0, 4, 4.0, reused=4)]
    running = time_left(fold([*events, epoch("t0001", 4.0, 5, 5.0, reused=4)]), one, 4.0)
    assert running.trials == {"t0001": pytest.approx(5 * (10 + 4) / (10 + 1))}  # 1 s of steps in the 4 s so far
    assert running.search == running.trials["t0001"]


def test_a_forecast_that_was_too_low_is_raised_and_never_says_nothing_while_a_trial_runs(space: SearchSpace) -> None:
    events = [opened(slots=1), *begun("t0001", 0.0), epoch("t0001", 2.0, 1, 2.0, forecast=20.0)]
    typical = (4 * 20 + 20) / 5  # drawn recipes are revised as this one was
    assert left(space, 2.0, *events) == pytest.approx(18 + 5 * typical)
    assert left(space.with_search(trials=1), 1002.0, *events) == pytest.approx(100)  # stuck: a tenth as long again


def test_a_slot_that_stands_free_between_trials_costs_time(space: SearchSpace) -> None:
    events = [opened(slots=1)]
    for number in range(5):
        start = 20.0 * number
        events += [*begun(f"t000{number + 1}", start), complete(f"t000{number + 1}", start + 10.0)]
    assert left(space, 90.0, *events) == pytest.approx(10 + 40 / 5)


def test_of_a_grid_no_more_is_to_come_than_it_holds(small_space: Any) -> None:
    given = small_space(baselines=[], search={"sampler": "grid"}) | {"space": {"rho": {"grid_search": [0.0, 0.5, 1.0]}}}
    space = space_from_dict(given)
    state = fold([opened(slots=1), {"event": "rejected", "trial": "t0001", "time": 1.0}])
    assert wanted_trials(state, space) == 2
    assert time_left(state, space, 0.0).search == pytest.approx(20)
