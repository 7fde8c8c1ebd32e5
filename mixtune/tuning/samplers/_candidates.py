"""Recipes to choose from: all of a small space, a fixed spread of a large one, and the neighbours of the front."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from mixtune.errors import RequestError
from mixtune.space.distributions import Distribution
from mixtune.space.points import points
from mixtune.space.recipe import Recipe
from mixtune.space.space import SearchSpace
from mixtune.training.plan import make_plan
from mixtune.tuning.samplers._states import States
from mixtune.tuning.suggestions import Advice

Floats = npt.NDArray[np.float64]
Params = dict[str, Any]

ALL = 1_000  # recipes of a space, all of which are candidates
SPREAD = 512  # of a larger one; a power of 2, as Sobol's sequence is even then
NEIGHBOURS = 24
MAX_KNOWN = 4_096  # candidates that are remembered


@dataclass(frozen=True)
class Candidate:
    """A recipe of the space: its parameters, what its path is known by, its epochs, and its features (width,)."""

    params: Params
    name: str
    recipe: Recipe
    epochs: int
    row: Floats


class Candidates:
    """One recipe for each different path; ``seed`` decides which ones of a large space."""

    def __init__(self, space: SearchSpace, states: States, advice: Advice) -> None:
        self._space, self._states, self._advice = space, states, advice
        self._of_name = functools.lru_cache(MAX_KNOWN)(lambda name: self._made(json.loads(name)))
        size = space.grid_size()
        drawn = list(points(space)) if size is not None and size <= ALL else self._spread()
        self._fixed = list(self._different(drawn))

    def of(self, params: Mapping[str, Any]) -> Candidate | None:
        """Return the candidate of dotted parameters; None where they make no recipe that can be trained."""
        return self._of_name(json.dumps(params))

    def near(self, front: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> list[Candidate]:
        """Return the fixed ones and, of a large space, neighbours of a front's members, drawn by ``rng``."""
        if not front or len(self._fixed) < SPREAD / 2:
            return self._fixed
        paths = list(self._space.space)
        near = []
        for _ in range(NEIGHBOURS):
            params = dict(front[int(rng.integers(len(front)))])
            for path in rng.choice(paths, size=rng.integers(1, 3)):
                params[path] = value_at(self._space.space[path], float(rng.random()))
            near.append(self._active(params, rng))
        names = {candidate.name for candidate in self._fixed}
        return [*self._fixed, *(each for each in self._different(near) if each.name not in names)]

    def _made(self, params: Params) -> Candidate | None:
        try:
            recipe = self._space.recipe_at(params)
        except RequestError:
            return None
        if self._advice.fault(params) is not None:
            return None
        epochs = len(make_plan(recipe))
        return Candidate(params, self._advice.name(params), recipe, epochs, self._states.row(params, recipe, epochs))

    def _different(self, drawn: Iterable[Params]) -> Iterator[Candidate]:
        names = set[str]()
        for params in drawn:
            candidate = self.of(params)
            if candidate is not None and candidate.name not in names:
                names.add(candidate.name)
                yield candidate

    def _spread(self) -> list[Params]:
        """Return recipes that are evenly spread, and where there are priors as many that are drawn from these."""
        space, seed = self._space.space, self._space.search.seed
        even = qmc.Sobol(len(space), seed=seed).random(SPREAD)
        drawn = [
            {path: value_at(space[path], float(at)) for path, at in zip(space, point, strict=True)} for point in even
        ]
        if any(distribution.prior is not None for distribution in space.values()):
            own = random.Random(seed)
            believed = [{path: d.draw(own) for path, d in space.items()} for _ in range(SPREAD // 2)]
            drawn = [*drawn[: SPREAD // 2], *believed]
        return [self._active(params, np.random.default_rng(seed)) for params in drawn]

    def _active(self, params: Params, rng: np.random.Generator) -> Params:
        """Return the parameters that are active, in the space's order, with a draw for those that are missing.

        A value that the space has not, as of a baseline, makes way for the closest that it has.
        """
        found: Params = {}
        for path, distribution in self._space.space.items():
            if self._space.is_active(path, found):
                given = path in params
                found[path] = (
                    distribution.closest(params[path]) if given else value_at(distribution, float(rng.random()))
                )
        return found


def value_at(distribution: Distribution, at: float) -> Any:
    """Return the value of a distribution below which a share ``at`` of it is, in [0, 1), priors aside."""
    d = distribution
    if d.size is not None and not d.log:
        return d.at(int(at * d.size))
    low, high = (math.log(d.low), math.log(d.high)) if d.log else (d.low, d.high)
    value = low + at * (high - low)
    value = min(max(math.exp(value) if d.log else value, d.low), d.high)
    return value if d.step is None else d.nearest(round(value) if d.is_integer else value)
