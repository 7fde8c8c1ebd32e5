"""The scheduler that understands a front: who continues, who never ends early, NaN, resumption, anyone's Tuner."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_search import search_here
from ray import tune

import mixtune
from mixtune.errors import RequestError
from mixtune.run.ledger import TrialRecord
from mixtune.run.rungs import Rungs, crowding, rank
from mixtune.space.space import space_from_dict
from mixtune.tuning.ray import ParetoASHA
from mixtune.tuning.schedulers.pareto_asha import build

BOTH = {"accuracy": "max", "seconds": "min"}


def dominates(one: Any, other: Any) -> bool:
    return bool(np.all(one <= other) and np.any(one < other))


def ranks_by_hand(costs: Any) -> list[int]:
    """Return each row's front by peeling fronts off, comparing all with all."""
    left, ranks = set(range(len(costs))), [0] * len(costs)
    front = 0
    while left:
        best = {i for i in left if not any(dominates(costs[j], costs[i]) for j in left)}
        for i in best:
            ranks[i] = front
        left, front = left - best, front + 1
    return ranks


def test_ranking_is_by_front_and_then_by_crowding() -> None:
    for seed in range(20):
        check_ranking(seed)


def check_ranking(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 6, (rng.integers(1, 25), 2)).astype(float)  # with ties
    order, ranks, distances = rank(costs), ranks_by_hand(costs), crowding(costs)
    assert sorted(order) == list(range(len(costs))), seed
    keys = [(ranks[i], -distances[i]) for i in order]
    assert keys == sorted(keys), seed


def test_crowding_is_debs_by_hand() -> None:
    costs = np.array([[0.0, 10.0], [1.0, 4.0], [4.0, 1.0], [10.0, 0.0], [9.0, 9.0]])
    inf = math.inf  # the last row is a front of its own
    assert list(crowding(costs)) == pytest.approx([inf, 4 / 10 + 9 / 10, 9 / 10 + 4 / 10, inf, inf])


def test_a_trial_that_no_peer_dominates_is_never_ended() -> None:
    rng = np.random.default_rng(0)
    rungs, seen = Rungs([0.2], 1 / 3, BOTH), []
    for number in range(300):
        accuracy, seconds = rng.random(2)
        continues = rungs.continues(f"t{number}", 0.3, {"accuracy": accuracy, "seconds": seconds})
        if not any(dominates(np.array(other), np.array([-accuracy, seconds])) for other in seen):
            assert continues
        seen.append([-accuracy, seconds])


def test_about_a_third_goes_on_where_all_can_be_compared() -> None:
    rungs = Rungs([0.5], 1 / 3, {"accuracy": "max"})
    values = np.random.default_rng(0).random(300)
    kept = sum(rungs.continues(str(i), 0.5, {"accuracy": value}) for i, value in enumerate(values))
    assert 0.3 <= kept / len(values) <= 0.45


def test_a_trial_is_judged_once_a_rung_at_its_first_report_there() -> None:
    rungs = Rungs([0.2, 0.6], 0.5, {"accuracy": "max"})
    for number in range(4):
        assert rungs.continues(f"good{number}", 0.7, {"accuracy": 0.9})
    assert rungs.continues("bad", 0.1, {"accuracy": 0.1})  # before the first rung
    assert not rungs.continues("bad", 0.25, {"accuracy": 0.1})
    assert rungs.continues("bad", 0.3, {"accuracy": 0.1})  # judged already
    assert not rungs.continues("bad", 0.6, {"accuracy": 0.1})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("name", list(BOTH))
def test_what_is_not_finite_beats_nobody_and_is_no_peer(name: str, value: float | None) -> None:
    rungs = Rungs([0.5], 0.5, BOTH)
    good = {"accuracy": 0.5, "seconds": 5.0}
    assert rungs.continues("first", 0.5, {**good, name: value})  # there is nobody to compare it with
    assert all(rungs.continues(f"good{i}", 0.5, good) for i in range(4))
    assert not rungs.continues("bad", 0.5, {**good, name: value})
    assert rungs.continues("equal", 0.5, good)


def test_a_search_that_goes_on_judges_as_one_that_never_stopped(small_space: Callable[..., dict[str, Any]]) -> None:
    space = space_from_dict(small_space())
    rng = np.random.default_rng(1)
    records, told = [], []
    for number in range(40):
        epochs = [
            {"sl_progress": p, "val_accuracy": rng.random(), "forecast_latency_s": 1 + rng.random()}
            for p in (0.0, 0.25, 0.5, 1.0)
        ]
        records.append(TrialRecord(f"t{number:04d}", state="complete", epochs=epochs, ended_time=float(number)))
    whole, again = build(space), build(space)
    for record in records:
        told.append([whole.continues(record.trial, epoch) for epoch in record.epochs])
    for record in records[:25]:
        for epoch in record.epochs:
            again.continues(record.trial, epoch)
    assert [[again.continues(r.trial, epoch) for epoch in r.epochs] for r in records[25:]] == told[25:]
    assert not all(map(all, told))


def test_costs_are_those_that_are_known_early(small_space: Callable[..., dict[str, Any]]) -> None:
    values = small_space(objectives={"val_accuracy": "max", "train_flops": "min", "infer_latency_ms": "min"})
    scheduler = build(space_from_dict(values))
    assert scheduler._rungs.objectives == {"val_accuracy": "max", "train_flops": "min"}


def test_any_accuracy_can_be_compared_but_not_calibration_alone(small_space: Callable[..., dict[str, Any]]) -> None:
    values = {"val_macro_f1": "max", "val_calibration_error": "min", "train_latency_s": "min"}
    scheduler = build(space_from_dict(small_space(objectives=values)))
    assert scheduler._rungs.objectives == {"val_macro_f1": "max", "forecast_latency_s": "min"}
    for others in ({"train_flops": "min"}, {"val_calibration_error": "min", "train_flops": "min"}):
        with pytest.raises(RequestError, match="name one of val_accuracy, val_balanced_accuracy, val_macro_f1 as an"):
            build(space_from_dict(small_space(objectives=others)))


@pytest.mark.parametrize(
    ("wrong", "words"), [({"levels": ()}, "levels"), ({"levels": [1.0]}, "levels"), ({"keep": 1.0}, "keep")]
)
def test_wrong_settings_are_one_line(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=f"pareto_asha: {words} should be"):
        ParetoASHA(**wrong)


def test_it_works_in_anyones_tuner(ray_quietly: None, tmp_path: Path) -> None:
    scheduler = mixtune.ParetoASHA({"score": "max", "cost": "min"}, progress="share", levels=(0.2,), keep=0.5)

    def learn(config: dict[str, Any]) -> None:
        """Ten epochs, better or worse from the first on."""
        for done in range(1, 11):
            tune.report({"score": config["quality"] * done, "cost": 1.0, "share": done / 10})

    qualities = [8, 9, 5, 2, 1]
    tuner = tune.Tuner(
        tune.with_resources(learn, {"cpu": 2}),  # one after the other
        param_space={"quality": tune.grid_search(qualities)},
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    iterations = {r.config["quality"]: r.metrics["training_iteration"] for r in tuner.fit()}
    assert iterations[8] == iterations[9] == 10
    assert iterations[5] == iterations[2] == iterations[1] == 2


def test_a_search_with_it_ends_trials_early_and_keeps_them_off_the_front(
    small_space: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    values = small_space(search={"trials": 12, "sampler": "random", "scheduler": "pareto_asha"})
    values["recipe"]["epochs"] = {"ssl": 2, "sl": 9}
    values["space"] = {"optim.sl.base_lr": {"choice": [0.04, 1e-6]}, "alpha": {"uniform": [0.1, 0.9]}}
    result = search_here(values, tmp_path / "run")
    stopped = result.trials[result.trials["state"] == "stopped"]
    assert len(stopped) > 0
    assert len(stopped) + len(result.complete()) == 12
    assert (stopped["epochs_trained"] + stopped["epochs_reused"] < stopped["epochs_asked"]).all()
    assert set(result.pareto_front()["state"]) == {"complete"}
    assert set(result.baselines["state"]) == {"complete"}
    account = result.account()
    assert account.epochs_trained + account.epochs_reused < account.epochs_asked
    assert account.trained_s + account.reused_s < account.asked_s
