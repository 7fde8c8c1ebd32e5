"""Whether a search still gets anywhere: by how much its latest trials enlarged the front's hypervolume."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from mixtune.metrics import metric_value
from mixtune.run.front import hypervolume
from mixtune.run.ledger import COUNTED, RunState, TrialRecord
from mixtune.space.space import SearchSpace

MIN_BEFORE = 5  # complete trials, for a front to compare with


def latest_gain(state: RunState, space: SearchSpace, reference: Mapping[str, float], after: int) -> float | None:
    """Return by which share of what it was before the latest ``after`` trials of the budget enlarged the hypervolume.

    Both volumes are up to ``reference``, by objective; baselines and trials count from when they ended, and one that
    failed adds nothing. None where that is too early to tell: fewer have ended since the search last converged, fewer
    than MIN_BEFORE of those before are complete, or nothing is better than the reference yet.
    """
    trials = sorted(
        (r for r in state.records.values() if r.baseline is None and r.state in COUNTED),
        key=lambda record: record.ended_time or 0.0,
    )
    earlier = trials[:-after]
    too_few = len(trials) - state.converged_after < after or sum(r.state == "complete" for r in earlier) < MIN_BEFORE
    if too_few or len(reference) < len(space.objectives):
        return None
    cutoff = earlier[-1].ended_time or 0.0
    before = _volume((r for r in state.records.values() if (r.ended_time or math.inf) <= cutoff), space, reference)
    now = _volume(state.records.values(), space, reference)
    if before == 0:
        return None if now == 0 else math.inf
    return max(0.0, now / before - 1.0)


def _volume(records: Iterable[TrialRecord], space: SearchSpace, reference: Mapping[str, float]) -> float:
    """Return the hypervolume of the complete records that keep every constraint."""
    rows = [
        [metric_value(record.metrics, name) for name in space.objectives]
        for record in records
        if record.state == "complete"
        and all(limit.holds(metric_value(record.metrics, name)) for name, limit in space.constraints.items())
    ]
    frame = pd.DataFrame(rows, columns=[*space.objectives], dtype=float)
    return hypervolume(frame, space.objectives, reference) if rows else 0.0
