"""Gaussian processes with expected hypervolume improvement."""

from __future__ import annotations

from typing import Any

import optuna

from mixtune.space.space import SearchSpace
from mixtune.tuning.samplers import random

KIND = optuna.samplers.GPSampler


def build(space: SearchSpace, seed: int, complete: int, **options: Any) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler."""
    start = random.build(space, seed, complete)
    return KIND(**{"warn_independent_sampling": False, "independent_sampler": start, **options}, seed=seed)
