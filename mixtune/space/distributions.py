"""The distributions of a search space, with the names and bounds of Ray Tune's.

As in Ray Tune the upper bound is exclusive for ``randint`` and ``lograndint`` and inclusive elsewhere.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, NamedTuple

from mixtune.errors import RequestError, show, suggest
from mixtune.space.conditions import Condition, parse_conditions
from mixtune.space.document import frozen, thawed
from mixtune.space.ties import is_number


class Prior(NamedTuple):
    """A belief: with probability ``confidence`` the best value is close to ``value``, else it may be any."""

    value: Any
    confidence: float


@dataclass(frozen=True)
class Distribution:
    """A named distribution: ``low`` and ``high`` (inclusive here), ``step``, or a tuple of ``values``.

    ``step`` is None for continuous ones, 1 or q for integers, q for quantised floats. With ``log`` and a step a draw is
    log-uniform and then rounded to a multiple of q. ``when``: conditions that all hold where the parameter is active;
    ``prior``: a belief of where its best value is.
    """

    kind: str
    low: float | int = 0
    high: float | int = 0
    step: float | int | None = None
    log: bool = False
    values: tuple[Any, ...] = ()
    when: tuple[Condition, ...] = ()
    prior: Prior | None = None

    @property
    def is_integer(self) -> bool:
        """Whether draws are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and self.step is not None

    @property
    def size(self) -> int | None:
        """How many values it has, or None where there is no end of them."""
        if self.values or self.step is None:
            return len(self.values) or None
        extent = self.high - self.low
        return int(extent // self.step if self.is_integer else round(extent / self.step)) + 1

    @property
    def arguments(self) -> list[Any]:
        """What follows the name in a search space's file, and the arguments of Ray Tune's function of that name."""
        if self.values:
            return [*map(thawed, self.values)]
        bounds = [self.low, self.high + 1 if self.kind in ("randint", "lograndint") else self.high]
        return [*bounds, self.step] if self.kind.startswith("q") else bounds

    def extremes(self) -> tuple[Any, ...]:
        """Return the values at which a recipe can first go wrong: both ends, or every choice."""
        return self.values or (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Return whether a draw can give ``value``."""
        if self.values:
            return frozen(value) in self.values
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or _is_multiple(value - self.low, self.step)

    def can_measure(self, value: Any) -> bool:
        """Return whether a value has a place on this scale, even beyond its ends; words have none."""
        ends = self.extremes()
        if self.contains(value) or not all(map(is_number, ends)):
            return True
        is_positive = self.log or (bool(self.values) and min(ends) > 0)
        return is_number(value) and (value > 0 or not is_positive)

    def at(self, place: int) -> Any:
        """Return the value at a place, counted from 0, of one that has an end of them."""
        if self.values or self.step is None:
            return self.values[place]
        value = self.low + place * self.step
        return value if self.is_integer else round(value, max(10, 6 - math.floor(math.log10(self.step))))

    def nearest(self, value: float) -> Any:
        """Return the multiple of q that is nearest to a number between the ends, a whole one for whole ones."""
        assert self.step is not None, self.kind
        if self.is_integer:
            return self.low + (value - self.low + self.step // 2) // self.step * self.step
        return self.at(round((value - self.low) / self.step))

    def closest(self, value: Any) -> Any:
        """Return the value that a draw can give which is closest to another one; of words the first."""
        if self.contains(value):
            return value
        choices = self.values if is_number(value) else ()
        if self.values:
            return min(filter(is_number, choices), key=lambda choice: abs(choice - value), default=self.values[0])
        inside = min(max(value, self.low), self.high) if is_number(value) else self.low
        return inside if self.step is None else self.nearest(round(inside) if self.is_integer else inside)

    def grid(self) -> tuple[Any, ...] | None:
        """Return every value in order, or None where there is no end of them."""
        return None if self.size is None else tuple(map(self.at, range(self.size)))

    def density(self, value: Any) -> float:
        """Return how much more probable a value is by the prior than without one; 1 everywhere without one.

        A choice has the confidence, and each an equal part of the rest. A number has a normal distribution around the
        prior's value in place of that, cut off at both ends, on the distribution's own scale from 0 to 1: its standard
        deviation is half of what is missing to a confidence of 1.
        """
        if self.prior is None:
            return 1.0
        confidence = self.prior.confidence
        if self.values:
            is_it = bool(frozen(value) == self.prior.value)
            return 1 - confidence + confidence * len(self.values) * is_it
        near = self._near()
        return 1 - confidence + confidence * near.pdf(self._place(value)) / (near.cdf(1) - near.cdf(0))

    def draw(self, rng: random.Random) -> Any:
        """Return a value drawn by density()."""
        is_near = self.prior is not None and rng.random() < self.prior.confidence
        if self.size is not None and not is_near and not self.log:
            return self.at(rng.randrange(self.size))
        if self.prior is not None and is_near and self.values:
            return self.prior.value
        place = rng.random()
        if is_near:
            near = self._near()
            place = near.inv_cdf(min(max(near.cdf(0) + place * (near.cdf(1) - near.cdf(0)), 1e-12), 1 - 1e-12))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + place * (high - low)
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return value if self.step is None else self.nearest(round(value) if self.is_integer else value)

    def _near(self) -> NormalDist:
        assert self.prior is not None, self.kind
        return NormalDist(self._place(self.prior.value), (1 - self.prior.confidence) / 2)

    def _place(self, value: float) -> float:
        """Return where a number is between both ends, from 0 to 1, on a logarithmic scale if that is its own."""
        low, high, place = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (place - low) / (high - low) if high > low else 0.5

    def to_yaml(self) -> dict[str, Any]:
        """Return the form that a search space's file has, which parse_distribution() reads back."""
        when = {path: [*map(thawed, values)] for path, values in self.when}
        prior = {} if self.prior is None else {"prior": {**self.prior._asdict(), "value": thawed(self.prior.value)}}
        return {self.kind: self.arguments, **({"when": when} if when else {}), **prior}


def parse_distribution(given: Any) -> Distribution:
    """Read ``{"uniform": [0, 1]}``, also with ``when`` and ``prior``; raises RequestError that says what is allowed."""
    kinds = [key for key in given if key not in _OPTIONS] if isinstance(given, Mapping) else []
    if len(kinds) != 1:
        meant = "".join(suggest(str(key), _OPTIONS) for key in kinds if key not in _KINDS)
        raise RequestError(f"should be one distribution, such as {{uniform: [0, 1]}}, got {show(given)}{meant}")
    kind, arguments = kinds[0], given[kinds[0]]
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise RequestError(f"unknown distribution {kind!r}; known are {known}{suggest(str(kind), _KINDS)}")
    if not isinstance(arguments, list) or not arguments:
        raise RequestError(f"{kind} should have a list, such as {_EXAMPLES[kind]}, got {show(arguments)}")
    distribution = _KINDS[kind](kind, arguments)
    if "when" in given:
        distribution = replace(distribution, when=parse_conditions(given["when"]))
    return replace(distribution, prior=_prior(distribution, given["prior"])) if "prior" in given else distribution


def _prior(distribution: Distribution, given: Any) -> Prior:
    example = f"such as {{value: {show(thawed(distribution.extremes()[0]))}, confidence: 0.5}}"
    if not isinstance(given, Mapping) or set(given) != {"value", "confidence"}:
        raise RequestError(f"prior should have a value and a confidence, {example}, got {show(given)}")
    value, confidence = given["value"], given["confidence"]
    if not distribution.contains(value):
        raise RequestError(f"prior: {distribution.kind} never gives {show(value)}")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise RequestError(f"prior: confidence should be above 0 and below 1, got {show(confidence)}")
    return Prior(frozen(value), float(confidence))


def _floats(kind: str, arguments: list[Any]) -> Distribution:
    low, high = _bounds(kind, arguments, 2)
    _check_order(kind, low, high)
    return Distribution(kind, float(low), float(high), log="log" in kind)


def _quantised_floats(kind: str, arguments: list[Any]) -> Distribution:
    low, high, q = _bounds(kind, arguments, 3)
    _check_order(kind, low, high)
    _check_step(kind, low, high, q)
    return Distribution(kind, float(low), float(high), step=float(q), log="log" in kind)


def _integers(kind: str, arguments: list[Any]) -> Distribution:
    low, high = _bounds(kind, arguments, 2, whole=True)
    _check_order(kind, low, high)
    if low == high:
        raise RequestError(f"{kind} {show(arguments)} is empty: as in Ray Tune its upper bound is exclusive")
    return Distribution(kind, low, high - 1, step=1, log="log" in kind)


def _quantised_integers(kind: str, arguments: list[Any]) -> Distribution:
    low, high, q = _bounds(kind, arguments, 3, whole=True)
    _check_order(kind, low, high)
    _check_step(kind, low, high, q)
    return Distribution(kind, low, high, step=q, log="log" in kind)


def _choices(kind: str, arguments: list[Any]) -> Distribution:
    values = tuple(frozen(v) for v in arguments)
    repeated = [v for i, v in enumerate(values) if v in values[:i]]
    if repeated:
        raise RequestError(f"{kind} names {show(repeated[0])} twice")
    return Distribution(kind, values=values)


_KINDS: dict[str, Callable[[str, list[Any]], Distribution]] = {
    "uniform": _floats,
    "quniform": _quantised_floats,
    "loguniform": _floats,
    "qloguniform": _quantised_floats,
    "randint": _integers,
    "qrandint": _quantised_integers,
    "lograndint": _integers,
    "qlograndint": _quantised_integers,
    "choice": _choices,
    "grid_search": _choices,
}
_OPTIONS = ("when", "prior")
_EXAMPLES = {
    "uniform": "[0, 1]",
    "quniform": "[0, 1, 0.25]",
    "loguniform": "[1e-4, 1e-2]",
    "qloguniform": "[1e-4, 1e-2, 1e-4]",
    "randint": "[2, 13]",
    "qrandint": "[10, 50, 10]",
    "lograndint": "[16, 257]",
    "qlograndint": "[32, 512, 32]",
    "choice": "[2, 4, 8]",
    "grid_search": "[2, 4, 8]",
}


def _bounds(kind: str, arguments: list[Any], count: int, whole: bool = False) -> list[Any]:
    wanted = int if whole else (int, float)
    sound = len(arguments) == count and all(
        isinstance(a, wanted) and not isinstance(a, bool) and abs(a) <= sys.float_info.max for a in arguments
    )
    if not sound:
        form = "[low, high, q]" if count == 3 else "[low, high]"
        numbers = "whole numbers" if whole else "numbers"
        example = _EXAMPLES[kind]
        raise RequestError(f"{kind} should have {form} in {numbers}, such as {example}, got {show(arguments)}")
    return arguments


def _check_order(kind: str, low: float, high: float) -> None:
    if low > high:
        raise RequestError(f"{kind} has low {low} above high {high}")
    if "log" in kind and low <= 0:
        raise RequestError(f"{kind} is logarithmic, so low should be above 0, got {low}")


def _check_step(kind: str, low: float, high: float, q: float) -> None:
    if q <= 0:
        raise RequestError(f"{kind} should have a q above 0, got {q}")
    for name, bound in (("low", low), ("high", high)):
        if not _is_multiple(bound, q):
            raise RequestError(f"{kind} has {name} {bound}, which is not a multiple of its q {q}")


def _is_multiple(value: float, step: float) -> bool:
    return abs(value / step - round(value / step)) < 1e-6  # 0.3 / 0.1 is 2.9999999999999996
