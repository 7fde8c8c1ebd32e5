"""Independent random draws."""

from __future__ import annotations

import optuna

from mixtune.space.space import SearchSpace


def build(space: SearchSpace, seed: int, complete: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler."""
    return optuna.samplers.RandomSampler(seed=seed)
