"""How long a training step takes, by what its cost depends on: the table that latencies are computed from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

WINDOWS = 3  # of a cost signature; then its step time is fixed


class StepTimes:
    """Seconds of a step by cost signature. The first three windows count, so a step time does not change any more.

    ``windows``: what was measured so far, by signature, as another table gives it.
    """

    def __init__(self, windows: Mapping[str, Sequence[float]] | None = None) -> None:
        self.windows = {signature: list(seconds)[:WINDOWS] for signature, seconds in (windows or {}).items()}

    def add(self, signature: str, seconds: float) -> bool:
        """Take over a window's mean step time; return False for one too many, of two trials that measured at once."""
        if not self.missing(signature):
            return False
        self.windows.setdefault(signature, []).append(seconds)
        return True

    def missing(self, signature: str) -> int:
        """Return how many windows a signature still needs."""
        return WINDOWS - len(self.windows.get(signature, []))

    def step_time(self, signature: str) -> float:
        """Return seconds a step, the median of the windows; NaN where there is none."""
        return statistics.median(self.windows.get(signature, [math.nan]))

    def latency(self, epochs: Iterable[tuple[int, str]]) -> float:
        """Return the seconds of epochs, (steps, signature) each; NaN where one of them was never measured."""
        return sum((steps * self.step_time(signature) for steps, signature in epochs), 0.0)
