"""Tree-structured Parzen estimator, multi-objective (Ozaki et al. 2022): the default."""

from __future__ import annotations

import math

import optuna

from mixtune.space.space import SearchSpace
from mixtune.tuning.samplers import random


def build(space: SearchSpace, seed: int, complete: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler, whose good trials are a tenth of the complete ones; it starts with random draws.

    Optuna's own tenth is of all trials, stopped and rejected ones included, and many of these fill the good set.
    """
    sampler = optuna.samplers.TPESampler(seed=seed)
    sampler._random_sampler = random.build(space, seed, complete)
    sampler._gamma = lambda _: math.ceil(0.1 * complete)  # the argument of that name is deprecated
    return sampler
