"""Independent random draws."""

from __future__ import annotations

from typing import Any

import optuna

from mixtune.space.space import SearchSpace

KIND = optuna.samplers.RandomSampler


def build(space: SearchSpace, seed: int, complete: int, **options: Any) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler."""
    return KIND(seed=seed, **options)
