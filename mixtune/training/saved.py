"""A trained recipe in a folder: ``recipe.yaml``, ``model.safetensors`` and ``metrics.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import nn

from mixtune._version import __version__
from mixtune.backbone import Backbone
from mixtune.errors import DataError, RequestError, one_line, show, suggest
from mixtune.files import make_folder, read_regular, write_whole
from mixtune.objectives import Objective
from mixtune.run.ledger import finite_or_none
from mixtune.space.document import parse_document
from mixtune.space.effective import resolve_auto
from mixtune.space.foreign import foreign_in_recipe, refuse_foreign_code
from mixtune.space.recipe import Recipe, RecipeError, flatten, follow_arrays, parse_recorded, with_absolute_paths
from mixtune.training.data import TrainingData, load_training_data
from mixtune.training.measure import Metrics
from mixtune.training.sources import digest_sets, load_image_sets, other_data
from mixtune.training.state import TrainState, build_parts

RECIPE, WEIGHTS, METRICS = "recipe.yaml", "model.safetensors", "metrics.json"
DATA = "data"  # a folder: what `mixtune.train` was given as data=

_END = "..."  # YAML's end of a document: a recipe that breaks off would be read with defaults for what it lacks
_MAX_TEXT = 2**24  # bytes of a recipe or of metrics


@dataclass(frozen=True)
class SavedRun:
    """A trained recipe that was read back.

    metrics: as in metrics.json, None for what was not measured; classifiers: one a task, in the tasks' order;
    image_size: height and width in pixels; channels: of the images; classes: each task's class names, by label;
    digests: digest_sets() of its images, empty where an older version did not record them.
    """

    directory: Path
    recipe: Recipe
    metrics: dict[str, Any]
    backbone: Backbone
    objective: Objective
    classifiers: nn.ModuleList
    image_size: int
    channels: int
    classes: dict[str, tuple[str, ...]]
    digests: dict[str, Any]

    def load_data(self) -> TrainingData:
        """Return the images that it was trained on, on the weights' device. Raises DataError where they are others."""
        changed = other_data(self.digests, digest_sets(load_image_sets(self.recipe)))
        data = load_training_data(self.recipe, next(self.backbone.parameters()).device)
        if not changed and self.classes != {task.name: task.classes for task in data.tasks}:
            changed = f"the classes of {', '.join(self.classes)}"
        if not changed and (data.image_size, data.channels) != (self.image_size, self.channels):
            changed = f"the size and colours of {', '.join(self.classes)}"
        if changed:
            raise DataError(f"{self.directory}: {changed} are not those that the recipe was trained on: restore them")
        return data


def save_trained(directory: str | os.PathLike[str], state: TrainState, metrics: Metrics) -> None:
    """Write a trained recipe to a folder, which is made; one that was saved there before is replaced.

    The weights are float32, named ``backbone.*``, ``objective.*`` and ``classifiers.<number>.*``; paths in the recipe
    are made absolute. metrics.json comes last: without it the folder is not whole. Raises DataError where the folder
    cannot be written.
    """
    folder = Path(directory)
    data = state.data
    metadata = {
        "mixtune": __version__,
        "image_size": str(data.image_size),
        "channels": str(data.channels),
        "classes": json.dumps({task.name: task.classes for task in data.tasks}),
        "data": json.dumps({} if data.in_memory else digest_sets(load_image_sets(state.recipe))),
    }
    parts = _join(state.backbone, state.objective, state.classifiers)
    # copies, because safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in parts.state_dict().items()}
    _clear(folder)
    _write_recipe(folder, state.recipe)
    write_whole(folder / WEIGHTS, safetensors.torch.save(tensors, metadata))
    _write_metrics(folder, metrics.to_dict())


def save_diverged(directory: str | os.PathLike[str], recipe: Recipe, metrics: Mapping[str, Any]) -> None:
    """Write a recipe whose training diverged, and what is known of it; there are no weights. Raises as save_trained."""
    folder = Path(directory)
    _clear(folder)
    _write_recipe(folder, recipe)
    _write_metrics(folder, metrics)


def load_trained(
    directory: str | os.PathLike[str], device: torch.device | str = "cpu", trust: bool = False
) -> SavedRun:
    """Read a trained recipe back, its weights on a device; trust: import what it names of other code.

    Raises RequestError for a folder that holds none and for a recipe that this version does not know, and DataError
    for one that is not whole: a file missing or damaged, weights of another recipe.
    """
    folder = Path(directory)
    _require_files(folder)
    mistake = f"{folder / WEIGHTS} is damaged, or was not saved with {folder / RECIPE}"
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        version, image_size, channels = metadata["mixtune"], int(metadata["image_size"]), int(metadata["channels"])
        classes = {name: tuple(names) for name, names in json.loads(metadata["classes"]).items()}
        digests = dict(json.loads(metadata.get("data", "{}")))
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{mistake}: {one_line(error)}") from error
    recipe = _read_recipe(folder / RECIPE, version, trust)
    tasks = [task.name for task in recipe.data.tasks]
    if tasks != list(classes):
        raise DataError(f"{mistake}: the recipe's tasks are {', '.join(tasks)}, the weights' {', '.join(classes)}")
    # the weights are at hand, whatever they began from
    unfilled = recipe.model_copy(update={"model": recipe.model.model_copy(update={"pretrained": False})})
    try:
        sizes = image_size, channels, [len(names) for names in classes.values()]
        _compare_shapes(unfilled, *sizes, shapes)
        backbone, objective, classifiers = build_parts(unfilled, *sizes)
        parts = _join(backbone, objective, classifiers)
        parts.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except (RequestError, RuntimeError, SafetensorError, OSError) as error:
        raise DataError(f"{mistake}: {one_line(error)}") from error
    parts.to(device).eval()
    metrics = _read_metrics(folder / METRICS)
    return SavedRun(folder, recipe, metrics, backbone, objective, classifiers, image_size, channels, classes, digests)


def saved_metrics(directory: str | os.PathLike[str], recipe: Recipe) -> dict[str, Any] | None:
    """Return the metrics of a recipe that a folder holds trained and whole, or None where the folder does not.

    Of a training run that diverged they are what save_diverged() was given. Raises RequestError where the folder holds
    another recipe's training, which a new one would replace.
    """
    folder = Path(directory)
    if not all((folder / name).is_file() for name in (RECIPE, METRICS)):
        return None
    known = foreign_in_recipe(recipe.to_dict())  # the user's word
    held, wanted = (
        resolve_auto(flatten(each.to_dict()))
        for each in (_read_recipe(folder / RECIPE, __version__, known), with_absolute_paths(recipe))
    )
    for path, asked in wanted.items():
        if path not in held or held[path] != asked:
            there = f"{path} {show(held.get(path))}, not {show(asked)}"
            raise RequestError(f"{folder} holds the training of another recipe ({there}): choose another folder")
    return _read_metrics(folder / METRICS)


def is_saved(directory: str | os.PathLike[str]) -> bool:
    """Return whether a folder has a recipe as save_trained() writes it, whole or not."""
    try:
        text = read_regular(Path(directory) / RECIPE, _MAX_TEXT)
    except OSError:
        return False
    return text.rstrip().endswith(f"\n{_END}".encode())


def _clear(folder: Path) -> None:
    """Make a folder that holds no whole training any more. Raises RequestError or DataError."""
    make_folder(folder)
    for name in (METRICS, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    text = yaml.safe_dump(with_absolute_paths(recipe).to_dict(), sort_keys=False, explicit_end=True)
    write_whole(folder / RECIPE, text)


def _write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    write_whole(folder / METRICS, json.dumps(finite_or_none(dict(metrics)), indent=2, allow_nan=False) + "\n")


def _join(backbone: Backbone, objective: Objective, classifiers: nn.ModuleList) -> nn.ModuleDict:
    """Return the parts as one module, whose weights have the part's name before their own."""
    return nn.ModuleDict({"backbone": backbone, "objective": objective, "classifiers": classifiers})


def _compare_shapes(
    recipe: Recipe, image_size: int, channels: int, classes: Sequence[int], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise RequestError where weights of such shapes are not a recipe's, before any memory is taken for its models."""
    values = flatten(recipe.to_dict())
    for path in ("model.depth", "ssl.decoder_depth"):  # building millions of blocks takes for ever without storage, too
        if (depth := values.get(path) or 0) > len(shapes):
            raise RequestError(f"{path} is {depth}, and there are {len(shapes)} tensors")
    with torch.device("meta"):
        parts = _join(*build_parts(recipe, image_size, channels, classes))
    wanted = {name: tuple(tensor.shape) for name, tensor in parts.state_dict().items()}
    for name in sorted({*wanted, *shapes}):
        if wanted.get(name) != shapes.get(name):
            there, right = (shown.get(name, "missing") for shown in (shapes, wanted))
            raise RequestError(f"{name} should be {right}, and is {there}")


def _require_files(folder: Path) -> None:
    """Raise RequestError where a folder holds no trained recipe, and DataError where it holds a part of one."""
    if not folder.is_dir():
        near = [item.name for item in folder.parent.iterdir() if item.is_dir()] if folder.parent.is_dir() else []
        raise RequestError(f"there is no folder {folder}{suggest(folder.name, near)}")
    missing = [name for name in (RECIPE, WEIGHTS, METRICS) if not (folder / name).is_file()]
    if missing:
        mistake = DataError if len(missing) < 3 else RequestError
        raise mistake(f"{folder} holds no whole trained recipe: {', '.join(missing)} is missing")


def _read_recipe(path: Path, version: str, trust: bool | Container[str]) -> Recipe:
    try:
        text = read_regular(path, _MAX_TEXT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    if not text.rstrip().endswith(f"\n{_END}"):
        raise DataError(f"{path} is damaged: it does not end with {_END!r}")
    document = parse_document(text, str(path))
    refuse_foreign_code(path.parent, foreign_in_recipe(document.values), trust)
    try:
        return parse_recorded(follow_arrays(document.values, path.parent / DATA))
    except RecipeError as error:
        versions = "" if version == __version__ else f" (saved by mixtune {version}; this is {__version__})"
        raise RequestError(f"{document.where(error.path)}{error}{versions}") from error


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_regular(path, _MAX_TEXT)))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {one_line(error)}") from error
