"""What the stage keys of a search's start rest on, told apart: ``opened`` events of the ledger, compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from mixtune.errors import RequestError
from mixtune.metrics import find_metric
from mixtune.run.ledger import RunState
from mixtune.space.recipe import Recipe
from mixtune.space.space import SearchSpace
from mixtune.stages.code import digest_code
from mixtune.stages.keys import digest_tensor
from mixtune.training.data import place_images
from mixtune.training.sources import digest_sets, load_image_sets, other_data

_VERSIONS = ("torch", "pillow")


@dataclass(frozen=True)
class Opened:
    """Digests and names. source, labels, classes, pixels: by part, such as ``digits/train``; code: by objective.

    source: of files' bytes by relative name, or of arrays, before decoding; classes: of their names; pixels: after it.
    """

    source: Mapping[str, str]
    labels: Mapping[str, str]
    classes: Mapping[str, str]
    pixels: Mapping[str, str]
    code: Mapping[str, str]
    versions: Mapping[str, str]
    device: str
    threads: int

    @classmethod
    def of(cls, space: SearchSpace, device: str, threads: int) -> Opened:
        """Return those of here and now; device, threads: of the trials."""
        sets = load_image_sets(space.recipe)
        tensors = {part: place_images(images, torch.device("cpu")) for part, images in sets.items()}
        searched = space.space.get("ssl.objective")
        objectives = searched.values if searched is not None else (space.recipe.ssl.objective,)
        return cls(
            **digest_sets(sets),
            pixels={part: digest_tensor(pixels) for part, (pixels, _) in tensors.items()},
            code={name: digest_code(name) for name in objectives},
            versions={name: version(name) for name in _VERSIONS},
            device=device,
            threads=threads,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of an event."""
        return asdict(self)

    def compare(self, state: RunState, space: SearchSpace) -> list[str]:
        """Return a line for each difference from a run's latest start that its trials can live with.

        Raises RequestError for other images or labels, and for another device where it matters to an objective or a
        constraint.
        """
        if not state.opened:
            lacks = "this run was begun by a version of mixtune that did not record its data and code"
            return [f"{lacks}: that they are the same cannot be checked"] if state.records else []
        before = state.opened[-1]
        if changed := other_data(before, self.to_dict()):
            raise RequestError(
                f"{changed} are not those that this run was begun with: restore them, or search elsewhere"
            )
        refuse_other_device(str(before.get("device")), self.device, space)
        kinds = {"pixels": "decoded images", "code": "code of the training", "versions": "versions"}
        lines = []
        for kind, word in kinds.items():
            if parts := _differing(before.get(kind), getattr(self, kind)):
                lines.append(
                    f"the {word} ({', '.join(parts)}) changed since this run was begun: checkpoints are trained again"
                )
        return lines


def refuse_other_data(state: RunState, recipe: Recipe) -> list[str]:
    """Raise RequestError where a recipe's images, labels or classes are not those that its run was begun with.

    Returns a line for an older run, which did not record them.
    """
    if not state.opened:
        lacks = "this run was begun by a version of mixtune that did not record its data"
        return [f"{lacks}: that they are the same cannot be checked"]
    if parts := other_data(state.opened[-1], digest_sets(load_image_sets(recipe))):
        raise RequestError(f"{parts} are not those that this run was begun with: restore them, or search elsewhere")
    return []


def refuse_other_device(before: str, here: str, space: SearchSpace) -> None:
    """Raise RequestError where figures of another device would stand alongside those of a run's own."""
    bound = [name for name in (*space.objectives, *space.constraints) if find_metric(name).of_device]
    if bound and before != here:
        raise RequestError(
            f"{bound[0]} of this run is of {before}, and here is {here}: figures of two devices do not compare; "
            "continue it there, or search again by train_flops"
        )


def _differing(before: Any, now: Mapping[str, str]) -> list[str]:
    """Return the names whose values differ, or that only one of both has."""
    known = before if isinstance(before, Mapping) else {}
    return sorted(name for name in {*known, *now} if known.get(name) != now.get(name))
