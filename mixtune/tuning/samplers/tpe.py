"""Tree-structured Parzen estimator, multi-objective (Ozaki et al. 2022): the default."""

from __future__ import annotations

import optuna

from mixtune.space import SearchSpace


def build(space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler."""
    return optuna.samplers.TPESampler(seed=seed)
