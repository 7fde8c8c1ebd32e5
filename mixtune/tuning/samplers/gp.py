"""Gaussian processes with expected hypervolume improvement."""

from __future__ import annotations

from typing import Any

import optuna

from mixtune.space.space import SearchSpace

KIND = optuna.samplers.GPSampler


def build(space: SearchSpace, seed: int, complete: int, **options: Any) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler."""
    return KIND(**{"warn_independent_sampling": False, **options}, seed=seed)
