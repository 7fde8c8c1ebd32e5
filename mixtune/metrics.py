"""How a metric is named and its numbers are written for people: title, unit, scale, digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_TITLES = {
    "val_accuracy": "validation accuracy",
    "val_balanced_accuracy": "balanced validation accuracy",
    "val_macro_f1": "validation macro F1",
    "val_calibration_error": "validation calibration error",
    "test_accuracy": "test accuracy",
    "test_balanced_accuracy": "balanced test accuracy",
    "test_macro_f1": "test macro F1",
    "test_calibration_error": "test calibration error",
    "train_latency_s": "training time",
    "infer_latency_ms": "inference time",
    "peak_memory_mb": "peak memory",
    "train_flops": "training compute",
}
_SHARES = ("_accuracy", "_f1", "_calibration_error")  # of 1, in percent for people
_UNITS = {**dict.fromkeys(_SHARES, "%"), "_s": "s", "_ms": "ms", "_mb": "MB", "_flops": "FLOP"}


@dataclass(frozen=True)
class Quantity:
    """A metric as people read it: a stored value times ``scale`` is in ``unit``; shares of 1 in percent."""

    name: str
    title: str
    unit: str = ""
    scale: float = 1.0

    @property
    def axis_title(self) -> str:
        """The title with its unit: "training time (s)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None, error: float | None = None) -> str:
        """Return "97.0 ± 1.4 %" for a stored value and its standard error, "12.3 s", or "-" for no value."""
        if value is None or not math.isfinite(value):
            return "-"
        write = _one_decimal if self.unit == "%" else significant
        number = write(value * self.scale)
        if error is not None and math.isfinite(error):
            number += f" ± {write(error * self.scale)}"
        return f"{number} {self.unit}".rstrip()


def quantity(name: str) -> Quantity:
    """Return what is known of metric ``name``; the unit follows from how the name ends, as in ``_ms``."""
    ending = next((end for end in _UNITS if name == end[1:] or name.endswith(end)), None)
    unit = _UNITS[ending] if ending else ""
    return Quantity(name, _TITLES.get(name, name), unit, 100.0 if unit == "%" else 1.0)


def significant(value: float, digits: int = 3) -> str:
    """Return ``value`` with so many significant digits: 0.412, 12.0, 1230; 1.5e+15 where that is long."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits}g}")
    magnitude = math.floor(math.log10(abs(rounded)))
    if not -4 <= magnitude < 6:
        return f"{value:.{digits}g}"
    return f"{rounded:.{max(0, digits - 1 - magnitude)}f}"


def setting(value: Any) -> str:
    """Return a parameter's value in short: a float with three significant digits, "" for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _one_decimal(value: float) -> str:
    return f"{value:.1f}"


def duration(seconds: float) -> str:
    """Return ``1:02:03``, hours, minutes and seconds, or ``2:03`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
