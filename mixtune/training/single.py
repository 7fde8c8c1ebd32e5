"""Train one recipe in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mixtune.files import make_folder
from mixtune.recipe import Recipe, parse_recipe
from mixtune.space import load_space, override
from mixtune.training.data import load_training_data
from mixtune.training.device import choose_device
from mixtune.training.loop import train
from mixtune.training.metrics import Metrics, measure
from mixtune.training.saved import save_trained
from mixtune.training.state import EpochResult, TrainState, start_state


@dataclass(frozen=True)
class Trained:
    """A trained recipe: its final metrics, an entry for each epoch, and the models."""

    recipe: Recipe
    metrics: Metrics
    history: list[EpochResult]
    state: TrainState


def train_recipe(
    recipe: Recipe | Mapping[str, Any] | str | PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Metrics], None] = lambda _: None,
    out: str | PathLike[str] | None = None,
) -> Trained:
    """Train one recipe on this machine's GPU, or else on its CPU; ``on_epoch`` sees the metrics of each epoch.

    recipe: a Recipe, nested values, or a search space's file, whose base recipe is trained; overrides: dotted
    values put over it; out: a folder for the recipe, the weights and the metrics (see mixtune.training.saved).
    Raises RequestError, DataError, or DivergedError.
    """
    if isinstance(recipe, str | PathLike):
        recipe = load_space(recipe).recipe
    elif not isinstance(recipe, Recipe):
        recipe = parse_recipe(recipe)
    recipe = override(recipe, overrides or {})
    if out is not None:
        make_folder(Path(out))  # a folder that cannot be had should not cost a training
    device = choose_device()
    state = start_state(recipe, load_training_data(recipe, device), device)
    for _ in train(state):
        on_epoch(measure(state))
    trained = Trained(recipe, measure(state), state.history, state)
    if out is not None:
        save_trained(out, state, trained.metrics)
    return trained
