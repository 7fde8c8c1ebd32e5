"""What a node is asked before it takes a trial: has it the same code and the same images, and are these decoded?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mixtune.errors import DataError, RequestError, TrainingError
from mixtune.space.space import SearchSpace, space_from_dict
from mixtune.training.sources import count_images, load_image_sets


def decode_images(space: SearchSpace) -> None:
    """Decode a base recipe's images on this machine, unless they are."""
    load_image_sets(space.recipe)


def versions() -> dict[str, str]:
    """Return the versions that a trial's result depends on, of this process."""
    found: dict[str, str] = make_visit()({}, {}, {}, say=True)
    return found


def make_visit() -> Callable[..., Any]:
    """Return the task that says why its node cannot train, None if it can: a value, since mixtune may be missing."""

    def visit(wanted: dict[str, str], space: dict[str, Any], images: dict[str, Any], say: bool = False) -> Any:
        import importlib
        import sys

        found = {"Python": f"{sys.version_info.major}.{sys.version_info.minor}"}
        for package in ("mixtune", "torch", "ray"):
            try:
                found[package] = importlib.import_module(package).__version__
            except ImportError as error:
                return str(error)
        if say:
            return found
        other = [f"{name} {found[name]}, here {version}" for name, version in wanted.items() if found[name] != version]
        if other:
            return ", ".join(other)
        return importlib.import_module("mixtune.tuning.preflight").check_data(space, images)

    return visit


def check_data(values: Mapping[str, Any], images: Mapping[str, Any]) -> str | None:
    """Return why a space cannot be trained on this machine, None if it can; images: as count_images() has them."""
    try:
        space = space_from_dict(values, {})
        here = count_images(space.recipe)
    except (RequestError, DataError, TrainingError) as error:
        return str(error)
    for name, (count, size) in images.items():
        if here[name] != (count, size):
            there = here[name]
            return (
                f"{name} has {there[0]:,} images of {there[1]:,} bytes, and {count:,} of {size:,} where the search runs"
            )
    return None
