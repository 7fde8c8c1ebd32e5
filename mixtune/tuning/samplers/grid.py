"""Every recipe of a finite space once, in an order shuffled by the search's seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import optuna

from mixtune.space.points import points
from mixtune.space.space import SearchSpace
from mixtune.tuning.suggestions import encode


class _AskedGrid(optuna.samplers.GridSampler):
    """Optuna's grid for ask and tell: its own ends Study.optimize() after the last recipe, which is not running."""

    def after_trial(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        state: optuna.trial.TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Nothing: the search counts its budget itself."""


def build(space: SearchSpace, seed: int, complete: int) -> optuna.samplers.BaseSampler:
    """Return the sampler over the space's grid. Its shuffle, and so its seed, is the same for every trial.

    Where parameters depend on others, Optuna's grid, which knows nothing of that, has many recipes more than once.
    """
    grid: dict[str, Sequence[Any]] = {
        path: [encode(value) for value in distribution.grid() or ()] for path, distribution in space.space.items()
    }
    sampler = _AskedGrid(grid, seed=space.search.seed)
    if any(distribution.when for distribution in space.space.values()):
        found = [tuple(encode(params.get(path)) for path in sorted(grid)) for params in points(space)]
        random.Random(space.search.seed).shuffle(found)
        sampler._all_grids, sampler._n_min_trials = found, len(found)
    return sampler
