"""How many trials fit: their shares of CPUs and GPUs, on one machine or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch

from mixtune.errors import RequestError
from mixtune.space.settings import Resources

RAY_GRAINS = 10_000  # Ray counts a resource in ten-thousandths

Nodes = Sequence[tuple[int, int]]  # (CPUs, GPUs) of each machine


@dataclass(frozen=True)
class Slots:
    """How trials are packed: each gets ``cpus`` and ``gpus``, and ``count`` of them run at once."""

    cpus: float
    gpus: float
    count: int

    def __str__(self) -> str:
        share = [f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"]
        if self.gpus:
            share.insert(0, f"{self.gpus:g} GPU{'' if self.gpus <= 1 else 's'}")
        return f"{self.count} at once with {' and '.join(share)} each"


def plan_slots(resources: Resources, nodes: Nodes, auto_fraction: float = 1.0) -> Slots:
    """Return the packing of trials on one machine or several, none of which a trial can span.

    GPU fractions are per device: 0.15 of 8 GPUs is 48 slots, not 53. auto_fraction: what gpus_per_trial ``auto`` stands
    for. Where no node has a GPU the CPUs train, else only nodes with GPUs do. Raises RequestError where not one trial
    fits.
    """
    cpus = resources.cpus_per_trial
    gpus = auto_fraction if resources.gpus_per_trial == "auto" else resources.gpus_per_trial
    check_share(gpus)
    most_cpus, most_gpus = (max(counts) for counts in zip(*nodes, strict=True))
    where = "there are" if len(nodes) == 1 else "no node has more than"
    if cpus > most_cpus:
        raise RequestError(f"{cpus:g} CPUs a trial: {where} {most_cpus}; lower --cpus-per-trial")
    if most_gpus == 0 or gpus == 0:
        return Slots(cpus, 0.0, sum(_fitting(cpus, node_cpus) for node_cpus, _ in nodes))
    fraction = _countable(gpus)
    count = sum(min(_fitting(cpus, node_cpus), _fitting(fraction, 1) * node_gpus) for node_cpus, node_gpus in nodes)
    if count == 0:
        raise RequestError(
            f"{cpus:g} CPUs and {gpus:g} GPUs a trial: no node has both; lower --cpus-per-trial or --gpus-per-trial"
        )
    return Slots(cpus, fraction, count)


def check_share(gpus: float | Literal["auto"]) -> None:
    """Raise RequestError for more GPUs than a trial can use."""
    if gpus != "auto" and gpus > 1:
        raise RequestError(f"{gpus:g} GPUs a trial: a trial trains on one GPU; give at most 1")


def is_on_gpu(resources: Resources, nodes: Nodes) -> bool:
    """Return whether trials train on GPUs: where some are asked for, or ``auto`` and a node has one."""
    if resources.gpus_per_trial == "auto":
        return any(gpus for _, gpus in nodes)
    return resources.gpus_per_trial > 0


def trials_for_a_gpu(resources: Resources, nodes: Nodes) -> int:
    """Return for how many trials a GPU the CPUs are enough, on the node that has the most; 1 without a GPU."""
    counts = [_fitting(resources.cpus_per_trial, cpus) // gpus for cpus, gpus in nodes if gpus]
    return max([1, *counts])


def double_fraction(fraction: float) -> float | None:
    """Return the fraction of a GPU for another try of a trial that ran out of memory: twice as much, at most one GPU.

    None where it had a whole GPU, or none.
    """
    return min(1.0, 2.0 * fraction) if 0.0 < fraction < 1.0 else None


def _countable(fraction: float) -> float:
    """Return a fraction rounded down to what Ray counts in: eleven trials of 1/11 are not one too many for it."""
    return max(1, math.floor(Fraction(str(fraction)) * RAY_GRAINS)) / RAY_GRAINS


def _fitting(fraction: float, whole: int) -> int:
    """Return how often a fraction goes into a whole, in decimals: 0.1 into 1 ten times, whatever floats say."""
    return math.floor(whole / Fraction(str(fraction)))


def usable_gpus(wanted: int | None) -> int:
    """Return how many GPUs of this machine a search uses: all, or ``wanted``; 0 where there is none at all.

    Raises RequestError for more than there are, unless there is none.
    """
    if wanted is not None and wanted < 0:
        raise RequestError(f"{wanted} GPUs: should be 0 or more")
    present = torch.cuda.device_count()
    if wanted is not None and present and wanted > present:
        raise RequestError(f"--gpus {wanted}: this machine has {present}")
    return present if wanted is None else min(wanted, present)
