"""The files of a run directory that analysis reads and writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from mixtune.errors import RequestError, suggest
from mixtune.files import is_temporary
from mixtune.run.front import check_objectives
from mixtune.run.lock import DRIVER_LOCK, TRIALS_LOCK
from mixtune.space.constraints import Constraint, parse_constraint


def read_space(directory: Path) -> dict[str, Any]:
    """Return space.yaml of a run directory: objectives checked, reference points floats or None, constraints read.

    Raises RequestError where the directory or the file is missing, and where the file cannot be understood.
    """
    if not directory.is_dir():
        raise RequestError(_no_directory(directory))
    path = directory / "space.yaml"
    try:
        space = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{directory} holds no run: space.yaml is missing") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(space, dict):
        raise RequestError(f"{path} is no mapping of keys to values")
    check_objectives(_mapping(path, space, "objectives"))
    constraints = {name: _constraint(path, name, text) for name, text in _mapping(path, space, "constraints").items()}
    run = _mapping(path, space, "run")
    given = _mapping(path, run, "reference_point")
    reference = {name: _reference(path, name, value) for name, value in given.items()}
    run = {**run, "reference_point": reference}
    return {**space, "space": _mapping(path, space, "space"), "constraints": constraints, "run": run}


def _mapping(path: Path, keys: dict[str, Any], name: str) -> dict[str, Any]:
    given = keys.get(name) or {}
    if not isinstance(given, dict):
        raise RequestError(f"{path}: {name!r} is a mapping of keys to values, got {given!r}")
    return given


def _constraint(path: Path, name: str, given: Any) -> Constraint:
    try:
        return parse_constraint(name, given, ">=" if ">=" in str(given) else "<=")
    except RequestError as error:
        raise RequestError(f"{path}: constraints.{name}: {error}") from error


def _reference(path: Path, name: str, given: Any) -> float | None:
    if given is None:
        return None
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(f"{path}: run.reference_point.{name} is a finite number or null, got {given!r}")
    return value


def _no_directory(directory: Path) -> str:
    if directory.exists():
        return f"{directory} is a file, not a run directory"
    parent = directory.parent
    siblings = [item.name for item in parent.iterdir() if item.is_dir()] if parent.is_dir() else []
    return f"there is no run directory {directory}{suggest(directory.name, siblings)}"


LEDGER, SPACE, STUDY = "ledger.jsonl", "space.yaml", "study.db"

_VERSIONS = ("mixtune", "torch", "torchvision", "timm", "ray", "optuna", "moocore")


def refuse_occupied(directory: Path) -> None:
    """Raise RequestError unless the directory is new or empty: a run is never overwritten."""
    if (directory / SPACE).exists() or (directory / LEDGER).exists():
        raise RequestError(
            f"{directory} holds a run already: give another --out, see it with mixtune pareto {directory}, or go on "
            f"with mixtune resume {directory}"
        )
    locks = (DRIVER_LOCK, TRIALS_LOCK)
    if directory.is_dir() and all(item.name in locks or is_temporary(item) for item in directory.iterdir()):
        return
    if directory.exists():
        raise RequestError(f"{directory} is no empty directory: give another --out")


def free_directory(name: str) -> Path:
    """Return ``runs/<name>``, or the first of ``runs/<name>-2``, ... that does not exist."""
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10**6))
    return next(path for path in candidates if not path.exists())
