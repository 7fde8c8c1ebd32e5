"""The signals that end a command as Ctrl-C does: a closed terminal's, and what batch systems send before they kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def catch_signals(handler: Callable[[int, Any], Any]) -> None:
    """Let a handler have them, where they can be caught: in the main thread; one that is ignored stays so.

    A terminal that is closed sends SIGHUP (not to what nohup started), SLURM sends SIGTERM or SIGUSR1 before it ends a
    job.
    """
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def interrupt(number: int, frame: Any) -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt
