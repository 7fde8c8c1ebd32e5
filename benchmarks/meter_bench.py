"""What the parts of latency_meter.py share: recipes, how much is done, what was measured, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

from meter_processes import Job, Training

from mixtune.space.recipe import with_values

PACKED_GOAL = 0.05

BASE: dict[str, Any] = {
    "data": {"dataset": "digits"},
    "model": {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 2},
    "optim": {"batch_size": 32},
    "augment": {"pad": 0},
}

# Searches: the shipped one's recipe with fewer epochs. FREE changes no step's cost; by the rate no trial continues from
# a state of another, whose seconds would count twice.
FREE: dict[str, Any] = {"alpha": {"uniform": [0.05, 0.95]}, "optim.ssl.base_lr": {"loguniform": [0.01, 0.05]}}
ONE_SIZE = "one size of model and batch"
SEARCHES: dict[str, dict[str, Any]] = {
    ONE_SIZE: {"rho": {"choice": [0.0, 0.5, 1.0]}},
    "four depths, two batch sizes": {
        "rho": {"choice": [0.0, 0.5, 1.0]},
        "model.depth": {"choice": [1, 2, 3, 4]},
        "optim.batch_size": {"choice": [32, 64]},
    },
}

FRESH_FRACTIONS = {8: 0.1, 20: 0.25, 40: 0.5, 80: 1.0}  # steps of an epoch by share of the images; same cost a step

Rows = list[tuple[Any, ...]]  # of the CSV file
CSV_HEAD = ("part", "what", "phase", "round", "process", "quantity", "value")


class Scale(NamedTuple):
    """How much is done."""

    rounds: int = 6  # of alone and packed, in the same processes
    repeats: int = 2  # of new processes, and of training runs that only one figure comes of
    fresh: int = 3  # processes, for each number of steps of an epoch
    traces: int = 4  # processes whose every step is timed
    trials: int = 20
    offers: int = 20_000
    loops: int = 8  # epochs with the meter and without
    settled_steps: int = 80  # of a phase after its first epoch
    fractions: Mapping[int, float] = FRESH_FRACTIONS
    changes: Mapping[str, Any] = MappingProxyType({})  # to every recipe
    searches: tuple[str, ...] = tuple(SEARCHES)
    packed: int = 4  # training runs at once
    pause_s: float = 15.0  # between the rounds with a reference step


SMALL = Scale(
    *(1, 1, 1, 1, 2, 500, 2, 8),
    packed=2,
    pause_s=0.0,
    fractions={8: 0.1},
    changes={"data.fraction": 0.2, "model.embed_dim": 16, "model.depth": 1},
    searches=(ONE_SIZE,),
)


class Bench(NamedTuple):
    """One run of this benchmark: where, how much, and what was measured, for the CSV file."""

    device: str
    scale: Scale
    rows: Rows
    say: Callable[[str], None]

    def job(self, changes: dict[str, Any], **options: Any) -> Job:
        return Job(with_values(BASE, {**self.scale.changes, **changes}), self.device, **options)


class Ratio(NamedTuple):
    """A median ratio and the lowest and highest single one."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], to: float = 1.0) -> Ratio:
        ratios = [value / to for value in values]
        return cls(median(ratios), min(ratios), max(ratios))

    @property
    def off(self) -> float:
        """How far the median is from 1."""
        return abs(self.middle - 1)

    @property
    def most_off(self) -> float:
        return max(abs(self.low - 1), abs(self.high - 1))

    def __str__(self) -> str:
        return f"{self.middle:.3f} ({self.low:.3f} to {self.high:.3f})"


class Section(NamedTuple):
    """A part of the results file; ``goals`` are (what, whether it is met)."""

    title: str
    text: str
    goals: list[tuple[str, bool]]


def met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def note(rows: Rows, part: str, what: str, round_: int, process: int, training_runs: Iterable[Training]) -> None:
    """Keep what training runs measured for the CSV file; seconds are of a step."""
    for training in training_runs:
        for phase in training.phases:
            rows.append((part, what, phase, round_, process, "clock_s", training.clocked(phase)))
            rows.append((part, what, phase, round_, process, "meter_s", training.metered(phase)))
        rows += [(part, what, w.phase, round_, process, "window_s", w.seconds) for w in training.windows]
        rows.append((part, what, "", round_, process, "latency_to_clock", training.latency_to_clock))
