"""What the code that computes a training run says, so that whoever edits it does not reuse what older code has trained.

Syntax trees count, without docstrings: a comment or a line break changes nothing. They differ between Python's minor
versions, so a digest is of one.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import mixtune.training
from mixtune import plugins

COMPUTING = (  # besides mixtune.training, whose modules all count but those below
    "mixtune.backbone",
    "mixtune.datasets._mix",
    "mixtune.space.compression",
    "mixtune.space.effective",
    "mixtune.space.objectives",
    "mixtune.space.section",
    "mixtune.space.views",
)
NOT_COMPUTING = {  # modules and packages that a training run executes, and why their code is in no key
    "mixtune.training.bill": "says what steps cost, in FLOPs too",
    "mixtune.training.measure": "reports what was trained",
    "mixtune.training.saved": "writes trained recipes to files",
    "mixtune.training.sources": "loads images, which count by their content",
    "mixtune.cost": "forecasts",
    "mixtune.datasets": "what it reads is in the keys: pixels, labels, the images of each split, statistics",
    "mixtune.errors": "words",
    "mixtune.files": "writes files",
    "mixtune.meter": "decides when a step runs, not what it computes",
    "mixtune.metrics": "names, and how numbers are written",
    "mixtune.plugins": "finds modules",
    "mixtune.single": "asks for training runs",
    "mixtune.space.document": "reads YAML, whose values are in the keys",
    "mixtune.space.recipe": "validates values, which are in the keys",
    "mixtune.space.space": "validates values, which are in the keys",
    "mixtune.stages": "looks checkpoints up, and stores what was trained",
}

Read = Callable[[str], str | None]


def computing_modules(objective: str | None) -> list[str]:
    """Return the modules that compute a recipe with an objective, ours by name, ``package.module:name`` or none."""
    training = [f"mixtune.training.{module.name}" for module in pkgutil.iter_modules(mixtune.training.__path__)]
    ours = [name for name in (*COMPUTING, *training) if name not in NOT_COMPUTING]
    if objective is None:
        return sorted(ours)
    if ":" not in objective:
        return sorted({*ours, *_closure(f"mixtune.objectives.{objective}", "mixtune.objectives")})
    found = plugins.find("objectives", objective, "ssl.objective")
    module = getattr(found, "__module__", None) or objective.partition(":")[0]
    return sorted({*ours, "mixtune.objectives", *_closure(str(module), str(module).partition(".")[0])})


@functools.cache
def digest_code(objective: str | None) -> str:
    """Return a digest of the code that computes a recipe with an objective, None for none; of this Python's version."""
    return digest_modules(computing_modules(objective))


def digest_modules(modules: list[str], read: Read | None = None) -> str:
    """Return a digest of modules' syntax trees; read: returns a module's source, None where there is none."""
    digest = hashlib.sha256(f"Python {sys.version_info.major}.{sys.version_info.minor}".encode())
    for module in modules:
        source = (read or read_source)(module)
        tree = "no source" if source is None else ast.dump(_without_docstrings(ast.parse(source)))
        digest.update(f"\n{module}\n{tree}".encode())
    return digest.hexdigest()


def read_source(module: str) -> str | None:
    """Return a module's source, None where it has none: typed at a prompt, compiled, or not a module."""
    origin = getattr(sys.modules.get(module), "__file__", None) or getattr(_find_spec(module), "origin", None)
    return Path(origin).read_text(encoding="utf-8") if origin and origin.endswith(".py") else None


def _find_spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):  # what is imported from a module, or __main__
        return None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]  # that of a field stands below it
    return tree


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _closure(module: str, package: str) -> set[str]:
    """Return a module and what it imports of its own package, directly or not."""
    found, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name in found or not (name == package or name.startswith(f"{package}.")):
            continue
        source = read_source(name)
        if source is None and name != module:
            continue  # an attribute, not a module
        found.add(name)
        if source is not None:
            waiting += _imported(
                ast.parse(source),
                name,
                is_package=getattr(_find_spec(name), "submodule_search_locations", None) is not None,
            )
    return found


def _imported(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Yield what may be the names of modules that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
