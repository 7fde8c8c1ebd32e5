"""Relations between a recipe's numbers that a search has to keep: ``"epochs.ssl <= epochs.sl": true``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mixtune.errors import RequestError, show
from mixtune.space.ties import is_number

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Relation:
    """A field's number, compared with another field's (by its dotted path) or with a number."""

    left: str
    sign: str
    right: str | float

    def broken(self, values: Mapping[str, Any]) -> str | None:
        """Return how a recipe's values, by dotted path, break it, None where they keep it.

        Where either is not a number, or not a field of that recipe, there is nothing to break.
        """
        left = values.get(self.left)
        right = values.get(self.right) if isinstance(self.right, str) else self.right
        if not (is_number(left) and is_number(right)) or _OPERATORS[self.sign](left, right):
            return None
        other = f" ({show(right)})" if isinstance(self.right, str) else ""
        return f"{self.left} is {show(left)}, not {self._end}{other}"

    @property
    def paths(self) -> tuple[str, ...]:
        """The fields that it is about."""
        return (self.left, self.right) if isinstance(self.right, str) else (self.left,)

    @property
    def _end(self) -> str:
        right = self.right if isinstance(self.right, str) else repr(float(self.right)).removesuffix(".0")
        return f"{self.sign} {right}"

    def __str__(self) -> str:
        return f"{self.left} {self._end}"


def is_relation(name: str) -> bool:
    """Return whether a key of the ``constraints`` section is meant to be a relation, and not a metric."""
    return re.search(r"[<>=!]", name) is not None


def parse_relation(text: str, given: Any) -> Relation:
    """Read a key such as "epochs.ssl <= epochs.sl", whose value is true. Raises RequestError."""
    match = re.fullmatch(r"\s*([\w.]+)\s*(<=|>=|==|!=|<|>)\s*([\w.+-]+)\s*", text)
    if match is None:
        example = "such as epochs.ssl <= epochs.sl"
        raise RequestError(
            f"should be a recipe field, one of {', '.join(_OPERATORS)}, and a field or a number, {example}"
        )
    if given is not True:
        raise RequestError(f"should be true, got {show(given)}")
    try:
        right: str | float = float(match[3])
    except ValueError:
        right = match[3]
    if isinstance(right, float) and not math.isfinite(right):
        raise RequestError(f"should compare with a finite number, got {match[3]}")
    return Relation(match[1], match[2], right)
