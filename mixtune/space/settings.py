"""How a search goes, and what its trials get: the ``search`` and ``resources`` sections."""

from __future__ import annotations

from typing import Literal

from mixtune.space.section import Count, NonNegative, Positive, PositiveCount, Section, Seed, Share

DEFAULT_TRIALS = 20


class Search(Section):
    """How the search goes: the ``search`` section."""

    sampler: str = "tpe"
    """What suggests recipes (see `mixtune list samplers`), or package.module:name for your own."""
    scheduler: str = "fifo"
    """What ends trials early (see `mixtune list schedulers`), or package.module:name for your own."""
    trials: PositiveCount | None = None
    """How many trials may end; default: 20, or the whole grid with `sampler: grid`."""
    seed: Seed = 0
    """Of the suggestions."""
    max_failures: Count = 2
    """How often a trial that crashed is tried again."""
    tolerance: Share = 0.01
    """Of the accuracy: within half of it of the best, what costs less is recommended."""


class Resources(Section):
    """What one trial gets: the ``resources`` section."""

    cpus_per_trial: Positive = 1.0
    """CPU cores of each trial, and its threads."""
    gpus_per_trial: NonNegative | Literal["auto"] = "auto"
    """Share of a GPU of each trial, at most 1. auto: as much as the largest recipe needs."""
    device: str | None = None
    """On a cluster the device that trials train on, by its name; default: that of the nodes with the most slots."""
