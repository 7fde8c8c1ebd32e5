"""Every recipe of a finite space once, in an order shuffled by the search's seed."""

from __future__ import annotations

import optuna

from mixtune.space import SearchSpace
from mixtune.tuning.suggestions import encode


def build(space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler over the space's grid."""
    grid = {path: [encode(v) for v in distribution.grid() or ()] for path, distribution in space.space.items()}
    return optuna.samplers.GridSampler(grid, seed=seed)
