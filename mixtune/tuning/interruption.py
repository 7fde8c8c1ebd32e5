"""Ctrl-C and SIGTERM during a search: both end it in words, and say how to go on."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixtune.tuning.directory import SPACE


class InterruptedSearch(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a search, in words."""


@contextmanager
def interruptible(directory: Path) -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, and say of both how to go on."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    catch_sigterm()
    try:
        yield
    except KeyboardInterrupt:
        begun = (directory / SPACE).exists()
        done = f"to go on: mixtune resume {shlex.quote(str(directory))}" if begun else "nothing was trained yet"
        raise InterruptedSearch(f"interrupted; {done}") from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def catch_sigterm() -> None:
    """Let SIGTERM raise KeyboardInterrupt, where signals can be caught: in the main thread."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
