"""The different recipes of a space whose parameters depend on each other: counted, listed, reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mixtune.space.conditions import Condition

if TYPE_CHECKING:
    from mixtune.space.space import SearchSpace

Params = dict[str, Any]


def ways(space: SearchSpace, path: str) -> Iterator[Params]:
    """Yield the values of other parameters under which the one at ``path`` is active: {} alone where it always is."""
    yield from _ways(space, path, space.space[path].when, {})


def _ways(space: SearchSpace, path: str, when: tuple[Condition, ...], chosen: Params) -> Iterator[Params]:
    if not when:
        if space.is_active(path, chosen):
            yield chosen
        return
    condition, rest = when[0], when[1:]
    parent = space.space.get(condition.path)
    if parent is None or condition.path in chosen:
        yield from _ways(space, path, rest, chosen)
        return
    for value in filter(parent.contains, condition.values):
        for way in _ways(space, condition.path, parent.when, chosen):
            yield from _ways(space, path, rest, {**way, condition.path: value})


def points(space: SearchSpace) -> Iterator[Params]:
    """Yield the parameters of each different recipe of a space that is not continuous; the last varies first."""
    yield from _points(space, [*space.space], {})


def _points(space: SearchSpace, paths: list[str], params: Params) -> Iterator[Params]:
    if not paths:
        yield params
    elif not space.is_active(paths[0], params):
        yield from _points(space, paths[1:], params)
    else:
        distribution = space.space[paths[0]]
        for value in map(distribution.at, range(distribution.size or 0)):
            yield from _points(space, paths[1:], {**params, paths[0]: value})


def count_points(space: SearchSpace) -> int | None:
    """Return how many points() there are without listing them, or None where there is no end of them."""
    if any(distribution.size is None for distribution in space.space.values()):
        return None
    return _count(space, [*space.space], {})


def _count(space: SearchSpace, paths: list[str], params: Params) -> int:
    """Return how many there are once the parameters before those at ``paths`` are ``params``."""
    if not paths:
        return 1
    path, rest = paths[0], paths[1:]
    if not space.is_active(path, params):
        return _count(space, rest, params)
    distribution = space.space[path]
    size = distribution.size or 0
    conditions = [condition for other in rest for condition in space.space[other].when if condition.path == path]
    named = {value for condition in conditions for value in condition.values if distribution.contains(value)}
    found = sum(_count(space, rest, {**params, path: value}) for value in named)
    if size > len(named):  # the others are alike
        other = next(value for value in map(distribution.at, range(size)) if value not in named)
        found += (size - len(named)) * _count(space, rest, {**params, path: other})
    return found
