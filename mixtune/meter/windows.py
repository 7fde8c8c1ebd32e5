"""The latency meter: step times measured in short quiet windows, while the neighbours on the device hold still."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mixtune.meter.lock import DeviceLock
from mixtune.meter.times import StepTimes

OnWindow = Callable[[str, float, bool], None]
WINDOW_STEPS = 4
SETTLE_STEPS = 2  # alone, but not timed: what the neighbours left in the caches goes
MAX_DISTURBED = 6  # windows of an epoch that are made again
MAX_WAITING = 0.02  # of a process's time on the device; above, a signature that is known gets no more windows
WARM_UP_STEPS = 3  # of every epoch, not timed: kernels load, memory is allocated, the epoch's order is drawn
MIN_RUNNING = 0.9  # share of a quiet while in which the thread runs
MAX_OTHERS = 0.1  # what others compute in it, as a share of all cores' time
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
        had_core = self.thread - earlier.thread >= MIN_RUNNING * took
        return had_core and others <= MAX_OTHERS * took * (os.cpu_count() or 1)


def _others() -> float:
    with suppress(OSError, ValueError, IndexError):
        columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return sum(int(columns[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK") - time.process_time()
    return 0.0


def place_windows(steps: int, missing: int) -> list[range]:
    """Return which steps of an epoch are made alone: at most ``missing`` windows, in the middles of equal shares.

    The first steps are left out. A window has SETTLE_STEPS and WINDOW_STEPS. An epoch that is too short for all has as
    many whole ones as fit in it, since steps that are not settled read too long, and the others are left to its next;
    the shortest has one of all its steps.
    """
    if not missing or not steps:
        return []
    first = min(WARM_UP_STEPS, steps // 2)
    length = min(SETTLE_STEPS + WINDOW_STEPS, steps - first)
    count = min(missing, (steps - first) // length)
    shares = [(steps - first) * i // count for i in range(count + 1)]
    starts = [first + (low + high - length) // 2 for low, high in pairwise(shares)]
    return [range(start, start + length) for start in starts]


class Meter:
    """Times some of a loop's own steps, alone on the device; nothing is computed that would not be otherwise.

    times: what is known already; it grows. ``on_window(signature, seconds, quiet)`` receives each window that counts,
    once the neighbours continue; it is called within the shared stretch, so it should not wait. A signature's first
    window is made at once, the others while this process has waited for its neighbours less than MAX_WAITING of its
    time: they make it wait as it makes them. On a CPU, where others than those that know the lock may run, a window
    that was not quiet is made again, a few times an epoch; until one was, the shortest counts. ::

        with meter.epoch(signature, steps):
            for step in range(steps):
                meter.boundary(step)
                images, labels = next(batches)  # after the boundary: a step's time includes its batch
                train_step(...)
    """

    def __init__(self, lock: DeviceLock, times: StepTimes, on_window: OnWindow = lambda *_: None) -> None:
        self.lock, self.times, self.on_window = lock, times, on_window

    @contextmanager
    def epoch(self, signature: str, steps: int) -> Iterator[None]:
        """Hold the device for an epoch of ``steps`` steps; a window that an exception cuts short does not count."""
        self._signature, self._steps, self._disturbed = signature, steps, 0
        self._due = place_windows(steps, self.times.wanted(signature))
        with self.lock.shared(), ExitStack() as self._window:
            yield
            self.boundary(steps)

    def boundary(self, step: int) -> None:
        """Say that ``step`` steps are done: a window ends or begins, or waiting neighbours get theirs."""
        if self._due and step == self._due[0].stop:
            self._end_window(step)
        if self._due and step == self._due[0].start and not self._is_worth_waiting():
            self._due.pop(0)
        if not self._due or step not in self._due[0]:
            self.lock.offer()
            return
        window = self._due[0]
        if step == window.start:
            self._window.enter_context(self.lock.exclusive())
        if step == window.start + min(SETTLE_STEPS, len(window) - 1):
            self.lock.synchronise()
            self._timed_from, self._began = step, Moment.now()

    def _is_worth_waiting(self) -> bool:
        return self._signature not in self.times.windows or self.lock.waited < MAX_WAITING * self.lock.used

    def _end_window(self, step: int) -> None:
        self.lock.synchronise()
        ended = Moment.now()
        self._window.close()
        self._due.pop(0)
        seconds = (ended.wall - self._began.wall) / (step - self._timed_from)
        quiet = not self.lock.on_cpu or ended.was_quiet_since(self._began)
        is_later = quiet and self._signature in self.times.due
        if is_later:
            self.times.add_later(self._signature, seconds)
        if is_later or self.times.add(self._signature, seconds, quiet):
            self.on_window(self._signature, seconds, quiet)
        self._disturbed += not quiet
        if not quiet and self._disturbed <= MAX_DISTURBED:
            again = place_windows(self._steps - step, self.times.wanted(self._signature))
            self._due = [range(step + window.start, step + window.stop) for window in again]
