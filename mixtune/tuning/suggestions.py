"""Optuna's side of a search: what to try next, and what came of it.

A suggestion depends only on the trials before it: a new sampler is built for every trial, from the search's seed
and the trial's number.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from mixtune import plugins
from mixtune.cost.model import Cost
from mixtune.metrics import METRICS, metric_value
from mixtune.run.ledger import TrialRecord
from mixtune.space.distributions import Distribution
from mixtune.space.recipe import BASELINES
from mixtune.space.space import SearchSpace

_STATES = {
    "complete": optuna.trial.TrialState.COMPLETE,
    "stopped": optuna.trial.TrialState.PRUNED,
    "rejected": optuna.trial.TrialState.PRUNED,
    "failed": optuna.trial.TrialState.FAIL,
}

PAPER_POINT = BASELINES["paper"]  # asked first where it is no baseline


class Advice:
    """What a sampler may ask of the search: nothing is known here."""

    def costs(self, params: Mapping[str, Any]) -> Cost | None:
        """Return a recipe's costs; None where there is no such recipe."""
        return None

    def reference(self) -> Mapping[str, float] | None:
        """Return the hypervolume's reference point."""
        return None


class Suggester:
    """An Optuna study in memory, asked and told one trial at a time.

    A sampler's module may have ``propose(space, study, seed, advice)``, whose parameters are asked where it returns
    some.

    Only a trial that completed with every objective finite is told COMPLETE: anything else that Optuna takes for
    a result (a stopped trial's cheap one, an infinity) would land on its front. ``study`` is the Optuna study.
    """

    def __init__(self, space: SearchSpace, advice: Advice | None = None) -> None:
        self._advice = advice or Advice()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._sampler = plugins.find("tuning.samplers", space.search.sampler, "sampler")
        self._distributions = {path: to_optuna(d) for path, d in space.space.items()}
        better = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
        directions = [better[direction] for direction in space.objectives.values()]
        self.study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names(list(space.objectives))
        self._asked: dict[str, optuna.Trial] = {}
        self._complete = 0
        self._noted: set[str] = set()

    def ask(self, trial: str, number: int) -> dict[str, Any]:
        """Return the dotted parameters of a new trial; ``number`` counts the search's trials from 1."""
        seed = _trial_seed(self._space.search.seed, number)
        self.study.sampler = self._sampler.build(self._space, seed, self._complete)
        is_first = number == 1 and self._space.search.sampler != "grid" and "paper" not in self._space.baselines
        if is_first and (first := first_point(self._space)):
            self._enqueue(first)
        elif hasattr(self._sampler, "propose"):
            self._enqueue(self._sampler.propose(self._space, self.study, seed, self._advice) or {})
        asked = self.study.ask()
        params: dict[str, Any] = {}
        for path in self._distributions:
            if self._space.is_active(path, params):
                params[path] = self._suggest(asked, path)
        asked.set_user_attr("trial", trial)
        self._asked[trial] = asked
        return params

    def _suggest(self, asked: optuna.Trial, path: str) -> Any:
        """Return the recipe's value that the sampler suggests; Optuna keeps what a search that continues tells it."""
        distribution, known = self._space.space[path], self._distributions[path]
        drawn = asked._suggest(path, known)
        value = decode(distribution, drawn)
        if distribution.log and value != drawn:
            kept = known.to_internal_repr(value)
            self.study._storage.set_trial_param(asked._trial_id, path, kept, known)
        return value

    def _enqueue(self, params: Mapping[str, Any]) -> None:
        """Let the next trial have these values; the sampler draws what is missing."""
        if params:
            self.study.enqueue_trial({path: encode(value) for path, value in params.items()})

    def notes(self, trial: str) -> dict[str, Any]:
        """Return what the sampler has put down while it was asked, for ask_again(): once for each trial."""
        storage, study = self.study._storage, self.study._study_id
        own = storage.get_trial_system_attrs(self._asked[trial]._trial_id)
        notes = {
            "trial": {key: value for key, value in own.items() if key != "fixed_params"},
            "study": {k: v for k, v in storage.get_study_system_attrs(study).items() if k not in self._noted},
        }
        self._noted |= set(notes["study"])
        return {about: what for about, what in notes.items() if what}

    def ask_again(self, trial: str, params: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Open a trial of a search that continues, as ask() left it; to be called in the order of the first asking.

        Where the space does not hold the parameters any more, Optuna does not hear of the trial.
        """
        space, active = self._space.space, self._space.active(params)
        if set(params) != set(active) or not all(space[path].contains(value) for path, value in params.items()):
            return
        known = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={path: encode(value) for path, value in params.items()},
            distributions={path: self._distributions[path] for path in params},
            system_attrs=dict(notes.get("trial", {})),
            user_attrs={"trial": trial},
        )
        self.study.add_trial(known)
        self._asked[trial] = optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[-1]._trial_id)
        for key, value in notes.get("study", {}).items():
            self.study._storage.set_study_system_attr(self.study._study_id, key, value)
            self._noted.add(key)

    def tell(self, record: TrialRecord) -> None:
        """Take a trial that has ended.

        Only one that ran its own whole recipe is complete, with finite objectives; one that a scheduler ended, or that
        was rejected because its forecast breaks a constraint, is pruned.
        """
        asked = self._asked.pop(record.trial, None)
        if asked is None:
            return
        values = None
        if record.state == "complete":
            values = [float(record.metrics[name]) for name in self._space.objectives]
            assert all(math.isfinite(value) for value in values), values
            self._complete += 1
        if record.state in ("complete", "rejected"):
            for name, constraint in self._space.constraints.items():
                if math.isfinite(value := metric_value(record.metrics, name)):
                    asked.set_constraint(name, constraint.violation(value))
        for name, told in self._attributes(record).items():
            asked.set_user_attr(name, told)
        self.study.tell(asked, values, state=_STATES[record.state])

    def _attributes(self, record: TrialRecord) -> dict[str, Any]:
        """Return what study.db shows of a trial besides its parameters: what may be a goal, and how it ended.

        Optuna stores each attribute by a query of its own, so there are few.
        """
        goals = {name: metric_value(record.metrics, name) for name, metric in METRICS.items() if metric.direction}
        known = {name: value for name, value in goals.items() if math.isfinite(value)}
        return {**known, "state": record.state, **({"reason": record.reason} if record.reason else {})}


def first_point(space: SearchSpace) -> dict[str, Any]:
    """Return the paper's alpha and rho with the base recipe's other values, as far as the space holds them."""
    params: dict[str, Any] = {}
    for path, distribution in space.space.items():
        value = PAPER_POINT.get(path, space.values_at(params).get(path))
        if space.is_active(path, params) and distribution.contains(value):
            params[path] = value
    return params


def to_optuna(distribution: Distribution) -> optuna.distributions.BaseDistribution:
    """Return Optuna's form of a distribution."""
    d = distribution
    if d.values:
        return optuna.distributions.CategoricalDistribution([encode(value) for value in d.values])
    step = None if d.log else d.step  # Optuna has no logarithm with a step: what it draws is rounded
    if d.is_integer:
        return optuna.distributions.IntDistribution(int(d.low), int(d.high), log=d.log, step=int(step or 1))
    return optuna.distributions.FloatDistribution(d.low, d.high, log=d.log, step=step)


def encode(value: Any) -> Any:
    """Return a value as Optuna can store it: a list becomes its JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def decode(distribution: Distribution, value: Any) -> Any:
    """Return the recipe's value for one of Optuna's; quantised floats are rounded to what was meant."""
    if distribution.values:
        return next(v for v in distribution.values if encode(v) == value)
    return value if distribution.step is None else distribution.nearest(value)


def _trial_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
