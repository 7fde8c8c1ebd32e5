"""MixTrainable: one recipe as a Ray Tune class trainable, for our search and for anyone's own Tuner."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune

from mixtune.errors import RequestError
from mixtune.meter.lock import DeviceLock
from mixtune.meter.times import StepTimes
from mixtune.run.ledger import EPOCH_METRICS
from mixtune.run.lock import share_run
from mixtune.space.recipe import Recipe, change_recipe, flatten, parse_recipe
from mixtune.space.space import load_space
from mixtune.stages.resume import Recovery
from mixtune.training.bill import phase_signature, state_factors
from mixtune.training.data import load_training_data, place_images
from mixtune.training.device import choose_device, limit_memory, release_memory
from mixtune.training.loop import train
from mixtune.training.measure import TASK_PREFIXES, Metrics, measure
from mixtune.training.plan import Phase, make_plan
from mixtune.training.state import EpochResult, TrainState, start_state

RESERVED = ("recipe", "trial", "search")  # every other key of the config is a dotted recipe path
CHECKPOINT = "state.pt"
TO_LEDGER = "to_ledger"  # in a search's results: what its ledger keeps beside the metrics


@dataclass(frozen=True)
class SearchContext:
    """What a search tells its trials, in the config's ``search``.

    directory: the run's, whose stages/ holds the states that a trial goes on from; cpus, gpus: this trial's share;
    threads, precision: of each trial, the same for the whole run, because bits and step times depend on them;
    ``precision`` is what a recipe's ``auto`` stands for, so that no trial asks a busy GPU; step_times:
    what is known of steps' seconds; memory_bytes: the most that a trial may allocate on its GPU; deadline:
    unix seconds after which each epoch's state is stored, since it may be the last; states_bytes: of all stored states;
    branches: epochs after which other recipes of the space may go on from this trial's state.
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


class MixTrainable(tune.Trainable):  # type: ignore[misc]
    """Trains one epoch a step; each result has every metric and ``done``.

    The config is ``{"recipe": a Recipe, nested values or a search space's file, "alpha": 0.3, "epochs.sl": 40}``:
    all keys but ``recipe`` are dotted recipe paths that override it. In the SSL phase, where no classifier
    learns, ``val_accuracy`` is NaN. Raises RequestError for a config that is no recipe, DivergedError for a NaN
    or infinite loss. ::

        tune.Tuner(tune.with_resources(MixTrainable, {"gpu": 0.25}),
                   param_space={"recipe": "space.yaml", "alpha": tune.uniform(0, 1)})
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Build the recipe's data and models on the trial's device, with as many threads as it has CPUs."""
        self._failed: Exception | None = None
        try:
            self._build(config)
        except Exception as error:  # of a constructor that raises Ray keeps the text alone
            if "search" not in config:
                raise
            self._failed = error

    def _build(self, config: dict[str, Any]) -> None:
        context: SearchContext | None = config.get("search")
        resources = self.trial_resources
        device = torch.device("cpu")
        if resources is None or resources.required_resources.get("GPU", 0) > 0:
            device = choose_device()
        if context is not None:
            hold_directory(context.directory)
            torch.set_num_threads(context.threads)
            limit_memory(device, context.memory_bytes)
        elif resources is not None:
            torch.set_num_threads(max(1, int(resources.head_cpus)))
        # Ray moves a worker into the trial's folder; relative paths mean the folder that the search started in
        orig = os.environ.get("TUNE_ORIG_WORKING_DIR", ".")
        with contextlib.chdir(orig), DeviceLock.of(device).shared():  # a start should not fall into another's window
            recipe = recipe_from_config(config)
            if context is not None and recipe.precision == "auto":
                recipe = change_recipe(recipe, {"precision": context.precision})
            self.state: TrainState = start_state(recipe, load_training_data(recipe, device), device)
        self._recovery = None
        if context is not None:
            self.state.step_times = context.step_times.copy()
            self._recovery = Recovery(
                self.state, Path(context.directory) / "stages", context.states_bytes, context.deadline, context.branches
            )
        self._train()

    def _train(self) -> None:
        self._windows: list[tuple[str, float, bool, dict[str, Any]]] = []
        self._reported = 0  # epochs
        self._epochs = train(self.state, self._keep_window)

    def _keep_window(self, signature: str, seconds: float, quiet: bool) -> None:
        plan, done = make_plan(self.state.recipe), len(self.state.history)
        inferring = signature == phase_signature(self.state, "infer")
        factors = state_factors(self.state, "infer") if inferring else state_factors(self.state, *plan[done].work)
        self._windows.append((signature, seconds, quiet, factors))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this worker process, once the memory of the one before is free."""
        before = self.state.recipe
        del self.state, self._epochs, self._recovery
        if recipe_from_config(new_config).data != before.data:
            place_images.cache_clear()
        release_memory(before.compile)
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch and report; a trial whose every epoch was stored reports its end."""
        if self._failed is not None:
            raise self._failed
        next(self._epochs, None)
        if self._recovery is None:
            metrics = measure(self.state)
            return {**metrics.to_dict(), "done": metrics.epoch == metrics.epochs_asked}
        with DeviceLock.of(self.state.device).shared():
            started = time.perf_counter()
            key = self._recovery.save_if_due()
            self.state.checkpoint_seconds += time.perf_counter() - started
        metrics = measure(self.state)
        return {**metrics.to_dict(), "done": metrics.epoch == metrics.epochs_asked, TO_LEDGER: self._to_ledger(key)}

    def _to_ledger(self, key: str | None) -> dict[str, Any]:
        """Return what this epoch adds to the ledger, and before it the epochs of a state that was gone on from."""
        epochs = []
        for count in range(self._reported + 1, len(self.state.history) + 1):
            metrics = measure(self.state, count).to_dict()
            epochs.append({name: metrics[name] for name in EPOCH_METRICS})
        windows, self._windows = self._windows, []
        self._reported = len(self.state.history)
        if key is not None:
            epochs[-1]["state"] = key
        reused = self.state.history[: self.state.epochs_reused]
        assert self._recovery is not None
        return {
            "windows": windows,
            "epochs": epochs,
            "steps": self._count_steps(self.state.history),
            "reused_steps": self._count_steps(reused),
            "infer": phase_signature(self.state, "infer"),
            "after_deadline": self._recovery.after_deadline,
            "warnings": self._recovery.take_warnings(),
        }

    def _count_steps(self, results: Sequence[EpochResult]) -> dict[Phase, Counter[str]]:
        """Return how many steps of each cost signature there were in each phase."""
        plan, signature = make_plan(self.state.recipe), functools.cache(partial(phase_signature, self.state))
        counts: dict[Phase, Counter[str]] = defaultdict(Counter)
        for result in results:
            counts[result.phase][signature(*plan[result.epoch - 1].work)] += result.steps
        return dict(counts)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write weights, optimizer state and history."""
        torch.save(self.state.state_dict(), Path(checkpoint_dir) / CHECKPOINT)

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on from a checkpoint of the same recipe, bit for bit on CPU."""
        self.state.load_state_dict(torch.load(Path(checkpoint) / CHECKPOINT, map_location="cpu", weights_only=True))
        self._train()


@functools.cache
def hold_directory(directory: str) -> int | None:
    """Keep, as long as this process lives, another driver from taking over the run directory."""
    return share_run(Path(directory))


def recipe_from_config(config: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trial's config; see MixTrainable. Raises RequestError."""
    given = config.get("recipe")
    if isinstance(given, Recipe):
        base = given
    elif isinstance(given, str | os.PathLike):
        base = load_space(given).recipe
    elif isinstance(given, Mapping):
        base = parse_recipe(given)
    else:
        raise RequestError(f"config['recipe'] should be a Recipe, a mapping or a search space's file, got {given!r}")
    changes = flatten({key: value for key, value in config.items() if key not in RESERVED})
    return change_recipe(base, changes)


def own_metrics(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the trainable measured, without what Ray adds to each result."""
    names = {field.name for field in fields(Metrics)}
    return {name: value for name, value in result.items() if name in names or name.startswith(TASK_PREFIXES)}
