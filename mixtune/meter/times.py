"""How long a training step takes, by what its cost depends on: the table that latencies are computed from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DRIFT = 0.15  # of a step time from moment to moment, as a share of it: benchmarks/tables/latency_sittings.csv
LOOKS = 4  # step times measured again that DRIFT counts for
LATER_S = 120.0  # after which a step time is measured again, to see how the machine drifts
SPREAD = 0.035  # of a window among those of one epoch: of 48 turns of benchmarks/results/latency_meter.csv
PRIOR = 3  # windows that SPREAD counts for
WINDOWS = 3  # of a cost signature, at most; the first is enough where more would keep the neighbours waiting


class StepTimes:
    """Seconds of a step by cost signature: the median of its windows.

    It changes no more after three windows, or once it is fixed, because the latency of a whole training was computed
    from it: training runs of equal cost have equal latencies. Until a window was quiet, the shortest one that was not
    stands in. A quiet window that comes later changes no step time: it says how the machine drifts.

    ``windows``: the quiet ones, by signature; ``disturbed``: the shortest that was not quiet; ``fixed``: signatures;
    ``later``: quiet windows of moments later than a step time's own; ``looked_at``: when the latest window was made, in
    unix seconds, where that is known; ``due``: signatures that a later window is wanted of.
    """

    def __init__(self, windows: Mapping[str, Sequence[float]] | None = None) -> None:
        self.windows = {signature: list(seconds) for signature, seconds in (windows or {}).items()}
        self.disturbed: dict[str, float] = {}
        self.fixed: set[str] = set()
        self.later: dict[str, list[float]] = {}
        self.looked_at: dict[str, float] = {}
        self.due: set[str] = set()
        self._drift: float | None = None

    def takes(self, signature: str, seconds: float, quiet: bool = True) -> bool:
        """Return whether a window's mean step time would change anything.

        It may be one too many, of two trials that measured at once, or disturbed, where a better one is known.
        """
        if not self.missing(signature):
            return False
        return quiet or not (signature in self.windows or seconds >= self.disturbed.get(signature, math.inf))

    def add(self, signature: str, seconds: float, quiet: bool = True) -> bool:
        """Take over a window's mean step time; return whether it changes anything."""
        if not self.takes(signature, seconds, quiet):
            return False
        if quiet:
            self.windows.setdefault(signature, []).append(seconds)
        else:
            self.disturbed[signature] = seconds
        return True

    def is_due(self, signature: str, now: float) -> bool:
        """Return whether a known step time was measured so long before ``now``, unix seconds, as to look again."""
        known = signature in self.windows and not self.missing(signature)
        return known and now - self.looked_at.get(signature, math.inf) >= LATER_S

    def add_later(self, signature: str, seconds: float, quiet: bool = True) -> None:
        """Take over a window of a step time that is known, made at a later moment; one that was not quiet is none."""
        self.due.discard(signature)
        if quiet and signature in self.windows and min(seconds, self.step_time(signature)) > 0.0:
            self.later.setdefault(signature, []).append(seconds)
            self._drift = None

    @property
    def drift(self) -> float:
        """How step times scatter from moment to moment, as a share of them: a standard deviation.

        Of each signature that was measured again the scatter of its moments' logarithms about their mean, pooled as in
        an analysis of variance, and DRIFT as if it had been found LOOKS times: a run that looked at little states what
        was found on a machine that others share, a longer one what it saw.
        """
        if self._drift is None:
            squares, count = LOOKS * DRIFT**2, LOOKS
            for signature, seconds in self.later.items():
                moments = [math.log(each) for each in (self.step_time(signature), *seconds)]
                squares += len(seconds) * statistics.variance(moments)
                count += len(seconds)
            self._drift = math.sqrt(squares / count)
        return self._drift

    def error(self, signature: str) -> float:
        """Return the standard error of step_time() in seconds; NaN without a quiet window.

        Windows say how much they scatter within the moment in which they were made, and nothing of how the machine
        drifts from one moment to the next: that is added, however many windows there are.
        """
        if signature not in self.windows:
            return math.nan
        windows, step = self.windows[signature], self.step_time(signature)
        squares = PRIOR * SPREAD**2 + sum((seconds / step - 1.0) ** 2 for seconds in windows)
        spread = squares / (PRIOR + len(windows) - 1)
        return step * math.sqrt(self.drift**2 + spread / len(windows))

    def error_of(self, steps: Mapping[str, float]) -> float:
        """Return the standard error of the seconds of so many steps of each signature; NaN where one is not known.

        Step times err independently of each other. Of a difference between two recipes the counts are the differences
        of theirs, some below 0: what the two have in common is in neither's favour.
        """
        return math.hypot(*(count * self.error(signature) for signature, count in steps.items() if count))

    def missing(self, signature: str) -> int:
        """Return how many windows a signature may still have."""
        return 0 if signature in self.fixed else WINDOWS - len(self.windows.get(signature, []))

    def wanted(self, signature: str) -> int:
        """Return how many windows an epoch should make: those that are missing, or a later one that is due."""
        return self.missing(signature) or int(signature in self.due)

    def is_known(self, signature: str) -> bool:
        """Return whether there is a step time, even if of a disturbed window."""
        return signature in self.windows or signature in self.disturbed

    def is_disturbed(self, signature: str) -> bool:
        """Return whether a step time is known, but of no quiet window: others computed, and it may be too long."""
        return signature in self.disturbed and signature not in self.windows

    def unfixed(self, signatures: Iterable[str]) -> list[str]:
        """Return the signatures whose step times are known and could still change."""
        return sorted({s for s in signatures if self.is_known(s) and self.missing(s)})

    def fix(self, signatures: Iterable[str]) -> None:
        """Let step times that are known change no more."""
        self.fixed.update(self.unfixed(signatures))

    def copy(self, now: float | None = None) -> StepTimes:
        """Return a table that grows by itself; ``now``, in unix seconds, what is due then is looked at again."""
        times = StepTimes.from_dict(self.to_dict())
        times.due = set(self.due) if now is None else {s for s in self.windows if self.is_due(s, now)}
        return times

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that from_dict() reads."""
        return {"windows": self.windows, "disturbed": self.disturbed, "fixed": sorted(self.fixed), "later": self.later}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StepTimes:
        """Return the table of to_dict()'s values."""
        times = cls(values["windows"])
        times.disturbed, times.fixed = dict(values["disturbed"]), set(values["fixed"])
        times.later = {signature: list(seconds) for signature, seconds in values.get("later", {}).items()}
        return times

    def step_time(self, signature: str) -> float:
        """Return seconds a step, the median of the windows; NaN where there is none."""
        return statistics.median(self.windows.get(signature, [self.disturbed.get(signature, math.nan)]))
