"""Rungs for several objectives: who continues at a share of its training, by non-dominated sorting and crowding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import moocore
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVELS = (1 / 9, 1 / 3)  # of a trial's supervised epochs
KEEP = 1 / 3  # of the trials that reach a rung


class Rungs:
    """What trials had reached at the same share of their training, and who was worth continuing.

    levels: the shares, in (0, 1); keep: the share of peers that continue; objectives: name -> "max" or "min". A rung
    with fewer than ``1 / keep`` trials stops nobody.
    """

    def __init__(self, levels: Sequence[float], keep: float, objectives: Mapping[str, str]) -> None:
        self.levels, self.keep, self.objectives = sorted(levels), keep, dict(objectives)
        self.reached: dict[float, dict[str, Floats]] = {level: {} for level in self.levels}

    def continues(self, trial: str, progress: float, metrics: Mapping[str, float | None]) -> bool:
        """Note a trial's metrics at ``progress`` of its training, in [0, 1]; return whether it is worth continuing.

        A trial is judged once at each rung, at its first report there. One that no peer dominates always continues.
        What is not finite is worse than anything that is, and no peer to others.
        """
        due = [level for level in self.levels if level <= progress and trial not in self.reached[level]]
        costs = self._costs(metrics)
        for level in due:
            self.reached[level][trial] = costs
        return not due or self._is_kept(trial, due[-1])

    def _costs(self, metrics: Mapping[str, float | None]) -> Floats:
        """Return the objectives, all to be small; infinite where one of them is missing."""
        values = [math.nan if metrics.get(name) is None else float(metrics[name] or 0.0) for name in self.objectives]
        signs = [-1.0 if mode == "max" else 1.0 for mode in self.objectives.values()]
        costs = np.array(values) * signs
        return costs if np.isfinite(costs).all() else np.full(len(costs), math.inf)

    def _is_kept(self, trial: str, level: float) -> bool:
        peers = {name: costs for name, costs in self.reached[level].items() if np.isfinite(costs).all()}
        if trial not in peers:
            return not peers
        if len(peers) * self.keep < 1.0:
            return True
        order = rank(np.stack(list(peers.values())))
        place = list(peers).index(trial)
        fronts = moocore.pareto_rank(np.stack(list(peers.values())))
        return fronts[place] == 0 or list(order).index(place) < math.ceil(self.keep * len(peers))


def rank(costs: Floats) -> npt.NDArray[np.intp]:
    """Return the rows' indices, the best first: by front, and within one the least crowded first; costs (n, m)."""
    return np.lexsort((-crowding(costs), moocore.pareto_rank(costs)))


def crowding(costs: Floats) -> Floats:
    """Return each row's crowding distance among its own front (Deb et al. 2002, Section III-B); (n, m) -> (n,)."""
    distances = np.zeros(len(costs))
    fronts = moocore.pareto_rank(costs)
    for front in np.unique(fronts):
        members = np.flatnonzero(fronts == front)
        for column in costs[members].T:
            order = np.argsort(column, kind="stable")
            spread = float(np.ptp(column)) or 1.0
            gaps = (column[order[2:]] - column[order[:-2]]) / spread
            distances[members[order[1:-1]]] += gaps
            distances[members[order[[0, -1]]]] = math.inf
    return distances
