"""What each field of a recipe means, as its section says: for ``mixtune fields``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mixtune.errors import RequestError, show, suggest
from mixtune.space.objectives import SETTINGS
from mixtune.space.recipe import Recipe
from mixtune.space.section import Section
from mixtune.space.settings import Resources, Search


@dataclass(frozen=True)
class Described:
    """A field in words: its dotted path, its meaning, its type and allowed values, its default.

    sources: the sections that it is from, and what they say; objectives: the values of ``ssl.objective`` that have it,
    none where every recipe has it.
    """

    path: str
    about: str
    values: str
    default: str
    sources: tuple[str, ...]
    objectives: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """The meaning, after the objectives that have the field."""
        return f"{', '.join(self.objectives)}: {self.about}" if self.objectives else self.about


def find_fields(path: str | None = None) -> list[Described]:
    """Return a field, a section's fields, or all of a recipe's and those of ``search`` and ``resources``.

    Objectives may have different fields of one name. Raises RequestError for an unknown path.
    """
    fields = list(_all_fields())
    found = [f for f in fields if path is None or f.path == path or f.path.startswith(f"{path}.")]
    if path is not None and not found:
        sections = {field.path[: dot.start()] for field in fields for dot in re.finditer(r"\.", field.path)}
        raise RequestError(
            f"{path}: no field of a recipe{suggest(path, [*sections, *(field.path for field in fields)])}"
        )
    return found


def _all_fields() -> Iterator[Described]:
    for field in _fields(Recipe, ""):
        if field.path != "ssl.objective":
            yield field
            continue
        alike: dict[Described, dict[str, tuple[str, ...]]] = {}  # sources of fields that say the same, by objective
        for objective, settings in SETTINGS.items():
            for each in _fields(settings, "ssl."):
                alike.setdefault(replace(each, sources=()), {})[objective] = each.sources
        for each, found in alike.items():
            sources = tuple(dict.fromkeys(source for each_source in found.values() for source in each_source))
            yield replace(each, sources=sources, objectives=() if len(found) == len(SETTINGS) else tuple(found))
    yield from _fields(Search, "search.")
    yield from _fields(Resources, "resources.")


def _fields(model: type[Section], prefix: str) -> Iterator[Described]:
    """Yield a section's fields, and those of the sections in it."""
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        key, below = field.alias or name, field.annotation
        if isinstance(below, type) and issubclass(below, Section):
            yield from _fields(below, f"{prefix}{key}.")
            continue
        homes = [base for base in model.__mro__ if name in inspect.get_annotations(base)]
        # one that gets another default has its text from the base
        texts = (home.model_fields[name].description for home in homes if issubclass(home, Section))
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        yield Described(
            path=f"{prefix}{key}",
            about=" ".join(next((text for text in texts if text), "").split()),
            values=_values(properties[key]),
            default="none: it has to be given" if field.is_required() else show(default),
            sources=(f"{homes[0].__module__}.{homes[0].__name__}: {_first_paragraph(homes[0])}",),
        )


def _first_paragraph(model: type[Any]) -> str:
    return " ".join((model.__doc__ or "").strip().partition("\n\n")[0].replace("``", "`").split())


def _values(schema: Mapping[str, Any]) -> str:
    """Return what a field's JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_values, schema["anyOf"])))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "prefixItems" in schema:
        return f"[{', '.join(map(_values, schema['prefixItems']))}]"
    if "items" in schema:
        return f"list of ({_values(schema['items'])})"
    words = {"integer": "whole number", "boolean": "true or false", "string": "text", None: "mapping"}
    kind = schema.get("type")
    ends = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds = [f"{word} {int(schema[end]):,}" for end, word in ends.items() if end in schema]
    return " ".join([words.get(kind, str(kind)), *bounds])
