"""What a whole search will cost."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from mixtune.cost.flops import Size, recipe_flops
from mixtune.cost.machine import Machine, look_at_machine
from mixtune.cost.model import CostModel
from mixtune.errors import RequestError
from mixtune.meter.times import StepTimes
from mixtune.metrics import counted, duration
from mixtune.space.points import points
from mixtune.space.recipe import SAME_TIME, Recipe
from mixtune.space.space import SearchSpace
from mixtune.stages.store import MAX_BYTES
from mixtune.training.data import TrainingData
from mixtune.training.plan import make_plan
from mixtune.training.state import build_parts
from mixtune.tuning.prepare import Prepared
from mixtune.tuning.slots import Slots, plan_slots, trials_for_a_gpu
from mixtune.tuning.suggestions import Suggester

SAMPLED = 64  # recipes
MAX_COUNTED = 256  # recipes of a grid, of which each is looked at


@dataclass(frozen=True)
class SearchForecast:
    """What a search costs where every recipe is trained from its start.

    trial_s: device-seconds of training steps of a trial, the mean over recipes drawn at random; baselines_s: of all
    baselines together; epochs: of all trials and baselines; stored_bytes: of training states; slots: trials at once.
    possible: a line on how many of the space's recipes can be trained, None where all can.
    """

    trials: int
    baselines: int
    trial_s: float
    baselines_s: float
    epochs: float
    stored_bytes: float
    slots: Slots
    device: str
    possible: str | None = None

    @property
    def device_s(self) -> float:
        """Device-seconds of the training steps of the whole search."""
        return self.trials * self.trial_s + self.baselines_s

    @property
    def counts(self) -> str:
        """How many recipes that is: "20 trials and 4 baselines"."""
        return f"{counted(self.trials, 'trial')} and {counted(self.baselines, 'baseline')}"

    def __str__(self) -> str:
        return (
            f"forecast: {self.counts}, about {self.epochs:,.0f} epochs, "
            f"{duration(self.device_s)} of training steps on {self.device}\n"
            f"trials: {self.slots}: {duration(self.device_s / self.slots.count)} or more\n"
            f"disk: up to {min(self.stored_bytes, MAX_BYTES) / 1e9:.2g} GB of training states"
            + ("" if self.possible is None else f"\n{self.possible}")
        )


def look_at_machine_for(prepared: Prepared) -> Machine:
    """Time a few steps of a space where its trials would train, as :func:`look_at_machine` does."""
    resources = prepared.space.resources
    on_gpu = plan_slots(resources, [(prepared.cpus, prepared.gpus)]).gpus > 0
    return look_at_machine(prepared.space, max(1, int(resources.cpus_per_trial)), on_gpu)


def forecast_search(prepared: Prepared, machine: Machine | None = None) -> SearchForecast:
    """Forecast a search from recipes drawn at random; without a ``machine`` a few steps are timed now."""
    space, data, size = prepared.space, prepared.data, Size.of(prepared.data)
    machine = machine or look_at_machine_for(prepared)
    nodes = [(prepared.cpus, prepared.gpus)]
    costs, times = CostModel(space, data, machine), StepTimes()
    drawn = list(_recipes_at_random(space, size))
    if not drawn:
        raise RequestError(f"not one of {SAMPLED} recipes drawn from the space has values that go together")
    recipes = space.grid_size() or math.inf
    if recipes <= MAX_COUNTED:
        found = sum(1 for _ in _possible(space, size, points(space)))
        possible = f"possible: {found} of the {recipes} recipes of the space"
    else:
        found, recipes = len(drawn), SAMPLED
        possible = f"possible: about {100 * found / SAMPLED:.0f} % of the space ({SAMPLED} recipes drawn)"
    base = space.recipe  # what sl_same_time costs
    baselines = [base if n == SAME_TIME else space.recipe_at(p) for n, p in space.baseline_params().items()]
    epochs = space.budget * _mean(len(make_plan(recipe)) for recipe in drawn)
    return SearchForecast(
        trials=space.budget,
        baselines=len(baselines),
        trial_s=_mean(costs.latency(recipe, times) for recipe in drawn),
        baselines_s=sum(costs.latency(recipe, times) for recipe in baselines),
        epochs=epochs + sum(len(make_plan(recipe)) for recipe in baselines),
        stored_bytes=(space.budget + len(baselines)) * _mean(_stored_bytes(recipe, size) for recipe in drawn),
        slots=plan_slots(space.resources, nodes, machine.auto_fraction(trials_for_a_gpu(space.resources, nodes))),
        device=machine.device,
        possible=possible if found < recipes else None,
    )


def forecast_trials(space: SearchSpace, data: TrainingData, costs: CostModel, times: StepTimes) -> dict[str, float]:
    """Return the seconds of training steps of a ``trial``, the mean over recipes drawn at random, and of baselines.

    A space of which no recipe drawn has values that go together has no mean.
    """
    drawn = [costs.latency(recipe, times) for recipe in _recipes_at_random(space, Size.of(data))]
    baselines = space.baseline_params().items()
    return {
        **({"trial": _mean(drawn)} if drawn else {}),
        **{name: costs.latency(space.recipe_at(params), times) for name, params in baselines},
    }


def _recipes_at_random(space: SearchSpace, size: Size) -> Iterator[Recipe]:
    alike = {path: replace(distribution, prior=None) for path, distribution in space.space.items()}
    drawing = Suggester(replace(space.with_search(sampler="random"), space=alike))
    numbers = range(2, SAMPLED + 2)  # the first would be the paper's point
    return _possible(space, size, (drawing.ask(str(number), number) for number in numbers))


def _possible(space: SearchSpace, size: Size, suggested: Iterable[Mapping[str, Any]]) -> Iterator[Recipe]:
    """Yield the recipes whose values go together."""
    for params in suggested:
        with suppress(RequestError):  # right one by one, but not together
            recipe = space.recipe_at(params)
            recipe_flops(recipe, size)
            if space.broken(params) is None:
                yield recipe


def _stored_bytes(recipe: Recipe, size: Size) -> float:
    """Return the bytes of the states that a trial stores: float32 weights and AdamW's two moments, at each boundary."""
    weights = _count_weights(Recipe(data=recipe.data, model=recipe.model, ssl=recipe.ssl), size)
    return 3 * 4.0 * weights * len({epoch.phase for epoch in make_plan(recipe)})


@functools.lru_cache(maxsize=256)
def _count_weights(recipe: Recipe, size: Size) -> int:
    """Return how many weights a recipe trains, without allocating them; its budgets and rates do not matter."""
    with torch.device("meta"):
        image_size = recipe.data.image_size or size.image_size
        parts = build_parts(recipe, image_size, size.channels, size.classes)
    return sum(weight.numel() for part in parts for weight in part.parameters())


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
