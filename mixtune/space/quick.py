"""A space cut to a smoke run: the same images, models and choices, in few trials of few epochs."""

from __future__ import annotations

import math
from dataclasses import replace

from mixtune.errors import RequestError
from mixtune.metrics import learned_scores
from mixtune.space.conditions import Condition
from mixtune.space.distributions import Distribution
from mixtune.space.recipe import change_recipe, flatten
from mixtune.space.space import SearchSpace, space_from_dict

QUICK_TRIALS, QUICK_EPOCHS = 4, 4

_BUDGETS = ("epochs.ssl", "epochs.sl")
_SCALED = (*_BUDGETS, "optim.ssl.warmup_epochs", "optim.sl.warmup_epochs")


def quick_space(space: SearchSpace) -> tuple[SearchSpace, str]:
    """Return a space with at most QUICK_TRIALS trials, and a line that says what was changed.

    Every epoch budget, the base recipe's and the distributions', is scaled by one factor that leaves QUICK_EPOCHS of
    the largest, and so are warm-ups; more are left where a distribution would have no effect otherwise: a mix-ratio of
    0.1 mixes nothing of 4 epochs. Constraints on what has to be learned are dropped.
    """
    base = flatten(space.recipe.to_dict())
    ends = [space.values_at(params) for params in ({}, *({path: value} for path, value in space.extremes()))]
    largest = max(values[path] for path in _BUDGETS for values in ends)
    trials, scores = min(space.budget, QUICK_TRIALS), learned_scores()
    dropped = [name for name in space.constraints if name in scores]
    kept = {name: constraint for name, constraint in space.constraints.items() if name not in scores}
    numbers = [each for each in space.relations if each.left in _SCALED and not isinstance(each.right, str)]
    dropped += map(str, numbers)
    relations = tuple(each for each in space.relations if each not in numbers)
    cut, epochs = replace(space, constraints=kept, relations=relations), min(QUICK_EPOCHS, largest)
    while True:
        factor = epochs / largest
        recipe = change_recipe(space.recipe, {path: _scale(base[path], factor) for path in _SCALED})
        searched = {path: _scaled(d, path, factor) for path, d in space.space.items()}
        try:
            small = replace(cut, values=recipe.to_dict(), space=searched).with_search(
                trials=trials, first=[], learn_from=[]
            )
            small = space_from_dict(small.to_dict())
            break
        except RequestError:
            if epochs == largest:
                raise
            epochs = min(2 * epochs, largest)
    changes = [f"{trials} of {space.budget} trials", f"at most {epochs} of {largest} epochs in a budget"]
    changes += [f"no constraint on {name}" for name in dropped]
    changes += [f"no search.{name}" for name in ("first", "learn_from") if getattr(space.search, name)]
    return small, f"--quick: {', '.join(changes)}; this shows whether everything works: its figures are not an answer"


def _scale(epochs: int, factor: float) -> int:
    return max(1, math.floor(epochs * factor + 0.5)) if epochs else 0


def _scaled(distribution: Distribution, path: str, factor: float) -> Distribution:
    """Return a distribution with budgets scaled, in its conditions too; between two ends all are drawn then."""
    if factor == 1:
        return distribution
    when = tuple(
        Condition(name, tuple(dict.fromkeys(_scale(value, factor) for value in values)) if name in _SCALED else values)
        for name, values in distribution.when
    )
    distribution = replace(distribution, when=when)
    if path not in _SCALED:
        return distribution
    distribution = replace(distribution, prior=None)
    if distribution.values:
        return replace(distribution, values=tuple(dict.fromkeys(_scale(v, factor) for v in distribution.values)))
    low, high = (_scale(int(end), factor) for end in (distribution.low, distribution.high))
    return replace(distribution, low=low, high=high, step=1)
