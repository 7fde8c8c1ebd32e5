"""cost_aware, or tpe where a space or a budget is too large for a Gaussian process: the default."""

from __future__ import annotations

from mixtune.space.space import SearchSpace

MAX_PARAMETERS = 20
MAX_TRIALS = 2_000


def pick(space: SearchSpace) -> tuple[str, str]:
    """Return the sampler for a space, and why in a few words."""
    if len(space.space) > MAX_PARAMETERS:
        return "tpe", f"{len(space.space)} parameters are more than the {MAX_PARAMETERS} that cost_aware is for"
    if space.budget > MAX_TRIALS:
        return "tpe", f"{space.budget:,} trials are more than the {MAX_TRIALS:,} that cost_aware is for"
    return "cost_aware", "it asks what promises most for each second that no stored stage has"
