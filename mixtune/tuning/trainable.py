"""MixTrainable: one recipe as a Ray Tune class trainable, for our search and for anyone's own Tuner."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune

from mixtune.errors import RequestError
from mixtune.recipe import Recipe, change_recipe, flatten, parse_recipe
from mixtune.space import load_space
from mixtune.training.data import load_training_data
from mixtune.training.device import choose_device, release_memory
from mixtune.training.loop import train
from mixtune.training.metrics import measure
from mixtune.training.state import TrainState, start_state

RESERVED = ("recipe", "trial")  # every other key of the config is a dotted recipe path
CHECKPOINT = "state.pt"


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
        resources = self.trial_resources
        has_gpu = True
        if resources is not None:
            torch.set_num_threads(max(1, int(resources.head_cpus)))
            has_gpu = resources.required_resources.get("GPU", 0) > 0
        # Ray moves a worker into the trial's folder; relative paths mean the folder that the search started in
        with contextlib.chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", ".")):
            recipe = recipe_from_config(config)
            device = choose_device() if has_gpu else torch.device("cpu")
            self.state: TrainState = start_state(recipe, load_training_data(recipe, device), device)
        self._epochs = train(self.state)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this worker process, once the memory of the one before is free."""
        compiled = self.state.recipe.compile
        del self.state, self._epochs
        release_memory(compiled)
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch and report."""
        next(self._epochs)
        metrics = measure(self.state)
        return {**metrics.to_dict(), "done": metrics.epochs_trained == metrics.epochs_asked}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write weights, optimizer state and history."""
        torch.save(self.state.state_dict(), Path(checkpoint_dir) / CHECKPOINT)

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on from a checkpoint of the same recipe, bit for bit on CPU."""
        self.state.load_state_dict(torch.load(Path(checkpoint) / CHECKPOINT, map_location="cpu", weights_only=True))
        self._epochs = train(self.state)


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
