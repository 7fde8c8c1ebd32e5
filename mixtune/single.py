"""Train one recipe in this process, without Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mixtune.errors import RequestError, TrainingError, one_line
from mixtune.files import make_folder
from mixtune.meter.times import StepTimes
from mixtune.space.recipe import Recipe, parse_recipe
from mixtune.space.space import load_space, override
from mixtune.stages.resume import train_shared
from mixtune.training.data import load_training_data
from mixtune.training.device import choose_device
from mixtune.training.loop import train
from mixtune.training.measure import Metrics, measure
from mixtune.training.saved import save_trained, saved_metrics
from mixtune.training.state import EpochResult, TrainState, start_state


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


def epoch_line(metrics: Metrics) -> str:
    """Return one line for the latest epoch."""
    figures = {"ssl loss": metrics.ssl_loss, "sl loss": metrics.sl_loss}
    losses = [f"{name} {value:.4f}" for name, value in figures.items() if not math.isnan(value)]
    accuracy = [] if math.isnan(metrics.accuracy) else [f"{metrics.split}_accuracy {metrics.accuracy:.3f}"]
    seconds = f"{metrics.train_latency_s:.1f} s"
    counted = f"epoch {metrics.epoch}/{metrics.epochs_asked}"
    return "  ".join([counted, f"{metrics.phase:<3}", *losses, *accuracy, seconds])


def final_line(metrics: Metrics) -> str:
    """Return one line for the whole training."""
    phases = {"ssl": metrics.latency_ssl_s, "mix": metrics.latency_mix_s, "sl": metrics.latency_sl_s}
    parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items() if seconds)
    tasks = ", ".join(f"{task} {accuracy:.3f}" for task, accuracy in metrics.task_accuracies.items())
    accuracy = f"{metrics.split}_accuracy {metrics.accuracy:.3f} ± {metrics.accuracy_se:.3f}"
    compiled = f" after {metrics.compile_s:.1f} s of compilation" if metrics.compile_s else ""
    return (
        f"{metrics.method}: {accuracy} {f'({tasks}) ' if tasks else ''}in {metrics.train_latency_s:.1f} s of training "
        f"({parts}){compiled}; peak learning rates: ssl {metrics.lr_ssl:.2g}, sl {metrics.lr_sl:.2g}; "
        f"{metrics.precision}"
    )
