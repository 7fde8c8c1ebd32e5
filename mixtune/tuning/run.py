"""Run a search: check everything that can be checked, then let Ray Tune train what Optuna suggests."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from ray import tune
from rich.console import Console

from mixtune import plugins
from mixtune.analysis.result import Result, load
from mixtune.errors import RequestError, TrainingError
from mixtune.recipe import parse_recipe, with_values
from mixtune.space import SearchSpace, load_space, space_from_dict
from mixtune.training.data import TrainingData, load_training_data
from mixtune.training.device import choose_device
from mixtune.training.forecast import Size, dearest_recipe, forecast_latency, measure_speeds, recipe_flops
from mixtune.tuning.adapters import SearchCallback, SearchSearcher
from mixtune.tuning.cluster import Slots, plan_slots, ray_session, usable_cpus, usable_gpus
from mixtune.tuning.progress import Progress
from mixtune.tuning.state import Search
from mixtune.tuning.trainable import MixTrainable

_VERSIONS = ("mixtune", "torch", "torchvision", "timm", "ray", "optuna", "moocore")


@dataclass(frozen=True)
class Prepared:
    """A space that can be searched here: its data are decoded and every recipe at its ends was looked at."""

    space: SearchSpace
    data: TrainingData
    slots: Slots
    cpus: int
    gpus: int
    address: str | None
    no_gpu_here: bool  # GPUs were asked for, and the machine has none

    @property
    def size(self) -> Size:
        return Size.of(self.data)


def prepare(space: SearchSpace, gpus: int | None = None, address: str | None = None) -> Prepared:
    """Check a space against its data and this machine; writes nothing but the dataset's cache.

    Raises RequestError or DataError, one line, for what would otherwise fail in a trial.
    """
    if space.recipe.data.val_fraction == 0:
        raise RequestError(
            "data.val_fraction is 0: a search needs validation images, or it would search on the test set"
        )
    space = _with_absolute_roots(space)
    data = load_training_data(space.recipe)
    size = Size.of(data)
    for path, value in [("recipe", None), *space.extremes()]:
        recipe = space.recipe_at({} if path == "recipe" else {path: value})
        try:
            recipe_flops(recipe, size)
            if path.startswith(("data.", "optim.batch_size")):
                load_training_data(recipe)
        except RequestError as error:
            raise RequestError(str(error) if path == "recipe" else f"space.{path} at {value!r}: {error}") from error
    cpu_count, gpu_count = usable_cpus(), usable_gpus(gpus)
    slots = plan_slots(space.resources, cpu_count, gpu_count)
    wanted = bool(gpus) or space.resources.gpus_per_trial not in ("auto", 0)
    return Prepared(space, data, slots, cpu_count, gpu_count, address, no_gpu_here=wanted and gpu_count == 0)


def search(
    space: SearchSpace | Mapping[str, Any] | str | PathLike[str],
    *,
    gpus: int | None = None,
    gpus_per_trial: float | Literal["auto"] | None = None,
    cpus_per_trial: float | None = None,
    trials: int | None = None,
    seed: int | None = None,
    out: str | PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> Result:
    """Search a space and return what was found; the same as ``mixtune search``.

    space: a file, plain values in the form of the file, or a SearchSpace. gpus: how many of this machine's (default
    all). out: the run directory (default: a new one below ``runs/``). overrides: dotted recipe values. Options that
    are None leave the space's own. Raises RequestError or DataError before anything is trained, and SearchError
    when not one trial completed.
    """
    console = console or Console()
    name = Path(space).stem if isinstance(space, str | PathLike) else "search"
    resolved = resolve(
        space,
        overrides or {},
        search={"trials": trials, "seed": seed},
        resources={"gpus_per_trial": gpus_per_trial, "cpus_per_trial": cpus_per_trial},
    )
    directory = Path(out) if out is not None else free_directory(name)
    refuse_occupied(directory)
    prepared = prepare(resolved, gpus, address)
    console.print(describe(prepared, directory), highlight=False, soft_wrap=True)
    with Progress(prepared.slots.count, console) as progress:
        result = run_search(prepared, directory, progress.update)
    failed = result.trials[result.trials["state"] == "failed"] if len(result.trials) else result.trials
    if len(failed) and not result.counts()["complete"]:
        raise SearchError(f"no trial completed; {failed['trial'].iloc[0]} failed: {failed['reason'].iloc[0]}")
    return result


class SearchError(TrainingError):
    """A search ran, and not one of its trials completed."""


def resolve(
    space: SearchSpace | Mapping[str, Any] | str | PathLike[str],
    overrides: Mapping[str, Any],
    search: Mapping[str, Any],
    resources: Mapping[str, Any],
) -> SearchSpace:
    """Return the space with the values that are not None put over its own. Raises RequestError."""
    if isinstance(space, SearchSpace):
        space = space_from_dict(space.to_dict(), overrides)
    elif isinstance(space, Mapping):
        space = space_from_dict(space, overrides)
    else:
        space = load_space(space, overrides)
    space = space.with_search(**{k: v for k, v in search.items() if v is not None})
    return space.with_resources(**{k: v for k, v in resources.items() if v is not None})


def dry_run(
    space: SearchSpace | Mapping[str, Any] | str | PathLike[str],
    *,
    gpus: int | None = None,
    gpus_per_trial: float | Literal["auto"] | None = None,
    cpus_per_trial: float | None = None,
    trials: int | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> str:
    """Check a search as :func:`search` does, and return the resolved space, every default spelled out."""
    resolved = resolve(
        space,
        overrides or {},
        search={"trials": trials, "seed": seed},
        resources={"gpus_per_trial": gpus_per_trial, "cpus_per_trial": cpus_per_trial},
    )
    prepared = prepare(resolved, gpus)
    return f"{yaml.safe_dump(resolved.to_dict(), sort_keys=False)}\n{describe(prepared)}\nnothing was written"


def describe(prepared: Prepared, directory: Path | None = None) -> str:
    """Return the lines that open a search: its data, its size and what it runs on."""
    space, data, slots = prepared.space, prepared.data, prepared.slots
    counted = f"{len(data.supervised.indices):,} training and {len(data.val_indices):,} validation images"
    shape = f"{data.image_size}x{data.image_size} {'RGB' if data.channels == 3 else 'grayscale'}"
    lines = []
    if prepared.no_gpu_here:
        lines.append("no GPU on this machine: training on its CPU")
    lines.append(f"{space.recipe.data.dataset}: {counted}, {shape}, {len(data.classes)} classes")
    where = f"{slots.gpus:g} GPUs and {slots.cpus:g} CPUs" if slots.gpus else f"{slots.cpus:g} CPUs"
    budget = f"{space.trials} trials and {len(space.baselines)} baselines"
    lines.append(f"{budget}, {space.search.sampler}; {slots.count} at once with {where} each")
    if directory is not None:
        lines.append(f"run directory: {directory}")
    return "\n".join(lines)


def run_search(prepared: Prepared, directory: Path, on_change: Callable[[Search], None] = lambda _: None) -> Result:
    """Train the baselines and the budget's trials, and write the run directory.

    ``on_change`` is called after every event. Raises RequestError if the directory holds something already;
    KeyboardInterrupt passes through once the tables are written.
    """
    refuse_occupied(directory)
    with ray_session(prepared.address, prepared.cpus, prepared.gpus):
        directory.mkdir(parents=True, exist_ok=True)
        _write_space(prepared, directory)
        search = Search(prepared.space, directory / "ledger.jsonl", on_change)
        try:
            with tempfile.TemporaryDirectory(prefix="mixtune-ray-") as scratch:
                _tune(prepared, search, scratch)
        finally:
            result = load(directory)
            result.write_tables()
    return result


def refuse_occupied(directory: Path) -> None:
    """Raise RequestError unless the directory is new or empty: a run is never overwritten."""
    if (directory / "ledger.jsonl").exists():
        raise RequestError(
            f"{directory} holds a run already: give another --out, or see it with mixtune pareto {directory}"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RequestError(f"{directory} is no empty directory: give another --out")


def free_directory(name: str) -> Path:
    """Return ``runs/<name>``, or the first of ``runs/<name>-2``, ... that does not exist."""
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10**6))
    return next(path for path in candidates if not path.exists())


def _tune(prepared: Prepared, search: Search, scratch: str) -> None:
    space, slots = prepared.space, prepared.slots
    tuner = tune.Tuner(
        tune.with_resources(MixTrainable, {"cpu": slots.cpus, "gpu": slots.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=SearchSearcher(search, space.recipe.to_dict()),
            scheduler=plugins.find("tuning.schedulers", space.search.scheduler, "scheduler").build(space),
            num_samples=search.budget + len(search.baselines),
            max_concurrent_trials=slots.count,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="search", storage_path=scratch, callbacks=[SearchCallback(search)], verbose=0),
    )
    tuner.fit()


def _write_space(prepared: Prepared, directory: Path) -> None:
    """Write the resolved space, and what it ran on; the reference point of the hypervolume is fixed here."""
    values = prepared.space.to_dict() | {
        "run": {
            "reference_point": _reference_point(prepared),
            "classes": len(prepared.data.classes),
            "train_images": len(prepared.data.supervised.indices),
            "val_images": len(prepared.data.val_indices),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
            "machine": _machine(prepared),
        }
    }
    (directory / "space.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _reference_point(prepared: Prepared) -> dict[str, float]:
    """Return the worst that counts: chance accuracy, and the forecast cost of the space's dearest recipe."""
    space, size = prepared.space, prepared.size
    baselines = [space.recipe_at(params) for params in space.baseline_params().values()]
    costs = [recipe_flops(recipe, size) for recipe in (dearest_recipe(space, size), *baselines)]
    worst = {"val_accuracy": 1.0 / size.classes, "train_flops": max(sum(flops.values()) for flops in costs)}
    if "train_latency_s" in space.objectives:
        torch.set_num_threads(max(1, int(prepared.slots.cpus)))
        speeds = measure_speeds(space.recipe, prepared.data, choose_device())
        worst["train_latency_s"] = max(forecast_latency(flops, speeds) for flops in costs)
    return {name: worst[name] for name in space.objectives}


def _machine(prepared: Prepared) -> dict[str, Any]:
    device = torch.cuda.get_device_name(0) if prepared.gpus else platform.processor() or platform.machine()
    return {
        "device": device,
        "cpus": prepared.cpus,
        "gpus": prepared.gpus,
        "trials_at_once": prepared.slots.count,
        "cpus_per_trial": prepared.slots.cpus,
        "gpus_per_trial": prepared.slots.gpus,
    }


def _with_absolute_roots(space: SearchSpace) -> SearchSpace:
    """Return the space with data roots that mean the same in every worker's folder."""
    data = space.recipe.data
    roots: Mapping[str, Any] = {
        f"data.{name}": str(Path(root).expanduser().absolute())
        for name, root in (("root", data.root), ("ssl_root", data.ssl_root))
        if root is not None
    }
    return replace(space, recipe=parse_recipe(with_values(space.recipe.to_dict(), roots)))
