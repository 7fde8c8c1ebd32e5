"""Suggestions that know the cost: inside the space, new, repeatable, and drawn to what is nearly free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from mixtune.cost.model import Cost
from mixtune.errors import RequestError
from mixtune.run.ledger import TrialRecord
from mixtune.space.space import SearchSpace, space_from_dict
from mixtune.tuning.samplers.cost_aware import MIN_COMPLETE
from mixtune.tuning.suggestions import Advice, Suggester

SPACE = {
    "alpha": {"uniform": [0.0, 1.0]},
    "rho": {"choice": [0.25, 0.5]},
    "epochs.ssl": {"randint": [2, 30]},
    "epochs.sl": {"qrandint": [5, 50, 5]},
    "optim.sl.base_lr": {"loguniform": [1e-3, 1e-1]},
    "ssl.encode": {"choice": ["visible", "full"]},
}


@pytest.fixture
def space(small_space: Callable[..., dict[str, Any]]) -> SearchSpace:
    return space_from_dict(small_space(space=SPACE, search={"sampler": "cost_aware"}))


class Known(Advice):
    """Seconds are epochs; ``free`` says of which recipes all stages are stored."""

    def __init__(self, free: Callable[[Mapping[str, Any]], bool] = lambda params: False) -> None:
        self.free = free

    def costs(self, params: Mapping[str, Any]) -> Cost | None:
        seconds = float(params["epochs.ssl"] + params["epochs.sl"])
        return Cost({"train_latency_s": seconds}, seconds, 0.0 if self.free(params) else seconds)

    def reference(self) -> Mapping[str, float]:
        return {
            "val_accuracy": 0.0,
            "val_balanced_accuracy": 0.0,
            "val_calibration_error": 1.0,
            "train_latency_s": 90.0,
        }


def accuracy(params: Mapping[str, Any]) -> float:
    return min(0.99, 0.3 + 0.01 * params["epochs.sl"] + 0.2 * params["alpha"] * (1 - params["alpha"]))


def search(space: SearchSpace, advice: Advice, trials: int) -> list[dict[str, Any]]:
    """Ask and tell so many trials; return their parameters."""
    suggester, asked = Suggester(space, advice), []
    learned = next(iter(space.objectives))
    for number in range(1, trials + 1):
        trial = f"t{number:04d}"
        params = suggester.ask(trial, number)
        asked.append(params)
        cost = float(params["epochs.ssl"] + params["epochs.sl"])
        share = accuracy(params) if space.objectives[learned] == "max" else 1 - accuracy(params)
        suggester.tell(TrialRecord(trial, "complete", metrics={learned: share, "train_latency_s": cost}))
    return asked


def test_suggestions_are_of_the_space_new_and_repeatable(space: SearchSpace) -> None:
    asked = search(space, Known(), 16)
    assert all(set(params) == set(SPACE) for params in asked)
    assert all(space.space[path].contains(value) for params in asked for path, value in params.items())
    assert len({tuple(params.items()) for params in asked}) == 16
    assert search(space, Known(), 16) == asked


def test_before_much_is_known_it_suggests_what_tpe_does(space: SearchSpace) -> None:
    tpe = search(space.with_search(sampler="tpe"), Advice(), MIN_COMPLETE)
    assert search(space, Known(), MIN_COMPLETE) == tpe
    assert search(space, Advice(), MIN_COMPLETE + 3)[:MIN_COMPLETE] == tpe  # and where nothing is known at all


def test_what_is_almost_trained_is_asked_first(space: SearchSpace) -> None:
    free = search(space, Known(lambda params: params["rho"] == 0.5), 24)[MIN_COMPLETE:]
    expensive = search(space, Known(lambda params: params["rho"] == 0.25), 24)[MIN_COMPLETE:]
    assert sum(params["rho"] == 0.5 for params in free) >= 12
    assert sum(params["rho"] == 0.25 for params in expensive) >= 12


def test_what_is_no_recipe_is_not_asked(space: SearchSpace) -> None:
    class Picky(Known):
        def costs(self, params: Mapping[str, Any]) -> Cost | None:
            return None if params["ssl.encode"] == "full" else super().costs(params)

    asked = search(space, Picky(), 20)[MIN_COMPLETE:]
    assert {params["ssl.encode"] for params in asked} == {"visible"}


def test_another_figure_of_the_validation_split_is_learned_alike(space: SearchSpace) -> None:
    balanced = replace(space, objectives={"val_balanced_accuracy": "max", "train_latency_s": "min"})
    assert search(balanced, Known(), 14) == search(space, Known(), 14)
    calibrated = replace(space, objectives={"val_calibration_error": "min", "train_latency_s": "min"})
    asked = search(calibrated, Known(lambda params: params["rho"] == 0.5), 24)[MIN_COMPLETE:]
    assert sum(params["rho"] == 0.5 for params in asked) >= 12


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ({"val_accuracy": "max"}, "name these objectives, or"),
        ({"train_flops": "min", "train_latency_s": "min"}, "name these objectives, or"),
        ({"val_accuracy": "max", "infer_latency_ms": "min"}, "drop infer_latency_ms"),
        ({"val_accuracy": "max", "val_macro_f1": "max", "train_flops": "min"}, "drop val_macro_f1"),
    ],
)
def test_objectives_that_are_known_late_are_refused(space: SearchSpace, objectives: dict[str, str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Suggester(replace(space, objectives=objectives)).ask("t0001", 1)
