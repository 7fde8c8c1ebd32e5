"""NSGA-II (Deb et al. 2002)."""

from __future__ import annotations

from typing import Any

import optuna

from mixtune.space.space import SearchSpace
from mixtune.tuning.samplers import random

KIND = optuna.samplers.NSGAIISampler
LARGEST_POPULATION = 50


def build(space: SearchSpace, seed: int, complete: int, **options: Any) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler with a population of a fifth of the budget, 4 to 50: five generations or more."""
    population = min(max(space.budget // 5, 4), LARGEST_POPULATION)
    sampler = KIND(**{"population_size": population, **options}, seed=seed)
    sampler._random_sampler = random.build(space, seed, complete)
    return sampler
