"""Limits that a search's metrics have to keep: the ``constraints`` section of a search space."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from mixtune.errors import RequestError, show
from mixtune.metrics import find_metric

Sense = Literal["<=", ">="]


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric, in the metric's unit; ``sense`` says on which side of it values are allowed."""

    metric: str
    sense: Sense
    bound: float

    def violation(self, value: float) -> float:
        """Return how far a value is past the bound: 0 or less where it keeps it, infinity for NaN."""
        if math.isnan(value):
            return math.inf
        return value - self.bound if self.sense == "<=" else self.bound - value

    def holds(self, value: float) -> bool:
        """Return whether a value keeps the bound."""
        return self.violation(value) <= 0

    def to_yaml(self) -> str:
        """Return the bound as its file spells it, in full precision: ``<= 60``."""
        return f"{self.sense} {repr(float(self.bound)).removesuffix('.0')}"

    def __str__(self) -> str:
        return f"{self.metric} {self.to_yaml()}"


def parse_constraint(metric: str, given: Any, sense: Sense) -> Constraint:
    """Read a bound such as "<= 60" on a metric of which ``sense`` makes sense. Raises RequestError."""
    is_share = find_metric(metric).is_share
    example = f'such as "{sense} {0.9 if sense == ">=" else 0.05 if is_share else 60}"'
    match = re.fullmatch(r"\s*(<=|>=)\s*(\S+)\s*", given) if isinstance(given, str) else None
    if match is None:
        raise RequestError(f"should be {sense} and a number, {example}, got {show(given)}")
    if match[1] != sense:
        less = "better" if sense == "<=" else "worse"
        raise RequestError(f"should be {sense}, {example}, got {show(given)}: less {metric} is {less}")
    try:
        bound = float(match[2])
    except ValueError:
        bound = math.nan
    if is_share and bound > 1:
        raise RequestError(f"should be {sense} and a share of 1, {example}, got {show(given)}")
    if not math.isfinite(bound):
        raise RequestError(f"should be {sense} and a finite number, {example}, got {show(given)}")
    return Constraint(metric, sense, bound)
