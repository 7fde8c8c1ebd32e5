"""What recipes are expected to add to the hypervolume of those that were found."""

from __future__ import annotations

import math
from collections.abc import Iterable

import moocore
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def step_gains(
    values: Floats, costs: Floats, found: Iterable[tuple[float, float]], reference: tuple[float, float]
) -> Floats:
    """Return the expected gains (recipes,) where a cost is known and a value is not.

    values: equally likely ones of each recipe, to be large, (recipes, samples); costs: to be small, (recipes,); found,
    reference: (value, cost). The gain is a sum over the front's steps: how wide a step is from the recipe's cost on,
    times by how much the recipe is expected to be better than its value.
    """
    starts, levels = [-math.inf], [reference[0]]
    for value, cost in sorted(found, key=lambda point: (point[1], -point[0])):
        if value > levels[-1]:
            starts.append(cost)
            levels.append(value)
    ends = np.minimum(np.append(starts[1:], reference[1]), reference[1])
    widths = np.maximum(0.0, ends - np.maximum(np.array(starts), costs[:, None]))
    better = np.maximum(0.0, values[:, :, None] - np.array(levels)).mean(axis=1)
    gains: Floats = (widths * better).sum(axis=1)
    return gains


def volume_gains(points: Floats, found: Floats, reference: Floats) -> Floats:
    """Return the expected gains (recipes,) of any objectives, all to be small.

    points: equally likely ones of each recipe, (recipes, samples, objectives); found: (found, objectives); reference:
    (objectives,).
    """
    front = found[moocore.is_nondominated(found)] if len(found) else found
    volume = moocore.Hypervolume(ref=reference)
    before = float(volume(front)) if len(front) else 0.0
    return np.array(
        [np.mean([float(volume(np.vstack([front, point]))) for point in samples]) - before for samples in points]
    )


def count_beaten(scores: Floats, costs: Floats) -> npt.NDArray[np.int64]:
    """Return how many points reach each, (points,): no lower score, to be large, no higher cost; it does itself.

    In n log(n)^2, as a search may have a hundred thousand states: of ever longer runs of the points by cost, the left
    one of each pair is counted for the right one.
    """
    order = np.lexsort((-scores, costs))  # none that comes later reaches a point, but its equals
    ranks = np.unique(scores[order], return_inverse=True)[1]
    beaten, places, width = np.ones(len(order), dtype=np.int64), np.arange(len(order)), 1
    while width < len(order):
        pair, is_right = places // (2 * width), places // width % 2 == 1
        keys = pair * len(order) + ranks
        left, right = np.sort(keys[~is_right]), keys[is_right]
        ends = np.searchsorted(left, (pair[is_right] + 1) * len(order))
        beaten[is_right] += ends - np.searchsorted(left, right)
        width *= 2
    same = np.stack([costs[order], ranks])  # equals have the count of their last
    last = np.append((same[:, 1:] != same[:, :-1]).any(axis=0), True)
    found = np.empty(len(order), dtype=np.int64)
    found[order] = beaten[last][np.cumsum(np.append(0, last[:-1]))]
    return found
