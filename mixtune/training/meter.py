"""The latency meter: step times measured in short quiet windows, while the neighbours on the device hold still."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch

from mixtune.recipe import Recipe
from mixtune.training.data import TrainingData
from mixtune.training.device import describe_device
from mixtune.training.device_lock import DeviceLock
from mixtune.training.plan import Phase, make_plan
from mixtune.training.quiet import Moment
from mixtune.training.state import TrainState
from mixtune.training.step_times import StepTimes
from mixtune.views import Strategy

OnWindow = Callable[[str, float, bool], None]
WINDOW_STEPS = 4
SETTLE_STEPS = 2  # alone, but not timed: what the neighbours left in the caches goes
MOST_DISTURBED = 6  # windows of an epoch that are made again
MOST_WAITING = 0.02  # of a process's time on the device; above, a signature that is known gets no more windows
WARM_UP_STEPS = 3  # of every epoch, not timed: kernels load, memory is allocated, the epoch's order is drawn


def data_shape(data: TrainingData) -> dict[str, Any]:
    """Return what the cost of a step depends on in the data: sizes, tasks, two datasets or one, where images lie."""
    tasks = {"classes": [len(task.classes) for task in data.tasks], "images_on": data.tasks[0].train.images.device.type}
    return {k: getattr(data, k) for k in ("image_size", "channels", "two_datasets")} | tasks


def cost_factors(
    recipe: Recipe,
    phase: Phase | Literal["infer"],
    device: str,
    threads: int,
    precision: str,
    shape: Mapping[str, Any],
    strategy: Strategy | None = None,
) -> dict[str, Any]:
    """Return what the cost of a phase's step, or of classifying an image, depends on, as plain values for a ledger.

    What might matter is in it, and more, where only a part of it counts.

    device: as describe_device() says it; threads: of the process; precision: the resolved dtype's name, ``float32``;
    shape: data_shape() of the data; strategy: of the epoch, whose sequences it shortens. Rates, alpha, lambda, seed,
    epochs and the share of the data change no step's cost.
    """
    plain = recipe.to_dict()
    machine = {"device": device, "threads": threads, "precision": precision, "torch": torch.__version__}
    factors = {**machine, "phase": phase, "model": plain["model"], "compile": plain["compile"], **shape}
    if phase != "infer":
        factors |= {"augment": plain["augment"], "batch_size": recipe.optim.batch_size, "optimizer": "AdamW"}
    if phase in ("ssl", "mix"):
        factors["ssl"] = recipe.ssl.constants()
        if strategy is not None:
            factors["strategy"] = {branch: list(getattr(strategy, branch)) for branch in strategy._fields}
    return factors


def state_factors(
    state: TrainState, phase: Phase | Literal["infer"], strategy: Strategy | None = None
) -> dict[str, Any]:
    """Return the cost factors of a state's steps, or of its inference, here and now."""
    device, precision = describe_device(state.device), str(state.autocast_dtype).removeprefix("torch.")
    threads, shape = torch.get_num_threads(), data_shape(state.data)
    return cost_factors(state.recipe, phase, device, threads, precision, shape, strategy)


def phase_signature(state: TrainState, phase: Phase | Literal["infer"], strategy: Strategy | None = None) -> str:
    """Return the cost signature of a state's steps, or of its inference, here and now."""
    return cost_signature(state_factors(state, phase, strategy))


def state_signatures(state: TrainState) -> list[str]:
    """Return the cost signatures of the epochs that a state has trained, and of its inference."""
    works = dict.fromkeys(epoch.work for epoch in make_plan(state.recipe)[: len(state.history)])
    return [*(phase_signature(state, *work) for work in works), phase_signature(state, "infer")]


def cost_signature(factors: Mapping[str, Any]) -> str:
    """Return a short digest of cost factors: equal factors have equal ones, in every process and after JSON."""
    return hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()[:16]


def place_windows(steps: int, missing: int) -> list[range]:
    """Return which steps of an epoch are made alone: at most ``missing`` windows, in the middles of equal shares.

    The first steps are left out. A window has SETTLE_STEPS and WINDOW_STEPS, in a short epoch fewer; the shortest has
    fewer windows, but any has one while one is missing.
    """
    if not missing or not steps:
        return []
    first = min(WARM_UP_STEPS, steps // 2)
    length = max(1, min(SETTLE_STEPS + WINDOW_STEPS, (steps - first) // missing))
    count = min(missing, (steps - first) // length)
    shares = [(steps - first) * i // count for i in range(count + 1)]
    starts = [first + (low + high - length) // 2 for low, high in pairwise(shares)]
    return [range(start, start + length) for start in starts]


class Meter:
    """Times some of a loop's own steps, alone on the device; nothing is computed that would not be otherwise.

    times: what is known already; it grows. ``on_window(signature, seconds, quiet)`` is told of each window that counts,
    once the neighbours go on; it is called within the shared stretch, so it should not wait. A signature's first window
    is made at once, the others while this process has waited for its neighbours less than MOST_WAITING of its time:
    they make it wait as it makes them. On a CPU, where others than those that know the lock may run, a window that was
    not quiet (mixtune.training.quiet) is made again, a few times an epoch; until one was, the shortest stands in. ::

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
        self._signature, self._steps, self._disturbed = signature, steps, 0
        self._due = place_windows(steps, self.times.missing(signature))
        with self.lock.shared(), ExitStack() as self._window:
            yield
            self.border(steps)

    def border(self, step: int) -> None:
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
        return self._signature not in self.times.windows or self.lock.waited < MOST_WAITING * self.lock.used

    def _end_window(self, step: int) -> None:
        self.lock.synchronise()
        ended = Moment.now()
        self._window.close()
        self._due.pop(0)
        seconds = (ended.wall - self._began.wall) / (step - self._timed_from)
        quiet = not self.lock.on_cpu or ended.was_quiet_since(self._began)
        if self.times.add(self._signature, seconds, quiet):
            self.on_window(self._signature, seconds, quiet)
        self._disturbed += not quiet
        if not quiet and self._disturbed <= MOST_DISTURBED:
            again = place_windows(self._steps - step, self.times.missing(self._signature))
            self._due = [range(step + window.start, step + window.stop) for window in again]
