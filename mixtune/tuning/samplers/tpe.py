"""Tree-structured Parzen estimator, multi-objective (Ozaki et al. 2022)."""

from __future__ import annotations

import math
from typing import Any

import optuna

from mixtune.space.space import SearchSpace
from mixtune.tuning.samplers import random

KIND = optuna.samplers.TPESampler


def build(space: SearchSpace, seed: int, complete: int, **options: Any) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler, whose good trials are a tenth of the complete ones; it starts with random draws.

    Optuna's own tenth is of all trials, stopped and rejected ones included, and many of these fill the good set.
    """
    sampler = KIND(seed=seed, **options)
    sampler._random_sampler = random.build(space, seed, complete)
    if "gamma" not in options:
        sampler._gamma = lambda _: math.ceil(0.1 * complete)  # the argument of that name is deprecated
    return sampler
