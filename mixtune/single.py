"""Train one recipe in this process, without Ray, or a planned list of them that share stages and step times."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from mixtune.datasets import hold_dataset, to_parts, write_parts
from mixtune.errors import RequestError, TrainingError, one_line
from mixtune.meter.times import StepTimes
from mixtune.metrics import DISTURBED, duration, find_metric, is_disturbed
from mixtune.run.directory import RunDirectory
from mixtune.run.lock import hold_folder
from mixtune.space.recipe import Recipe, parse_recipe
from mixtune.space.space import load_recipe, override, refuse_other_images, space_on_arrays
from mixtune.stages.keys import stage_keys
from mixtune.stages.resume import train_shared
from mixtune.training.data import load_training_data
from mixtune.training.device import choose_device, release_memory
from mixtune.training.loop import train
from mixtune.training.measure import Metrics, measure
from mixtune.training.saved import DATA, is_saved, save_trained, saved_metrics
from mixtune.training.sources import reading_of
from mixtune.training.state import EpochResult, TrainState, start_state
from mixtune.training.threads import fastest_threads, known_threads, set_threads

T = TypeVar("T")


class Shared(NamedTuple):
    """What training runs that belong together have in common; see train_shared."""

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
    on_epoch: Callable[[Metrics], None] | None = None,
    out: str | PathLike[str] | None = None,
    shared: Shared | None = None,
    progress: bool | None = None,
    threads: int | None = None,
    data: Any = None,
) -> Trained:
    """Train one recipe on this machine's GPU, or else on its CPU; ``on_epoch`` sees the metrics of each epoch.

    recipe: a Recipe, nested values, or a search space's file, whose base recipe is trained; overrides: dotted
    values put over it; out: a folder for the recipe, the weights and the metrics (see mixtune.training.saved).
    One that holds the same recipe already is trained again. shared: stages to continue from, for training runs that
    belong together; epochs of a stored beginning are not reported to ``on_epoch``. progress: whether each epoch is a
    line on stderr; by default where that is a terminal or a notebook's and neither on_epoch nor shared is given.
    threads: on a CPU, by default those of the training run that ``out`` holds, since bits depend on them, else as many
    as are fastest here and now (see mixtune.training.threads); with ``shared``, this process's. data: the images, in
    place of those that the recipe names, as for :func:`mixtune.search`; with ``out`` they are kept in ``data/`` there.
    Raises RequestError,
    DataError, or TrainingError: DivergedError where a loss is NaN or infinite.
    """
    if data is not None:
        refuse_other_images(overrides or {})
        values = recipe.to_dict() if isinstance(recipe, Recipe) else recipe
        space = values if isinstance(values, str | PathLike) else {"recipe": values}
        recipe = space_on_arrays(space, None if out is None else os.path.abspath(Path(out) / DATA), {}).recipe
    elif isinstance(recipe, str | PathLike):
        recipe = load_recipe(recipe, overrides or {})
    elif not isinstance(recipe, Recipe):
        recipe = parse_recipe(recipe)
    recipe = override(recipe, overrides or {})
    if threads is not None and threads < 1:
        raise RequestError(f"threads: should be at least 1, got {threads}")
    if progress is None:
        progress = on_epoch is None and shared is None and _is_watched()
    device, given = choose_device(), None
    with ExitStack() as held:
        before = None if out is None else held.enter_context(_hold(Path(out), recipe))
        if data is not None and out is None:
            given = hold_dataset(data, recipe.data.image_size, reading_of(recipe))
        elif data is not None and out is not None:
            write_parts(to_parts(data), Path(out) / DATA)
        images = load_training_data(recipe, device, given)
        if threads is None and shared is None and device.type == "cpu":
            threads = known_threads(before) or fastest_threads(recipe, images)
        held.enter_context(set_threads(threads))
        try:
            state = start_state(recipe, images, device)
            for _ in train(state) if shared is None else train_shared(state, *shared):
                reached = measure(state)
                if on_epoch is not None:
                    on_epoch(reached)
                if progress:
                    print(epoch_line(reached), file=sys.stderr, flush=True)
        except torch.OutOfMemoryError as error:
            raise TrainingError(f"the GPU's memory is full: lower optim.batch_size ({one_line(error)})") from error
        trained = Trained(recipe, measure(state), state.history, state)
        if out is not None:
            save_trained(out, state, trained.metrics)
    return trained


@dataclass(frozen=True)
class Planned:
    """A training run to come: its name, its recipe, the forecast seconds of its steps; split: whose images it takes."""

    name: str
    recipe: Recipe
    forecast_s: float
    split: Recipe


def train_each(
    planned: Sequence[Planned],
    train_one: Callable[[Planned, Shared], T],
    held: Callable[[Planned], T | None],
    describe: Callable[[T], str],
    stages: Path,
    device: torch.device,
    on_line: Callable[[str], None],
    step_times: Mapping[int, StepTimes] | None = None,
) -> Iterator[tuple[Planned, T]]:
    """Train recipes in turn but for those that are held already; yield each with what came of it.

    Recipes of one seed share stages, in a folder, and step times, of which some may be known by seed. A line for each
    says what it reached, and how much is left; the caller has kept it by then.
    """
    times = defaultdict(StepTimes, step_times or {})

    @functools.cache
    def keys(seed: int) -> list[tuple[str, ...]]:
        alike = [each for each in planned if each.recipe.seed == seed]
        return [stage_keys(each.recipe, load_training_data(each.split, device), device) for each in alike]

    took = forecast = 0.0
    for number, each in enumerate(planned, start=1):
        found, started = held(each), time.perf_counter()
        is_held = found is not None
        if found is None:
            seed = each.recipe.seed
            found = train_one(each, Shared(stages, times[seed], keys(seed)))
            release_memory(each.recipe.compile)
            took += time.perf_counter() - started
            forecast += each.forecast_s
        yield each, found
        to_come = sum(later.forecast_s for later in planned[number:] if held(later) is None)
        left = f"; about {duration((took / forecast if forecast else 1.0) * to_come)} left" if to_come else ""
        said = f"{each.name}, seed {each.recipe.seed}: {describe(found)}{' (already trained)' * is_held}"
        on_line(f"[{number}/{len(planned)}] {said}{left}")


def _is_watched() -> bool:
    """Return whether stderr is a terminal, or a notebook's."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")


@contextmanager
def _hold(folder: Path, recipe: Recipe) -> Iterator[dict[str, Any] | None]:
    """Refuse, before it costs a training run, a folder that cannot be had or holds something else, and hold it.

    Yields the metrics of the recipe's training that it holds, None where it does not.
    """
    if RunDirectory(folder).holds_run:
        raise RequestError(f"{folder} holds a search: choose another folder")
    known = saved_metrics(folder, recipe)
    with hold_folder(folder, "train", is_saved):
        yield known


def epoch_line(metrics: Metrics) -> str:
    """Return one line for the latest epoch."""
    figures = {"ssl loss": metrics.ssl_loss, "sl loss": metrics.sl_loss}
    losses = [f"{name} {value:.4f}" for name, value in figures.items() if not math.isnan(value)]
    accuracy = [] if math.isnan(metrics.accuracy) else [_score(f"{metrics.split}_accuracy", metrics.accuracy)]
    seconds = f"{_mark(metrics)}{metrics.train_latency_s:.1f} s"
    counted = f"epoch {metrics.epoch}/{metrics.epochs_asked}"
    return "  ".join([counted, f"{metrics.phase:<3}", *losses, *accuracy, seconds])


def final_line(metrics: Metrics) -> str:
    """Return one line for the whole training."""
    phases = {"ssl": metrics.latency_ssl_s, "mix": metrics.latency_mix_s, "sl": metrics.latency_sl_s}
    parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items() if seconds)
    tasks = ", ".join(f"{task} {100 * accuracy:.1f} %" for task, accuracy in metrics.task_accuracies.items())
    accuracy = _score(f"{metrics.split}_accuracy", metrics.accuracy, metrics.accuracy_se)
    compiled = f" after {metrics.compile_s:.1f} s of compilation" if metrics.compile_s else ""
    judged = ("ssl_knn_accuracy", "ssl_probe_accuracy", "knn_accuracy", "probe_accuracy")
    shown = [f"; {_score(name, metrics[name], metrics[f'{name}_se'])}" for name in judged if name in metrics]
    return (
        f"{metrics.method}: {accuracy} {f'({tasks}) ' if tasks else ''}in "
        f"{_mark(metrics)}{metrics.train_latency_s:.1f} s of training "
        f"({parts}){compiled}{''.join(shown)}; peak learning rates: ssl {metrics.lr_ssl:.2g}, sl {metrics.lr_sl:.2g}; "
        f"{metrics.precision}, {metrics.threads} {'thread' if metrics.threads == 1 else 'threads'}"
    )


def _score(name: str, value: float, error: float | None = None) -> str:
    """Return a score by its title: "validation accuracy 95.3 ± 1.8 %"."""
    return f"{find_metric(name).title} {find_metric(name).text(value, error)}"


def _mark(metrics: Metrics) -> str:
    return DISTURBED * is_disturbed(metrics.disturbed)
