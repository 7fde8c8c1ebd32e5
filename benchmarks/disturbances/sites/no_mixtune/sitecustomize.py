"""A node on which mixtune is not installed."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


class NoMixtune(MetaPathFinder):
    """Finds no mixtune."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name == "mixtune":
            raise ModuleNotFoundError("No module named 'mixtune'", name=name)


sys.meta_path.insert(0, NoMixtune())
