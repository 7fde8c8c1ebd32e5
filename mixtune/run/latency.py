"""How certain the difference between two recipes' training seconds is, where one table of step times made both.

What both take steps of has one step time for both: where it is wrong, it is wrong for both, so the error of the
difference counts only the steps that one takes more of than the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from mixtune.meter.times import StepTimes
from mixtune.metrics import find_metric, significant
from mixtune.run.ledger import RunState, TrialRecord
from mixtune.run.paired import Difference

TIMED = "train_latency_s"


def latency_difference(times: StepTimes, one: TrialRecord, other: TrialRecord) -> Difference | None:
    """Return the training seconds of one recipe less another's; None where steps or a quiet window are not known."""
    if not one.steps or not other.steps:
        return None
    steps = Counter(one.steps)
    steps.subtract(other.steps)
    error = times.error_of(steps)
    return Difference(one.metrics[TIMED] - other.metrics[TIMED], error) if error == error else None


def is_distinguishable(difference: Difference | None) -> bool:
    """Return whether the 95 % interval of a difference does not hold 0; unknown errors and equal seconds pass."""
    return difference is None or difference.mean == 0 or not difference.is_nothing


def describe_close(pairs: Sequence[tuple[str, str, Difference]]) -> str:
    """Return the line on recipes whose seconds are not distinguishable, two by two."""
    said = []
    for one, other, difference in pairs:
        apart = " ± ".join(significant(abs(value), 2) for value in (difference.mean, difference.error))
        said.append(f"{one} and {other}: {apart} s apart")
    title = find_metric(TIMED).title
    return f"not distinguishable in {title}, as the 95 % interval of the difference holds 0: {'; '.join(said)}"


def close_neighbours(state: RunState, trials: Sequence[str]) -> list[str]:
    """Return a line on the recipes that are next to each other in seconds and not distinguishable by them, if any."""
    records = [state.records[trial] for trial in trials if state.records[trial].metrics.get(TIMED) is not None]
    records.sort(key=lambda record: float(record.metrics[TIMED]))
    pairs = []
    for one, other in pairwise(records):
        difference = latency_difference(state.step_times, other, one)
        if difference is not None and not is_distinguishable(difference):
            pairs.append((one.trial, other.trial, difference))
    return [describe_close(pairs)] if pairs else []
