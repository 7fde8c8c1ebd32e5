"""The keys of the stage tree: trials that agree up to an epoch have one key there, whatever comes later.

A key is a digest, chained from its parent's, of all that the epoch's state depends on, data by their content rather
than by their name: an equal key means equal bits, as far as the device computes the same bits twice.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mixtune.backbone import choose_patch_size
from mixtune.errors import RequestError
from mixtune.space.recipe import Recipe
from mixtune.space.views import Strategy
from mixtune.stages.code import digest_code
from mixtune.training.augmentation import Augmentation
from mixtune.training.data import ImagePool, TrainingData
from mixtune.training.device import choose_dtype, describe_device
from mixtune.training.optimizer import followed_schedules
from mixtune.training.plan import Epoch, Phase, RateCurve, make_plan, rate_curves

_KEY_LENGTH = 40  # hexadecimal digits
_RATES_NOTED = 8  # of an epoch, and its last: a schedule has two smooth pieces at most, which so many points tell apart
_PACKAGES = ("numpy", "timm", "torch", "torchvision")

_digests = WeakTensorKeyDictionary()  # of the images that trial after trial shares


def stage_keys(recipe: Recipe, data: TrainingData, device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Return a key for each number of epochs trained, from 0, the initial state, to all of the plan's.

    ``data`` is the recipe's own; a relative ``model.pretrained`` means the current folder. An image set is read in
    full once a process. Raises RequestError where a file of pretrained weights cannot be read.
    """
    return tuple(StageKeys(recipe, data, device))


class StageKeys(Sequence[str]):
    """What stage_keys() returns, each key computed when it is first asked for: most paths part at the first epoch."""

    def __init__(self, recipe: Recipe, data: TrainingData, device: torch.device | str = "cpu") -> None:
        own = choose_patch_size(data.image_size, recipe.model.patch_size)
        self._recipe, self._data = recipe, data
        self._plan = [_without_size(epoch, own) for epoch in make_plan(recipe)]
        start = _digest(_describe_start(recipe, data, torch.device(device)))
        self._keys: list[str | None] = [start, *[None] * len(self._plan)]
        self._phases: dict[Phase, tuple[int, str]] = {}  # the steps of an epoch, and what its images are

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, epochs: int) -> str: ...

    @overload
    def __getitem__(self, epochs: slice) -> tuple[str, ...]: ...

    def __getitem__(self, epochs: int | slice) -> str | tuple[str, ...]:
        if isinstance(epochs, slice):
            return tuple(itertools.islice(self, *epochs.indices(len(self))))
        return next(itertools.islice(self, range(len(self))[epochs], None))

    def __iter__(self) -> Iterator[str]:
        for epoch, known in enumerate(self._keys):
            key = self._key_after(epoch - 1) if known is None else known
            self._keys[epoch] = key
            yield key

    def _key_after(self, index: int) -> str:
        """Return the key after the plan's epoch of this index, whose own parent is known."""
        epoch = self._plan[index]
        if epoch.phase not in self._phases:
            images = _digest(_describe_images(self._recipe, self._data, epoch.phase))
            self._phases[epoch.phase] = self._data.steps_of(epoch.phase), images
        steps, images = self._phases[epoch.phase]
        description = _describe_epoch(self._recipe, epoch, steps) | {"images": images}
        if index and self._plan[index - 1].phase != epoch.phase:
            description["carry_state"] = self._recipe.optim.carry_state
        return _digest({"parent": self._keys[index], "epoch": description})


def _without_size(epoch: Epoch, own: int) -> Epoch:
    """Return an epoch whose strategy has no patch sizes that are the backbone's own, which shorten nothing."""
    if epoch.strategy is None:
        return epoch
    branches = (branch._replace(patch_size=None) if branch.patch_size == own else branch for branch in epoch.strategy)
    return replace(epoch, strategy=Strategy(*branches))


def shared_epochs(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many epochs two recipes begin with alike, by their keys; -1 where their first weights differ."""
    shared = -1
    for own, theirs in zip(one, other, strict=False):
        if own != theirs:
            break
        shared += 1
    return shared


def _describe_start(recipe: Recipe, data: TrainingData, device: torch.device) -> dict[str, Any]:
    """Return what the initial weights depend on, and what changes the bits of every epoch.

    The objective's settings are here and not with the epochs that use it: its weights are a part of any state, but of
    a recipe without SSL. ``model.pool`` is not here: it is the classifier's input alone.
    """
    return {
        "versions": _versions(),
        "device": describe_device(device),
        "instructions": torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else None,
        "dtype": str(choose_dtype(recipe.precision, device)),
        "compile": recipe.compile,
        "seed": recipe.seed,
        "protocol": recipe.protocol,
        "batch_size": recipe.optim.batch_size,
        "model": recipe.model.model_dump(mode="json", exclude={"pool", "pretrained"}),
        "pretrained": _describe_weights(recipe.model.pretrained),
        "objective": recipe.ssl.constants() if recipe.epochs.ssl else None,
        "code": digest_code(recipe.ssl.objective if recipe.epochs.ssl else None),
        "image_size": data.image_size,
        "channels": data.channels,
        "classes": [len(task.classes) for task in data.tasks],
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {package: version(package) for package in _PACKAGES}


def _describe_epoch(recipe: Recipe, epoch: Epoch, steps: int) -> dict[str, Any]:
    """Return what an epoch depends on besides its images and the state that it begins with."""
    curves = rate_curves(recipe, epoch)
    description: dict[str, Any] = {
        "index": epoch.index,  # of its random streams
        "phase": epoch.phase,
        "steps": steps,
        "rates": {loss: _digest_rates(curve, steps) for loss, curve in curves.items()},
        "schedules": {
            loss: {"weight_decay": curve.schedule.weight_decay, "betas": list(curve.schedule.betas)}
            for loss, curve in curves.items()
        },
        "backbone_follows": followed_schedules("backbone", epoch.phase, recipe),
    }
    if epoch.phase != "ssl":
        description["class_weights"] = recipe.optim.class_weights
        if epoch.is_first_supervised and recipe.representation:  # measured before it, and found in every later state
            description["representation"] = sorted(set(recipe.representation))
    if epoch.strategy is not None:
        description["strategy"] = epoch.strategy
    if epoch.phase == "mix":
        description["alpha"] = recipe.alpha
    return description


def _describe_images(recipe: Recipe, data: TrainingData, phase: Phase) -> dict[str, Any]:
    """Return what the epochs of a phase see, held-out images included: their accuracies are in the history."""
    if phase == "ssl":
        pools = [task.ssl for task in data.tasks]
        if None not in recipe.ssl.views(joint=False):  # of `augment` a view has the flip alone
            pools = [replace(pool, augmentation=Augmentation(flip=pool.augmentation.flip)) for pool in pools]
        return {"ssl": [_describe_pool(pool, "augmented") for pool in pools]}
    description: dict[str, Any] = {
        "train": [_describe_pool(task.train, "augmented", "labelled") for task in data.tasks],
        "held_out": [_describe_pool(task.held_out, "labelled") for task in data.tasks],
        "pool": recipe.model.pool,
    }
    if phase == "mix" and len(recipe.ssl.views(joint=True)) > 1:
        description["views_augmented"] = recipe.augment.ssl
    if phase == "mix" and data.mixes_partners:
        description["partners"] = [_describe_pool(task.ssl, "augmented") for task in data.tasks]
        description["lambda"] = recipe.lambda_
    return description


def _describe_pool(pool: ImagePool, *used: str) -> dict[str, Any]:
    """Return a pool's identity: its content, not its name or folder. ``used``: augmented, labelled."""
    description: dict[str, Any] = {
        "images": digest_tensor(pool.images),
        "indices": digest_tensor(pool.indices),
        "mean": pool.mean.flatten().tolist(),
        "std": pool.std.flatten().tolist(),
    }
    if "labelled" in used:
        assert pool.labels is not None
        description["labels"] = digest_tensor(pool.labels)
    if "augmented" in used:
        description["augmentation"] = asdict(pool.augmentation)
    return description


def _describe_weights(pretrained: bool | str) -> bool | str:
    """Return a digest of a file of weights; timm's own are known by the model's name and timm's version."""
    if isinstance(pretrained, bool):
        return pretrained
    path = os.path.abspath(os.path.expanduser(pretrained))
    try:
        status = os.stat(path)
        return _digest_file(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise RequestError(f"model.pretrained: {path} cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=8)
def _digest_file(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tensor(tensor: Tensor) -> str:
    """Return a digest of a tensor's content, taken once in a process."""
    if tensor not in _digests:
        content = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        content.update(tensor.cpu().contiguous().numpy().data)
        _digests[tensor] = content.hexdigest()
    return str(_digests[tensor])


def _digest_rates(curve: RateCurve, steps: int) -> str:
    if curve.schedule.schedule == "wsd" and curve.epoch < curve.decays_from:  # no budget has a say in it
        curve = curve._replace(budget=curve.epoch + 2, decays_from=curve.epoch + 1)
    return _digest_curve(curve, steps)


@functools.lru_cache(maxsize=8192)
def _digest_curve(curve: RateCurve, steps: int) -> str:
    noted = {*range(0, steps, max(1, steps // _RATES_NOTED)), steps - 1}
    return hashlib.sha256(array("d", [curve.at(step, steps) for step in sorted(noted)]).tobytes()).hexdigest()


def _digest(description: dict[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)  # floats by repr: exact
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]
