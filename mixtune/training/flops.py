"""Floating-point operations of training a recipe, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

from mixtune.backbone import Backbone, linear_flops
from mixtune.objectives import TRAINED, Objective
from mixtune.space.views import Strategy
from mixtune.training.plan import Phase


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
