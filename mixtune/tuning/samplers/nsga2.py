"""NSGA-II (Deb et al. 2002)."""

from __future__ import annotations

import optuna

from mixtune.space.space import SearchSpace
from mixtune.tuning.samplers import random

LARGEST_POPULATION = 50


def build(space: SearchSpace, seed: int, complete: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler with a population of a fifth of the budget, 4 to 50: five generations or more."""
    population = min(max(space.budget // 5, 4), LARGEST_POPULATION)
    sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
    sampler._random_sampler = random.build(space, seed, complete)
    return sampler
