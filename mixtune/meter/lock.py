"""Who may use a device now: many processes that step, or one that measures."""

from __future__ import annotations

import fcntl
import functools
import logging
import math
import os
import platform
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

from mixtune.errors import TrainingError

STOPPED_S = 20.0  # of waiting for a device, after which it is looked whether who has it is stopped

_log = logging.getLogger("mixtune")


class DeviceLock:
    """Who may use a device now: many that step, or one that measures. One object a process; not for threads.

    Two files, flock-ed. ``device`` is held shared by whoever uses the device, alone by a measurer. ``gate`` is held
    alone by a measurer from before it waits until it is through, and shared for a moment by whoever goes in.

    No deadlock: the gate comes first and nobody waits with the device in hand, so a measurer waits only for processes
    that wait for nobody. No starvation: a shut gate lets no stepper in, and those inside come out at their next
    boundary; measurers queue at the gate and measure a signature three times only, so steppers are not kept out for
    long. The kernel frees what a dead holder held; a holder that hangs, hangs its neighbours.

    path: of the files, without their suffixes; synchronise: waits until the device has done what this process asked;
    on_cpu: whether the device is the CPU that this process runs on.
    ``waited`` counts the seconds spent waiting for others. Raises TrainingError where the files cannot be opened.
    """

    def __init__(
        self, path: str | os.PathLike[str], synchronise: Callable[[], None] = lambda: None, on_cpu: bool = False
    ) -> None:
        self.synchronise, self.on_cpu = synchronise, on_cpu
        self.waited = self._used = 0.0
        self._shares, self._since = False, math.nan
        self._gate, self._device = (_open(f"{path}{end}") for end in (".gate", ".device"))
        for file in (self._gate, self._device):
            # a forked child has the same open files: one that outlives a killed parent would keep its locks
            os.register_at_fork(after_in_child=weakref.finalize(self, os.close, file))

    @classmethod
    @functools.cache
    def of(cls, device: torch.device) -> DeviceLock:
        """Return the lock of a GPU, by its UUID since processes number GPUs as they like, or of this host's CPU.

        The files lie in the temporary folder, which is this host's and outlives a login, as a search may and
        XDG_RUNTIME_DIR does not. A kernel may refuse another user's files there, so two users' trials do not meet.
        """
        prefix = f"{tempfile.gettempdir()}/mixtune-{os.getuid()}"
        if device.type != "cuda":
            return cls(f"{prefix}-cpu-{platform.node()}", on_cpu=True)
        uuid = torch.cuda.get_device_properties(device).uuid
        return cls(f"{prefix}-gpu-{uuid}", partial(torch.cuda.synchronize, device))

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use the device alongside others, for a stretch of work within which nobody is waited for; stretches nest."""
        if self._shares:
            yield
            return
        try:
            self._enter()
            yield
        finally:
            self._leave()

    @property
    def used(self) -> float:
        """The seconds in which this process had the device until now, alone or alongside others."""
        return self._used + (0.0 if math.isnan(self._since) else time.perf_counter() - self._since)

    def offer(self) -> None:
        """Let a waiting measurer go first, at a boundary in a shared stretch; an open gate costs one try at it."""
        assert self._shares
        try:  # shared, so that steppers do not take each other for a measurer
            fcntl.flock(self._gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self._leave()
            self._enter()
        else:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the device alone and idle; afterwards be in the shared stretch again, if this is inside one."""
        shared = self._shares
        if shared:  # two measurers that wait with the device in hand would wait for each other
            self._leave()
        try:
            self._wait(fcntl.LOCK_EX)
            self._note(held=True)
            yield
        finally:
            try:
                # going from alone to shared is not atomic, but behind a shut gate there is nobody to come between
                self._leave(shared)
            finally:  # last, so that nobody meets a held device behind an open gate
                fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _note(self, held: bool) -> None:
        self._used, self._since = self.used, time.perf_counter() if held else math.nan

    def _enter(self) -> None:
        try:
            self._wait(fcntl.LOCK_SH)  # through the gate, the device is available: who has it alone has both
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        self._shares = True
        self._note(held=True)

    def _leave(self, shared: bool = False) -> None:
        try:
            self.synchronise()  # what is queued would run on into a neighbour's window
        finally:
            fcntl.flock(self._device, fcntl.LOCK_SH if shared else fcntl.LOCK_UN)
            self._shares = shared
            self._note(held=shared)

    def _wait(self, operation: int) -> None:
        started = time.perf_counter()
        for file in (self._gate, self._device):
            try:
                fcntl.flock(file, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                with _saying_who_is_stopped():
                    fcntl.flock(file, operation)
        self.waited += time.perf_counter() - started


@contextmanager
def _saying_who_is_stopped() -> Iterator[None]:
    """Warn once, if this takes longer than STOPPED_S and a process that has the device is stopped."""

    def say() -> None:
        for line in stopped_holders().values():
            _log.warning(line)

    timer = threading.Timer(STOPPED_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def stopped_holders() -> dict[int, str]:
    """Return a line for each process that has a device of this user's and is stopped, by its id, where Linux says so.

    Whoever wants the device waits for such a process for ever: one that was suspended with Ctrl-Z, say.
    """
    found: dict[int, str] = {}
    with suppress(OSError):
        ours = {path.stat().st_ino for path in Path(tempfile.gettempdir()).glob(f"mixtune-{os.getuid()}-*.*")}
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF; who waits has -> as second field
            if fields[1] != "FLOCK" or int(fields[5].rpartition(":")[2]) not in ours:
                continue
            with suppress(OSError):  # it has ended meanwhile
                process, folder = int(fields[4]), Path("/proc", fields[4])
                if (folder / "stat").read_text().rpartition(")")[2].split()[0] in "Tt":
                    name = (folder / "comm").read_text().strip()
                    found[process] = (
                        f"process {process} ({name}) has the device and is stopped, and others wait for it: "
                        f"kill -CONT {process} lets it continue, kill -KILL {process} ends it"
                    )
    return found


def _open(path: str) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.utime(file)  # temporary folders are cleared by age, and a name without its file is another lock
    except OSError as error:
        raise TrainingError(f"{path} cannot be opened ({error.strerror}): set TMPDIR to a folder of yours") from error
    return file
