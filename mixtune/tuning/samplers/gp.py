"""Gaussian processes with expected hypervolume improvement."""

from __future__ import annotations

import optuna

from mixtune.space.space import SearchSpace


def build(space: SearchSpace, seed: int, complete: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler."""
    return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
