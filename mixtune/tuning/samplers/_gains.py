"""What recipes are expected to add to the hypervolume of those that were found."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence

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


def count_beaten(scores: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Return how many points have no lower score, to be large, and no higher cost than each, itself included."""
    beaten, seen = [0] * len(scores), list[float]()
    by_cost = sorted(range(len(scores)), key=costs.__getitem__)
    for _, equal in itertools.groupby(by_cost, key=costs.__getitem__):
        group = [*equal]
        for at in group:
            bisect.insort(seen, scores[at])
        for at in group:
            beaten[at] = len(seen) - bisect.bisect_left(seen, scores[at])
    return beaten
