"""What is known of a recipe's costs before it trains."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixtune.cost.flops import Size, most_expensive_recipe, recipe_bill
from mixtune.cost.machine import Machine
from mixtune.errors import RequestError
from mixtune.meter.times import StepTimes
from mixtune.space.effective import mixes_by_values
from mixtune.space.recipe import Recipe, flatten
from mixtune.space.space import SearchSpace
from mixtune.space.views import Strategy
from mixtune.training.bill import Bill, cost_factors, cost_signature, data_shape
from mixtune.training.data import TrainingData
from mixtune.training.plan import Phase

MAX_BILLS = 4_096


@dataclass(frozen=True)
class Cost:
    """What is known of a recipe before its training.

    objectives: the forecasts of those that are costs; seconds: of the whole recipe's training steps; marginal_s: of
    those that no stage has, which would be trained; is_timed: whether all kinds of steps were timed; epochs: how many
    it has.
    """

    objectives: Mapping[str, float]
    seconds: float
    marginal_s: float
    is_timed: bool = True
    epochs: int | None = None


class CostModel:
    """Forecasts of recipes' costs: timed steps count as they were timed, the others by what their FLOPs say."""

    def __init__(self, space: SearchSpace, data: TrainingData, machine: Machine) -> None:
        self._machine = machine
        self._size, self._shape = Size.of(data), data_shape(data)
        self._of_name = functools.lru_cache(MAX_BILLS)(lambda name: self.bill(space.recipe_at(json.loads(name))))

    def bill(self, recipe: Recipe) -> Bill:
        """Return a recipe's bill, as its trial on this machine will send it but for inference."""
        machine = self._machine
        precision = machine.precision if recipe.precision == "auto" else recipe.precision
        shape = {**self._shape, "image_size": recipe.data.image_size or self._shape["image_size"]}
        shape["images_on"] = "cpu" if machine.gpu_bytes is None else "cuda"
        shape["two_datasets"] = mixes_by_values(flatten(recipe.to_dict()))

        def signature(phase: Phase, strategy: Strategy | None) -> str:
            factors = cost_factors(recipe, phase, machine.device, machine.threads, precision, shape, strategy)
            return cost_signature(factors)

        return recipe_bill(recipe, self._size, signature)

    def latency(self, recipe: Recipe, times: StepTimes) -> float:
        """Return the seconds of a recipe's training steps."""
        return sum(self.bill(recipe).price(times, self._machine.step_seconds).values())

    def cost(self, params: Mapping[str, Any], times: StepTimes, reused: int = 0, untimed: float = 1.0) -> Cost | None:
        """Return what is known of dotted parameters, of whose recipe so many epochs need no training.

        untimed: scales the seconds of steps that are forecast by their FLOPs. None for values that are right one by
        one but not together; see fault().
        """
        try:
            bill = self._bill_of(params)
        except RequestError:
            return None

        def step_seconds(phase: Phase, flops: float) -> float:
            return untimed * self._machine.step_seconds(phase, flops)

        seconds, marginal = (sum(bill.price(times, step_seconds, start=epochs).values()) for epochs in (0, reused))
        objectives = {"train_latency_s": seconds, "train_flops": bill.flops}
        return Cost(objectives, seconds, marginal, bill.is_timed(times), len(bill.epochs))

    def fault(self, params: Mapping[str, Any]) -> str | None:
        """Return why dotted parameters make no recipe that can be trained; None where they do."""
        try:
            self._bill_of(params)
        except RequestError as error:
            return str(error)
        return None

    def _bill_of(self, params: Mapping[str, Any]) -> Bill:
        """Return the bill of dotted parameters, computed once: a sampler prices its candidates for every suggestion."""
        return self._of_name(json.dumps(params, sort_keys=True))


def forecast_most_expensive(space: SearchSpace, data: TrainingData, machine: Machine) -> dict[str, float]:
    """Return the training seconds and FLOPs of the most expensive recipe of a space and its baselines, as forecast."""
    size = Size.of(data)
    recipes = [most_expensive_recipe(space, size), *(space.recipe_at(p) for p in space.baseline_params().values())]
    bills = [recipe_bill(recipe, size) for recipe in recipes]
    return {
        "train_latency_s": max(sum(bill.price(StepTimes(), machine.step_seconds).values()) for bill in bills),
        "train_flops": max(bill.flops for bill in bills),
    }
