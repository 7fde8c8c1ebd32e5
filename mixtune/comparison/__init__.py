"""`mixtune compare`: SL, and SSL+SL and MixTraining at each encoding, trained side by side over seeds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from rich.table import Table

from mixtune.comparison.table import (
    Run,
    comparison_csv,
    comparison_markdown,
    comparison_notes,
    comparison_table,
    summarise,
)
from mixtune.cost.flops import Size, measure_speeds, recipe_bill
from mixtune.errors import RequestError, show
from mixtune.files import refuse_link, write_whole
from mixtune.meter.times import StepTimes
from mixtune.metrics import DISTURBED, duration, is_disturbed, metric_value
from mixtune.report.paper import PROTOCOL, PROTOCOL_OF_MAE, NoPaperRowsError, paper_rows_of, paper_values
from mixtune.run.directory import RunDirectory
from mixtune.run.lock import hold_folder
from mixtune.single import Planned, Shared, train_each, train_recipe
from mixtune.space.effective import effective
from mixtune.space.recipe import Recipe, baseline_values, change_recipe, flatten
from mixtune.space.space import load_recipe, override
from mixtune.stages.clean import clean_states
from mixtune.training.data import load_training_data
from mixtune.training.device import choose_device, describe_device
from mixtune.training.loop import DivergedError
from mixtune.training.plan import PHASES, cut_warmups, method_of
from mixtune.training.saved import is_saved, save_diverged, saved_metrics
from mixtune.training.threads import fastest_threads, known_threads, set_threads


@dataclass(frozen=True)
class Comparison:
    """What a comparison measured: a :class:`Run` for each training run, and the paper's rows where they were requested.

    split: what accuracies are of, ``val`` or ``test``; remarks: what the recipe itself has to be noted, a line each.
    """

    runs: tuple[Run, ...]
    split: str
    paper: pd.DataFrame | None = None
    remarks: tuple[str, ...] = ()

    @property
    def frame(self) -> pd.DataFrame:
        """A row a method and encoding: means, standard deviations, speed-ups; see comparison.table.summarise."""
        return summarise(self.runs)

    def table(self, width: int) -> Table:
        """Return the table for a terminal of ``width`` characters."""
        return comparison_table(self.frame, self.paper, self.split, width)

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        notes = "".join(f"- {note}\n" for note in self.notes())
        return comparison_markdown(self.frame, self.paper, self.split) + (f"\n{notes}" if notes else "")

    def to_csv(self) -> str:
        """Return the rows in full precision."""
        return comparison_csv(self.frame, self.paper)

    def notes(self) -> list[str]:
        """Return what a reader needs alongside the numbers, a line each."""
        return [*comparison_notes(self.frame, self.paper, self.split, self.runs), *self.remarks]


def compare(
    space: Recipe | str | PathLike[str],
    *,
    seeds: int = 4,
    paper: bool = False,
    overrides: Mapping[str, Any] | None = None,
    out: str | PathLike[str] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
    threads: int | None = None,
) -> Comparison:
    """Train SL, and SSL+SL and MixTraining with each encoding, on ``seeds`` seeds each; needs no Ray.

    space: a Recipe or a search space's file, whose base recipe is compared; seeds: counted from the recipe's own.
    paper: follow the paper's protocol (no validation split, test accuracy, the MAE loss on unmasked patches as in its
    Appendix A.2, warm-ups that no budget cuts), where ``overrides`` do not say otherwise, and put its figures alongside
    ours, with a line on every field that differs.
    out: a folder for the trained recipes (see mixtune.training.saved) and the tables, ``compare.md`` and
    ``compare.csv``; training runs that it holds already are not repeated, so an interrupted comparison continues.
    Of one seed, epochs that recipes have in common are trained once, and step times are measured once.
    threads: of all training runs on a CPU, by default those of the ones that ``out`` holds, else as many as are fastest
    here and now (see mixtune.training.threads). on_line: receives progress, line by line. The seeds of all methods are
    trained in turn, so that a machine that slows down slows all of them. Raises RequestError or DataError.
    """
    recipe = space if isinstance(space, Recipe) else load_recipe(space, overrides or {})
    if paper:
        objective = (overrides or {}).get("ssl.objective", recipe.ssl.objective)
        recipe = change_recipe(recipe, PROTOCOL if objective != "mae" else {**PROTOCOL, **PROTOCOL_OF_MAE})
    recipe = override(recipe, overrides or {})
    for name, given in (("seeds", seeds), ("threads", threads)):
        if given is not None and given < 1:
            raise RequestError(f"{name}: should be at least 1, got {given}")
    if recipe.protocol == "search" and recipe.data.val_fraction == 0:
        raise RequestError("data.val_fraction is 0: there is nothing to measure on (protocol: paper takes test images)")
    if method_of(recipe) != "mixtraining":
        raise RequestError(
            f"epochs.ssl {recipe.epochs.ssl}, epochs.sl {recipe.epochs.sl} and rho {recipe.rho:g} mix no epoch, so "
            "there is no MixTraining to compare: raise them"
        )
    if out is not None and RunDirectory(Path(out)).holds_run:
        raise RequestError(f"{out} holds a search: choose another folder")
    with ExitStack() as held:
        if out is not None:
            held.enter_context(hold_folder(Path(out), "compare", _is_ours))
        return _compare(recipe, seeds, paper, None if out is None else Path(out), on_line, threads)


def _is_ours(folder: Path) -> bool:
    """Return whether an older version wrote a folder."""
    return any(map(is_saved, folder.glob("*-seed*")))


def _compare(
    recipe: Recipe, seeds: int, paper: bool, out: Path | None, on_line: Callable[[str], None], threads: int | None
) -> Comparison:
    comparison = Comparison((), split="test" if recipe.protocol == "paper" else "val", remarks=_remarks(recipe))
    if paper:
        comparison = _with_paper(comparison, recipe)
    if out is not None:
        for path in (
            out / "stages",
            *(out / f"{name}-seed{each.seed}" for name, each in _named_recipes(recipe, seeds)),
        ):
            refuse_link(path)
    threads = threads or _find_threads(recipe, seeds, out)
    with tempfile.TemporaryDirectory(prefix="mixtune-compare-") as scratch, set_threads(threads):
        stages = Path(scratch if out is None else out) / "stages"
        for run in _train_all(recipe, seeds, out, stages, on_line):
            comparison = replace(comparison, runs=(*comparison.runs, run))
            if out is not None:
                write_whole(out / "compare.md", comparison.to_markdown())
                write_whole(out / "compare.csv", comparison.to_csv())
        clean_states(stages, (), None)  # kept by an interrupted comparison alone, which continues from them
        with suppress(OSError):  # others' files
            stages.rmdir()
    return comparison


def compared_recipes(recipe: Recipe, seed: int = 0) -> Iterator[tuple[str, Recipe]]:
    """Yield (name, recipe) of SL, and of SSL+SL and MixTraining at each encoding that the objective has."""
    seeded = change_recipe(recipe, {"seed": recipe.seed + seed})
    yield "sl", change_recipe(seeded, baseline_values("sl"))
    for encode in _encodings(recipe):
        chosen = {} if encode is None else {"ssl.encode": encode}
        suffix = "" if encode is None else f"-{encode}"
        yield f"ssl_sl{suffix}", change_recipe(seeded, {**chosen, **baseline_values("ssl_sl")})
        yield f"mixtraining{suffix}", change_recipe(seeded, chosen)


def _encodings(recipe: Recipe) -> tuple[str | None, ...]:
    """Return the objective's choices of ``ssl.encode``, or None alone where it does not have these two."""
    field = type(recipe.ssl).model_fields.get("encode")
    choices = () if field is None else get_args(field.annotation)
    return choices if set(choices) == {"visible", "full"} else (None,)


def _find_threads(recipe: Recipe, seeds: int, out: Path | None) -> int | None:
    """Return the threads of the training runs that a folder holds, else the fastest here; None on a GPU."""
    device = choose_device()
    if device.type == "cuda":
        return None
    if out is not None:
        for name, each in _named_recipes(recipe, seeds):
            if threads := known_threads(saved_metrics(out / f"{name}-seed{each.seed}", each)):
                return threads
    return fastest_threads(recipe, load_training_data(recipe, device))


def _named_recipes(recipe: Recipe, seeds: int) -> list[tuple[str, Recipe]]:
    return [each for seed in range(seeds) for each in compared_recipes(recipe, seed)]


def _train_all(
    recipe: Recipe, seeds: int, out: Path | None, stages: Path, on_line: Callable[[str], None]
) -> Iterator[Run]:
    device = choose_device()
    data = load_training_data(recipe, device)
    size, speeds = Size.of(data), measure_speeds(recipe, data, device)
    named = _named_recipes(recipe, seeds)
    bills = [recipe_bill(each, size) for _, each in named]
    seconds = [sum(bill.price(StepTimes(), lambda phase, flops: flops / speeds[phase]).values()) for bill in bills]
    planned = [Planned(name, each, s, each) for (name, each), s in zip(named, seconds, strict=True)]
    on_line(f"{len(planned)} training runs ({device.type}), about {duration(sum(seconds))} of training steps")

    def folder_of(each: Planned) -> Path | None:
        return None if out is None else out / f"{each.name}-seed{each.recipe.seed}"

    def held(each: Planned) -> Mapping[str, Any] | None:
        folder = folder_of(each)
        return None if folder is None else _held(folder, each.recipe, device)

    def train_one(each: Planned, shared: Shared) -> Mapping[str, Any]:
        folder = folder_of(each)
        try:
            return train_recipe(each.recipe, out=folder, shared=shared).metrics
        except DivergedError as error:
            metrics = {"diverged": str(error), "device": describe_device(device)}
            if folder is not None:
                save_diverged(folder, each.recipe, metrics)
            return metrics

    def describe(metrics: Mapping[str, Any]) -> str:
        accuracy = metric_value(metrics, f"{split}_accuracy")
        seconds = (
            f"{DISTURBED * is_disturbed(metrics.get('disturbed'))}{metric_value(metrics, 'train_latency_s'):.1f} s"
        )
        return "diverged" if math.isnan(accuracy) else f"accuracy {accuracy:.3f} in {seconds}"

    split = "test" if recipe.protocol == "paper" else "val"
    trained = train_each(planned, train_one, held, describe, stages, device, on_line)
    for (each, metrics), bill in zip(trained, bills, strict=True):
        yield _run(each.recipe, metrics, bill.flops, split)


def _held(folder: Path, recipe: Recipe, device: torch.device) -> dict[str, Any] | None:
    """Return the metrics that the folder holds for a recipe, or None; seconds of another device do not compare."""
    known = saved_metrics(folder, recipe)
    here = describe_device(device)
    if known is not None and known.get("device") != here:
        raise RequestError(f"{folder} was trained on {known.get('device')}, not on {here}: give another --out")
    return known


def _run(recipe: Recipe, metrics: Mapping[str, Any], flops: float, split: str) -> Run:
    """Return one training run's figures."""
    tasks = [task.name for task in recipe.data.tasks]
    accuracy = metric_value(metrics, f"{split}_accuracy")
    by_task = {task: metric_value(metrics, f"{split}_accuracy_{task}") for task in tasks}
    return Run(
        method=method_of(recipe),
        encode=None if recipe.epochs.ssl == 0 or _encodings(recipe) == (None,) else recipe.ssl.model_dump()["encode"],
        seed=recipe.seed,
        accuracy=accuracy,
        task_accuracies=by_task if len(tasks) > 1 else {tasks[0]: accuracy},
        latency_s=metric_value(metrics, "train_latency_s"),
        flops=flops,
        disturbed=metric_value(metrics, "disturbed"),
        best_accuracy=metric_value(metrics, "best_accuracy"),
        latency_se_s=metric_value(metrics, "train_latency_se_s"),
        phase_s={phase: metric_value(metrics, f"latency_{phase}_s") for phase in PHASES},
    )


def _with_paper(comparison: Comparison, recipe: Recipe) -> Comparison:
    try:
        rows = paper_rows_of(recipe.to_dict())
    except NoPaperRowsError as none:
        return replace(comparison, remarks=(*comparison.remarks, str(none)))
    return replace(comparison, paper=rows, remarks=(*comparison.remarks, *_differences(recipe)))


def _remarks(recipe: Recipe) -> tuple[str, ...]:
    """Return what the rows do not say of themselves."""
    cut = tuple(cut_warmups(recipe))
    if recipe.rho == 1 and recipe.epochs.ssl <= recipe.epochs.sl and _encodings(recipe) != (None,):
        return (*cut, "every SSL epoch is mixed, so MixTraining (visible) and (full) are one recipe, trained twice")
    return cut


_FOLLOWING = (  # where a recipe does not say, the images or the model have the paper's
    "data.image_size",
    *(f"model.{name}" for name in ("patch_size", "embed_dim", "depth", "num_heads")),
    *("augment.pad", "augment.flip"),
)


def _differences(recipe: Recipe) -> tuple[str, ...]:
    """Return a line on every field that differs from the paper's, as far as it has an effect here."""
    given = flatten(recipe.to_dict())
    paper = {path: value for path, value in paper_values(recipe.to_dict()).items() if path in given}
    same = {path: paper[path] for path in _FOLLOWING if given[path] is None}
    ours, theirs = (effective({**given, **same, **values}) for values in ({}, paper))
    differing = [path for path in paper if ours.get(path) != theirs.get(path)]

    def shown(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else show(value)

    said = [f"{path} {shown(theirs.get(path))} (here {shown(ours.get(path))})" for path in differing]
    return (f"the paper's rows have other values: {', '.join(said)}",) if said else ()
