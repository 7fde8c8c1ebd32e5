"""Optuna's side of a search: what to try next, and what came of it.

A suggestion depends only on the trials before it: a new sampler is built for every trial, from the search's seed
and the trial's number.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import optuna

from mixtune import plugins
from mixtune.cost.model import Cost
from mixtune.errors import RequestError, one_line, suggest
from mixtune.metrics import METRICS, metric_value
from mixtune.run.ledger import TrialRecord
from mixtune.space.distributions import Distribution
from mixtune.space.recipe import BASELINES
from mixtune.space.space import SearchSpace

_STATES = {
    "complete": optuna.trial.TrialState.COMPLETE,
    "stopped": optuna.trial.TrialState.PRUNED,
    "rejected": optuna.trial.TrialState.PRUNED,
    "known": optuna.trial.TrialState.FAIL,
    "failed": optuna.trial.TrialState.FAIL,
}

_NOT_ALONE = ("BaseSampler", "BaseGASampler", "GridSampler", "PartialFixedSampler")  # they need more than options
PAPER_POINT = BASELINES["paper"]  # asked first where it is no baseline


class Advice:
    """What a sampler may ask of the search: nothing is known here."""

    records: Mapping[str, TrialRecord] = {}
    """The trials and baselines so far, and what was learned elsewhere: scores in the state "learned", but no trials."""

    def costs(self, params: Mapping[str, Any]) -> Cost | None:
        """Return a recipe's costs, waiting for what is in training among them; None where there is no recipe."""
        return None

    def fault(self, params: Mapping[str, Any]) -> str | None:
        """Return why dotted parameters make no recipe that can be trained; None where they do."""
        return None

    def name(self, params: Mapping[str, Any]) -> str:
        """Return what is equal for recipes that train the same."""
        return json.dumps(params, sort_keys=True)

    def is_known(self, name: str) -> bool:
        """Return whether a recipe of this name() is trained or in training."""
        return False

    def stage_ends(self, params: Mapping[str, Any]) -> Collection[int]:
        """Return after how many epochs a recipe's states are stored, for others to continue from."""
        return ()

    def reference(self) -> Mapping[str, float]:
        """Return the hypervolume's reference by objective, as far as the trials so far give one."""
        return {}


class Suggester:
    """An Optuna study in memory, asked and told one trial at a time.

    A sampler's module has ``build(space, seed, complete)``, which returns Optuna's sampler, or ``proposer(space,
    advice)``, whose ``propose(seed, staying)`` returns dotted parameters, None for ones drawn at random; what its
    ``memory`` holds, plain JSON, is in the ledger, so that a search that continues does not compute it again.

    Only a trial that completed with every objective finite is told COMPLETE: anything else that Optuna takes for
    a result (a stopped trial's cheap one, an infinity) would land on its front. ``study`` is the Optuna study.
    """

    def __init__(self, space: SearchSpace, advice: Advice | None = None) -> None:
        self._advice = advice or Advice()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._sampler = find_sampler(space)
        self._options = space.search.sampler_options
        has_own = hasattr(self._sampler, "proposer")
        self._proposer = self._sampler.proposer(space, self._advice, **self._options) if has_own else None
        self._remembered: dict[str, Any] = {}
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

    @property
    def has_proposer(self) -> bool:
        """Whether the sampler looks at the records itself, not at Optuna's study."""
        return self._proposer is not None

    @property
    def by_stage(self) -> bool:
        """Whether trials may be paused where a stage of theirs ends."""
        return getattr(self._proposer, "by_stage", False)

    def propose(self, number: int, staying: str | None = None) -> dict[str, Any] | None:
        """Return the dotted parameters that the sampler would train next, None where Optuna's sampler has to be asked.

        staying: a trial at the end of a stage, which is one of the choices, and the only one that needs no start.
        """
        if self._proposer is None:
            return None
        proposed: dict[str, Any] | None = self._proposer.propose(_trial_seed(self._space.search.seed, number), staying)
        return proposed

    def ask(self, trial: str, number: int, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the dotted parameters of a new trial, or note that it has those given.

        ``number`` counts the search's trials from 1.
        """
        seed = _trial_seed(self._space.search.seed, number)
        if self._proposer is None:
            self.study.sampler = self._sampler.build(self._space, seed, self._complete, **self._options)
        else:
            self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
        is_first = number == 1 and self._space.search.sampler != "grid" and "paper" not in self._space.baselines
        if given is not None:
            self._enqueue(given)
        elif is_first and (first := first_point(self._space)):
            self._enqueue(first)
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

    def notes(self, trial: str | None = None) -> dict[str, Any]:
        """Return what the sampler has put down while it was asked, for remember() and ask_again(): once for each trial.

        trial: the one that it was asked for, None for none.
        """
        notes: dict[str, Any] = {}
        if trial is not None:
            storage, study = self.study._storage, self.study._study_id
            own = storage.get_trial_system_attrs(self._asked[trial]._trial_id)
            notes = {
                "trial": {key: value for key, value in own.items() if key != "fixed_params"},
                "study": {k: v for k, v in storage.get_study_system_attrs(study).items() if k not in self._noted},
            }
            self._noted |= set(notes["study"])
        if self._proposer is not None and self._proposer.memory != self._remembered:
            notes["memory"] = self._remembered = copy.deepcopy(self._proposer.memory)
        return {about: what for about, what in notes.items() if what}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take what the sampler remembered in an earlier process."""
        if self._proposer is not None:
            self._proposer.memory = copy.deepcopy(dict(memory))
            self._remembered = dict(memory)

    def ask_again(self, trial: str, params: Mapping[str, Any], notes: Mapping[str, Any]) -> bool:
        """Open a trial of a search that continues, as ask() left it; to be called in the order of the first asking.

        Return whether Optuna hears of it: not where it cannot hold the parameters, as of a space that was edited since.
        """
        held = {path: self._holding(path, value) for path, value in params.items() if path in self._space.space}
        distributions = {path: distribution for path, distribution in held.items() if distribution is not None}
        if not set(params) == set(self._space.active(params)) == set(distributions):
            return False
        known = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={path: encode(value) for path, value in params.items()},
            distributions=distributions,
            system_attrs=dict(notes["trial"]) if "trial" in notes else self._first_generation(),
            user_attrs={"trial": trial},
        )
        self.study.add_trial(known)
        self._asked[trial] = optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[-1]._trial_id)
        for key, value in notes.get("study", {}).items():
            self.study._storage.set_study_system_attr(self.study._study_id, key, value)
            self._noted.add(key)
        return True

    def _holding(self, path: str, value: Any) -> optuna.distributions.BaseDistribution | None:
        """Return a distribution that gives an earlier value, the space's if that does; None where there is none.

        Samplers that look at all parameters at once know none that had several ranges.
        """
        own = self._space.space[path]
        if own.contains(value):
            return self._distributions[path]
        one_by_one = self._proposer is not None or self._space.search.sampler in ("tpe", "random")
        if own.values or not one_by_one or not own.can_measure(value):
            return None
        low, high = min(own.low, value), max(own.high, value)
        if not own.is_integer:
            return optuna.distributions.FloatDistribution(low, high, log=own.log)
        return optuna.distributions.IntDistribution(low, high, log=own.log) if isinstance(value, int) else None

    def _first_generation(self) -> dict[str, Any]:
        """Return by what Optuna's genetic samplers know a trial that they did not ask for; others need nothing."""
        kind: Any = getattr(self._sampler, "KIND", None)
        return {kind._get_generation_key(): 0} if hasattr(kind, "_get_generation_key") else {}

    def learn(self, record: TrialRecord) -> None:
        """Take a result of another run as a complete trial, where every objective is known."""
        if all(math.isfinite(metric_value(record.metrics, name)) for name in self._space.objectives):
            self.ask_again(record.trial, record.params, {})
            self.tell(replace(record, state="complete"))

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
            if record.state == "rejected" and not record.metrics:
                asked.set_constraint("possible", 1.0)  # as far from it as any other that cannot be
        for name, told in self._attributes(record).items():
            asked.set_user_attr(name, told)
        self.study.tell(asked, values, state=_STATES[record.state])

    def _attributes(self, record: TrialRecord) -> dict[str, Any]:
        """Return what study.db shows of a trial besides its parameters: what may be a goal, and how it ended.

        Optuna stores each attribute by a query of its own, so there are few.
        """
        goals = {name: metric_value(record.metrics, name) for name, metric in METRICS.items() if metric.direction}
        known = {name: value for name, value in goals.items() if math.isfinite(value)}
        told = {"state": record.state, "reason": record.reason, "same_as": record.same_as}
        return known | {name: value for name, value in told.items() if value}


def find_sampler(space: SearchSpace) -> Any:
    """Return the plug-in of a space's sampler. Raises RequestError for an unknown name, and for unknown options."""
    name, options = space.search.sampler, space.search.sampler_options
    named = f"search.sampler: {name}"
    if name.endswith("Sampler") and ":" not in name:
        known = [each for each in optuna.samplers.__all__ if each.endswith("Sampler") and each not in _NOT_ALONE]
        if name not in known:
            raise RequestError(f"{named}: Optuna has {', '.join(known)}{suggest(name, known)}")
        plugin: Any = _OfOptuna(getattr(optuna.samplers, name))
    else:
        plugin = plugins.find("tuning.samplers", name, "sampler")
        if hasattr(plugin, "pick"):
            plugin = plugins.find("tuning.samplers", plugin.pick(space)[0], "sampler")
    maker = getattr(plugin, "KIND", None) or getattr(plugin, "proposer", None) or plugin.build
    known = [p for p in inspect.signature(maker).parameters if p not in ("space", "seed", "advice", "complete")]
    for option in options:
        if option not in known:
            allowed = f"known are {', '.join(known)}" if known else "it has none"
            raise RequestError(f"{named}: unknown option {option!r}; {allowed}{suggest(option, known)}")
    return plugin


def settle_sampler(space: SearchSpace) -> tuple[SearchSpace, str]:
    """Return a space whose sampler is named, and a line that says which, and why.

    ``auto`` is settled once, so that a search that continues with another budget keeps its sampler, and the options of
    one that proposes are written out, so that it keeps them when a later version has other defaults. Raises
    RequestError for a sampler that cannot suggest recipes of this space.
    """
    why = ""
    if space.search.sampler == "auto":
        name, reason = plugins.find("tuning.samplers", "auto", "sampler").pick(space)
        space, why = space.with_search(sampler=name, sampler_options=space.search.sampler_options), f": {reason}"
    found = find_sampler(space)
    if hasattr(found, "proposer"):
        stated = {name: option.default for name, option in inspect.signature(found.proposer).parameters.items()}
        stated = {name: default for name, default in stated.items() if isinstance(default, bool | int | float | str)}
        options = {**stated, **space.search.sampler_options}
        space = space.with_search(sampler=space.search.sampler, sampler_options=options)
    else:
        try:
            Suggester(space).ask("t0001", 1)
        except (ValueError, ImportError, NotImplementedError) as error:
            raise RequestError(f"search.sampler: {space.search.sampler}: {one_line(error)}") from error
    return space, f"sampler {space.search.sampler}{why}"


class _OfOptuna:
    """One of Optuna's samplers as it comes."""

    def __init__(self, kind: type[optuna.samplers.BaseSampler]) -> None:
        self.KIND = kind

    def build(self, space: SearchSpace, seed: int, complete: int, **options: Any) -> optuna.samplers.BaseSampler:
        """Return the sampler. Raises RequestError where Optuna refuses to make it."""
        seeded = {"seed": seed} if "seed" in inspect.signature(self.KIND).parameters else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return self.KIND(**{**options, **seeded})
        except (TypeError, ValueError, ImportError) as error:
            raise RequestError(f"search.sampler: {self.KIND.__name__}: {one_line(error)}") from error


def draw(space: SearchSpace, number: int, count: int) -> list[dict[str, Any]]:
    """Return the dotted parameters of so many recipes drawn at random; ``number`` decides which, with the seed."""
    drawing = Suggester(space.with_search(sampler="random"))
    seed = 1_000_003 * number  # the draws of one number are not those of another's
    return [drawing.ask(str(at), at) for at in range(seed, seed + count)]


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
