"""A YAML file whose keys remember their lines, so that a mistake can be named where it stands."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from mixtune.errors import RequestError

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """The values of a YAML mapping, and the line of each key.

    ``lines`` maps a key's path, such as ``("space", "epochs.ssl")``, to its line, counted from 1.
    """

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Return ``"file.yaml:7: "`` for the deepest key on ``path`` that the file holds."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}:{self.lines[path[:end]]}: "
        return f"{self.name}: "


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads ``1e-3`` as a number, as everyone means it (YAML 1.1 wants ``1.0e-3``)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_document(path: str | PathLike[str]) -> Document:
    """Read a YAML mapping with its line numbers.

    Raises RequestError, naming file and line, for a missing or empty file, tabs, duplicate keys, and what is no
    YAML mapping.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such file{_nearby(file)}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text file"
        raise RequestError(f"{path}: cannot be read as YAML: {reason}") from error
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """Parse the text of a YAML mapping; ``name`` stands before the line number in errors."""
    for number, line in enumerate(text.splitlines(), start=1):
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise RequestError(f"{name}:{number}: indented with a tab: YAML allows only spaces there")
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RequestError(f"{name}: the file is empty: it needs at least recipe: {{data: {{dataset: ...}}}}")
        _index(root, (), lines, name, loader)
        values = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise RequestError(_yaml_mistake(error, name)) from error
    if not isinstance(values, dict):
        raise RequestError(f"{name}: holds a {type(values).__name__}, not a mapping of keys to values")
    return Document(name, values, lines)


def _index(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str, loader: _Loader) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _index(item, path, {}, name, loader)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[Hashable, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = str(loader.construct_object(key_node))
        if key in seen:
            dotted = ".".join((*path, key))
            raise RequestError(f"{name}:{line}: duplicate key {dotted!r}: it stands on line {seen[key]} already")
        seen[key] = line
        lines[(*path, key)] = line
        _index(value_node, (*path, key), lines, name, loader)


def _yaml_mistake(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{name}:{mark.line + 1}" if mark else name
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{place}: not valid YAML: {problem}"


def _nearby(file: Path) -> str:
    if not file.parent.is_dir():
        return ""
    others = sorted(p.name for p in file.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    return f" (there is: {', '.join(others[:8])})" if others else ""
