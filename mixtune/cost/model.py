"""What is known of a recipe's costs before it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixtune.cost.flops import Size, forecast_latency, image_flops, recipe_flops
from mixtune.cost.machine import SURELY, Machine
from mixtune.errors import RequestError
from mixtune.meter.times import StepTimes
from mixtune.space.recipe import Recipe
from mixtune.space.space import SearchSpace
from mixtune.space.views import Strategy
from mixtune.training.bill import cost_factors, cost_signature, data_shape
from mixtune.training.data import TrainingData
from mixtune.training.plan import Phase, make_plan


@dataclass(frozen=True)
class Cost:
    """What is known of a recipe before its training.

    objectives: the forecasts of those that are costs; seconds: of the whole recipe's training steps; marginal_s: of
    those that no stage has, which would be trained.
    """

    objectives: Mapping[str, float]
    seconds: float
    marginal_s: float


class CostModel:
    """Forecasts of recipes' costs: timed steps count as they were timed, the others by their operations."""

    def __init__(self, space: SearchSpace, data: TrainingData, machine: Machine) -> None:
        self._space, self._machine = space, machine
        self._size, self._shape, self._tasks = Size.of(data), data_shape(data), len(data.tasks)

    def latency(self, recipe: Recipe, times: StepTimes, untimed: float = 1.0, reused: int = 0) -> float:
        """Return seconds of a recipe's training steps without its first ``reused`` epochs.

        untimed: scales the seconds of steps that are forecast by their operations.
        """
        images, seconds = self._size.epoch_images(recipe), 0.0
        steps = images // (recipe.optim.batch_size * self._tasks)
        for (phase, strategy), epochs in Counter(epoch.work for epoch in make_plan(recipe)[reused:]).items():
            signature = self._signature(recipe, phase, strategy)
            if times.is_known(signature):
                seconds += times.latency([(steps * epochs, signature)])
            else:
                flops = image_flops(recipe, self._size, strategy)[phase] * images * epochs
                seconds += untimed * flops / self._machine.speeds[phase]
        return seconds

    def cost(self, params: Mapping[str, Any], times: StepTimes, reused: int) -> Cost | None:
        """Return what is known of dotted parameters, of whose recipe so many epochs need no training."""
        try:
            recipe = self._space.recipe_at(params)
            flops = sum(recipe_flops(recipe, self._size).values())
        except RequestError:
            return None
        seconds, marginal = (self.latency(recipe, times, reused=epochs) for epochs in (0, reused))
        return Cost({"train_latency_s": seconds, "train_flops": flops}, seconds, marginal)

    def forecast(self, params: Mapping[str, Any], times: StepTimes) -> dict[str, float]:
        """Return the least that the base recipe with dotted values set may cost, for constraints.

        Nothing is known of values that are right one by one but not together: such a trial fails by itself.
        """
        try:
            recipe = self._space.recipe_at(params)
            flops = sum(recipe_flops(recipe, self._size).values())
        except RequestError:
            return {}
        return {"train_latency_s": self.latency(recipe, times, SURELY), "train_flops": flops}

    def _signature(self, recipe: Recipe, phase: Phase, strategy: Strategy | None) -> str:
        machine = self._machine
        precision = machine.precision if recipe.precision == "auto" else recipe.precision
        shape = {**self._shape, "image_size": recipe.data.image_size or self._shape["image_size"]}
        shape["images_on"] = "cpu" if machine.gpu_bytes is None else "cuda"
        return cost_signature(cost_factors(recipe, phase, machine.device, machine.threads, precision, shape, strategy))


def reference_point(space: SearchSpace, data: TrainingData, machine: Machine, dearest: Recipe) -> dict[str, float]:
    """Return the worst that counts, for the hypervolume.

    What guessing gets where classes are equally frequent, with a calibration that is sure of it; for each cost that of
    the dearest recipe, forecast; and for all the constraint, where there is one.
    """
    size = Size.of(data)
    chance = sum(1.0 / classes for classes in size.classes) / len(size.classes)
    baselines = [space.recipe_at(params) for params in space.baseline_params().values()]
    flops = [recipe_flops(recipe, size) for recipe in (dearest, *baselines)]
    speeds: Any = machine.speeds
    worst = {
        "val_accuracy": chance,
        "val_balanced_accuracy": chance,
        "val_macro_f1": chance,
        "val_calibration_error": 1.0 - chance,
        "train_latency_s": max(forecast_latency(each, speeds) for each in flops),
        "train_flops": max(sum(each.values()) for each in flops),
    }
    return worst | {name: constraint.bound for name, constraint in space.constraints.items()}
