"""MixTrainable: one recipe as a Ray Tune class trainable, for our search and for anyone's own Tuner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ray import tune

from mixtune.datasets import Dataset, Reading, hold_dataset
from mixtune.errors import RequestError
from mixtune.meter.lock import DeviceLock
from mixtune.space.recipe import Recipe
from mixtune.stages.checkpoint import Origin, read_checkpoint, restore, write_checkpoint
from mixtune.training.data import load_training_data, place_images
from mixtune.training.device import choose_device, release_memory
from mixtune.training.loop import train
from mixtune.training.measure import measure
from mixtune.training.sources import reading_of
from mixtune.training.state import TrainState, start_state
from mixtune.tuning.own import STEPS, describe_steps
from mixtune.tuning.states import NodePlace
from mixtune.tuning.trial import hold_directory, in_original_folder, recipe_from_config, train_trial

REPORT = "report"  # in a search's results: what its driver makes metrics of


class MixTrainable(tune.Trainable):  # type: ignore[misc]
    """Trains one epoch a step; each result has every metric, ``done`` and ``whole``.

    The config is ``{"recipe": a Recipe, nested values or a search space's file, "alpha": 0.3, "epochs.sl": 40}``: all
    keys but ``recipe`` are dotted recipe paths that override it, but for ``ties``, fields that follow others
    (``{"epochs.sl": {"same_as": "epochs.ssl"}}``), and ``user``, which may hold anything of your own;
    :func:`mixtune.param_space` makes one of a file. ``data`` takes the place of the recipe's dataset, by
    ``tune.with_parameters(MixTrainable, data=(images, labels))``; it may be all that :func:`mixtune.search` takes.

    In the SSL phase, where no classifier learns, ``val_accuracy`` is NaN. ``whole`` is whether every epoch of the
    recipe is trained; Ray sets ``done`` for a trial that was ended early, too. ``train_latency_s`` is revised as more
    step times are measured and exact at the end (:func:`mixtune.latencies` has one for equal recipes); ``training_s``,
    the sum of the epochs' seconds as they were known when each ended, never decreases: take that as a scheduler's
    ``time_attr``. A checkpoint continues under the same recipe or one with other rates, weight decay, alpha, lambda,
    rho or budgets (PBT, PB2), and ``recipes`` counts those that trained; ``device`` names every device that did.

    Raises RequestError for a config that is not a recipe or not the checkpoint's, DivergedError for a NaN or infinite
    loss. ::

        tune.Tuner(tune.with_resources(MixTrainable, {"gpu": 0.25}),
                   param_space=mixtune.param_space("space.yaml", alpha=tune.uniform(0, 1)))
    """

    _held: dict[tuple[int | None, Reading], Dataset] | None = None  # of a process, by form

    def setup(self, config: dict[str, Any], data: Any = None) -> None:
        """Build the recipe's data and models on the trial's device, with as many threads as it has CPUs."""
        resources = self.trial_resources
        has_gpu = resources is None or resources.required_resources.get("GPU", 0) > 0
        device = choose_device() if has_gpu else torch.device("cpu")
        self._in_search, self._given = "search" in config, config
        if self._in_search:
            hold_directory(config["search"].directory)
            self._reports = train_trial(config, device, NodePlace(config["search"]))
            return
        if resources is not None:
            torch.set_num_threads(max(1, int(resources.head_cpus)))
        with in_original_folder(), DeviceLock.of(device).shared():
            recipe = recipe_from_config(config)
            given = None if data is None else self._hold(data, recipe)
            self.state: TrainState = start_state(recipe, load_training_data(recipe, device, given), device)
        self._origin = Origin()
        self._epochs = train(self.state)

    def _hold(self, data: Any, recipe: Recipe) -> Dataset:
        self._held, form = self._held or {}, (recipe.data.image_size, reading_of(recipe))
        if form not in self._held:
            self._held[form] = hold_dataset(data, *form)
        return self._held[form]

    def step(self) -> dict[str, Any]:
        """Train one epoch and report it."""
        if self._in_search:
            report = next(self._reports)
            return {**report.metrics, "done": report.is_whole, REPORT: report}  # Ray's schedulers look at metrics
        next(self._epochs, None)
        self._origin.note(self.state)
        metrics = measure(self.state)
        whole = metrics.epoch == metrics.epochs_asked
        return {
            **metrics,
            "device": self._origin.device,
            "training_s": self._origin.training_s,
            "recipes": len(self._origin.recipes),
            "whole": whole,
            "done": whole,
            STEPS: describe_steps(self.state),
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this worker process, once the memory of the one before is free."""
        if self._in_search:
            self._reports.close()
            del self._reports
        else:
            del self.state, self._epochs
        before, after = known_recipe(self._given), known_recipe(new_config)
        if before is None or after is None or before.data != after.data:
            place_images.cache_clear()
        release_memory(before is not None and before.compile)
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write weights, optimizer state, history and origin; a search's trials store theirs in its run directory."""
        if not self._in_search:
            write_checkpoint(checkpoint_dir, self.state, self._origin)

    def load_checkpoint(self, checkpoint: str) -> None:
        """Continue from a checkpoint; of the same recipe bit for bit on a CPU. Raises RequestError, DataError."""
        self._origin = restore(self.state, read_checkpoint(checkpoint))
        self._epochs = train(self.state)


def known_recipe(config: Mapping[str, Any]) -> Recipe | None:
    """Return a config's recipe, None where it is none: its trial will say why."""
    try:
        return recipe_from_config(config)
    except RequestError:
        return None
