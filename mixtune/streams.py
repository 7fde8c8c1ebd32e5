"""What a command prints to: streams that may fail, and be closed, while what it does goes on."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def open_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed: a file of ours would take its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class Patient:
    """A stream whose first failure sends the rest to /dev/null; ``problem`` is it, but for a pipe that nobody reads."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.problem: str | None = None

    def write(self, text: str) -> int:
        """Write text, or leave it."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or leave it."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.problem = error.strerror
            with suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class CurrentStderrHandler(logging.Handler):
    """Writes to what sys.stderr is now: above a live view, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        print(self.format(record), file=sys.stderr)
