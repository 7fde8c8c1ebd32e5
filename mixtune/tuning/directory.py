"""The run directory of a search: where it may be, and what its space.yaml says for whoever goes on with it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import yaml

from mixtune.analysis.files import read_space
from mixtune.errors import RequestError
from mixtune.files import is_temporary
from mixtune.run_lock import DRIVER_LOCK, TRIALS_LOCK
from mixtune.training.forecast import Size, dearest_recipe
from mixtune.tuning.costs import Machine, reference_point
from mixtune.tuning.prepare import Prepared

LEDGER, SPACE, STUDY = "ledger.jsonl", "space.yaml", "study.db"

_VERSIONS = ("mixtune", "torch", "torchvision", "timm", "ray", "optuna", "moocore")


def refuse_occupied(directory: Path) -> None:
    """Raise RequestError unless the directory is new or empty: a run is never overwritten."""
    if (directory / SPACE).exists() or (directory / LEDGER).exists():
        raise RequestError(
            f"{directory} holds a run already: give another --out, see it with mixtune pareto {directory}, or go on "
            f"with mixtune resume {directory}"
        )
    locks = (DRIVER_LOCK, TRIALS_LOCK)
    if directory.is_dir() and all(item.name in locks or is_temporary(item) for item in directory.iterdir()):
        return
    if directory.exists():
        raise RequestError(f"{directory} is no empty directory: give another --out")


def free_directory(name: str) -> Path:
    """Return ``runs/<name>``, or the first of ``runs/<name>-2``, ... that does not exist."""
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10**6))
    return next(path for path in candidates if not path.exists())


def resolved_space(prepared: Prepared, machine: Machine) -> str:
    """Return the text of space.yaml, with what it runs on; the hypervolume's reference point is fixed here."""
    space, data = prepared.space, prepared.data
    dearest = dearest_recipe(space, Size.of(data))
    values = space.to_dict() | {
        "run": {
            "reference_point": reference_point(space, data, machine, dearest),
            "tasks": {
                task.name: {
                    "classes": len(task.classes),
                    "train_images": len(task.train),
                    "val_images": len(task.held_out),
                }
                for task in data.tasks
            },
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
            "machine": machine.to_dict(),
        }
    }
    return yaml.safe_dump(values, sort_keys=False)


def known_machine(directory: Path) -> Machine:
    """Return the machine that a run began on."""
    given = read_space(directory)["run"].get("machine")
    try:
        return Machine(**given)
    except TypeError as error:
        raise RequestError(f"{directory / SPACE}: run.machine is not what a search wrote there: {error}") from error
