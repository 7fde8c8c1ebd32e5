"""Every recipe of a finite space once, in an order shuffled by the search's seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna

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
    """Return the sampler over the space's grid. Its shuffle, and so its seed, is the same for every trial."""
    grid: dict[str, Sequence[Any]] = {
        path: [encode(value) for value in distribution.grid() or ()] for path, distribution in space.space.items()
    }
    return _AskedGrid(grid, seed=space.search.seed)
