"""A YAML file whose keys remember their lines, so that a mistake can be named where it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from mixtune.errors import RequestError, show, suggest

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


_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Safe YAML whose plain numbers are what everyone means by them.

    ``1e-3`` is a number, which YAML 1.1 denies; ``010``, ``1:30`` and ``2026-07-01`` are text, where YAML 1.1 reads
    8, 90 and a date.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
        first: [(tag, form) for tag, form in forms if tag in (f"{_TAG}bool", f"{_TAG}null", f"{_TAG}merge")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# the length keeps whole numbers within what Python converts to a float and to text
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]{0,99})$")
_DECIMAL = re.compile(
    r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(inf|Inf|INF)$"
    r"|\.(nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver(f"{_TAG}int", _WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _DECIMAL, list("-+.0123456789"))


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
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise RequestError(f"{path}: cannot be read as YAML: {reason}") from error
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """Parse the text of a YAML mapping; ``name`` stands before the line number in errors."""
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            _index(root, (), lines, name)
        values = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        line = _line(error, text)
        raise RequestError(f"{name}{f':{line}' if line else ''}: not valid YAML: {_problem(error)}") from error
    except RecursionError as error:
        raise RequestError(f"{name}: not valid YAML: nested without end") from error
    if values is None:
        raise RequestError(f"{name}: the file is empty: it needs at least recipe: {{data: {{dataset: ...}}}}")
    if not isinstance(values, dict):
        raise RequestError(f"{name}: should be a mapping of keys to values, got {show(values)}")
    return Document(name, values, lines)


def parse_value(text: str) -> Any:
    """Read a value that stands alone, as on a command line: YAML, but text needs no quotes.

    ``0.5``, ``true``, ``[0.9, 0.95]`` and ``"5"`` are YAML's, nothing at all is null, and everything else is taken as
    it stands: ``C:x``, ``a=b``, ``/data #2``. Raises RequestError for a list, mapping or quotation without its end.
    """
    try:
        if text.startswith(("[", "{", '"', "'")):
            return _Loader(text).get_single_data()
        loader = _Loader("")
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except yaml.YAMLError as error:
        raise RequestError(f"not valid YAML: {_problem(error)}") from error


def _index(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> None:
    """Note the line of every key below ``node``; refuse keys that stand twice or are no text."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _index(item, path, {}, name)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    # merged keys first: a mapping's own keys go over them
    for key_node, value_node in sorted(node.value, key=lambda pair: pair[0].tag != f"{_TAG}merge"):
        line = key_node.start_mark.line + 1
        if key_node.tag == f"{_TAG}merge":
            for merged in reversed(value_node.value) if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                _index(merged, path, lines, name)
            continue
        if key_node.tag != f"{_TAG}str":
            given = f"key {key_node.value!r}" if isinstance(key_node, yaml.ScalarNode) else "a key"
            raise RequestError(f"{name}:{line}: {given} is no text to YAML: keys are names, in quotes if need be")
        below = (*path, key_node.value)
        if key_node.value in seen:
            first = seen[key_node.value]
            raise RequestError(f"{name}:{line}: duplicate key {'.'.join(below)!r}: it stands on line {first} already")
        seen[key_node.value] = lines[below] = line
        _index(value_node, below, lines, name)


def _line(error: yaml.YAMLError, text: str) -> int | None:
    if isinstance(error, yaml.reader.ReaderError):  # a control character; the only one without a mark
        return text.count("\n", 0, error.position) + 1
    mark = getattr(error, "problem_mark", None)
    return None if mark is None else mark.line + 1


def _problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).splitlines()[0]
    if r"'\t'" in str(error.problem):
        return "a tab stands here, where YAML allows only spaces"
    begun = ""
    if error.context_mark and error.problem_mark and error.context_mark.line < error.problem_mark.line:
        begun = f" (begun on line {error.context_mark.line + 1})"
    return f"{error.context}{begun}, {error.problem}" if error.context else str(error.problem)


def _nearby(file: Path) -> str:
    if not file.parent.is_dir():
        return ""
    others = sorted(p.name for p in file.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    return f" (there is: {', '.join(others[:8])}){suggest(file.name, others)}" if others else ""
