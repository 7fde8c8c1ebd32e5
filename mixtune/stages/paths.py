"""The paths of a space's recipes through the stage tree, and where they part: what later trials will continue from."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Iterator, Mapping
from itertools import pairwise, product
from typing import Any, NamedTuple

from mixtune.errors import DataError, RequestError
from mixtune.space.distributions import Distribution
from mixtune.space.effective import mix_epochs
from mixtune.space.recipe import Recipe, Schedule
from mixtune.space.section import SslSettings
from mixtune.space.space import SearchSpace
from mixtune.stages.keys import StageKeys
from mixtune.stages.table import TrialPath
from mixtune.training.data import TrainingData, load_training_data
from mixtune.training.plan import Phase, decay_start, make_plan, rate_factor, warmup_length

MAX_PATHS = 4_096  # that are remembered: a sampler looks at the paths of its candidates before every suggestion
MAX_BUDGETS = 4_000  # of a space; of more a part is looked at, and where a branch is missed epochs are trained again

Path = tuple[tuple[tuple[Any, ...], int], ...]  # stretches: what their epochs have in common, and how many they are


class Budgets(NamedTuple):
    """Epochs of SSL, of SL, and how many of them are mixed."""

    ssl: int
    sl: int
    mix: int

    @classmethod
    def of(cls, recipe: Recipe) -> Budgets:
        """Return those of a recipe."""
        ssl, sl = recipe.epochs.ssl, recipe.epochs.sl
        return cls(ssl, sl, mix_epochs(recipe.rho, ssl, sl))


class Branches:
    """The epochs at which a recipe's path may part from another one's of its space that differs in its budgets.

    Other fields part paths at the first epoch or where a phase begins, and states are stored there anyway.
    """

    def __init__(self, space: SearchSpace) -> None:
        budgets = sorted(_budgets(space))
        if len(budgets) > MAX_BUDGETS:
            budgets = random.Random(0).sample(budgets, MAX_BUDGETS)
        self._budgets = budgets
        self._paths = functools.cache(self._all_paths)
        self._epochs = functools.lru_cache(maxsize=4096)(self._branch_epochs)

    def of(self, recipe: Recipe) -> tuple[int, ...]:
        """Return after how many epochs, ascending, at least 1 and fewer than the recipe has."""
        settings = recipe.ssl if recipe.ssl.for_budget(1) is not recipe.ssl else None
        return self._epochs(Budgets.of(recipe), _shape(recipe.optim.ssl), _shape(recipe.optim.sl), settings)

    def _all_paths(self, ssl: Schedule, sl: Schedule, settings: SslSettings | None) -> list[Path]:
        return [budget_path(budgets, ssl, sl, settings) for budgets in self._budgets]

    def _branch_epochs(
        self, own: Budgets, ssl: Schedule, sl: Schedule, settings: SslSettings | None
    ) -> tuple[int, ...]:
        path = budget_path(own, ssl, sl, settings)
        common = {_common(path, other) for other in self._paths(ssl, sl, settings)}
        return tuple(sorted(common - {0, sum(length for _, length in path)}))


class RecipePaths:
    """The path of each recipe of a space, by its dotted parameters; ``branches``: where they part.

    The driver's keys are of its CPU, whatever the trials train on: they tell which paths agree, not what is stored.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.branches = Branches(space)
        self._space = space
        self._of_name = functools.lru_cache(MAX_PATHS)(self._named)
        self._data: dict[Any, TrainingData] = {}

    def __call__(self, params: Mapping[str, Any]) -> TrialPath:
        """Return a recipe's path; one of its own where there is no such recipe: its trial will say why."""
        return self._of_name(json.dumps(params, sort_keys=True))

    def _named(self, name: str) -> TrialPath:
        try:
            return self._path(self._space.recipe_at(json.loads(name)))
        except (RequestError, DataError):
            return TrialPath((name,))

    def _data_of(self, recipe: Recipe) -> TrainingData:
        section = recipe.data, recipe.augment, recipe.optim.batch_size
        if section not in self._data:
            self._data[section] = load_training_data(recipe)
        return self._data[section]

    def _path(self, recipe: Recipe) -> TrialPath:
        def ends() -> frozenset[int]:
            plan = make_plan(recipe)
            boundaries = [epoch.index for before, epoch in pairwise(plan) if before.phase != epoch.phase]
            return frozenset((*boundaries, *self.branches.of(recipe), len(plan)))

        return TrialPath(StageKeys(recipe, self._data_of(recipe)), ends)


def _shape(schedule: Schedule) -> Schedule:
    """Return a schedule without what has no say in when its rates turn."""
    return schedule.model_copy(update={"base_lr": 1.0, "weight_decay": 0.0, "betas": (0.9, 0.95)})


def budget_path(budgets: Budgets, ssl: Schedule, sl: Schedule, settings: SslSettings | None = None) -> Path:
    """Return the stretches of a recipe's epochs within which its phase and its rates follow one rule.

    settings: of an objective whose strategies depend on the SSL budget; those are a part of the rule then.
    """
    mix_from = budgets.ssl - budgets.mix
    ssl_turns = _turns(ssl, budgets.ssl, decay_start(budgets.ssl, budgets.mix))
    sl_turns = [(mix_from + at, rule) for at, rule in _turns(sl, budgets.sl, decay_start(budgets.sl))]
    strategies = [] if settings is None else list(map(settings.for_budget(budgets.ssl).strategy, range(budgets.ssl)))
    changes = {epoch for epoch in range(1, len(strategies)) if strategies[epoch] != strategies[epoch - 1]}
    ends = {mix_from, budgets.ssl, mix_from + budgets.sl}
    boundaries = sorted({0, *ends, *changes, *(at for at, _ in ssl_turns + sl_turns)})
    stretches = []
    for start, end in pairwise(boundaries):
        phase: Phase = "ssl" if start < mix_from else "mix" if start < budgets.ssl else "sl"
        rules = [
            next(rule for at, rule in reversed(turns) if at <= start) if has else None
            for turns, has in ((ssl_turns, phase != "sl"), (sl_turns, phase != "ssl"))
        ]
        stretches.append(((phase, *rules, *strategies[start : start + 1]), end - start))
    return tuple(stretches)


def _turns(schedule: Schedule, budget: int, decays_from: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Return from which epoch of a budget its rates follow which rule."""
    if schedule.schedule == "wsd":
        return [(0, ("stable",)), (decays_from, ("decay", decays_from, budget))]
    warmup = warmup_length(schedule, budget)
    if schedule.schedule == "whole_cosine":  # of any budget the first epoch has the peak, or what is left of it
        alone = schedule.model_copy(update={"warmup_epochs": 0})
        rising = [rate_factor(schedule, budget, e) < rate_factor(alone, budget, e) for e in range(math.ceil(warmup))]
        return [(0, ("warm-up", max(1.0, warmup))), (max(1, sum(rising)), ("decay", budget))]
    return [(0, ("warm-up", warmup)), (math.floor(warmup), ("decay", warmup, budget))]


def _common(one: Path, other: Path) -> int:
    """Return how many epochs two paths begin with alike."""
    epochs = 0
    for (rule, length), (other_rule, other_length) in zip(one, other, strict=False):
        if rule != other_rule:
            break
        epochs += min(length, other_length)
        if length != other_length:
            break
    return epochs


def _budgets(space: SearchSpace) -> set[Budgets]:
    """Return the budgets of a space and of its baselines."""
    drawn = list(product(*(_searched(space, f"epochs.{loss}") for loss in ("ssl", "sl"))))
    if len(drawn) > MAX_BUDGETS:
        drawn = random.Random(0).sample(drawn, MAX_BUDGETS)
    found: set[Budgets] = set()
    for one, other in drawn:
        values = space.values_at({**one, **other})
        ssl, sl, rho = values["epochs.ssl"], values["epochs.sl"], space.space.get("rho")
        found |= {Budgets(ssl, sl, mix) for mix in _mixes(rho, values["rho"], ssl, sl)}
        if rho is not None and rho.when:
            found.add(Budgets(ssl, sl, mix_epochs(values["rho"], ssl, sl)))
        elif "rho" in space.ties:
            found |= {Budgets(ssl, sl, mix) for mix in range(min(ssl, sl) + 1)}
    return found | {Budgets.of(space.recipe_at(params)) for params in space.baseline_params().values()}


def _searched(space: SearchSpace, path: str) -> list[dict[str, Any]]:
    """Return the dotted values that a budget, or what it follows, may have; {} is the base recipe's."""
    while path in space.ties:
        path = space.ties[path].source
    if path not in space.space:
        return [{}]
    distribution = space.space[path]
    values = [{path: value} for value in distribution.grid() or distribution.extremes()]
    return [*values, {}] if distribution.when else values


def _mixes(distribution: Distribution | None, base: float, ssl: int, sl: int) -> Iterator[int]:
    """Yield how many epochs may be mixed."""
    if distribution is None:
        yield mix_epochs(base, ssl, sl)
    elif distribution.size is not None and distribution.size <= MAX_BUDGETS:
        yield from (mix_epochs(rho, ssl, sl) for rho in distribution.grid() or ())
    else:
        yield from range(mix_epochs(distribution.low, ssl, sl), mix_epochs(distribution.high, ssl, sl) + 1)
