"""Before a search: put options over the space, and look at everything that would otherwise fail in a trial."""

from __future__ import annotations

import math
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice, product
from os import PathLike
from typing import Any, Literal

import pandas as pd
import yaml

from mixtune import plugins
from mixtune.cost.flops import Size, recipe_bill
from mixtune.cost.machine import Machine
from mixtune.cost.model import forecast_most_expensive
from mixtune.errors import RequestError
from mixtune.metrics import counted, describe_channels, significant
from mixtune.run.directory import RunDirectory, RunFacts
from mixtune.run.paired import visible_difference
from mixtune.space.checks import MAX_WAYS
from mixtune.space.points import ways
from mixtune.space.recipe import SAME_TIME, Recipe, with_absolute_paths
from mixtune.space.settings import Search
from mixtune.space.space import SearchSpace, load_space, space_from_dict
from mixtune.training.data import TaskData, TrainingData, load_training_data
from mixtune.training.plan import Phase, cut_warmups, make_plan
from mixtune.training.sources import survey_tasks
from mixtune.tuning.limits import usable_cpus
from mixtune.tuning.loggers import Logger
from mixtune.tuning.slots import check_share, plan_slots, usable_gpus
from mixtune.tuning.suggestions import draw, settle_sampler

OF_SSL = (SAME_TIME, "paper")  # baselines that are sl where the base recipe has no SSL epochs
MAX_VISIBLE = 0.02  # a difference of accuracies that is seen, below which nothing is said
OTHERS_TRIED = 64  # recipes drawn, to find what a value goes with
MAX_CHECKED = 32  # values of a distribution; of longer ones the ends are checked

_VERSIONS = ("mixtune", "torch", "torchvision", "timm", "ray", "optuna", "moocore")

AnySpace = SearchSpace | Mapping[str, Any] | str | PathLike[str]


@dataclass(frozen=True)
class Prepared:
    """A space that can be searched here: its data are decoded, and its distributions' values were looked at."""

    space: SearchSpace
    data: TrainingData
    cpus: int
    gpus: int
    no_gpu_here: bool  # GPUs were requested, and the machine has none
    sampler: str  # which, and why
    left_out: tuple[str, ...] = ()  # baselines that would be sl once more

    def describe(self) -> str:
        """Return the lines that open a search: its data and its budget."""
        space, data = self.space, self.data
        shape = f"{data.image_size}x{data.image_size} {describe_channels(data.channels)}"
        tasks = [
            f"{task.name}: {len(task.train):,} training and {len(task.held_out):,} validation images, {shape}, "
            f"{len(task.classes)} classes"
            for task in data.tasks
        ]
        read = [line for survey in survey_tasks(space.recipe).values() for line in survey.short_lines()]
        passes = [line for task in data.tasks for line in describe_passes(space.recipe, data, task)]
        budget = f"{counted(space.budget, 'trial')} and {counted(len(space.baselines), 'baseline')}, {self.sampler}"
        return "\n".join(
            [
                *(["no GPU on this machine: training on its CPU"] if self.no_gpu_here else []),
                *tasks,
                *read,
                *(f"look: {line}" for line in data.lines),
                *dict.fromkeys(passes),
                *_cut_in_shortest(space),
                *warn_of_few_images(sum(len(task.held_out) for task in data.tasks)),
                budget,
                *(f"the baseline {name} is left out: the base recipe is supervised training" for name in self.left_out),
            ]
        )

    def to_yaml(self) -> str:
        """Return the resolved space in the form of its file, every default spelled out."""
        return yaml.safe_dump(self.space.to_dict(), sort_keys=False)


def describe_passes(recipe: Recipe, data: TrainingData, task: TaskData) -> list[str]:
    """Return one line on how often a recipe passes over a task's SSL images where they are not the labelled ones."""
    if task.ssl.images is task.train.images and len(task.ssl) == len(task.train):
        return []
    epochs = Counter(epoch.phase for epoch in make_plan(recipe))

    def times(phase: Phase, count: int) -> str:
        return significant(count * data.steps_of(phase) * data.batch_size / len(task.ssl), 2)

    ssl, mix = epochs["ssl"], epochs["mix"] if data.mixes_partners else 0
    parts = [f"an SSL epoch passes {times('ssl', 1)} times over SSL's {len(task.ssl):,} images"]
    parts += [f"{ssl} SSL epochs {times('ssl', ssl)} times"] if ssl else []
    parts += [f"{mix} mix epochs draw as many as {times('mix', mix)} passes"] if mix else []
    return ["; ".join(parts)]


def _cut_in_shortest(space: SearchSpace) -> list[str]:
    """Return one line on the warm-ups that a space's shortest budgets cut, or none."""
    searched = {path: space.ends()[path] for path in ("epochs.ssl", "epochs.sl") if path in space.space}
    shortest: dict[str, int] = {path: min(filter(None, budgets), default=0) for path, budgets in searched.items()}
    return [f"{line}{', at the shortest' * bool(shortest)}" for line in cut_warmups(space.recipe_at(shortest))]


def warn_of_few_images(images: int) -> list[str]:
    """Return one line where validation images are too few to tell good recipes apart, else none."""
    least = visible_difference(images)
    if least <= MAX_VISIBLE:
        return []
    return [
        f"{images:,} validation images: with one seed they tell recipes apart that differ by about {100 * least:.0f} "
        "points of accuracy or more (less with a larger data.val_fraction, or with mixtune confirm afterwards)"
    ]


def prepare(
    space: AnySpace,
    *,
    gpus: int | None = None,
    gpus_per_trial: float | Literal["auto"] | None = None,
    cpus_per_trial: float | None = None,
    trials: int | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
) -> Prepared:
    """Resolve a space and check it against its data and this machine; writes nothing but the dataset's cache.

    The options are those of :func:`mixtune.tuning.run.search`. Raises RequestError or DataError, one line.
    """
    resolved = resolve_space(space, overrides or {})
    resolved = resolved.with_search(**_given(trials=trials, seed=seed))
    resolved = resolved.with_resources(**_given(gpus_per_trial=gpus_per_trial, cpus_per_trial=cpus_per_trial))
    resolved = resolved.with_recipe(with_absolute_paths(resolved.recipe))  # a worker has a folder of its own
    left_out = [name for name in resolved.baselines if name in OF_SSL and resolved.recipe.epochs.ssl == 0]
    resolved = replace(resolved, baselines=tuple(name for name in resolved.baselines if name not in left_out))
    _refuse_unimportable(resolved)
    resolved, sampler = settle_sampler(resolved)
    data = load_training_data(resolved.recipe)
    _check_recipes(resolved, data)
    if address is not None and gpus is not None:
        raise RequestError(f"--gpus {gpus}: on a cluster give --gpus-per-trial, and --slots for at most so many trials")
    check_share(resolved.resources.gpus_per_trial)
    cpu_count, gpu_count = usable_cpus(), usable_gpus(gpus)
    if address is None:
        slots = plan_slots(resolved.resources, [(cpu_count, gpu_count)])
        if slots.gpus == 0 and "peak_memory_mb" in {*resolved.objectives, *resolved.constraints}:
            raise RequestError("peak_memory_mb is measured on a GPU, and these trials train on a CPU: drop it")
    wanted = bool(gpus) or resolved.resources.gpus_per_trial not in ("auto", 0)
    no_gpu_here = wanted and gpu_count == 0 and address is None
    return Prepared(resolved, data, cpu_count, gpu_count, no_gpu_here, sampler, tuple(left_out))


def resolve_space(space: AnySpace, overrides: Mapping[str, Any]) -> SearchSpace:
    """Return a space, however it is given, with dotted values put over it. Raises RequestError."""
    if isinstance(space, SearchSpace):
        return space_from_dict(space.to_dict(), overrides)
    return space_from_dict(space, overrides) if isinstance(space, Mapping) else load_space(space, overrides)


def _refuse_unimportable(space: SearchSpace) -> None:
    """Raise RequestError for a plug-in of the running script or notebook: a trial's process has another __main__."""
    data, drawn = space.recipe.data, {path: each.values or () for path, each in space.space.items()}
    named = {
        "data.dataset": [task.dataset for task in data.tasks],
        "data.ssl_dataset": [data.ssl_dataset, *drawn.get("data.ssl_dataset", ())],
        "ssl.objective": [space.recipe.ssl.objective, *drawn.get("ssl.objective", ())],
    }
    for path, names in named.items():
        name = next((name for name in map(str, names) if name.startswith("__main__:")), None)
        if name is not None:
            instead = "; or give its images to mixtune.search as data=" if path == "data.dataset" else ""
            raise RequestError(
                f"{path} {name}: trials run in other processes, which cannot import from this script or notebook: put "
                f"it into a file next to it, such as plugin.py, and name plugin:{name.partition(':')[2]}{instead}"
            )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_recipes(space: SearchSpace, data: TrainingData) -> None:
    """Build, without memory, the models of the base recipe and of each distribution's values; load other data."""
    if not space.space:
        raise RequestError("space is empty: a search needs a distribution, as in space: {alpha: {uniform: [0, 1]}}")
    if space.recipe.protocol == "paper":
        raise RequestError(
            "protocol: paper measures the test accuracy, and a search must not choose by it: drop the line "
            "(mixtune train and mixtune compare take it)"
        )
    if space.recipe.data.val_fraction == 0:
        raise RequestError(
            "data.val_fraction is 0: a search needs validation images, or it would search on the test set"
        )
    size = Size.of(data)
    recipe_bill(space.recipe, size)
    for path, distribution in space.space.items():
        is_short = distribution.size is not None and distribution.size <= MAX_CHECKED
        values = distribution.grid() or () if is_short else distribution.extremes()
        for others, value in product(islice(ways(space, path), MAX_WAYS), values):
            recipe = space.recipe_at({**others, path: value})
            try:
                if path.startswith("data.") or path == "optim.batch_size":
                    load_training_data(recipe)
                if not _can_be_built(recipe, size) and not _goes_with_others(space, path, value, size):
                    recipe_bill(recipe, size)  # says why not
            except RequestError as error:
                raise RequestError(f"space.{path} at {value!r}: {error}") from error


def _can_be_built(recipe: Recipe, size: Size) -> bool:
    try:
        recipe_bill(recipe, size)
    except RequestError:
        return False
    return True


def _goes_with_others(space: SearchSpace, path: str, value: Any, size: Size) -> bool:
    """Return whether a value that the base recipe cannot have goes with one of some other parameters at least."""
    drawn = draw(space, 0, OTHERS_TRIED)
    return any(_can_be_built(space.recipe_at({**params, path: value}), size) for params in drawn)


def facts_of(prepared: Prepared, machine: Machine) -> RunFacts:
    """Return what a new run's space.yaml says of the search."""
    tasks: dict[str, dict[str, Any]] = {
        task.name: {
            "classes": len(task.classes),
            "train_images": len(task.train),
            "val_images": len(task.held_out),
        }
        for task in prepared.data.tasks
    }
    for name, survey in survey_tasks(prepared.space.recipe).items():
        tasks[name] |= {"from": dict(survey.dataset.account.origins), "looks": survey.looks()}
    tasks[prepared.data.tasks[0].name]["looks"] += prepared.data.lines
    versions = {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}}
    most_expensive = forecast_most_expensive(prepared.space, prepared.data, machine)
    return RunFacts(tasks, versions, machine.to_dict(), most_expensive)


def known_machine(run: RunDirectory) -> Machine:
    """Return the machine that a run began on. Raises RequestError."""
    try:
        return Machine(**run.facts.machine)
    except TypeError as error:
        raise RequestError(f"{run.space_file}: run.machine is not what a search wrote there: {error}") from error


def find_loggers(names: Sequence[str], run: RunDirectory) -> list[Logger]:
    """Return the loggers that ``--log-to`` names. Raises RequestError for an unknown one, or a missing package."""
    return [plugins.find("tuning.loggers", name, "logger").build(run.logs) for name in dict.fromkeys(names)]


def with_known_plugins(space: SearchSpace) -> tuple[SearchSpace, list[str]]:
    """Return a run's space with the default in place of a sampler or scheduler that is not there, a line for each."""
    lines = []
    for kind in ("sampler", "scheduler"):
        name, default = getattr(space.search, kind), getattr(Search(), kind)
        try:
            plugins.check_name(f"tuning.{kind}s", name, kind)
        except RequestError as error:
            lines.append(f"search.{kind}: {error}: this run continues with {default}")
            space = space.with_search(**{kind: default})
    return space, lines


def parse_duration(given: float | str | None, name: str = "time budget") -> float | None:
    """Return the seconds of "90s", "30m", "2h", "1d", "1h 30m" or "00:30:00"; a bare number is seconds.

    Whatever pandas reads as a duration is one. Raises RequestError.
    """
    if given is None:
        return None
    text = str(given).strip()
    is_number = re.fullmatch(r"\d+(\.\d+)?", text)
    days = re.sub(r"(?<=\d) *d(?![a-z])", " days ", text.lower())  # pandas would have "D" alone
    try:
        seconds = float(text) if is_number else pd.Timedelta(days).total_seconds()
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise RequestError(f"{name} {text}: should be such as 90s, 30m, 2h, 1h 30m or 00:30:00")
    if seconds <= 0:
        raise RequestError(f"{name} {text}: should be above 0")
    return seconds
