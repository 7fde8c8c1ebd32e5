"""A YAML file whose keys remember their lines, so that a mistake can be named where it stands."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from mixtune.errors import RequestError, show, suggest

KeyPath = tuple[str, ...]
MAX_BYTES = 2**24  # of a document
MAX_VALUES = 50_000  # of a document whose aliases are written out: nine lines of them can stand for a billion

_READY = Path(__file__).parents[1] / "search_spaces"


@dataclass(frozen=True)
class Document:
    """The values of a YAML mapping, and the line of each key.

    ``lines`` maps a key's path, such as ``("space", "epochs.ssl")``, to its line, counted from 1; ``changes`` holds the
    values that did not come from the file, but from options (``--set``).
    """

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    changes: dict[KeyPath, Any] = field(default_factory=dict)

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


def ready_spaces() -> dict[str, Path]:
    """Return the files of the spaces that come with mixtune, by name."""
    return {path.stem: path for path in sorted(_READY.glob("*.yaml"))}


def ready_space(name: str) -> Path:
    """Return the file of a space that comes with mixtune. Raises RequestError for an unknown name."""
    found = ready_spaces()
    if name not in found:
        raise RequestError(f"unknown ready space {name!r}: known are {', '.join(found)}{suggest(name, found)}")
    return found[name]


def read_document(path: str | PathLike[str]) -> Document:
    """Read a YAML mapping with its line numbers; a bare name, such as ``digits``, stands for a ready space.

    Raises RequestError, naming file and line, for a missing or empty file, tabs, duplicate keys, aliases that stand
    for more than MAX_VALUES, more than MAX_BYTES, and what is not a YAML mapping.
    """
    file = Path(path)
    if file.name == str(path) and not file.exists():
        file = ready_spaces().get(str(path), file)
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        text = content.decode()
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such file{_nearby(file) or suggest(str(path), ready_spaces())}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise RequestError(f"{path}: cannot be read as YAML: {reason}") from error
    if len(content) > MAX_BYTES:
        raise RequestError(f"{path}: cannot be read as YAML: it has more than {MAX_BYTES:,} bytes")
    return parse_document(text, str(file))


def parse_document(text: str, name: str) -> Document:
    """Parse the text of a YAML mapping; ``name`` stands before the line number in errors."""
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            _index(root, (), lines, name, itertools.count(1))
        values = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        if isinstance(error, yaml.reader.ReaderError):  # a control character; the only one without a mark
            line = text.count("\n", 0, error.position)
        else:
            line = error.problem_mark.line  # type: ignore[attr-defined]
        raise RequestError(f"{name}:{line + 1}: not valid YAML: {_problem(error)}") from error
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


def _index(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str, count: Iterator[int]) -> None:
    """Note the line of every key below ``node``; refuse keys that stand twice or are not text, and too many values."""
    if next(count) > MAX_VALUES:
        raise RequestError(f"{name}: holds more than {MAX_VALUES:,} values, with its aliases written out")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _index(item, path, {}, name, count)
    if not isinstance(node, yaml.MappingNode):
        return
    own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == f"{_TAG}merge":
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise RequestError(f"{name}:{line}: << takes a mapping of keys to values, or a list of them")
                _index(source, path, {}, name, count)
                merged = {pair[0].value: pair for pair in source.value} | merged  # of several the first wins
            continue
        if key.tag != f"{_TAG}str":
            given = f"key {key.value!r}" if isinstance(key, yaml.ScalarNode) else "a key"
            raise RequestError(f"{name}:{line}: {given} is not text to YAML: keys are names, in quotes if need be")
        if key.value in own:
            path, first = (*path, key.value), own[key.value][0].start_mark.line + 1
            raise RequestError(f"{name}:{line}: duplicate key {'.'.join(path)!r}: it stands on line {first} already")
        own[key.value] = key, value
    node.value = list((merged | own).values())  # so that PyYAML has nothing to merge: of several its last would win
    for key, value in node.value:
        lines[*path, key.value] = key.start_mark.line + 1
        _index(value, (*path, key.value), lines, name, count)


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


def frozen(value: Any) -> Any:
    """Return a value that can be compared and hashed: a list is a tuple."""
    return tuple(value) if isinstance(value, list) else value


def thawed(value: Any) -> Any:
    """Return a frozen() value as a file has it."""
    return list(value) if isinstance(value, tuple) else value
