"""What trials will cost: measured on the machine before the first one, exact for steps that were timed since."""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mixtune.errors import RequestError
from mixtune.recipe import Recipe
from mixtune.space import SearchSpace
from mixtune.training.data import TrainingData, load_training_data, place_images
from mixtune.training.device import choose_device, choose_dtype, describe_device, release_memory
from mixtune.training.device_lock import DeviceLock
from mixtune.training.forecast import (
    Size,
    forecast_latency,
    image_flops,
    largest_recipe,
    measure_speeds,
    recipe_flops,
)
from mixtune.training.memory import context_bytes, largest_packing, peak_memory
from mixtune.training.meter import cost_factors, cost_signature, data_shape
from mixtune.training.plan import Phase, make_plan
from mixtune.training.report import duration
from mixtune.training.state import build_parts
from mixtune.training.step_times import StepTimes
from mixtune.training.store import MOST_BYTES
from mixtune.tuning.cluster import Slots, plan_slots, trials_for_a_gpu
from mixtune.tuning.prepare import Prepared
from mixtune.tuning.suggestions import Cost, Suggester
from mixtune.views import Strategy

SAMPLED = 64  # recipes, for what a search will cost
MOST_A_GPU = 16  # trials
MOST_CONTEXT = 2 * 2**30  # bytes; more is other processes' memory, which is not there for ever
SURELY = 0.5  # of a forecast by operations: a constraint rejects before anything was timed only what is far too dear


@dataclass(frozen=True)
class Machine:
    """Where a search trains, as it was found before the first trial.

    device: as describe_device() says it; threads: of each trial; precision: of ``precision: auto``; speeds: FLOP/s of
    the base recipe's steps by phase; gpu_bytes: of the GPU, what a process holds of it beside its tensors, and what
    the largest recipe of the space needs for these; None on a CPU.
    """

    device: str
    threads: int
    precision: str
    speeds: dict[str, float]
    gpu_bytes: dict[str, int] | None = None

    def auto_share(self, most: int) -> float:
        """Return the share of a GPU that ``gpus_per_trial: auto`` stands for: the least that fits every recipe.

        most: how many trials a GPU should have at most, as many as there are CPUs for.
        """
        if self.gpu_bytes is None:
            return 1.0
        known = self.gpu_bytes
        return 1.0 / largest_packing(known["total"], known["context"], known["peak"], max(1, min(most, MOST_A_GPU)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file; Machine(**values) reads them."""
        return asdict(self)


def look_at_machine(space: SearchSpace, threads: int, on_gpu: bool) -> Machine:
    """Time a few steps of the base recipe on an idle device, and measure the memory of the largest one on a GPU."""
    device = choose_device() if on_gpu else torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    data = load_training_data(space.recipe, device)
    with DeviceLock.of(device).exclusive():
        precision = str(choose_dtype("auto", device)).removeprefix("torch.")
        speeds = measure_speeds(space.recipe, data, device)
    size = Size.of(data)
    del data
    machine = Machine(
        device=describe_device(device),
        threads=threads,
        precision=precision,
        speeds={str(phase): speed for phase, speed in speeds.items()},
        gpu_bytes=_measure_memory(largest_recipe(space, size), device) if device.type == "cuda" else None,
    )
    torch.set_num_threads(before)
    _release(space.recipe)
    return machine


def _measure_memory(largest: Recipe, device: torch.device) -> dict[str, int]:
    """Return Machine.gpu_bytes; a recipe that does not fit at all needs everything."""
    _release(largest)
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        peak = peak_memory(largest, load_training_data(largest, device), device)
    except torch.OutOfMemoryError:
        peak = total
    return {"total": total, "context": min(context_bytes(device), MOST_CONTEXT), "peak": peak}


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


class CostModel:
    """Forecasts of recipes' costs: timed steps count as they were timed, the others by their operations."""

    def __init__(self, space: SearchSpace, data: TrainingData, machine: Machine) -> None:
        self._space, self._machine = space, machine
        self._size, self._shape, self._tasks = Size.of(data), data_shape(data), len(data.tasks)

    def latency(self, recipe: Recipe, times: StepTimes, untimed: float = 1.0, reused: int = 0) -> float:
        """Return seconds of a recipe's training steps without its first ``reused`` epochs.

        untimed: scales the seconds of steps that are forecast by their operations.
        """
        images, seconds = self._size.epoch_images(recipe), 0.0
        steps = images // (recipe.optim.batch_size * self._tasks)
        for (phase, strategy), epochs in Counter(epoch.work for epoch in make_plan(recipe)[reused:]).items():
            signature = self._signature(recipe, phase, strategy)
            if times.is_known(signature):
                seconds += times.latency([(steps * epochs, signature)])
            else:
                flops = image_flops(recipe, self._size, strategy)[phase] * images * epochs
                seconds += untimed * flops / self._machine.speeds[phase]
        return seconds

    def cost(self, params: Mapping[str, Any], times: StepTimes, reused: int) -> Cost | None:
        """Return what is known of dotted parameters, of whose recipe so many epochs need no training."""
        try:
            recipe = self._space.recipe_at(params)
            flops = sum(recipe_flops(recipe, self._size).values())
        except RequestError:
            return None
        seconds, marginal = (self.latency(recipe, times, reused=epochs) for epochs in (0, reused))
        return Cost({"train_latency_s": seconds, "train_flops": flops}, seconds, marginal)

    def forecast(self, params: Mapping[str, Any], times: StepTimes) -> dict[str, float]:
        """Return the least that the base recipe with dotted values set may cost, for constraints.

        Nothing is known of values that are right one by one but not together: such a trial fails by itself.
        """
        try:
            recipe = self._space.recipe_at(params)
            flops = sum(recipe_flops(recipe, self._size).values())
        except RequestError:
            return {}
        return {"train_latency_s": self.latency(recipe, times, SURELY), "train_flops": flops}

    def _signature(self, recipe: Recipe, phase: Phase, strategy: Strategy | None) -> str:
        machine = self._machine
        precision = machine.precision if recipe.precision == "auto" else recipe.precision
        shape = {**self._shape, "image_size": recipe.data.image_size or self._shape["image_size"]}
        shape["images_on"] = "cpu" if machine.gpu_bytes is None else "cuda"
        return cost_signature(cost_factors(recipe, phase, machine.device, machine.threads, precision, shape, strategy))


def reference_point(space: SearchSpace, data: TrainingData, machine: Machine, dearest: Recipe) -> dict[str, float]:
    """Return the worst that counts, for the hypervolume.

    What guessing gets where classes are equally frequent, with a calibration that is sure of it; for each cost that of
    the dearest recipe, forecast; and for all the constraint, where there is one.
    """
    size = Size.of(data)
    chance = sum(1.0 / classes for classes in size.classes) / len(size.classes)
    baselines = [space.recipe_at(params) for params in space.baseline_params().values()]
    flops = [recipe_flops(recipe, size) for recipe in (dearest, *baselines)]
    speeds: Any = machine.speeds
    worst = {
        "val_accuracy": chance,
        "val_balanced_accuracy": chance,
        "val_macro_f1": chance,
        "val_calibration_error": 1.0 - chance,
        "train_latency_s": max(forecast_latency(each, speeds) for each in flops),
        "train_flops": max(sum(each.values()) for each in flops),
    }
    return worst | {name: constraint.bound for name, constraint in space.constraints.items()}


@dataclass(frozen=True)
class SearchForecast:
    """What a search costs where every recipe is trained from its start.

    trial_s: device-seconds of training steps of a trial, the mean over recipes drawn at random; baselines_s: of all
    baselines together; epochs: of all trials and baselines; stored_bytes: of training states; slots: trials at once.
    """

    trials: int
    baselines: int
    trial_s: float
    baselines_s: float
    epochs: float
    stored_bytes: float
    slots: Slots
    device: str

    @property
    def device_s(self) -> float:
        """Device-seconds of the training steps of the whole search."""
        return self.trials * self.trial_s + self.baselines_s

    def __str__(self) -> str:
        return (
            f"forecast: {self.trials} trials and {self.baselines} baselines, about {self.epochs:,.0f} epochs, "
            f"{duration(self.device_s)} of training steps on {self.device}\n"
            f"trials: {self.slots}: {duration(self.device_s / self.slots.count)} or more\n"
            f"disk: up to {min(self.stored_bytes, MOST_BYTES) / 1e9:.2g} GB of training states"
        )


def look_at_machine_for(prepared: Prepared) -> Machine:
    """Time a few steps of a space's base recipe where its trials would train, as :func:`look_at_machine` does."""
    resources = prepared.space.resources
    on_gpu = plan_slots(resources, [(prepared.cpus, prepared.gpus)]).gpus > 0
    return look_at_machine(prepared.space, max(1, int(resources.cpus_per_trial)), on_gpu)


def forecast_search(prepared: Prepared, machine: Machine | None = None) -> SearchForecast:
    """Forecast a search from recipes drawn at random; without a ``machine`` a few steps are timed now."""
    space, data, size = prepared.space, prepared.data, Size.of(prepared.data)
    machine = machine or look_at_machine_for(prepared)
    nodes = [(prepared.cpus, prepared.gpus)]
    costs, times = CostModel(space, data, machine), StepTimes()
    drawn = list(_recipes_at_random(space, size))
    if not drawn:
        raise RequestError(f"not one of {SAMPLED} recipes drawn from the space has values that go together")
    baselines = [space.recipe_at(params) for params in space.baseline_params().values()]
    epochs = space.budget * _mean(len(make_plan(recipe)) for recipe in drawn)
    return SearchForecast(
        trials=space.budget,
        baselines=len(baselines),
        trial_s=_mean(costs.latency(recipe, times) for recipe in drawn),
        baselines_s=sum(costs.latency(recipe, times) for recipe in baselines),
        epochs=epochs + sum(len(make_plan(recipe)) for recipe in baselines),
        stored_bytes=(space.budget + len(baselines)) * _mean(_stored_bytes(recipe, size) for recipe in drawn),
        slots=plan_slots(space.resources, nodes, machine.auto_share(trials_for_a_gpu(space.resources, nodes))),
        device=machine.device,
    )


def _recipes_at_random(space: SearchSpace, size: Size) -> Iterator[Recipe]:
    drawing = Suggester(space.with_search(sampler="random"))
    for number in range(2, SAMPLED + 2):  # the first would be the paper's point
        with suppress(RequestError):  # right one by one, but not together
            recipe = space.recipe_at(drawing.ask(str(number), number))
            recipe_flops(recipe, size)
            yield recipe


def _stored_bytes(recipe: Recipe, size: Size) -> float:
    """Return the bytes of the states that a trial stores: float32 weights and AdamW's two moments, at each border."""
    weights = _count_weights(Recipe(data=recipe.data, model=recipe.model, ssl=recipe.ssl), size)
    return 3 * 4.0 * weights * len({epoch.phase for epoch in make_plan(recipe)})


@functools.lru_cache(maxsize=256)
def _count_weights(recipe: Recipe, size: Size) -> int:
    """Return how many weights a recipe trains, without allocating them; its budgets and rates do not matter."""
    with torch.device("meta"):
        image_size = recipe.data.image_size or size.image_size
        parts = build_parts(recipe, image_size, size.channels, size.classes)
    return sum(weight.numel() for part in parts for weight in part.parameters())


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
