"""Floating-point operations of training a recipe, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

from mixtune.backbone import Backbone, linear_flops
from mixtune.objectives import Objective
from mixtune.training.plan import Phase

TRAINING_FACTOR = 3  # a backward pass costs two forward passes


def phase_flops(backbone: Backbone, objective: Objective, classes: Sequence[int]) -> dict[Phase, float]:
    """Return the training operations (forward and backward) of one image in each phase.

    classes: of each task; a step has as many images of one task as of another.
    """
    classify = linear_flops(1, backbone.embed_dim, sum(classes) / len(classes))
    return {
        "ssl": TRAINING_FACTOR * objective.forward_flops(backbone, joint=False),
        "mix": TRAINING_FACTOR * (objective.forward_flops(backbone, joint=True) + classify),
        "sl": TRAINING_FACTOR * (backbone.forward_flops(backbone.tokens) + classify),
    }
