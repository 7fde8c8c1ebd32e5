"""Train one recipe in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mixtune.errors import RequestError, TrainingError, one_line
from mixtune.files import make_folder
from mixtune.recipe import Recipe, parse_recipe
from mixtune.space import load_space, override
from mixtune.training.data import load_training_data
from mixtune.training.device import choose_device
from mixtune.training.loop import train
from mixtune.training.metrics import Metrics, measure
from mixtune.training.recovery import train_shared
from mixtune.training.saved import save_trained, saved_metrics
from mixtune.training.state import EpochResult, TrainState, start_state
from mixtune.training.step_times import StepTimes


class Shared(NamedTuple):
    """What trainings that belong together have in common; see train_shared."""

    folder: Path
    step_times: StepTimes
    others: Sequence[Sequence[str]] = ()


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
    shared: Shared | None = None,
) -> Trained:
    """Train one recipe on this machine's GPU, or else on its CPU; ``on_epoch`` sees the metrics of each epoch.

    recipe: a Recipe, nested values, or a search space's file, whose base recipe is trained; overrides: dotted
    values put over it; out: a folder for the recipe, the weights and the metrics (see mixtune.training.saved).
    One that holds the same recipe already is trained anew. shared: stages to go on from, for trainings that belong
    together; epochs of a stored beginning are not told to ``on_epoch``.
    Raises RequestError, DataError, or TrainingError: DivergedError where a loss is NaN or infinite.
    """
    if isinstance(recipe, str | PathLike):
        recipe = load_space(recipe).recipe
    elif not isinstance(recipe, Recipe):
        recipe = parse_recipe(recipe)
    recipe = override(recipe, overrides or {})
    if out is not None:
        _claim(Path(out), recipe)
    device = choose_device()
    try:
        state = start_state(recipe, load_training_data(recipe, device), device)
        for _ in train(state) if shared is None else train_shared(state, *shared):
            on_epoch(measure(state))
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full: lower optim.batch_size ({one_line(error)})") from error
    trained = Trained(recipe, measure(state), state.history, state)
    if out is not None:
        save_trained(out, state, trained.metrics)
    return trained


def _claim(folder: Path, recipe: Recipe) -> None:
    """Refuse, before it costs a training, a folder that cannot be had or holds something else."""
    if (folder / "space.yaml").exists():
        raise RequestError(f"{folder} holds a search: choose another folder")
    saved_metrics(folder, recipe)  # raises where it holds another recipe's training
    make_folder(folder)
