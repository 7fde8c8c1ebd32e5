"""Whether a stored state is one of the recipe that would continue from it: a sound file may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mixtune.training.state import TrainState, read_result

_PARTS = ("backbone", "objective", "classifiers")


def why_unfit(state: TrainState, saved: Mapping[str, Any], epochs: int) -> str | None:
    """Return in words why values are no state of a recipe after so many epochs, None where they are one.

    state: the recipe's, fresh. Names, shapes and kinds are compared, before anything is taken over; numbers are not.
    """
    wanted = state.state_dict()
    for part in _PARTS:
        if wanted[part] is not None and _shapes(saved.get(part)) != _shapes(wanted[part]):
            return f"its {part} has other tensors"
    if not _continues(wanted["optimizer"], saved.get("optimizer"), state.optimizer.param_groups):
        return "its optimizer has other tensors"
    return _why_no_history(state, saved, epochs)


def _shapes(tensors: Any) -> dict[Any, Any] | None:
    if not isinstance(tensors, Mapping):
        return None
    return {name: tuple(each.shape) if isinstance(each, Tensor) else type(each) for name, each in tensors.items()}


def _continues(wanted: Mapping[str, Any], saved: Any, groups: list[dict[str, Any]]) -> bool:
    """Return whether an optimizer's state belongs to the same parameters; a fresh one's holds no tensors yet."""
    if _keys(saved) != _keys(wanted) or not isinstance(saved["param_groups"], list):
        return False
    if not all(isinstance(group, Mapping) for group in saved["param_groups"]):
        return False
    if [group.get("params") for group in saved["param_groups"]] != [g["params"] for g in wanted["param_groups"]]:
        return False
    shapes = [tuple(parameter.shape) for group in groups for parameter in group["params"]]
    held = saved["state"]
    return isinstance(held, Mapping) and all(
        index in range(len(shapes))
        and isinstance(values, Mapping)
        and all(isinstance(v, Tensor) and tuple(v.shape) in ((), shapes[index]) for v in values.values())
        for index, values in held.items()
    )


def _keys(values: Any) -> set[Any] | None:
    return set(values) if isinstance(values, Mapping) else None


def _why_no_history(state: TrainState, saved: Mapping[str, Any], epochs: int) -> str | None:
    images = [len(task.held_out) for task in state.data.tasks]
    history = saved.get("history")
    if not isinstance(history, list) or len(history) != epochs:
        return f"it is not of {epochs} epochs"
    try:
        results = [read_result(each, images) for each in history]
        predicted = None if saved.get("predictions") is None else [_length(each) for each in saved["predictions"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        return "its history is not one"
    if [result.epoch for result in results] != list(range(1, epochs + 1)):
        return "its history is not one"
    if predicted is not None and predicted != images:
        return "its predictions are of other images"
    return None


def _length(predicted: Any) -> int | None:
    return len(predicted) if isinstance(predicted, Tensor) and predicted.ndim == 1 else None
