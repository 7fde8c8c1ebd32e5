"""The hypervolume's reference point: the worst that counts of each objective, derived from what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mixtune.metrics import METRICS, metric_value
from mixtune.run.directory import RunFacts
from mixtune.space.space import SearchSpace

MARGIN = 0.1  # of a cost, beyond the worst one, which so adds something


def given_reference(space: SearchSpace, facts: RunFacts) -> dict[str, float]:
    """Return by metric what ``search.reference_point`` says, and what older versions fixed before the first trial."""
    return {**facts.reference_point, **space.search.reference_point}


def derive_reference(
    space: SearchSpace,
    facts: RunFacts,
    complete: Iterable[Mapping[str, Any]],
    objectives: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Return the reference of each objective (default: the space's) that has one: what is given, else what follows.

    complete: the metrics of the complete trials and baselines, in any order. A constrained metric has its constraint's
    bound; a score what guessing gets where classes are equally frequent, with a calibration that is sure of it; any
    other metric that should be small a tenth above the worst of ``complete`` and of the most expensive recipe as
    forecast, where there is either.
    """
    classes = [task["classes"] for task in facts.tasks.values() if "classes" in task]
    chance = sum(1.0 / count for count in classes) / len(classes) if classes else math.nan
    scores = {"chance": chance, "certain and wrong": 1.0 - chance}
    given, measured, point = given_reference(space, facts), list(complete), {}
    for name, mode in (space.objectives if objectives is None else objectives).items():
        worst = METRICS[name].worst if name in METRICS else None
        if name in given:
            point[name] = given[name]
        elif name in space.constraints:
            point[name] = space.constraints[name].bound
        elif worst is not None:
            point[name] = scores[worst]
        elif mode == "min":
            values = [*(metric_value(metrics, name) for metrics in measured), facts.most_expensive.get(name, math.nan)]
            most = max((value for value in values if math.isfinite(value)), default=math.nan)
            point[name] = most + MARGIN * abs(most)
    return {name: bound for name, bound in point.items() if math.isfinite(bound)}
