"""Code that is not mixtune's: what a recipe or a space names as ``package.module:name`` is imported where it is used.

A file that a user names is the user's own word. A folder that holds a run or a trained recipe is data, and may come
from someone else: what it names is imported only where the user says so (``--trust``).
"""

from __future__ import annotations

import shlex
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from mixtune.errors import RequestError
from mixtune.space.space import SearchSpace

_PLACES = (("data", "dataset", "dataset"), ("data", "ssl_dataset", "dataset"), ("ssl", "objective", "objective"))


def foreign_in_recipe(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what a recipe's values, which nobody has checked, name of other code, by its name: of which kind it is."""
    found: dict[str, str] = {}
    for section, name, kind in _PLACES:
        below = values.get(section)
        given = below.get(name) if isinstance(below, Mapping) else None
        found |= _foreign(dict.fromkeys(given if isinstance(given, list | tuple) else (given,), kind))
    return found


def foreign_in_space(space: SearchSpace, searches: bool) -> dict[str, str]:
    """Return what a space's recipes name of other code; searches: its sampler and scheduler, too."""
    named: dict[Any, str] = {}
    for section, name, kind in _PLACES:
        if (searched := space.space.get(f"{section}.{name}")) is not None:
            named |= dict.fromkeys(searched.values, kind)
    if searches:
        named |= {space.search.sampler: "sampler", space.search.scheduler: "scheduler"}
    return foreign_in_recipe(space.values) | _foreign(named)


def refuse_foreign_code(folder: Path, found: Mapping[str, str], trust: bool | Container[str]) -> None:
    """Raise RequestError where a folder names other code; trust: whether all of it, or which of it, may be imported."""
    allowed = found if trust is True else trust or ()
    refused = {name: kind for name, kind in found.items() if name not in allowed}
    if refused:
        each = ", ".join(f"{name} ({kind})" for name, kind in refused.items())
        raise RequestError(f"{folder} names code that is not mixtune's: {each}: --trust imports and runs it")


def to_train(folder: Path, space: SearchSpace) -> str:
    """Return the arguments of a command that trains what a run's folder holds, as a shell reads them."""
    trust = " --trust" if foreign_in_space(space, searches=True) else ""
    return f"{shlex.quote(str(folder))}{trust}"


def _foreign(named: Mapping[Any, str]) -> dict[str, str]:
    return {name: kind for name, kind in named.items() if isinstance(name, str) and ":" in name}
