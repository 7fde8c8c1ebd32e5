"""A folder is a registry: a file is a plug-in, and its name is its key.

Adding a plug-in is adding one file; no table changes. Files whose names start with an underscore are helpers. A
folder's ``GONE`` says of a name that it had before why it has it no more.
Code that lives elsewhere joins as ``package.module:name``.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from types import ModuleType
from typing import Any

from mixtune.errors import RequestError, suggest

_ELSEWHERE = re.compile(r"(\w+(?:\.\w+)*):(\w+)", re.ASCII)


def names(folder: str) -> list[str]:
    """Return the plug-in names of ``mixtune/<folder>`` in alphabetical order; ``folder`` is dotted."""
    package = importlib.import_module(f"mixtune.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(folder: str, name: str, kind: str) -> Any:
    """Return the module of plug-in ``name``, or the object that ``package.module:name`` names.

    ``kind`` is the word for such a plug-in in messages ("sampler"). Raises RequestError for an unknown name,
    listing the known ones and the closest, and for code elsewhere that cannot be imported.
    """
    if ":" in name:
        return _find_elsewhere(name, kind)
    check_name(folder, name, kind)
    return importlib.import_module(f"mixtune.{folder}.{name}")


def check_name(folder: str, name: str, kind: str) -> None:
    """Raise RequestError as :func:`find` does, without importing any plug-in of our own."""
    if ":" in name:
        _find_elsewhere(name, kind)
        return
    known = names(folder)
    if name not in known:
        reason = getattr(importlib.import_module(f"mixtune.{folder}"), "GONE", {}).get(name)
        what = f"unknown {kind} {name!r}" if reason is None else f"{kind} {name!r} is gone, {reason}"
        raise RequestError(f"{what}: known are {', '.join(known)}{suggest(name, known)}")


def modules(folder: str) -> list[ModuleType]:
    """Return every plug-in module of ``mixtune/<folder>``."""
    return [importlib.import_module(f"mixtune.{folder}.{name}") for name in names(folder)]


def _find_elsewhere(name: str, kind: str) -> Any:
    form = _ELSEWHERE.fullmatch(name)
    if form is None:
        raise RequestError(f"{kind} {name!r} should be a name, or package.module:name for code of your own")
    module, attribute = form.groups()
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        hint = "install it, or put its folder into PYTHONPATH"
        raise RequestError(f"{kind} {name!r} cannot be imported: {error}: {hint}") from error
    except (ImportError, AttributeError, SyntaxError) as error:
        if module == "__main__":
            hint = f"only the script or notebook that defines it can: put it into a file, and name file:{attribute}"
            raise RequestError(f"{kind} {name!r} cannot be imported here: {hint}") from error
        raise RequestError(f"{kind} {name!r} cannot be imported: {error}") from error
