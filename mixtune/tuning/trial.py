"""One trial of a search in this process: it trains, and reports what it measured; what that costs its search prices."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mixtune.cost.memory import is_out_of_memory
from mixtune.errors import RequestError
from mixtune.meter.lock import DeviceLock
from mixtune.meter.times import StepTimes
from mixtune.metrics import epoch_metrics
from mixtune.run.directory import RunDirectory
from mixtune.run.lock import is_asked_to_end, share_run
from mixtune.run.predictions import HeldOut
from mixtune.space.recipe import Recipe, change_recipe, flatten, parse_recipe
from mixtune.space.space import SearchSpace, load_space
from mixtune.space.ties import parse_tie
from mixtune.stages.resume import Recovery
from mixtune.training.bill import Bill
from mixtune.training.data import load_training_data
from mixtune.training.device import limit_memory
from mixtune.training.evaluation import describe_held_out, encode_predictions
from mixtune.training.loop import DivergedError, train
from mixtune.training.measure import observe
from mixtune.training.state import start_state

Cause = Literal["crash", "node lost", "out of memory", "permanent"]

RESERVED = ("recipe", "ties", "trial", "search", "user")  # every other key of a config is a dotted recipe path


@dataclass(frozen=True)
class SearchContext:
    """What a search tells its trials, in the config's ``search``.

    directory: the run's, whose stages/ holds the checkpoints that a trial continues from; cpus, gpus: this trial's
    share; threads, precision: of each trial, the same for the whole run, because bits and step times depend on them;
    ``precision`` is what a recipe's ``auto`` stands for, so that no trial asks a busy GPU; step_times: what is known of
    steps' seconds; memory_bytes: the most that a trial may allocate on its GPU; deadline: by time.monotonic(), after
    which each epoch's checkpoint is stored, since it may be the last; it travels as the seconds that are left, since
    each machine has a clock of its own; states_bytes: of all checkpoints; branches: epochs after which other recipes of
    the space may continue from this trial's checkpoint.

    On a cluster, home: the driver's node, by Ray's id; selector: the labels of the nodes that may take this trial;
    space_digest: of the run's space.yaml, by which a node knows that it sees the run directory; states: the keys that
    this trial may continue from, with the address of the node that has them, None for the run directory.
    """

    directory: str
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1
    precision: str = "float32"
    step_times: StepTimes = field(default_factory=StepTimes)
    memory_bytes: int | None = None
    deadline: float | None = None
    states_bytes: int | None = None
    branches: tuple[int, ...] = ()
    home: str | None = None
    selector: Mapping[str, str] = field(default_factory=dict)
    space_digest: str | None = None
    states: Mapping[str, str | None] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        left = None if self.deadline is None else self.deadline - time.monotonic()
        return {**self.__dict__, "deadline": left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.deadline is not None:
            self.__dict__["deadline"] = self.deadline + time.monotonic()

    def __repr__(self) -> str:
        return f"SearchContext({self.directory!r})"  # short, for loggers that write a config down


@dataclass(frozen=True)
class EpochReport:
    """What a trial reports after an epoch. Its seconds are for the driver to price.

    epochs: what is known of each epoch since the last report, by mixtune.metrics.epoch_metrics() without seconds: at
    first also those of a checkpoint; metrics: all of the latest, without seconds; windows: (cost signature, seconds,
    quiet, cost factors) of those measured meanwhile; bill: the recipe's; reused: how many epochs came from a
    checkpoint; stored: the key of the checkpoint that was stored now, None without one; node: the address of the node
    that has it, None for the run directory; stage: the key of what is trained; after_deadline: whether that was stored
    after the deadline; warnings: for the terminal; held_out, predictions: once the recipe is trained to its end, the
    images that its accuracies are of, and the class that it gives each, by task (encode_classes).
    """

    epochs: list[dict[str, Any]]
    metrics: dict[str, Any]
    windows: list[tuple[str, float, bool, dict[str, Any]]]
    bill: Bill
    reused: int = 0
    stored: str | None = None
    node: str | None = None
    stage: str | None = None
    after_deadline: bool = False
    warnings: list[str] = field(default_factory=list)
    held_out: HeldOut | None = None
    predictions: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether the recipe is trained to its end."""
        return bool(self.metrics["epoch"] == self.metrics["epochs_asked"])


class LeavingError(RuntimeError):
    """The machine is being taken away: the trial's state is safe, and it should continue elsewhere."""


class Place:
    """Where a trial trains: on the machine of the run directory, which stays."""

    address: str | None = None

    def fetch(self, key: str) -> bool:
        """Bring a state that is not here; return whether it came."""
        return False

    def is_leaving(self) -> bool:
        """Return whether this machine will be taken away."""
        return False

    def send_home(self, key: str) -> bool:
        """Bring a state from here to the run directory; return whether it is there."""
        return True


def train_trial(
    config: Mapping[str, Any], device: torch.device, place: Place | None = None
) -> Generator[EpochReport, None, None]:
    """Train a search's trial, yielding a report after each epoch; one whose every epoch was stored reports its end.

    config: ``recipe``, dotted values over it, and ``search``, a SearchContext. Raises RequestError, DataError or
    DivergedError, at the first report for what is wrong with the recipe.
    """
    context: SearchContext = config["search"]
    torch.set_num_threads(context.threads)
    limit_memory(device, context.memory_bytes)
    lock = DeviceLock.of(device)
    with in_original_folder(), lock.shared():  # a start should not fall into another trial's window
        recipe = recipe_from_config(config)
        if recipe.precision == "auto":
            recipe = change_recipe(recipe, {"precision": context.precision})
        state = start_state(recipe, load_training_data(recipe, device), device)
    state.step_times = context.step_times.copy()
    stages = RunDirectory(context.directory).stages
    place = place or Place()
    limits = context.states_bytes, context.deadline, context.branches

    def is_leaving() -> bool:
        return place.is_leaving() or is_asked_to_end(context.directory)

    recovery = Recovery(state, stages, *limits, place.fetch, is_leaving)
    windows: list[tuple[str, float, bool, dict[str, Any]]] = []

    def keep_window(signature: str, seconds: float, quiet: bool) -> None:
        is_inference = signature == state.bill.infer
        factors = state.factors("infer") if is_inference else state.factors(*state.plan[len(state.history)].work)
        windows.append((signature, seconds, quiet, factors))

    training, reported, held_out = train(state, keep_window), 0, describe_held_out(state.data)
    while reported < len(state.plan):
        next(training, None)
        with lock.shared():
            started = time.perf_counter()
            stored = recovery.save_if_due()
            state.checkpoint_seconds += time.perf_counter() - started
        node, leaves = place.address, False
        if stored is not None and place.is_leaving():
            leaves = node is None or place.send_home(stored)
            node = None if leaves else node
        done = len(state.history)
        observed = [observe(state, count) for count in range(reported + 1, done + 1)]
        yield EpochReport(
            epochs=[{name: each[name] for name in epoch_metrics() if name in each} for each in observed],
            metrics=observed[-1],
            windows=windows.copy(),
            bill=state.bill,
            reused=state.epochs_reused,
            stored=stored,
            node=node,
            stage=recovery.keys[done],
            after_deadline=recovery.after_deadline,
            warnings=recovery.take_warnings(),
            held_out=held_out if done == len(state.plan) else None,
            predictions=encode_predictions(state) if done == len(state.plan) else {},
        )
        windows.clear()
        reported = done
        if leaves and reported < len(state.plan):
            raise LeavingError("its node is being taken away")


def failure_cause(error: BaseException | None) -> Cause:
    """Return what a failed trial needs: nothing helps where the recipe itself is to blame."""
    if error is not None and is_out_of_memory(error):
        return "out of memory"
    if isinstance(error, LeavingError) or getattr(error, "preempted", False):
        return "node lost"
    return "permanent" if isinstance(error, RequestError | DivergedError) else "crash"


@contextlib.contextmanager
def in_original_folder() -> Iterator[None]:
    """Let relative paths mean the folder that a search started in: Ray moves a worker into the trial's."""
    with contextlib.chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", ".")):
        yield


@functools.cache
def hold_directory(directory: str) -> int | None:
    """Keep, as long as this process lives, another driver from taking over the run directory."""
    return share_run(Path(directory))


def recipe_from_config(config: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trial's config; see MixTrainable. Raises RequestError."""
    given = config.get("recipe")
    if isinstance(given, Recipe):
        space = SearchSpace(given.to_dict())
    elif isinstance(given, str | os.PathLike):
        space = load_space(given)
    elif isinstance(given, Mapping):
        space = SearchSpace(parse_recipe(given).to_dict())
    else:
        raise RequestError(f"config['recipe'] should be a Recipe, a mapping or a search space's file, got {given!r}")
    changes = flatten({key: value for key, value in config.items() if key not in RESERVED})
    ties = {path: parse_tie(tie) for path, tie in (config.get("ties") or {}).items()}
    return replace(space, ties={**space.ties, **ties}).recipe_at(changes)
