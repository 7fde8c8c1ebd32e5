"""What goes wrong outside our own code, in words for the person who can fix it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

_SHOWN = 80  # characters, of a value
_LONGEST = 200  # characters, of another library's error
# control characters, ends of lines, overrides of the direction, lone surrogates
_COMMANDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class RequestError(ValueError):
    """What was requested is wrong: one line that says what, where and what is allowed (exit status 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a name that holds a line break keeps its message in one


class DataError(RuntimeError):
    """The request is fine, but its data cannot be had: no network, an unreadable image (exit status 1)."""


class TrainingError(RuntimeError):
    """Training began and gave no result: a loss diverged, no trial completed (exit status 1)."""


def one_line(error: BaseException) -> str:
    """Return what another library's error says, on one line, shortened; its type where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def closest(given: str, allowed: Iterable[str]) -> str | None:
    """Return the name of ``allowed`` that ``given`` was probably meant to be, or None; case is ignored."""
    by_lower = {name.lower(): name for name in allowed}
    match = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[match[0]] if match else None


def suggest(given: str, allowed: Iterable[str]) -> str:
    """Return the tail of an error line: ``"; did you mean 'rho'?"``, or nothing where no name is close."""
    name = closest(given, list(allowed))
    return f"; did you mean {name!r}?" if name else ""


def printable(text: str) -> str:
    """Return text without what commands a terminal, ends a line or turns its direction: ``\\x1b`` in its place.

    Names of files and classes, and what somebody else's run directory says, may hold anything.
    """
    return _COMMANDS.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def show(value: Any) -> str:
    """Return a value as its file spells it (``true``, ``null``, ``"5"``), short and on one line."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
