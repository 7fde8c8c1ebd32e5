"""Recipes that are named, not drawn: their place in a search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mixtune.errors import RequestError, show, suggest
from mixtune.space.document import frozen
from mixtune.space.effective import effective

if TYPE_CHECKING:
    from mixtune.space.space import SearchSpace


def complete_params(space: SearchSpace, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted parameters of a recipe of which some are given.

    The others have the base recipe's values, or the closest ones that the space holds. Raises RequestError where the
    space holds no such recipe, or its values do not go together.
    """
    for path in given:
        if path not in space.space:
            known = f"it searches {', '.join(space.space)}{suggest(path, space.space)}"
            raise RequestError(f"{path}: the space does not search it; {known}")
    params: dict[str, Any] = {}
    for path, distribution in space.space.items():
        if not space.is_active(path, params):
            if path in given:
                raise RequestError(
                    f"{path}: this recipe does not have it; when: {', '.join(map(str, distribution.when))}"
                )
            continue
        value = given[path] if path in given else distribution.closest(space.values_at(params).get(path))
        if not distribution.contains(value):
            raise RequestError(f"{path}: {distribution.kind} {show(distribution.arguments)} never gives {show(value)}")
        params[path] = value if distribution.values or distribution.step is None else distribution.nearest(value)
    space.recipe_at(params)
    if (broken := space.broken(params)) is not None:
        raise RequestError(broken)
    return params


class Place(NamedTuple):
    """Where a recipe is, seen from a space.

    params: its values at the space's active parameters; outside: those of them that the space does not give; other:
    its values where it differs from the recipe with these parameters, by dotted path.
    """

    params: dict[str, Any]
    outside: tuple[str, ...]
    other: dict[str, Any]

    @property
    def is_inside(self) -> bool:
        """Whether the recipe is one of the space."""
        return not (self.outside or self.other)


def place_recipe(space: SearchSpace, values: Mapping[str, Any]) -> Place:
    """Return where a recipe is, by all of its values by dotted path.

    Idle settings do not count, nor does where images are: what they are is compared by their content.
    """
    params: dict[str, Any] = {}
    for path in space.space:
        if space.is_active(path, params):
            params[path] = values.get(path)
    outside = tuple(path for path, value in params.items() if not space.space[path].contains(value))
    here, there = effective(space.values_at(params)), effective(values)
    other = {
        path: there.get(path)
        for path in dict.fromkeys([*there, *here])
        if path not in _WHERE_IMAGES_ARE and frozen(here.get(path)) != frozen(there.get(path))
    }
    return Place(params, outside, other)


_WHERE_IMAGES_ARE = frozenset(
    f"data.{name}" for name in ("dataset", "root", "train", "val", "test", "ssl_dataset", "ssl_root")
)
