"""Optuna's side of a search: what to try next, and what came of it.

A suggestion depends only on the trials before it: the sampler is built anew for every trial, from the search's seed
and the trial's number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import optuna

from mixtune import plugins
from mixtune.distributions import Distribution
from mixtune.recipe import flatten
from mixtune.space import SearchSpace

# asked first: what the MixTraining paper recommends (Section 3.1)
PAPER_POINT = {"alpha": 0.5, "rho": 0.5}


class Suggester:
    """An Optuna study in memory, asked and told one trial at a time.

    Only a trial that completed with every objective finite is told COMPLETE: anything else that Optuna takes for
    a result (a stopped trial's cheap one, an infinity) would land on its front. ``study`` is the Optuna study.
    """

    def __init__(self, space: SearchSpace) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._sampler = plugins.find("tuning.samplers", space.search.sampler, "sampler")
        self._distributions = {path: to_optuna(d) for path, d in space.space.items()}
        better = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
        directions = [better[direction] for direction in space.objectives.values()]
        self.study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
        self._asked: dict[str, optuna.Trial] = {}
        if space.search.sampler != "grid" and (first := first_point(space)):
            self.study.enqueue_trial({path: encode(value) for path, value in first.items()})

    def ask(self, trial: str, number: int) -> dict[str, Any]:
        """Return the dotted parameters of a new trial; ``number`` counts the search's trials from 1."""
        self.study.sampler = self._sampler.build(self._space, _trial_seed(self._space.search.seed, number))
        asked = self.study.ask(fixed_distributions=self._distributions)
        self._asked[trial] = asked
        return {path: decode(self._space.space[path], value) for path, value in asked.params.items()}

    def tell_complete(self, trial: str, metrics: Mapping[str, Any]) -> None:
        """Take a trial that ran its own whole recipe; its objectives must be finite."""
        values = [float(metrics[name]) for name in self._space.objectives]
        assert all(math.isfinite(v) for v in values), values
        self.study.tell(self._asked.pop(trial), values)

    def tell_stopped(self, trial: str) -> None:
        """Take a trial that a scheduler ended early."""
        self.study.tell(self._asked.pop(trial), state=optuna.trial.TrialState.PRUNED)

    def tell_failed(self, trial: str) -> None:
        """Take a trial that has no result."""
        self.study.tell(self._asked.pop(trial), state=optuna.trial.TrialState.FAIL)


def first_point(space: SearchSpace) -> dict[str, Any]:
    """Return the paper's alpha and rho with the base recipe's other values, as far as the space holds them."""
    base = flatten(space.recipe.to_dict()) | PAPER_POINT
    return {path: base[path] for path, distribution in space.space.items() if distribution.contains(base[path])}


def to_optuna(distribution: Distribution) -> optuna.distributions.BaseDistribution:
    """Return Optuna's form of a distribution."""
    d = distribution
    if d.values:
        return optuna.distributions.CategoricalDistribution([encode(value) for value in d.values])
    if d.is_integer:
        return optuna.distributions.IntDistribution(int(d.low), int(d.high), log=d.log, step=int(d.step or 1))
    return optuna.distributions.FloatDistribution(d.low, d.high, log=d.log, step=d.step)


def encode(value: Any) -> Any:
    """Return a value as Optuna can store it: a list becomes its JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def decode(distribution: Distribution, value: Any) -> Any:
    """Return the recipe's value for one of Optuna's; quantised floats are rounded to what was meant."""
    if distribution.values:
        return next(v for v in distribution.values if encode(v) == value)
    return round(value, 10) if distribution.step is not None and not distribution.is_integer else value


def _trial_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
