"""The processes of latency_meter.py: training runs that take turns, alone and packed, each with a table of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import pairwise
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple, TypeVar
from unittest.mock import patch

import torch

from mixtune.meter import windows as meter
from mixtune.meter.lock import DeviceLock
from mixtune.meter.times import WINDOWS, StepTimes
from mixtune.space.recipe import Recipe, parse_recipe
from mixtune.training.data import TrainingData, load_training_data
from mixtune.training.loop import train
from mixtune.training.measure import measure
from mixtune.training.plan import PHASES, Phase, make_plan
from mixtune.training.state import EpochResult, TrainState, start_state

PATIENCE = 300.0  # seconds for all processes to be ready

ALONE, PACKED_TURN = "alone", "packed"


class Job(NamedTuple):
    """What one process does: training runs, in each turn alone, one process after another, or packed, all at once.

    ``warms_up``: by a training run that does not count, as in a worker that had a trial; ``place``: among the
    processes.
    """

    recipe: dict[str, Any]
    device: str
    turns: tuple[str, ...] = (ALONE,)
    warms_up: bool = False
    place: int = 0
    warm_up_steps: int | None = None  # in place of the meter's


class Window(NamedTuple):
    """A window: its step time, whether it was quiet, and when it ended by a clock that all processes share."""

    phase: Phase | Literal["infer"]
    seconds: float
    quiet: bool
    ended: float


class Training(NamedTuple):
    """What a training measured; ``core_share``: of its time that it had a core, 1 on an idle machine."""

    windows: list[Window]
    epochs: list[EpochResult]
    latency_to_clock: float
    core_share: float

    @property
    def phases(self) -> list[Phase]:
        return [phase for phase in PHASES if any(epoch.phase == phase for epoch in self.epochs)]

    def metered(self, phase: Phase) -> float:
        """Return a step's seconds by the meter, from the windows of this process alone."""
        return share_windows([self]).step_time(phase)

    def clocked(self, phase: Phase) -> float:
        """Return a step's seconds by the wall clock of the epochs after the phase's first, which has the windows."""
        _, *later = (epoch for epoch in self.epochs if epoch.phase == phase)
        return sum(epoch.seconds for epoch in later) / sum(epoch.steps for epoch in later)


def share_windows(trainings: Iterable[Training]) -> StepTimes:
    """Return the table of a search by phase: the windows that ended first, by whatever process, are all that count."""
    table = StepTimes()
    for window in sorted((w for t in trainings for w in t.windows), key=lambda window: window.ended):
        table.add(window.phase, window.seconds, window.quiet)
    return table


# In the processes.


class _Party:
    """What the processes that train together share, set once in each of them."""

    size: int
    barrier: Any
    unfinished: Any


def _join(size: int, barrier: Any, unfinished: Any) -> None:
    _Party.size, _Party.barrier, _Party.unfinished = size, barrier, unfinished
    torch.set_num_threads(1)


def train_in_turns(job: Job) -> list[Training]:
    """Train a recipe, once a turn; in a packed turn train on until all have finished."""
    if job.warm_up_steps is not None:
        meter.WARM_UP_STEPS = job.warm_up_steps
    try:
        recipe = parse_recipe(job.recipe)
        data = load_training_data(recipe, job.device)
        if job.warms_up:
            train_once(recipe, data, job.device)
        trainings = []
        for turn in job.turns:
            for places in [[i] for i in range(_Party.size)] if turn == ALONE else [[*range(_Party.size)]]:
                begin_together(job, len(places))
                if job.place in places:
                    trainings.append(train_once(recipe, data, job.device))
                    with _Party.unfinished.get_lock():
                        _Party.unfinished.value -= 1
                    keep_training(recipe, data, job.device)
        return trainings
    except BaseException:
        _Party.barrier.abort()
        _Party.unfinished.value = 0
        raise


def begin_together(job: Job, count: int) -> None:
    """Wait for the other processes, ``count`` of which will train now."""
    _Party.barrier.wait(PATIENCE)
    if job.place == 0:
        _Party.unfinished.value = count
    _Party.barrier.wait(PATIENCE)


def train_once(recipe: Recipe, data: TrainingData, device: str) -> Training:
    """Train a recipe with a table of its own, by a lock that has waited for nobody yet, as in a new process."""
    DeviceLock.of.__func__.cache_clear()  # type: ignore[attr-defined]
    state, plan, windows = start_state(recipe, data, device), make_plan(recipe), []

    def keep_window(signature: str, seconds: float, quiet: bool) -> None:
        inferring = signature == state.signature("infer")
        phase: Phase | Literal["infer"] = "infer" if inferring else plan[len(state.history)].phase
        windows.append(Window(phase, seconds, quiet, time.monotonic()))

    started, cpu_started = time.perf_counter(), time.process_time()
    epochs = list(train(state, keep_window))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    metrics = measure(state)
    return Training(windows, epochs, metrics.train_latency_s / metrics.train_clock_s, cpu / wall)


def keep_training(recipe: Recipe, data: TrainingData, device: str) -> None:
    """Be a neighbour that measures nothing, until all have finished."""
    while _Party.unfinished.value > 0:
        for _ in train(know_steps(start_state(recipe, data, device))):
            if _Party.unfinished.value <= 0:
                return


def know_steps(state: TrainState) -> TrainState:
    """Fill a state's table, so that nothing is left to measure."""
    known = {state.signature(phase): [1.0] * WINDOWS for phase in (*PHASES, "infer")}
    state.step_times = StepTimes(known)
    return state


class Trace(NamedTuple):
    """The seconds of each step of a phase's epochs, by the wall clock and by the process's CPU time."""

    phase: Phase
    wall: list[list[float]]
    cpu: list[list[float]]


def trace_job(job: Job) -> list[Trace]:
    """Train a recipe without windows, and time every step of it."""
    recipe = parse_recipe(job.recipe)
    state = know_steps(start_state(recipe, load_training_data(recipe, job.device), job.device))
    boundaries: list[tuple[float, float]] = []
    original = meter.Meter.boundary

    def timed_boundary(self: meter.Meter, step: int) -> None:
        self.lock.synchronise()
        boundaries.append((time.perf_counter(), time.process_time()))
        original(self, step)

    traces = {epoch.phase: Trace(epoch.phase, [], []) for epoch in make_plan(recipe)}
    with patch.object(meter.Meter, "boundary", timed_boundary):
        for result in train(state):
            for clock, epochs in enumerate((traces[result.phase].wall, traces[result.phase].cpu)):
                epochs.append([after[clock] - before[clock] for before, after in pairwise(boundaries)])
            boundaries.clear()
    return list(traces.values())


def offer_job(job: Job, offers: int) -> float:
    """Return the seconds of a step boundary at which nobody waits."""
    lock = DeviceLock.of(torch.device(job.device))
    with lock.shared():
        started = time.perf_counter()
        for _ in range(offers):
            lock.offer()
        return (time.perf_counter() - started) / offers


def compare_job(job: Job) -> dict[str, list[float]]:
    """Return an epoch's seconds without the meter, with its boundaries, and with its windows, which take turns."""
    recipe = parse_recipe(job.recipe)
    state = start_state(recipe, load_training_data(recipe, job.device), job.device)
    known = know_steps(state).step_times.windows
    full, epochs = dict(known), train(state)
    seconds: dict[str, list[float]] = {"none": [], "boundaries": [], "windows": []}
    for round_ in range(recipe.epochs.sl // len(seconds)):
        for kind, taken in seconds.items():
            known.clear()
            known.update({} if kind == "windows" else full)
            with patch.object(meter.Meter, "boundary", _no_boundary if kind == "none" else meter.Meter.boundary):
                result = next(epochs)
            if round_ > 0:
                taken.append(result.seconds)
    return seconds


def _no_boundary(self: meter.Meter, step: int) -> None:
    pass


# Running them.

Result = TypeVar("Result")


def run_together(function: Callable[..., Result], jobs: Sequence[Job], *arguments: Any) -> list[Result]:
    """Call a function for each job, in new processes at once. They have imported torch, and not taken a step."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["mixtune.training.loop", "mixtune.training.measure", "pandas", "rich.console"])
    party = len(jobs), context.Barrier(len(jobs)), context.Value("i", 0)
    with ProcessPoolExecutor(len(jobs), context, _join, party) as pool:
        futures = [pool.submit(function, job._replace(place=i), *arguments) for i, job in enumerate(jobs)]
        for future in as_completed(futures):
            future.result()  # the first to fail is the cause
        return [future.result() for future in futures]


def run_alone(function: Callable[..., Result], job: Job, *arguments: Any) -> Result:
    """Call a function for a job in a new process."""
    return run_together(function, [job], *arguments)[0]
