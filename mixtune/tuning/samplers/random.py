"""Independent random draws, by the parameters' priors where they have some."""

from __future__ import annotations

import random
from typing import Any

import optuna

from mixtune.space.space import SearchSpace
from mixtune.tuning.suggestions import encode

KIND = optuna.samplers.RandomSampler


class PriorSampler(optuna.samplers.RandomSampler):
    """Optuna's, but for parameters that have a prior."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(seed=seed)
        self._space, self._own = space, random.Random(seed)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        """Return a draw of a parameter."""
        distribution = self._space.space[param_name]
        if distribution.prior is not None:
            return encode(distribution.draw(self._own))
        return super().sample_independent(study, trial, param_name, param_distribution)


def build(space: SearchSpace, seed: int, complete: int) -> PriorSampler:
    """Return Optuna's sampler."""
    return PriorSampler(space, seed)
