"""Expected gain for the seconds that it costs: what is almost trained already is nearly free.

Candidates come from TPE, from random draws and from the front's neighbourhood. A forest learns the accuracy, or
another of the validation split's figures; the other objectives are known before training. Asked is the candidate with
the most expected hypervolume improvement for each second of training that it adds (the idea: expected improvement per
second, Snoek et al. 2012, Section 3.2; here the seconds are marginal: what stages are stored, or are being trained,
costs nothing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np
import numpy.typing as npt
import optuna
from scipy.stats import norm
from sklearn.ensemble import ExtraTreesRegressor

from mixtune.errors import RequestError
from mixtune.metrics import learned_scores
from mixtune.space.distributions import Distribution
from mixtune.space.space import SearchSpace
from mixtune.tuning.samplers import tpe
from mixtune.tuning.suggestions import Advice, decode, encode, to_optuna

Floats = npt.NDArray[np.float64]
Params = dict[str, Any]

MIN_COMPLETE = 8  # before that, what TPE suggests, which is drawn at random then
FROM_TPE, AT_RANDOM, NEIGHBOURS = 12, 24, 24  # candidates
TREES = 100
QUANTILES = 16  # of a prediction
_NORMAL = norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
OVERHEAD = 0.05  # of a typical trial's seconds: what a trial costs that trains nothing


def build(space: SearchSpace, seed: int, complete: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler for the first trials. Raises RequestError for objectives that are not known early."""
    learned = [name for name in space.objectives if name in learned_scores()]
    late = set(space.objectives) - {*learned[:1], "train_latency_s", "train_flops"}
    if late or len(space.objectives) < 2 or not learned:
        raise RequestError(
            "search.sampler cost_aware weighs val_accuracy, or another figure of the validation split, against "
            "train_latency_s or train_flops: name these "
            f"objectives{f' and drop {min(late)}' if late else ''}, or take another sampler"
        )
    return tpe.build(space, seed, complete)


def propose(space: SearchSpace, study: optuna.Study, seed: int, advice: Advice) -> Params | None:
    """Return the parameters to ask next, None where too little is known; ``study`` holds the trials so far."""
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    reference = advice.reference()
    if len(complete) < MIN_COMPLETE or reference is None:
        return None
    rng = np.random.default_rng(seed)
    signs = np.array([-1.0 if mode == "max" else 1.0 for mode in space.objectives.values()])
    found = np.array([trial.values for trial in complete]) * signs
    trained = [_decoded(space, trial.params) for trial in complete]
    front = [trained[i] for i in np.flatnonzero(moocore.is_nondominated(found))]
    costed = [(params, advice.costs(params)) for params in _candidates(space, study, complete, front, rng)]
    candidates = [(params, cost) for params, cost in costed if cost is not None]
    if not candidates:
        return None
    learned = next(place for place, name in enumerate(space.objectives) if name in learned_scores())
    forest = ExtraTreesRegressor(TREES, min_samples_leaf=2, bootstrap=True, random_state=seed % 2**32)
    forest.fit(_features(space, trained), found[:, learned])
    features = _features(space, [params for params, _ in candidates])
    predicted = np.stack([tree.predict(features) for tree in forest.estimators_])
    overhead = OVERHEAD * float(np.median([cost.seconds for _, cost in candidates]))
    gains = _Gains(found, np.array([reference[name] for name in space.objectives]) * signs)
    rates = []
    for (_, cost), mean, deviation in zip(candidates, predicted.mean(axis=0), predicted.std(axis=0), strict=True):
        point = np.array([cost.objectives.get(name, math.nan) for name in space.objectives]) * signs
        points = np.tile(point, (QUANTILES, 1))
        points[:, learned] = mean + deviation * _NORMAL
        rates.append(gains.mean(points) / (cost.marginal_s + overhead))
    best = int(np.argmax(rates))
    return candidates[best][0] if rates[best] > 0 else None


class _Gains:
    """What points add to the hypervolume of those that were found; all objectives are to be small."""

    def __init__(self, found: Floats, reference: Floats) -> None:
        self._front = found[moocore.is_nondominated(found)]
        self._volume = moocore.Hypervolume(ref=reference)
        self._before = float(self._volume(self._front))

    def mean(self, points: Floats) -> float:
        """Return the mean of what each of the points, (n, objectives), would add alone."""
        volumes = [float(self._volume(np.vstack([self._front, point]))) for point in points]
        return sum(volumes) / len(volumes) - self._before


def _candidates(
    space: SearchSpace,
    study: optuna.Study,
    complete: Sequence[optuna.trial.FrozenTrial],
    front: Sequence[Params],
    rng: np.random.Generator,
) -> list[Params]:
    """Return different recipes that have not been asked."""
    tpe_seed, random_seed = (int(seed) for seed in rng.integers(2**31, size=2))
    tpe_sampler = optuna.samplers.TPESampler(seed=tpe_seed, multivariate=True)
    drawn = _draw(space, study.directions, tpe_sampler, FROM_TPE, complete)
    random = _draw(space, study.directions, optuna.samplers.RandomSampler(random_seed), AT_RANDOM + NEIGHBOURS)
    for other in random[AT_RANDOM:]:
        params = dict(front[int(rng.integers(len(front)))])
        params.update({path: other[path] for path in rng.choice(list(space.space), size=rng.integers(1, 3))})
        drawn.append(params)
    asked = {_name(_decoded(space, trial.params)) for trial in study.get_trials(deepcopy=False)}
    new = {_name(params): params for params in drawn + random[:AT_RANDOM] if len(params) == len(space.space)}
    return [params for name, params in new.items() if name not in asked]


def _draw(
    space: SearchSpace,
    directions: Sequence[optuna.study.StudyDirection],
    sampler: optuna.samplers.BaseSampler,
    count: int,
    known: Sequence[optuna.trial.FrozenTrial] = (),
) -> list[Params]:
    """Ask a sampler, in a study that nobody else sees."""
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.add_trials(known)
    distributions = {path: to_optuna(d) for path, d in space.space.items()}
    return [_decoded(space, study.ask(fixed_distributions=distributions).params) for _ in range(count)]


def _decoded(space: SearchSpace, params: Params) -> Params:
    return {path: decode(space.space[path], value) for path, value in params.items()}


def _name(params: Params) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((path, str(encode(value))) for path, value in params.items()))


def _features(space: SearchSpace, recipes: Sequence[Params]) -> Floats:
    """Return the parameters as numbers, (recipes, features): choices of words one-hot, log scales as logarithms."""
    columns = [column for path, d in space.space.items() for column in _columns(d, [r[path] for r in recipes])]
    return np.array(columns, dtype=np.float64).T


def _columns(distribution: Distribution, values: list[Any]) -> list[list[float]]:
    choices = distribution.values
    if choices and not all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices):
        return [[float(encode(value) == encode(choice)) for value in values] for choice in choices]
    return [[math.log(value) if distribution.log else float(value) for value in values]]
