"""With how many threads a recipe's steps are fastest on this CPU, as busy or slow as it is: measured, once."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from mixtune.meter.lock import DeviceLock
from mixtune.space.recipe import Recipe
from mixtune.training.data import TrainingData
from mixtune.training.loop import compile_phase, train_step
from mixtune.training.plan import Epoch, Work
from mixtune.training.state import TrainState, start_state
from mixtune.training.streams import torch_generator

SMALL_FLOPS = 5e10  # of a whole training run: it takes no longer than measuring would
TIMED_STEPS = 5  # of each number of threads, in fewer than TIMED_S seconds where one is long
TIMED_S = 0.4
EQUAL = 1.1  # times the fastest step: of as good as equal numbers the smallest, which leaves a busy machine in peace
SLOWER = 1.5  # times the fastest step: where half the threads take so long, fewer are not tried


def fastest_threads(recipe: Recipe, data: TrainingData) -> int:
    """Return with how many threads the steps that most of a recipe's FLOPs are in are fastest on this CPU, now.

    PyTorch's own number and its halves, down to 1, are tried with a few steps each, of which the fastest counts.
    PyTorch's own is returned without a look for a training run that would be over as soon, and for one that is
    compiled. data: on the CPU.
    """
    default = torch.get_num_threads()
    state = start_state(recipe, data, torch.device("cpu"))
    if default == 1 or recipe.compile or state.bill.flops < SMALL_FLOPS:
        return default
    flops: defaultdict[Work, float] = defaultdict(float)
    for epoch, (_, _, step) in zip(state.plan, state.bill.epochs, strict=True):
        flops[epoch.work] += step
    hardest = max(state.plan, key=lambda epoch: flops[epoch.work])
    seconds: dict[int, float] = {}
    with DeviceLock.of(state.device).shared():
        threads = default
        while threads:
            with set_threads(threads):
                seconds[threads] = step_seconds(state, hardest, TIMED_STEPS, TIMED_S)
            if seconds[threads] > SLOWER * min(seconds.values()):
                break
            threads //= 2
    return min(threads for threads, took in seconds.items() if took <= EQUAL * min(seconds.values()))


@contextmanager
def set_threads(threads: int | None) -> Iterator[None]:
    """Compute with so many threads; None: with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def known_threads(metrics: Mapping[str, Any] | None) -> int | None:
    """Return how many threads a saved training run on a CPU had, None for one on a GPU and for none at all."""
    found = re.search(r", (\d+) threads?$", str((metrics or {}).get("device")))
    return int(found[1]) if found else None


def step_seconds(state: TrainState, epoch: Epoch, steps: int, most_s: float = math.inf) -> float:
    """Return the least of a few timed training steps, their batches included; the first, which allocates, is not.

    most_s: after so many seconds no step is begun, but for the first two.
    """
    compile_phase(state, epoch)
    masks = torch_generator(state.recipe.seed, "masks", 0, state.device)
    times: list[float] = []
    batches = islice(state.data.batches(state.recipe, epoch), steps + 1)
    started = time.perf_counter()
    for images, labels in batches:
        train_step(state, epoch, images, labels, masks)
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        if len(times) > 1 and sum(times) > most_s:
            break
        started = time.perf_counter()
    return min(times[1:] or times)
