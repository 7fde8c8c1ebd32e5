"""A space cut to a smoke run: the same images, models and choices, in few trials of few epochs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from mixtune.errors import RequestError
from mixtune.metrics import learned_scores
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
    largest = max(value for path in _BUDGETS for value in (base[path], *_ends(space, path)))
    trials, scores = min(space.budget, QUICK_TRIALS), learned_scores()
    dropped = [name for name in space.constraints if name in scores]
    kept = {name: constraint for name, constraint in space.constraints.items() if name not in scores}
    cut, epochs = replace(space, constraints=kept), min(QUICK_EPOCHS, largest)
    while True:
        factor = epochs / largest
        recipe = change_recipe(space.recipe, {path: _scale(base[path], factor) for path in _SCALED})
        searched = {path: _scaled(d, factor) if path in _SCALED else d for path, d in space.space.items()}
        try:
            small = replace(cut, values=recipe.to_dict(), space=searched).with_search(trials=trials)
            small = space_from_dict(small.to_dict())
            break
        except RequestError:
            if epochs == largest:
                raise
            epochs = min(2 * epochs, largest)
    changes = [f"{trials} of {space.budget} trials", f"at most {epochs} of {largest} epochs in a budget"]
    changes += [f"no constraint on {name}" for name in dropped]
    return small, f"--quick: {', '.join(changes)}; this shows whether everything works: its figures are no answer"


def _scale(epochs: int, factor: float) -> int:
    return max(1, math.floor(epochs * factor + 0.5)) if epochs else 0


def _ends(space: SearchSpace, path: str) -> tuple[Any, ...]:
    return space.space[path].extremes() if path in space.space else ()


def _scaled(distribution: Distribution, factor: float) -> Distribution:
    """Return a distribution over whole numbers with each of them scaled; between two ends all are drawn then."""
    if factor == 1:
        return distribution
    if distribution.values:
        return replace(distribution, values=tuple(dict.fromkeys(_scale(v, factor) for v in distribution.values)))
    low, high = (_scale(int(end), factor) for end in (distribution.low, distribution.high))
    return replace(distribution, low=low, high=high, step=1)
