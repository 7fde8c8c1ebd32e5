"""How long a training step takes, by what its cost depends on: the table that latencies are computed from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WINDOWS = 3  # of a cost signature, at most; the first is enough where more would keep the neighbours waiting


class StepTimes:
    """Seconds of a step by cost signature: the median of its windows.

    It changes no more after three windows, or once it is fixed, because the latency of a whole training was computed
    from it: trainings of equal cost have equal latencies. Until a window was quiet, the shortest one that was not
    stands in.

    ``windows``: the quiet ones, by signature; ``disturbed``: the shortest that was not quiet; ``fixed``: signatures.
    """

    def __init__(self, windows: Mapping[str, Sequence[float]] | None = None) -> None:
        self.windows = {signature: list(seconds) for signature, seconds in (windows or {}).items()}
        self.disturbed: dict[str, float] = {}
        self.fixed: set[str] = set()

    @classmethod
    def from_ledger(cls, events: Iterable[Mapping[str, Any]]) -> StepTimes:
        """Return what a ledger's events say."""
        times = cls()
        for event in events:
            if event["event"] == "step_time":
                times.add(event["signature"], float(event["seconds"]), event.get("quiet", True))
            elif event["event"] == "step_time_fixed":
                times.fix([event["signature"]])
        return times

    def add(self, signature: str, seconds: float, quiet: bool = True) -> bool:
        """Take over a window's mean step time; return False where it changes nothing.

        It may be one too many, of two trials that measured at once, or disturbed, where a better one is known.
        """
        if not self.missing(signature):
            return False
        if quiet:
            self.windows.setdefault(signature, []).append(seconds)
            return True
        if signature in self.windows or seconds >= self.disturbed.get(signature, math.inf):
            return False
        self.disturbed[signature] = seconds
        return True

    def missing(self, signature: str) -> int:
        """Return how many windows a signature may still have."""
        return 0 if signature in self.fixed else WINDOWS - len(self.windows.get(signature, []))

    def is_known(self, signature: str) -> bool:
        """Return whether there is a step time, even if of a disturbed window."""
        return signature in self.windows or signature in self.disturbed

    def fix(self, signatures: Iterable[str]) -> list[str]:
        """Let step times that are known change no more; return those that still could."""
        still_open = sorted({s for s in signatures if self.is_known(s) and self.missing(s)})
        self.fixed.update(still_open)
        return still_open

    def copy(self) -> StepTimes:
        """Return a table that grows by itself."""
        times = StepTimes(self.windows)
        times.disturbed, times.fixed = dict(self.disturbed), set(self.fixed)
        return times

    def step_time(self, signature: str) -> float:
        """Return seconds a step, the median of the windows; NaN where there is none."""
        return statistics.median(self.windows.get(signature, [self.disturbed.get(signature, math.nan)]))

    def latency(self, epochs: Iterable[tuple[int, str]]) -> float:
        """Return the seconds of epochs, (steps, signature) each; NaN where one of them was never measured."""
        return sum((steps * self.step_time(signature) for steps, signature in epochs), 0.0)
