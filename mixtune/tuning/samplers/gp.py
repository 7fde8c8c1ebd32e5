"""Gaussian processes with expected hypervolume improvement."""

from __future__ import annotations

import optuna

from mixtune.space.space import SearchSpace
from mixtune.tuning.samplers import random


def build(space: SearchSpace, seed: int, complete: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler."""
    start = random.build(space, seed, complete)
    return optuna.samplers.GPSampler(seed=seed, independent_sampler=start, warn_independent_sampling=False)
