"""What there is to choose from, a line each: for ``mixtune list``. Reads plug-ins without importing them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mixtune import plugins
from mixtune.errors import RequestError, suggest
from mixtune.metrics import METRICS
from mixtune.space.document import ready_spaces

_PACKAGE = Path(__file__).parent
_FOLDERS = {
    "datasets": "datasets",
    "samplers": "tuning/samplers",
    "schedulers": "tuning/schedulers",
    "objectives": "objectives",
    "loggers": "tuning/loggers",
}
KINDS = (*_FOLDERS, "metrics", "spaces")
Row = tuple[str, str]


def list_kind(kind: str) -> list[Row]:
    """Return the name of each member of a kind and what it is, on one line. Raises RequestError for an unknown kind."""
    if kind not in KINDS:
        raise RequestError(f"unknown kind {kind!r}: known are {', '.join(KINDS)}{suggest(kind, KINDS)}")
    if kind == "metrics":
        return list(_metrics())
    if kind == "spaces":
        return list(_spaces())
    return list(_plugins(_PACKAGE / _FOLDERS[kind]))


def _plugins(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("[!_]*.py")):
        about = _one_line((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0])
        if path.stem == "torchvision_sets":
            sets = plugins.find("datasets", path.stem, "dataset").dataset_names()  # imports no torchvision
            about = f"{about} {', '.join(sets)}"
            yield "a torchvision name", about
        else:
            yield path.stem, about


def _metrics() -> Iterator[Row]:
    for metric in METRICS.values():
        unit = f" ({metric.unit})" if metric.unit and metric.title else ""
        goal = f"; a goal: {metric.direction}" if metric.direction else ""
        yield metric.name, f"{': '.join(filter(None, (metric.title + unit, metric.about)))}{goal}"


def _spaces() -> Iterator[Row]:
    """Yield the ready spaces, with their comment's first sentence."""
    for name, path in ready_spaces().items():
        _, *lines = path.read_text(encoding="utf-8").partition("\nrecipe:")[0].splitlines()
        about = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
        yield name, re.split(r"(?<=[.?])(?<!Eq\.) (?=[A-Z0-9`])", about)[0]


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())
