"""Conditions of a search space: which parameters a recipe has depends on the values of others (``when``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from mixtune.errors import RequestError, show
from mixtune.space.document import frozen
from mixtune.space.recipe import RecipeError


class Condition(NamedTuple):
    """A parameter that has one is active where the field at ``path`` has one of the ``values``."""

    path: str
    values: tuple[Any, ...]

    def allows(self, value: Any) -> bool:
        """Return whether a value is one of those."""
        return frozen(value) in self.values

    def __str__(self) -> str:
        return f"{self.path} is {' or '.join(map(show, self.values))}"


def parse_conditions(given: Any) -> tuple[Condition, ...]:
    """Read ``{"ssl.objective": ["simclr", "mocov3"]}``, whose values are one or a list. Raises RequestError."""
    if not isinstance(given, Mapping) or not given or [] in given.values():
        raise RequestError(
            f"when should name fields and their values, such as {{ssl.objective: [simclr, mocov3]}}, got {show(given)}"
        )
    return tuple(
        Condition(str(path), tuple(map(frozen, values)) if isinstance(values, list) else (values,))
        for path, values in given.items()
    )


def parents_first(parents: Mapping[str, Collection[str]]) -> list[str]:
    """Return names so that each comes after its parents, in their own order otherwise.

    Raises RecipeError for a name that depends on itself.
    """
    order: list[str] = []
    left = list(parents)
    while left:
        ready = next((name for name in left if not any(parent in left for parent in parents[name])), None)
        if ready is None:
            chain = left[:1]
            while chain[-1] not in chain[:-1]:
                chain.append(next(parent for parent in parents[chain[-1]] if parent in left))
            cycle = chain[chain.index(chain[-1]) :]
            raise RecipeError((cycle[0],), f"depends on itself: {' -> '.join(cycle)}")
        order.append(ready)
        left.remove(ready)
    return order
