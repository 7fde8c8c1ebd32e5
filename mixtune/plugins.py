"""A folder is a registry: a file is a plug-in, and its name is its key.

Adding a plug-in is adding one file; no table changes. Files whose names start with an underscore are helpers.
Code that lives elsewhere joins as ``package.module:name``.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from mixtune.errors import RequestError, suggest


def names(folder: str) -> list[str]:
    """Return the plug-in names of ``mixtune/<folder>`` in alphabetical order; ``folder`` is dotted."""
    package = importlib.import_module(f"mixtune.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(folder: str, name: str, kind: str) -> Any:
    """Return the module of plug-in ``name``, or the object that ``package.module:name`` names.

    ``kind`` is the word for such a plug-in in messages ("sampler"). Raises RequestError for an unknown name,
    listing the known ones and the closest.
    """
    if ":" in name:
        return _find_elsewhere(name, kind)
    check_name(folder, name, kind)
    return importlib.import_module(f"mixtune.{folder}.{name}")


def check_name(folder: str, name: str, kind: str) -> None:
    """Raise RequestError, as :func:`find` does, unless ``name`` can be a plug-in; imports none of them."""
    known = names(folder)
    if ":" not in name and name not in known:
        raise RequestError(f"unknown {kind} {name!r}: known are {', '.join(known)}{suggest(name, known)}")


def modules(folder: str) -> list[ModuleType]:
    """Return every plug-in module of ``mixtune/<folder>``."""
    return [importlib.import_module(f"mixtune.{folder}.{name}") for name in names(folder)]


def _find_elsewhere(name: str, kind: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise RequestError(f"{kind} {name!r} cannot be loaded: {error}") from error
