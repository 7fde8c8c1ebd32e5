"""What a recipe's training steps cost, by what the cost depends on: its bill, and the price of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch

from mixtune.space.recipe import Recipe
from mixtune.space.views import Strategy
from mixtune.training.data import TrainingData
from mixtune.training.device import describe_device
from mixtune.training.plan import Phase, make_plan
from mixtune.training.state import TrainState


def data_shape(data: TrainingData) -> dict[str, Any]:
    """Return what the cost of a step depends on in the data: sizes, tasks, two datasets or one, where images lie."""
    tasks = {"classes": [len(task.classes) for task in data.tasks], "images_on": data.tasks[0].train.images.device.type}
    return {k: getattr(data, k) for k in ("image_size", "channels", "two_datasets")} | tasks


def cost_factors(
    recipe: Recipe,
    phase: Phase | Literal["infer"],
    device: str,
    threads: int,
    precision: str,
    shape: Mapping[str, Any],
    strategy: Strategy | None = None,
) -> dict[str, Any]:
    """Return what the cost of a phase's step, or of classifying an image, depends on, as plain values for a ledger.

    What might matter is in it, and more, where only a part of it counts.

    device: as describe_device() says it; threads: of the process; precision: the resolved dtype's name, ``float32``;
    shape: data_shape() of the data; strategy: of the epoch, whose sequences it shortens. Rates, alpha, lambda, seed,
    epochs and the share of the data change no step's cost.
    """
    plain = recipe.to_dict()
    machine = {"device": device, "threads": threads, "precision": precision, "torch": torch.__version__}
    factors = {**machine, "phase": phase, "model": plain["model"], "compile": plain["compile"], **shape}
    if phase != "infer":
        factors |= {"augment": plain["augment"], "batch_size": recipe.optim.batch_size, "optimizer": "AdamW"}
    if phase in ("ssl", "mix"):
        factors["ssl"] = recipe.ssl.constants()
        if strategy is not None:
            factors["strategy"] = {branch: list(getattr(strategy, branch)) for branch in strategy._fields}
    return factors


def state_factors(
    state: TrainState, phase: Phase | Literal["infer"], strategy: Strategy | None = None
) -> dict[str, Any]:
    """Return the cost factors of a state's steps, or of its inference, here and now."""
    device, precision = describe_device(state.device), str(state.autocast_dtype).removeprefix("torch.")
    threads, shape = torch.get_num_threads(), data_shape(state.data)
    return cost_factors(state.recipe, phase, device, threads, precision, shape, strategy)


def phase_signature(state: TrainState, phase: Phase | Literal["infer"], strategy: Strategy | None = None) -> str:
    """Return the cost signature of a state's steps, or of its inference, here and now."""
    return cost_signature(state_factors(state, phase, strategy))


def state_signatures(state: TrainState) -> list[str]:
    """Return the cost signatures of the epochs that a state has trained, and of its inference."""
    works = dict.fromkeys(epoch.work for epoch in make_plan(state.recipe)[: len(state.history)])
    return [*(phase_signature(state, *work) for work in works), phase_signature(state, "infer")]


def cost_signature(factors: Mapping[str, Any]) -> str:
    """Return a short digest of cost factors: equal factors have equal ones, in every process and after JSON."""
    return hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()[:16]
