"""What a search would cost that knew every outcome: a bound that no sampler can pass."""

from __future__ import annotations

import random
from collections.abc import Mapping

from mixtune.stages.paths import RecipePaths
from replay.policies import with_images
from replay.table import Table, front_volume

TRIES = 60


def clairvoyant(table: Table, reference: Mapping[str, float], enough: float, slots: int, seed: int = 0) -> float:
    """Return the fewest device-seconds after which a hypervolume can be reached with stages that are trained once.

    Stages are chosen by greedy choice and dropped again where they are not needed, TRIES times at random, so their sum
    bounds the optimum from above. The slots' floor is exact: while the longest recipe that any sufficient set needs is
    trained, every slot's time passes.
    """
    paths = RecipePaths(with_images(table.space))
    recipes = list(table.recipes())
    curves = [table.curve(params) for params in recipes]
    stages = [dict(zip(paths(params).keys[1:], table.curve(params).seconds, strict=True)) for params in recipes]

    def volume(chosen: list[int]) -> float:
        return front_volume([curves[i] for i in chosen], reference) if chosen else 0.0

    def cost(chosen: list[int]) -> float:
        return sum({key: seconds for i in chosen for key, seconds in stages[i].items()}.values())

    front = [i for i, c in enumerate(curves) if not any(_beats(other, c) for other in curves)]
    rng, best = random.Random(seed), float("inf")
    for _ in range(TRIES):
        chosen: list[int] = []
        while volume(chosen) < enough:
            left = [i for i in front if i not in chosen]
            left = rng.sample(left, max(1, round(len(left) * rng.uniform(0.3, 1.0))))
            rates = {
                i: (volume([*chosen, i]) - volume(chosen)) / (cost([*chosen, i]) - cost(chosen) + 1e-9) for i in left
            }
            chosen.append(max(left, key=rates.__getitem__))
        for i in sorted(chosen, key=lambda i: -curves[i].latency):
            rest = [j for j in chosen if j != i]
            if volume(rest) >= enough:
                chosen = rest
        best = min(best, cost(chosen))
    by_length = sorted(range(len(curves)), key=lambda i: curves[i].latency)
    longest = next(curves[i].latency for n, i in enumerate(by_length, 1) if volume(by_length[:n]) >= enough)
    return max(best, slots * longest)


def _beats(one, other) -> bool:  # type: ignore[no-untyped-def]
    values = (one.accuracies[-1], -one.latency), (other.accuracies[-1], -other.latency)
    return values[0] != values[1] and values[0][0] >= values[1][0] and values[0][1] >= values[1][1]
