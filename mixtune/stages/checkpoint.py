"""A trained state as a folder that says what it holds: which recipes trained it, on which data, what its steps took."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from mixtune.errors import DataError, RequestError, one_line, show
from mixtune.meter.times import StepTimes
from mixtune.space.effective import resolve_auto
from mixtune.space.recipe import Recipe, flatten, parse_recorded
from mixtune.stages.keys import digest_tensor
from mixtune.training.data import TrainingData
from mixtune.training.device import describe_device
from mixtune.training.plan import Epoch, make_plan
from mixtune.training.state import TrainState

CHECKPOINT = "state.pt"
FORMAT = 1
MAY_CHANGE = ("alpha", "lambda", "rho", "epochs.", "optim.ssl.", "optim.sl.")  # between two epochs
_OF_IMAGES = (  # which count by their content
    *("root", "train", "val", "test", "ssl_root", "download", "reading", "fit", "background", "range"),
    *("max_megapixels", "on_bad_file", "duplicates"),
)
NOT_COMPARED = tuple(f"data.{name}" for name in _OF_IMAGES)


@dataclass
class Origin:
    """Where a state's epochs come from.

    recipes: plain values, each once, in the order of their training; epochs: of each, its recipe's place among them,
    the device as describe_device() says it, and its cost signature; training_s: the sum of the epochs' seconds, each as
    known when it ended.
    """

    recipes: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[tuple[int, str, str]] = field(default_factory=list)
    training_s: float = 0.0

    def note(self, state: TrainState) -> None:
        """Take in the epochs that a state has trained since."""
        before, done = len(self.epochs), len(state.history)
        recipe = state.recipe.to_dict()
        if done > before and recipe not in self.recipes:
            self.recipes.append(recipe)
        for _, signature, _ in state.bill.epochs[before:done]:
            self.epochs.append((self.recipes.index(recipe), describe_device(state.device), signature))
        self.training_s += sum(state.bill.price(state.step_times, start=before, end=done).values())

    @property
    def device(self) -> str:
        """The device that trained, or all of them."""
        return " and ".join(dict.fromkeys(device for _, device, _ in self.epochs))


def write_checkpoint(folder: str | os.PathLike[str], state: TrainState, origin: Origin) -> None:
    """Write a state and its origin to a folder that exists: tensors and plain values."""
    saved = {
        "format": FORMAT,
        "recipe": state.recipe.to_dict(),
        "data": _digest_data(state.data),
        "trained": {"recipes": origin.recipes, "epochs": origin.epochs, "training_s": origin.training_s},
        "step_times": state.step_times.to_dict(),
        **state.state_dict(),
    }
    torch.save(saved, Path(folder) / CHECKPOINT)


def read_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what write_checkpoint() wrote, its tensors on the CPU; older ones have neither ``format`` nor recipe.

    Raises RequestError for a folder without a checkpoint, DataError for a damaged one.
    """
    path = Path(folder) / CHECKPOINT
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RequestError(f"{folder} holds no checkpoint of MixTrainable: {CHECKPOINT} is missing") from error
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(saved, dict) or "history" not in saved:
        raise DataError(f"{path} is not a checkpoint of MixTrainable")
    if saved.get("format", 0) > FORMAT:
        raise RequestError(f"{path} was written by a newer version of mixtune, in format {saved['format']}")
    return saved


def recipe_of(saved: Mapping[str, Any], folder: str | os.PathLike[str]) -> Recipe:
    """Return the recipe of a checkpoint. Raises RequestError for an older one, which has none."""
    if "recipe" not in saved:
        raise RequestError(f"{folder} holds a checkpoint without its recipe: an older version of mixtune wrote it")
    return parse_recorded(saved["recipe"])


def restore(state: TrainState, saved: Mapping[str, Any]) -> Origin:
    """Bring a fresh state to what a checkpoint holds, and return its origin.

    Rates, weight decay, alpha, lambda, rho and budgets may be others than before, as far as the epochs that are trained
    have the same place in both plans. Epochs keep the cost of the device that trained them. Raises RequestError, one
    line with all differences, for anything else.
    """
    trained = saved.get("trained")
    if trained is not None:
        differences = [*_differences(saved, state)]
        if differences:
            raise RequestError(f"the checkpoint is another recipe's: {'; '.join(differences)}")
    state.load_state_dict(dict(saved))
    if trained is None:  # of a version that did not note it
        origin = Origin(training_s=float(saved.get("training_s", 0.0)))
        origin.recipes = [state.recipe.to_dict()]
        costs = state.bill.epochs[: len(state.history)]
        origin.epochs = [(0, describe_device(state.device), signature) for _, signature, _ in costs]
        return origin
    origin = Origin(trained["recipes"], [(i, d, s) for i, d, s in trained["epochs"]], trained["training_s"])
    state.step_times = StepTimes.from_dict(saved["step_times"])
    paid = [(phase, s, flops) for (_, _, s), (phase, _, flops) in zip(origin.epochs, state.bill.epochs, strict=False)]
    state.bill = replace(state.bill, epochs=(*paid, *state.bill.epochs[len(paid) :]))
    return origin


def _differences(saved: Mapping[str, Any], state: TrainState) -> Iterator[str]:
    """Yield what keeps a checkpoint from being continued by a fresh state."""
    known = parse_recorded(saved["recipe"])
    before, now = (resolve_auto(flatten(recipe.to_dict())) for recipe in (known, state.recipe))
    paths = [path for path in {**before, **now} if not path.startswith(MAY_CHANGE) and path not in NOT_COMPARED]
    other = [path for path in paths if before.get(path) != now.get(path)]
    for path in other:
        yield f"{path} {show(before.get(path))}, here {show(now.get(path))}"
    data = _digest_data(state.data)
    parts = [part for part in {**saved["data"], **data} if saved["data"].get(part) != data.get(part)]
    if parts and not any(path == "seed" or path.startswith(("data.", "protocol")) for path in other):
        yield f"other images or labels ({', '.join(parts)})"
    if not other:
        trained = make_plan(known)[: len(saved["history"])]
        for was, would_be in zip_longest(trained, state.plan[: len(trained)]):
            if was != would_be:
                there = "past its end" if would_be is None else _place(would_be)
                yield f"epoch {was.index + 1} was trained as {_place(was)}, here it is {there}"
                return


def _place(epoch: Epoch) -> str:
    """Return an epoch's place in a plan, as people count."""
    of = {"SSL": epoch.ssl_epoch, "SL": epoch.sl_epoch}
    counted = " and ".join(f"{name} epoch {number + 1}" for name, number in of.items() if number is not None)
    return f"{counted} ({epoch.phase})" if epoch.phase == "mix" else counted


def _digest_data(data: TrainingData) -> dict[str, str]:
    """Return a digest of what each pool draws from: images, indices and labels."""
    return {
        f"{task.name}/{part}": "-".join(
            digest_tensor(tensor)[:16] for tensor in (pool.images, pool.indices, pool.labels) if tensor is not None
        )
        for task in data.tasks
        for part, pool in {"train": task.train, "ssl": task.ssl, "held_out": task.held_out}.items()
    }
