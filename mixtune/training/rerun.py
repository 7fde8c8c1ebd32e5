"""A search's recipes trained once more, with what its trials had: device, threads, precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mixtune.errors import TrainingError, one_line
from mixtune.recipe import Recipe, change_recipe
from mixtune.training.device import choose_device


@contextmanager
def as_in_search(base: Recipe, machine: Mapping[str, Any]) -> Iterator[tuple[Recipe, torch.device]]:
    """Compute as a search's trials did; yield its base recipe, at their precision, and the device.

    machine: ``run.machine`` of its space.yaml. On a CPU the same bits come out, so its stored states can be gone on
    from. Raises TrainingError where a GPU's memory is full.
    """
    device = choose_device() if machine.get("gpu_bytes") else torch.device("cpu")
    if base.precision == "auto" and "precision" in machine:
        base = change_recipe(base, {"precision": machine["precision"]})
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, machine.get("threads", 1)))
    try:
        yield base, device
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full: is another process on it? ({one_line(error)})") from error
    finally:
        torch.set_num_threads(before)
