"""What trials will cost: measured on the machine before the first one, exact for steps that were timed since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mixtune.cost.flops import (
    Size,
    fit_steps,
    image_flops,
    largest_recipe,
    sizes_to_time,
    time_steps,
)
from mixtune.cost.memory import context_bytes, largest_packing, peak_memory
from mixtune.errors import TrainingError, one_line
from mixtune.meter.lock import DeviceLock
from mixtune.space.recipe import Recipe, change_recipe
from mixtune.space.space import SearchSpace
from mixtune.training.data import TrainingData, load_training_data, place_images
from mixtune.training.device import choose_device, choose_dtype, describe_device, release_memory
from mixtune.training.plan import PHASES, Phase

MAX_TRIALS_PER_GPU = 16  # trials
MAX_CONTEXT = 2 * 2**30  # bytes; more is other processes' memory, which is not there for ever


@dataclass(frozen=True)
class Machine:
    """Where a search trains, as it was found before the first trial.

    device: as describe_device() says it; threads: of each trial; precision: of ``precision: auto``; speeds: FLOP/s of
    the base recipe's steps by phase; gpu_bytes: of the GPU, what a process holds of it besides its tensors, and what
    the largest recipe of the space needs for these; None on a CPU; step_costs: by phase, the seconds that a step takes
    whatever its FLOPs, and those that each FLOP adds; empty where steps of one size alone were timed.
    """

    device: str
    threads: int
    precision: str
    speeds: dict[Phase, float]
    gpu_bytes: dict[str, int] | None = None
    step_costs: dict[Phase, tuple[float, float]] = field(default_factory=dict)

    def step_seconds(self, phase: Phase, flops: float) -> float:
        """Return the seconds that a training step of so many FLOPs takes."""
        if phase not in self.step_costs:
            return flops / self.speeds[phase]
        fixed, each = self.step_costs[phase]
        return fixed + each * flops

    def auto_fraction(self, most: int) -> float:
        """Return the fraction of a GPU that ``gpus_per_trial: auto`` stands for: the least that fits every recipe.

        most: how many trials a GPU should have at most, as many as there are CPUs for.
        """
        if self.gpu_bytes is None:
            return 1.0
        known = self.gpu_bytes
        most = max(1, min(most, MAX_TRIALS_PER_GPU))
        return 1.0 / largest_packing(known["total"], known["context"], known["peak"], most)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file; Machine(**values) reads them."""
        return asdict(self)


def look_at_machine(space: SearchSpace, threads: int, on_gpu: bool) -> Machine:
    """Time a few steps on an idle device, and measure the memory of the largest recipe on a GPU."""
    device = choose_device() if on_gpu else torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    data = load_training_data(space.recipe, device)
    size = Size.of(data)
    with DeviceLock.of(device).exclusive():
        precision = str(choose_dtype("auto", device)).removeprefix("torch.")
        step_costs, speeds = _time_steps(space, data, device)
    del data
    machine = Machine(
        device=describe_device(device),
        threads=threads,
        precision=precision,
        speeds=speeds,
        gpu_bytes=_measure_memory(largest_recipe(space, size), device) if device.type == "cuda" else None,
        step_costs=step_costs,
    )
    torch.set_num_threads(before)
    _release(space.recipe)
    return machine


def _time_steps(
    space: SearchSpace, data: TrainingData, device: torch.device
) -> tuple[dict[Phase, tuple[float, float]], dict[Phase, float]]:
    """Return Machine.step_costs and Machine.speeds."""
    size, base = Size.of(data), space.recipe
    smallest, *others = sizes_to_time(space, size, device)
    timed = [time_steps(smallest, data, device)]
    for recipe in others:
        with suppress(torch.OutOfMemoryError):  # such trials will fail, and their seconds do not matter
            timed.append(time_steps(recipe, data, device))
    costs = {phase: fit_steps([steps[phase] for steps in timed]) for phase in PHASES}
    images, first = base.optim.batch_size * len(size.classes), base.ssl.strategy(0)
    speeds: dict[Phase, float] = {}
    for phase, (fixed, each) in costs.items():
        flops = images * image_flops(base, size, None if phase == "sl" else first)[phase]
        speeds[phase] = flops / (fixed + each * flops)
    return costs if others else {}, speeds


def _measure_memory(largest: Recipe, device: torch.device) -> dict[str, int]:
    """Return Machine.gpu_bytes; a recipe that does not fit at all needs everything."""
    _release(largest)
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        peak = peak_memory(largest, load_training_data(largest, device), device)
    except torch.OutOfMemoryError:
        peak = total
    return {"total": total, "context": min(context_bytes(device), MAX_CONTEXT), "peak": peak}


def _release(recipe: Recipe) -> None:
    """Give back what was held for a recipe: the GPU is the trials'."""
    place_images.cache_clear()
    release_memory(recipe.compile)


def device_here(threads: int, on_gpu: bool) -> str:
    """Return the name of the device that trials of so many threads would train on here."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    name = describe_device(choose_device() if on_gpu else torch.device("cpu"))
    torch.set_num_threads(before)
    return name


@contextmanager
def as_in_search(base: Recipe, machine: Mapping[str, Any]) -> Iterator[tuple[Recipe, torch.device]]:
    """Compute as a search's trials did; yield its base recipe, at their precision, and the device.

    machine: ``run.machine`` of its space.yaml. On a CPU the same bits come out, so its checkpoints can be continued
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
