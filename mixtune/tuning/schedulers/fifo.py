"""Every trial runs its whole recipe, in the order asked."""

from __future__ import annotations

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mixtune.space.space import SearchSpace


def build(space: SearchSpace) -> TrialScheduler:
    """Return Ray Tune's scheduler."""
    return FIFOScheduler()
