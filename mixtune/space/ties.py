"""Fields of a search space that follow others: the same value, or a fraction of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixtune.errors import RequestError, show

_SAME, _FRACTION = "same_as", "fraction_of"
_EXAMPLES = {_SAME: "{same_as: optim.ssl.warmup_epochs}", _FRACTION: "{fraction_of: {epochs.sl: 0.1}}"}


@dataclass(frozen=True)
class Tie:
    """What a field follows: ``source`` is another field's path, of whose number it is a ``fraction``, or None."""

    source: str
    fraction: float | None = None

    def value(self, source: Any, base: Any) -> Any:
        """Return the field's value where its source has a value; ``base`` is the field's own in the base recipe.

        A whole number stays one: it is rounded to the nearest.
        """
        if not is_number(source):
            return source if self.fraction is None else base
        value = source if self.fraction is None else self.fraction * source
        return math.floor(value + 0.5) if isinstance(base, int) and is_number(base) else value

    def to_yaml(self) -> dict[str, Any]:
        """Return the form that a search space's file has, which parse_tie() reads back."""
        return {_SAME: self.source} if self.fraction is None else {_FRACTION: {self.source: self.fraction}}

    def __str__(self) -> str:
        return f"that of {self.source}" if self.fraction is None else f"{self.fraction:g} of {self.source}"


def is_number(value: Any) -> bool:
    """Return whether a recipe's value can be compared or multiplied."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_tie(given: Any) -> bool:
    """Return whether an entry of the ``space`` section is meant to be a tie, and no distribution."""
    return isinstance(given, Mapping) and any(key in given for key in _EXAMPLES)


def parse_tie(given: Mapping[str, Any]) -> Tie:
    """Read ``{"same_as": PATH}`` or ``{"fraction_of": {PATH: 0.1}}``. Raises RequestError."""
    kind = _SAME if _SAME in given else _FRACTION
    if len(given) > 1:
        other = next(key for key in given if key != kind)
        raise RequestError(f"{kind} stands alone, such as {_EXAMPLES[kind]}, got {other}, too")
    source = given[kind]
    if kind == _SAME and isinstance(source, str):
        return Tie(source)
    if kind == _FRACTION and isinstance(source, Mapping) and len(source) == 1:
        ((path, fraction),) = source.items()
        if is_number(fraction) and fraction > 0 and math.isfinite(fraction):
            return Tie(str(path), float(fraction))
    wanted = "a recipe field" if kind == _SAME else "a recipe field and a number above 0"
    raise RequestError(f"{kind} should have {wanted}, such as {_EXAMPLES[kind]}, got {show(source)}")
