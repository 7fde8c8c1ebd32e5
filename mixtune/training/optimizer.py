"""One AdamW over three parts, each on its loss's schedule; its state is carried over phase borders (ours)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from mixtune.recipe import Recipe
from mixtune.training.plan import Epoch, Phase, learning_rates

# whose schedule a part follows in each phase. The paper does not say; ours: in the mix phase the backbone follows
# the supervised one
_FOLLOWS: dict[str, dict[Phase, str]] = {
    "backbone": {"ssl": "ssl", "mix": "sl", "sl": "sl"},
    "objective": {"ssl": "ssl", "mix": "ssl"},
    "classifier": {"mix": "sl", "sl": "sl"},
}


def build_optimizer(parts: Mapping[str, nn.Module], kept_whole: Collection[str]) -> torch.optim.AdamW:
    """Return AdamW with two groups a part: its matrices, which decay, and the rest, which does not (as in timm).

    parts: backbone, objective and classifier; kept_whole: names of matrices that do not decay (tokens, positions).
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
    for group in optimizer.param_groups:
        loss = _FOLLOWS[group["part"]].get(epoch.phase)
        if loss is None:
            group["lr"] = 0.0
            continue
        schedule = recipe.optim.ssl if loss == "ssl" else recipe.optim.sl
        group["lr"] = rates[loss]
        group["betas"] = schedule.betas
        group["weight_decay"] = schedule.weight_decay if group["decays"] else 0.0
