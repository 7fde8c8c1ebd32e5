"""Whether a process had a CPU to itself for a while, also from programs that know nothing of mixtune."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

RUNNING = 0.9  # the least share of a quiet while in which the thread runs
OTHERS = 0.1  # the most that others compute in it, as a share of all cores' time
_TICKS_S = 0.02  # what Linux, which counts in hundredths of a second, may be off by
_BUSY = (1, 2, 3, 6, 7, 8)  # in /proc/stat: user, nice, system, irq, softirq, steal (other machines on this host)


class Moment(NamedTuple):
    """A point in time, by three clocks in seconds: the wall's, this thread's, and the other processes' of the machine.

    The last stands still where the system is not Linux.
    """

    wall: float
    thread: float
    others: float

    @classmethod
    def now(cls) -> Moment:
        """Return the present."""
        return cls(time.perf_counter(), time.thread_time(), _others())

    def was_quiet_since(self, earlier: Moment) -> bool:
        """Return whether this thread had a core, and others computed little, from an earlier moment on."""
        took = self.wall - earlier.wall
        others = self.others - earlier.others - _TICKS_S
        return self.thread - earlier.thread >= RUNNING * took and others <= OTHERS * took * (os.cpu_count() or 1)


def _others() -> float:
    with suppress(OSError, ValueError, IndexError):
        columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return sum(int(columns[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK") - time.process_time()
    return 0.0
