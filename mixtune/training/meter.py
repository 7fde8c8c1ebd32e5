"""The latency meter: step times measured in short quiet windows, while the neighbours on the device hold still."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from mixtune.errors import TrainingError
from mixtune.recipe import Recipe
from mixtune.training.data import TrainingData
from mixtune.training.device import describe_device
from mixtune.training.plan import Phase
from mixtune.training.state import TrainState

OnWindow = Callable[[str, float], None]
WINDOWS = 3  # of a cost signature; then its step time is fixed
WINDOW_STEPS = 5
WARM_UP_STEPS = 3  # of every epoch, not timed: kernels load, memory is allocated, the epoch's order is drawn


class DeviceLock:
    """Who may use a device now: many that step, or one that measures. One object a process; not for threads.

    Two files, flock-ed. ``device`` is held shared by whoever uses the device, alone by a measurer. ``gate`` is held
    alone by a measurer from before it waits until it is through, and shared for a moment by whoever goes in.

    No deadlock: the gate comes first and nobody waits with the device in hand, so a measurer waits only for processes
    that wait for nobody. No starvation: a shut gate lets no stepper in, and those inside come out at their next border;
    measurers queue at the gate and measure a signature three times only, so steppers are not kept out for long. The
    kernel frees what a dead holder held; a holder that hangs, hangs its neighbours.

    path: of the files, without their suffixes; synchronise: waits until the device has done what this process asked.
    ``waited`` counts the seconds spent waiting for others. Raises TrainingError where the files cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], synchronise: Callable[[], None] = lambda: None) -> None:
        self.synchronise = synchronise
        self.waited = 0.0
        self._shares = False
        self._gate, self._device = (_open(f"{path}{end}") for end in (".gate", ".device"))
        for file in (self._gate, self._device):
            # a forked child has the same open files: one that outlives a killed parent would keep its locks
            os.register_at_fork(after_in_child=weakref.finalize(self, os.close, file))

    @classmethod
    def of(cls, device: torch.device) -> DeviceLock:
        """Return the lock of a GPU, by its UUID since processes number GPUs as they like, or of this host's CPU.

        The files lie in the temporary folder, which is this host's and outlives a login, as a search may and
        XDG_RUNTIME_DIR does not. A kernel may refuse another user's files there, so two users' trials do not meet.
        """
        prefix = f"{tempfile.gettempdir()}/mixtune-{os.getuid()}"
        if device.type != "cuda":
            return cls(f"{prefix}-cpu-{platform.node()}")
        uuid = torch.cuda.get_device_properties(device).uuid
        return cls(f"{prefix}-gpu-{uuid}", partial(torch.cuda.synchronize, device))

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use the device beside others, for a stretch of work within which nobody is waited for; stretches nest."""
        if self._shares:
            yield
            return
        try:
            self._enter()
            yield
        finally:
            self._leave()

    def offer(self) -> None:
        """Let a waiting measurer go first, at a border in a shared stretch; an open gate costs one try at it."""
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
            yield
        finally:
            try:
                # going from alone to shared is not atomic, but behind a shut gate there is nobody to come between
                self._leave(shared)
            finally:  # last, so that nobody meets a held device behind an open gate
                fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _enter(self) -> None:
        try:
            self._wait(fcntl.LOCK_SH)  # through the gate, the device is to be had: who has it alone has both
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        self._shares = True

    def _leave(self, shared: bool = False) -> None:
        try:
            self.synchronise()  # what is queued would run on into a neighbour's window
        finally:
            fcntl.flock(self._device, fcntl.LOCK_SH if shared else fcntl.LOCK_UN)
            self._shares = shared

    def _wait(self, operation: int) -> None:
        started = time.perf_counter()
        fcntl.flock(self._gate, operation)
        fcntl.flock(self._device, operation)
        self.waited += time.perf_counter() - started


def _open(path: str) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.utime(file)  # temporary folders are cleared by age, and a name without its file is another lock
    except OSError as error:
        raise TrainingError(f"{path} cannot be opened ({error.strerror}): set TMPDIR to a folder of yours") from error
    return file


def data_shape(data: TrainingData) -> dict[str, Any]:
    """Return what the cost of a step depends on in the data: sizes, tasks, and whether Eq. 2 mixes two datasets."""
    classes = [len(task.classes) for task in data.tasks]
    return {k: getattr(data, k) for k in ("image_size", "channels", "two_datasets")} | {"classes": classes}


def cost_factors(
    recipe: Recipe, phase: Phase, device: str, threads: int, precision: str, shape: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the cost of a phase's step depends on, as plain values for a ledger; what might matter is in it.

    device: as describe_device() says it; threads: of the process; precision: the resolved dtype's name, ``float32``;
    shape: data_shape() of the data. Rates, alpha, lambda, seed, epochs and the share of the data change no step's cost.
    """
    plain = recipe.to_dict()
    machine = {"device": device, "threads": threads, "precision": precision, "torch": torch.__version__}
    settings = {key: plain[key] for key in ("model", "augment", "compile")}
    settings |= {"batch_size": recipe.optim.batch_size, "optimizer": "AdamW"}
    return {**machine, "phase": phase, **settings, "ssl": None if phase == "sl" else plain["ssl"], **shape}


def state_factors(state: TrainState, phase: Phase) -> dict[str, Any]:
    """Return the cost factors of a state's steps, here and now."""
    device, precision = describe_device(state.device), str(state.autocast_dtype).removeprefix("torch.")
    return cost_factors(state.recipe, phase, device, torch.get_num_threads(), precision, data_shape(state.data))


def cost_signature(factors: Mapping[str, Any]) -> str:
    """Return a short digest of cost factors: equal factors have equal ones, in every process and after JSON."""
    return hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()[:16]


class StepTimes:
    """Seconds of a step by cost signature. The first three windows count, so a step time does not change any more."""

    def __init__(self) -> None:
        self.windows: dict[str, list[float]] = {}

    def add(self, signature: str, seconds: float) -> None:
        """Take over a window's mean step time; one too many, of two trials that measured at once, is left out."""
        if self.missing(signature):
            self.windows.setdefault(signature, []).append(seconds)

    def missing(self, signature: str) -> int:
        """Return how many windows a signature still needs."""
        return WINDOWS - len(self.windows.get(signature, []))

    def step_time(self, signature: str) -> float:
        """Return seconds a step, the median of the windows; NaN where there is none."""
        return statistics.median(self.windows.get(signature, [math.nan]))

    def latency(self, steps: Mapping[Phase, int], signatures: Mapping[Phase, str]) -> float:
        """Return seconds of training steps; NaN where a phase that has steps was never measured."""
        return sum(count * self.step_time(signatures[phase]) for phase, count in steps.items() if count)


def place_windows(steps: int, missing: int) -> list[range]:
    """Return which steps of an epoch are timed: at most ``missing`` windows, in the middles of equal shares.

    The first steps are left out. A short epoch has fewer or shorter windows, but any has one while one is missing.
    """
    first = min(WARM_UP_STEPS, steps // 2)
    length = min(WINDOW_STEPS, steps - first)
    count = min(missing, (steps - first) // length)
    shares = [(steps - first) * i // count for i in range(count + 1)] if count else []
    starts = [first + (low + high - length) // 2 for low, high in pairwise(shares)]
    return [range(start, start + length) for start in starts]


class Meter:
    """Times some of a loop's own steps, alone on the device; nothing is computed that would not be otherwise.

    times: what is known already; it grows. ``on_window(signature, seconds)`` is told of each window, once the
    neighbours go on; it is called within the shared stretch, so it should not wait. ::

        with meter.epoch(signature, steps):
            for step in range(steps):
                meter.border(step)
                images, labels = next(batches)  # after the border: a step's time includes its batch
                train_step(...)
    """

    def __init__(self, lock: DeviceLock, times: StepTimes, on_window: OnWindow = lambda *_: None) -> None:
        self.lock, self.times, self.on_window = lock, times, on_window

    @contextmanager
    def epoch(self, signature: str, steps: int) -> Iterator[None]:
        """Hold the device for an epoch of ``steps`` steps; a window that an exception cuts short does not count."""
        self._signature, self._started = signature, math.nan
        self._due = place_windows(steps, self.times.missing(signature))
        with self.lock.shared(), ExitStack() as self._window:
            yield
            self.border(steps)

    def border(self, step: int) -> None:
        """Say that ``step`` steps are done: a window ends or begins, or waiting neighbours get theirs."""
        if self._due and step == self._due[0].stop:
            self.lock.synchronise()
            seconds = (time.perf_counter() - self._started) / len(self._due.pop(0))
            self._window.close()
            self.times.add(self._signature, seconds)
            self.on_window(self._signature, seconds)
        if self._due and step == self._due[0].start:
            self._window.enter_context(self.lock.exclusive())
            self._started = time.perf_counter()
        elif not self._due or step not in self._due[0]:
            self.lock.offer()
