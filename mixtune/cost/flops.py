"""What a recipe will cost, before it trains: its FLOPs, and what a few timed steps say of their seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from mixtune import plugins
from mixtune.backbone import build_backbone
from mixtune.errors import RequestError
from mixtune.space.recipe import Model, Recipe
from mixtune.space.section import SslSettings
from mixtune.space.space import SearchSpace
from mixtune.space.views import Strategy
from mixtune.training.bill import Bill, phase_flops
from mixtune.training.data import TrainingData
from mixtune.training.plan import PHASES, Epoch, Phase, make_plan
from mixtune.training.state import start_state
from mixtune.training.threads import step_seconds

TIMED_BATCH = 64  # images at most, on a CPU
TIMED_STEPS = 5
TIMED_S = 1.0  # of a phase at one size; then no step is begun, but for the first two


def _label(phase: Phase, strategy: Strategy | None) -> str:
    return f"{phase} {strategy}"


@dataclass(frozen=True)
class Size:
    """What a recipe's cost depends on besides the recipe: the data's shape.

    classes and images are of each task; images counts all before the split; ssl_images: all of another SSL set, None
    where there is none.
    """

    image_size: int
    channels: int
    classes: tuple[int, ...]
    images: tuple[int, ...]
    ssl_images: int | None = None

    @classmethod
    def of(cls, data: TrainingData) -> Size:
        """Return the shape of loaded data."""
        classes = tuple(len(task.classes) for task in data.tasks)
        first = data.tasks[0]
        ssl_images = None if first.ssl.images is first.train.images else len(first.ssl.images)
        images = tuple(len(task.train.images) for task in data.tasks)
        return cls(data.image_size, data.channels, classes, images, ssl_images)

    def steps(self, recipe: Recipe) -> dict[Phase, int]:
        """Return how many steps an epoch of each phase has, as TrainingData.steps_of() will say."""
        section, smallest, batch = recipe.data, min(self.images), recipe.optim.batch_size
        kept = smallest - (0 if recipe.protocol == "paper" else round(section.val_fraction * smallest))
        supervised = ssl = round(kept * section.fraction) // batch
        if section.ssl_epoch == "pool":
            if section.ssl_dataset is not None and self.ssl_images is not None:
                pool = round((section.ssl_fraction or 1.0) * self.ssl_images)
            else:
                pool = round(kept * (section.ssl_fraction or section.fraction))
            ssl = max(1, pool // batch)
        return {"ssl": ssl, "mix": supervised, "sl": supervised}


def recipe_bill(recipe: Recipe, size: Size, signature: Callable[[Phase, Strategy | None], str] = _label) -> Bill:
    """Return a recipe's bill without allocating its weights; inference is not in it."""
    plan, batch = make_plan(recipe), recipe.optim.batch_size * len(size.classes)
    costs = {
        work: (work[0], signature(*work), batch * image_flops(recipe, size, work[1])[work[0]])
        for work in {epoch.work for epoch in plan}
    }
    return Bill(size.steps(recipe), tuple(costs[epoch.work] for epoch in plan), infer="")


def recipe_flops(recipe: Recipe, size: Size) -> dict[Phase, float]:
    """Return the training FLOPs of a whole recipe by phase, without allocating its weights."""
    bill, flops = recipe_bill(recipe, size), dict.fromkeys(PHASES, 0.0)
    for phase, _, step in bill.epochs:
        flops[phase] += bill.steps[phase] * step
    return flops


def step_flops(recipe: Recipe, size: Size) -> float:
    """Return the training FLOPs of a step of a recipe's most expensive phase; 0 where it has no step."""
    if not size.steps(recipe)["sl"]:
        return 0.0
    works = {epoch.work for epoch in make_plan(recipe)}
    highest = max(image_flops(recipe, size, strategy)[phase] for phase, strategy in works)
    return highest * recipe.optim.batch_size * len(size.classes)


def image_flops(recipe: Recipe, size: Size, strategy: Strategy | None) -> dict[Phase, float]:
    """Return the training FLOPs of one image in each phase, with an epoch's strategy."""
    image_size = recipe.data.image_size or size.image_size
    return _model_flops(recipe.model, recipe.ssl, image_size, size.channels, size.classes, strategy)


@functools.lru_cache(maxsize=4096)
def _model_flops(
    model: Model,
    ssl: SslSettings,
    image_size: int,
    channels: int,
    classes: tuple[int, ...],
    strategy: Strategy | None,
) -> dict[Phase, float]:
    with torch.device("meta"):
        backbone = build_backbone(model, image_size, channels)
        objective = plugins.find("objectives", ssl.objective, "ssl.objective").build(ssl, backbone)
    return phase_flops(backbone, objective, classes, strategy)


def most_expensive_recipe(space: SearchSpace, size: Size) -> Recipe:
    """Return the recipe of the space that needs the most FLOPs; see _costliest for how certain that is."""
    return _costliest(space, lambda recipe: (sum(recipe_flops(recipe, size).values()),))


def largest_recipe(space: SearchSpace, size: Size) -> Recipe:
    """Return the recipe of the space whose training needs the most memory: that with the most FLOPs in a step.

    What a step computes it keeps for the backward pass. Baselines have the base recipe's values, which so count as
    well. See _costliest for how certain that is.
    """

    def cost(recipe: Recipe) -> tuple[float, ...]:
        # of equal steps the longer training: epochs.ssl and rho, say, add a phase only together
        return step_flops(recipe, size), sum(recipe_flops(recipe, size).values())

    return _costliest(space, cost, or_base=True)


def _costliest(space: SearchSpace, cost: Callable[[Recipe], tuple[float, ...]], or_base: bool = False) -> Recipe:
    """Return the recipe of the space that costs the most; or_base: a searched field may have the base recipe's value.

    Found from the base recipe, coordinate by coordinate over every distribution's ends and choices, twice around:
    exact where no two parameters pull each other's cost in opposite directions.
    """

    def cost_at(params: dict[str, Any]) -> tuple[float, ...]:
        try:
            return cost(space.recipe_at(params))
        except RequestError:  # values that are right one by one, but not together: such a trial fails, it costs nothing
            return ()

    params: dict[str, Any] = {}
    for _ in range(2):
        for path, distribution in space.space.items():
            kept = [params] if or_base or path in params else []
            params = max([*kept, *({**params, path: value} for value in distribution.extremes())], key=cost_at)
    return space.recipe_at(params) if cost_at(params) else _costliest(space, cost, or_base=True)


def sizes_to_time(space: SearchSpace, size: Size, device: torch.device) -> list[Recipe]:
    """Return base recipes of which a few steps say what any of the space takes, the smallest first.

    They have the smallest and the largest batch and model of the space, as far as it varies these; on a CPU batches
    of at most TIMED_BATCH images.
    """

    def model_flops(recipe: Recipe) -> float:
        return image_flops(recipe, size, None)["sl"]

    models = replace(space, space={path: d for path, d in space.space.items() if path.startswith("model.")})
    small = _costliest(models, lambda recipe: (-model_flops(recipe),))
    large = _costliest(models, lambda recipe: (model_flops(recipe),))
    chosen = [small] if model_flops(small) == model_flops(large) else [small, large]
    batches = [value for path, value in space.extremes() if path == "optim.batch_size"]
    batches = batches or [space.recipe.optim.batch_size]
    if device.type == "cpu":
        batches = [min(batch, TIMED_BATCH) for batch in batches]
    return [
        recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"batch_size": batch})})
        for recipe, batch in product(chosen, sorted({min(batches), max(batches)}))
    ]


def time_steps(recipe: Recipe, data: TrainingData, device: torch.device) -> dict[Phase, tuple[float, float]]:
    """Return the FLOPs of a training step of each phase and its seconds, measured here and now over a few of them."""
    state = start_state(recipe, replace(data, batch_size=recipe.optim.batch_size), device)
    first = recipe.ssl.strategy(0)
    epochs = [Epoch(0, phase, None, None, None if phase == "sl" else first) for phase in PHASES]
    return {
        epoch.phase: (state.step_flops(epoch), step_seconds(state, epoch, TIMED_STEPS, TIMED_S)) for epoch in epochs
    }


def fit_steps(timed: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return what a step takes whatever its FLOPs, and what each FLOP adds: seconds, neither below 0.

    timed: FLOPs and seconds of steps, whose relative errors are least squares. Steps of one size say nothing of the
    first, which is 0 then.
    """
    terms = np.array([(1.0 / seconds, flops / seconds) for flops, seconds in timed])
    if len({flops for flops, _ in timed}) == 1:
        terms[:, 0] = 0.0
    fixed, each = nnls(terms, np.ones(len(timed)))[0]
    return float(fixed), float(each)


def measure_speeds(recipe: Recipe, data: TrainingData, device: torch.device) -> dict[Phase, float]:
    """Return the FLOPs per second of each phase's training steps, measured here and now over a few of them."""
    batch = recipe.optim.batch_size if device.type == "cuda" else min(recipe.optim.batch_size, TIMED_BATCH)
    small = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"batch_size": batch})})
    return {phase: flops / seconds for phase, (flops, seconds) in time_steps(small, data, device).items()}
