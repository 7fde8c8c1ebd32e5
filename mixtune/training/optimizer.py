"""One AdamW over three parts, each on its loss's schedule."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from mixtune.space.recipe import Recipe
from mixtune.training.plan import Epoch, Phase, learning_rates

Weights = dict[str, float]  # loss -> share of its schedule


def build_optimizer(parts: Mapping[str, nn.Module], kept_whole: Collection[str]) -> torch.optim.AdamW:
    """Return AdamW with two groups a part: its matrices, which decay, and the rest, which does not (as in timm).

    parts: backbone, objective (where it trains) and classifiers; kept_whole: names of matrices that do not decay
    (tokens, positions).
    """
    groups = []
    for name, part in parts.items():
        named = [(n.removeprefix("vit."), p) for n, p in part.named_parameters() if p.requires_grad]
        decayed = [p for n, p in named if p.ndim > 1 and n not in kept_whole]
        others = [p for n, p in named if p.ndim <= 1 or n in kept_whole]
        groups += [{"params": decayed, "part": name, "decays": True}, {"params": others, "part": name, "decays": False}]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: Epoch, step: int, steps: int) -> None:
    """Give every group its rate, betas and weight decay for one step.

    A part that the phase does not train has no gradients, so AdamW leaves it alone whatever its rate.
    """
    rates = learning_rates(recipe, epoch, step, steps)
    schedules = {"ssl": recipe.optim.ssl, "sl": recipe.optim.sl}
    for group in optimizer.param_groups:
        followed = followed_schedules(group["part"], epoch.phase, recipe)
        group["lr"] = sum(share * rates[loss] for loss, share in followed.items())
        if followed:
            decay = sum(share * schedules[loss].weight_decay for loss, share in followed.items())
            group["weight_decay"] = decay if group["decays"] else 0.0
            group["betas"] = tuple(
                sum(share * schedules[loss].betas[i] for loss, share in followed.items()) for i in range(2)
            )


def followed_schedules(part: str, phase: Phase, recipe: Recipe) -> Weights:
    """Return whose schedule a part follows in a phase, as shares that sum to 1; none where it is not trained.

    The paper does not say whose the backbone's is in the mix phase: ``optim.mix_schedule``, where ``blend`` weighs
    the two as alpha weighs the losses.
    """
    if part == "objective":
        return {} if phase == "sl" else {"ssl": 1.0}
    if part == "classifiers":
        return {} if phase == "ssl" else {"sl": 1.0}
    if phase != "mix":
        return {phase: 1.0}
    if recipe.optim.mix_schedule == "blend":
        return {"ssl": recipe.alpha, "sl": 1.0 - recipe.alpha}
    return {recipe.optim.mix_schedule: 1.0}
