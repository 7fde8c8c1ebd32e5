"""The sections of a search space's document, each read by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from mixtune.errors import RequestError, show, suggest
from mixtune.metrics import DEFAULT_OBJECTIVES, Direction, directions
from mixtune.space.constraints import Constraint, parse_constraint
from mixtune.space.document import Document, KeyPath
from mixtune.space.recipe import BASELINES, Recipe, baseline_values, describe_mistake, field_names
from mixtune.space.relations import is_relation
from mixtune.space.section import Section
from mixtune.space.settings import Resources, Search

CHANGEABLE = ("space", "objectives", "constraints", "baselines", "search", "resources")  # by dotted values
SECTIONS = ("recipe", "space", "objectives", "constraints", "baselines", "search", "resources", "run")


def with_changes(document: Document, changes: Mapping[str, Any]) -> Document:
    """Return a document with dotted values put over its sections'; None drops a named one."""
    values, changed = dict(document.values), dict(document.changes)
    for path, value in changes.items():
        head, _, name = path.partition(".")
        key = (head, name) if name else (head,)
        changed[key] = value
        if not name:
            values[head] = value
            continue
        below = {**read_mapping(replace(document, values=values), head)}
        if head == "objectives" and not below:
            below = {**DEFAULT_OBJECTIVES}
        if value is None and head in ("space", "objectives", "constraints"):
            if name not in below:
                known = f", but {', '.join(below)}" if below else ""
                wrong = f"{head} does not hold it{known}{suggest(name, below)}"
                raise mistake_at(replace(document, changes=changed), key, wrong)
            del below[name]
        else:
            below[name] = value
        values[head] = below
    return replace(document, values=values, changes=changed)


def read_objectives(document: Document) -> dict[str, Direction]:
    given = read_mapping(document, "objectives")
    for name, direction in given.items():
        key = ("objectives", str(name))
        _check_metric(document, key, "objective")
        if direction != (better := directions()[name]):
            raise mistake_at(document, key, f"should be {better}, got {show(direction)}")
    return dict(given) or DEFAULT_OBJECTIVES.copy()


def read_constraints(document: Document) -> dict[str, Constraint]:
    constraints: dict[str, Constraint] = {}
    for name, given in read_mapping(document, "constraints").items():
        if is_relation(str(name)):
            continue
        key = ("constraints", str(name))
        _check_metric(document, key, "constraint")
        try:
            constraints[name] = parse_constraint(name, given, ">=" if directions()[name] == "max" else "<=")
        except RequestError as error:
            raise mistake_at(document, key, str(error)) from error
    return constraints


def _check_metric(document: Document, key: KeyPath, kind: str) -> None:
    known_metrics = directions()
    if key[-1] not in known_metrics:
        known = f"known are {', '.join(known_metrics)}{suggest(str(key[-1]), known_metrics)}"
        raise mistake_at(document, key, f"unknown {kind}; {known}")


def read_baselines(document: Document) -> tuple[str, ...]:
    given = document.values.get("baselines", list(BASELINES))
    if not isinstance(given, list):
        raise mistake_at(document, ("baselines",), f"should be a list, such as [sl, ssl_sl], got {show(given)}")
    for method in given:
        try:
            baseline_values(str(method))
        except RequestError as error:
            raise mistake_at(document, ("baselines",), str(error)) from error
    if len(set(given)) < len(given):
        raise mistake_at(document, ("baselines",), f"names one twice: {show(given)}")
    return tuple(given)


def read_section(document: Document, name: str, model: type[Any]) -> Any:
    try:
        return model.model_validate(read_mapping(document, name))
    except ValidationError as error:
        path, message = describe_mistake(model, error)
        raise mistake_at(document, (name, *path), message) from error


def read_mapping(document: Document, name: str) -> Mapping[str, Any]:
    given = document.values.get(name)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise mistake_at(document, (name,), f"should be a mapping of keys to values, got {show(given)}")
    return given


def where_it_belongs(key: str) -> str:
    homes: dict[str, type[Section]] = {"recipe": Recipe, "search": Search, "resources": Resources}
    home = next((section for section, model in homes.items() if key in field_names(model)), None)
    allowed = f"allowed are {', '.join(SECTIONS[:-1])}"
    return f"{allowed}; {key} belongs below {home}" if home else f"{allowed}{suggest(key, SECTIONS)}"


def mistake_at(document: Document, path: KeyPath, message: str) -> RequestError:
    """Return the error about a key: with its line in the file, or the ``--set`` that gave it."""
    for end in range(len(path), 0, -1):
        if path[:end] in document.changes:
            rest = "".join(f"{name}: " for name in path[end:])
            given = document.changes[path[:end]]
            return RequestError(f"--set {'.'.join(path[:end])}={'' if given is None else show(given)}: {rest}{message}")
    return RequestError(f"{document.where(path)}{'.'.join(path)}: {message}")
