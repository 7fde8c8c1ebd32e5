"""A recipe's bill, what each of its epochs costs, and its price: the seconds of these costs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch

from mixtune.backbone import Backbone, linear_flops
from mixtune.meter.times import StepTimes
from mixtune.objectives import TRAINED, Objective
from mixtune.space.recipe import Recipe
from mixtune.space.views import Strategy
from mixtune.training.data import TrainingData
from mixtune.training.plan import PHASES, Phase

Seconds = dict[Phase, float]
StepSeconds = Callable[[Phase, float], float]  # of a step of a phase, from its FLOPs


@dataclass(frozen=True)
class Bill:
    """What each epoch of a recipe costs, in the plan's order: (phase, cost signature, FLOPs of a step).

    steps: of an epoch of each phase; infer: the cost signature of classifying an image.
    """

    steps: Mapping[Phase, int]
    epochs: tuple[tuple[Phase, str, float], ...]
    infer: str

    @functools.cached_property
    def flops(self) -> float:
        """The FLOPs of the whole recipe's training."""
        return sum(self.steps[phase] * flops for phase, _, flops in self.epochs)

    def signatures(self, epochs: int | None = None) -> list[str]:
        """Return the cost signatures of the first epochs (default: of all), and of inference."""
        return [*dict.fromkeys(signature for _, signature, _ in self.epochs[:epochs]), self.infer]

    def is_timed(self, times: StepTimes) -> bool:
        """Return whether all kinds of its steps were timed."""
        return all(times.is_known(signature) for _, signature, _, _ in self._stretches)

    @functools.cached_property
    def _stretches(self) -> list[tuple[Phase, str, float, range]]:
        """Runs of epochs that cost the same."""
        stretches, begin = [], 0
        for (phase, signature, flops), run in groupby(self.epochs):
            end = begin + sum(1 for _ in run)
            stretches.append((phase, signature, flops, range(begin, end)))
            begin = end
        return stretches

    def count_steps(self, epochs: int) -> dict[Phase, dict[str, int]]:
        """Return how many steps of each cost signature the first epochs have in each phase."""
        counts: dict[Phase, dict[str, int]] = {}
        for (phase, signature, _), count in Counter(self.epochs[:epochs]).items():
            counts.setdefault(phase, {})[signature] = self.steps[phase] * count
        return counts

    def error(self, times: StepTimes, epochs: int | None = None) -> float:
        """Return the standard error of the seconds of the first epochs (default: of all); see StepTimes.error_of."""
        counts: Counter[str] = Counter()
        for of_phase in self.count_steps(len(self.epochs) if epochs is None else epochs).values():
            counts.update(of_phase)
        return times.error_of(counts)

    def price(
        self, times: StepTimes, untimed: StepSeconds | None = None, start: int = 0, end: int | None = None
    ) -> Seconds:
        """Return the seconds of the epochs from ``start`` to ``end`` by phase, those that have none left out.

        A step takes what is known of its signature, else what ``untimed`` says; NaN without either.
        """
        seconds: Seconds = {}
        for phase, signature, flops, epochs in self._stretches:
            count = len(epochs[max(0, start - epochs.start) : None if end is None else max(0, end - epochs.start)])
            if not count:
                continue
            step = times.step_time(signature)
            if step != step and untimed is not None:
                step = untimed(phase, flops)
            seconds[phase] = seconds.get(phase, 0.0) + count * self.steps[phase] * step
        return seconds

    def _as_timed(self, times: StepTimes) -> StepSeconds | None:
        """Return steps as fast, in FLOP/s, as those that were timed, in all phases; None where none was."""
        steps = {(signature, flops) for _, signature, flops in self.epochs}
        timed = [(times.step_time(signature), flops) for signature, flops in steps if times.is_known(signature)]
        flops, seconds = sum(flops for _, flops in timed), sum(seconds for seconds, _ in timed)
        speed = flops / seconds if flops else 0.0
        return (lambda phase, step: step / speed) if flops else None

    def seconds(self, times: StepTimes, trained: int, reused: int) -> dict[str, float]:
        """Return the metrics in seconds after ``trained`` epochs, of which the first ``reused`` came from a checkpoint.

        Until the end the forecast prices steps that were not timed yet by their FLOPs.
        """
        by_phase = self.price(times, end=trained)
        forecast, total = self.price(times, self._as_timed(times)), sum(by_phase.values())
        counts = Counter((phase, signature) for phase, signature, _ in self.epochs[:trained])
        disturbed = sum(
            self.steps[phase] * count * times.step_time(signature)
            for (phase, signature), count in counts.items()
            if times.is_disturbed(signature)
        )
        return {
            "train_latency_s": total,
            "train_latency_se_s": self.error(times, trained),
            **{f"latency_{phase}_s": by_phase.get(phase, 0.0) for phase in PHASES},
            "latency_reused_s": sum(self.price(times, end=reused).values()),
            "forecast_latency_s": sum(forecast.values()),
            "infer_latency_ms": 1e3 * times.step_time(self.infer),
            "infer_latency_ms_se": 1e3 * times.error(self.infer),
            "disturbed": disturbed / total if total else 0.0,
            "infer_disturbed": float(times.is_disturbed(self.infer)),
        }


def phase_flops(
    backbone: Backbone, objective: Objective, classes: Sequence[int], strategy: Strategy | None = None
) -> dict[Phase, float]:
    """Return the training FLOPs (forward and backward) of one image in each phase.

    classes: of each task; a step has as many images of one task as of another. strategy: an epoch's.
    """
    classify = linear_flops(1, backbone.embed_dim, sum(classes) / len(classes))
    return {
        "ssl": objective.train_flops(backbone, joint=False, strategy=strategy),
        "mix": objective.train_flops(backbone, joint=True, strategy=strategy) + TRAINED * classify,
        "sl": TRAINED * (backbone.forward_flops(backbone.tokens) + classify),
    }


def data_shape(data: TrainingData) -> dict[str, Any]:
    """Return what the cost of a step depends on in the data: sizes, tasks, whether images are mixed, where they lie."""
    return {
        "image_size": data.image_size,
        "channels": data.channels,
        "two_datasets": data.mixes_partners,  # the name that recorded signatures are digests of
        "classes": [len(task.classes) for task in data.tasks],
        "images_on": data.tasks[0].train.images.device.type,
    }


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


def cost_signature(factors: Mapping[str, Any]) -> str:
    """Return a short digest of cost factors: equal factors have equal ones, in every process and after JSON."""
    return hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()[:16]
