"""Recipes that are named, not drawn: their place in a search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mixtune.errors import RequestError, show, suggest

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
