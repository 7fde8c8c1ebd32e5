"""MixTrainable: one recipe as a Ray Tune class trainable, for our search and for anyone's own Tuner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune

from mixtune.errors import RequestError
from mixtune.meter.lock import DeviceLock
from mixtune.space.recipe import Recipe
from mixtune.training.data import load_training_data, place_images
from mixtune.training.device import choose_device, release_memory
from mixtune.training.loop import train
from mixtune.training.measure import measure
from mixtune.training.state import TrainState, start_state
from mixtune.tuning.trial import hold_directory, in_original_folder, recipe_from_config, train_trial

CHECKPOINT = "state.pt"
REPORT = "report"  # in a search's results: what its driver makes metrics of


class MixTrainable(tune.Trainable):  # type: ignore[misc]
    """Trains one epoch a step; each result has every metric and ``done``.

    The config is ``{"recipe": a Recipe, nested values or a search space's file, "alpha": 0.3, "epochs.sl": 40}``:
    all keys but ``recipe`` are dotted recipe paths that override it. In the SSL phase, where no classifier
    learns, ``val_accuracy`` is NaN. ``train_latency_s`` is revised as more step times are measured and exact at the
    end; ``training_s``, the sum of the epochs' seconds as they were known when each ended, never decreases: take that
    as a scheduler's ``time_attr``. Raises RequestError for a config that is not a recipe, DivergedError for a NaN or
    infinite loss. ::

        tune.Tuner(tune.with_resources(MixTrainable, {"gpu": 0.25}),
                   param_space={"recipe": "space.yaml", "alpha": tune.uniform(0, 1)})
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Build the recipe's data and models on the trial's device, with as many threads as it has CPUs."""
        resources = self.trial_resources
        has_gpu = resources is None or resources.required_resources.get("GPU", 0) > 0
        device = choose_device() if has_gpu else torch.device("cpu")
        self._in_search, self._given = "search" in config, config
        if self._in_search:
            hold_directory(config["search"].directory)
            self._reports = train_trial(config, device)
            return
        if resources is not None:
            torch.set_num_threads(max(1, int(resources.head_cpus)))
        with in_original_folder(), DeviceLock.of(device).shared():
            recipe = recipe_from_config(config)
            self.state: TrainState = start_state(recipe, load_training_data(recipe, device), device)
        self._training_s = 0.0
        self._epochs = train(self.state)

    def step(self) -> dict[str, Any]:
        """Train one epoch and report it."""
        if self._in_search:
            report = next(self._reports)
            return {"done": report.is_whole, REPORT: report}
        before = len(self.state.history)
        next(self._epochs, None)
        metrics = measure(self.state)
        self._training_s += sum(self.state.bill.price(self.state.step_times, start=before, end=metrics.epoch).values())
        return {**metrics, "training_s": self._training_s, "done": metrics.epoch == metrics.epochs_asked}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this worker process, once the memory of the one before is free."""
        if self._in_search:
            self._reports.close()
            del self._reports
        else:
            del self.state, self._epochs
        before, after = recipe_of(self._given), recipe_of(new_config)
        if before is None or after is None or before.data != after.data:
            place_images.cache_clear()
        release_memory(before is not None and before.compile)
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write weights, optimizer state and history; a search's trials store theirs in its run directory."""
        if not self._in_search:
            saved = {**self.state.state_dict(), "training_s": self._training_s}
            torch.save(saved, Path(checkpoint_dir) / CHECKPOINT)

    def load_checkpoint(self, checkpoint: str) -> None:
        """Continue from a checkpoint of the same recipe, bit for bit on CPU."""
        saved = torch.load(Path(checkpoint) / CHECKPOINT, map_location="cpu", weights_only=True)
        self._training_s = float(saved.pop("training_s", 0.0))
        self.state.load_state_dict(saved)
        self._epochs = train(self.state)


def recipe_of(config: Mapping[str, Any]) -> Recipe | None:
    """Return a config's recipe, None where it is none: its trial will say why."""
    try:
        return recipe_from_config(config)
    except RequestError:
        return None
