"""Run a search: Ray Tune trains what Optuna suggests, and the run directory keeps what came of it."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping
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
from mixtune.space import SearchSpace
from mixtune.training.device import choose_device
from mixtune.tuning.adapters import SearchCallback, SearchSearcher
from mixtune.tuning.cluster import Slots, plan_slots, ray_session
from mixtune.tuning.prepare import AnySpace, Prepared, prepare, reference_point
from mixtune.tuning.progress import Progress
from mixtune.tuning.state import RunningSearch
from mixtune.tuning.trainable import MixTrainable

_VERSIONS = ("mixtune", "torch", "torchvision", "timm", "ray", "optuna", "moocore")


class SearchError(TrainingError):
    """A search ran, and not one of its trials completed."""


class InterruptedSearch(KeyboardInterrupt):
    """Ctrl-C during a search, in words."""


def search(
    space: AnySpace,
    *,
    gpus: int | None = None,
    gpus_per_trial: float | Literal["auto"] | None = None,
    cpus_per_trial: float | None = None,
    trials: int | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
    out: str | PathLike[str] | None = None,
    console: Console | None = None,
) -> Result:
    """Search a space and return what was found; the same as ``mixtune search``.

    space: a file, plain values in the form of the file, or a SearchSpace; gpus: how many of this machine's (default
    all); gpus_per_trial, cpus_per_trial: each trial's share; overrides: dotted recipe values; address: a Ray
    cluster's; out: the run directory (default: a new one below ``runs/``). An option that is None leaves the
    space's own value. Raises RequestError or DataError before anything is trained, SearchError when not one trial
    completed, and KeyboardInterrupt on Ctrl-C, with the run directory's tables written.
    """
    console = console or Console()
    name = Path(space).stem if isinstance(space, str | PathLike) else "search"
    directory = Path(out) if out is not None else free_directory(name)
    refuse_occupied(directory)
    prepared = prepare(
        space,
        gpus=gpus,
        gpus_per_trial=gpus_per_trial,
        cpus_per_trial=cpus_per_trial,
        trials=trials,
        seed=seed,
        overrides=overrides,
        address=address,
    )
    console.print(f"{prepared.describe()}\nrun directory: {directory}", highlight=False, markup=False, soft_wrap=True)
    try:
        with ray_session(address, prepared.cpus, prepared.gpus) as (cpus, gpu_count):
            slots = plan_slots(prepared.space.resources, cpus, gpu_count)
            console.print(f"trials: {slots}", highlight=False)
            with Progress(slots.count, console) as progress:
                result = run_prepared(prepared, slots, directory, progress.update)
    except KeyboardInterrupt:
        kept = (directory / "ledger.jsonl").exists()
        done = f"what is done is kept: mixtune pareto {directory}" if kept else "nothing was trained yet"
        raise InterruptedSearch(f"interrupted; {done}") from None
    if not result.counts()["complete"]:
        raise SearchError(_why_nothing_completed(result))
    return result


def run_prepared(
    prepared: Prepared, slots: Slots, directory: Path, on_change: Callable[[RunningSearch], None] = lambda _: None
) -> Result:
    """Train the baselines and the budget's trials in the present Ray session, and write the run directory.

    ``on_change`` is called after every event. However it ends, the tables are written.
    """
    claim(directory, _resolved_space(prepared, slots))
    search = RunningSearch(prepared.space, directory / "ledger.jsonl", on_change)
    try:
        with tempfile.TemporaryDirectory(prefix="mixtune-ray-") as scratch:
            _tune(prepared.space, slots, search, scratch)
    finally:
        if search.records:  # else there is nothing to write, and whatever ended it so early should be heard
            load(directory).write_tables()
    return load(directory)


def refuse_occupied(directory: Path) -> None:
    """Raise RequestError unless the directory is new or empty: a run is never overwritten."""
    if (directory / "ledger.jsonl").exists():
        raise RequestError(
            f"{directory} holds a run already: give another --out, or see it with mixtune pareto {directory}"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RequestError(f"{directory} is no empty directory: give another --out")


def claim(directory: Path, space: str) -> None:
    """Make the directory ours by writing its space.yaml: of two searches that start at once, one is refused."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "space.yaml").open("x", encoding="utf-8") as file:
            file.write(space)
    except FileExistsError:
        refuse_occupied(directory)
        raise
    except OSError as error:
        raise RequestError(f"{directory} cannot be the run directory: {error.strerror}: give another --out") from error


def free_directory(name: str) -> Path:
    """Return ``runs/<name>``, or the first of ``runs/<name>-2``, ... that does not exist."""
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10**6))
    return next(path for path in candidates if not path.exists())


def _tune(space: SearchSpace, slots: Slots, search: RunningSearch, scratch: str) -> None:
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


def _resolved_space(prepared: Prepared, slots: Slots) -> str:
    """Return the text of space.yaml, with what it runs on; the hypervolume's reference point is fixed here."""
    device = choose_device() if slots.gpus else torch.device("cpu")
    values = prepared.space.to_dict() | {
        "run": {
            "reference_point": reference_point(prepared, device),
            "tasks": {
                task.name: {
                    "classes": len(task.classes),
                    "train_images": len(task.train),
                    "val_images": len(task.held_out),
                }
                for task in prepared.data.tasks
            },
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
            "machine": {
                "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
                "trials_at_once": slots.count,
                "cpus_per_trial": slots.cpus,
                "gpus_per_trial": slots.gpus,
            },
        }
    }
    return yaml.safe_dump(values, sort_keys=False)


def _why_nothing_completed(result: Result) -> str:
    failed = [record for record in result.records.values() if record.state == "failed"]
    if not failed:
        return "no trial completed"
    return f"no trial completed, and {len(failed)} failed; {failed[0].trial}: {failed[0].reason}"
