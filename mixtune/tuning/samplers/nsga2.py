"""NSGA-II (Deb et al. 2002)."""

from __future__ import annotations

import optuna

from mixtune.space.space import SearchSpace

LARGEST_POPULATION = 50


def build(space: SearchSpace, seed: int, complete: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler with a population of a fifth of the budget, 4 to 50: five generations or more."""
    population = min(max(space.budget // 5, 4), LARGEST_POPULATION)
    return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
