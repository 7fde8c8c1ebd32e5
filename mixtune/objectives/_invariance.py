"""What SimCLR, MoCo-v3 and DINO have in common: views, shortened sequences, their cost, heads and momentum copies.

The shortened sequences follow *Accelerating Augmentation Invariance Pretraining* (Lin et al., NeurIPS 2024, arXiv
2410.22364), of which neither the whole text nor code was at hand: how a strategy enters the objectives and the
schedule's form are a reconstruction.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from mixtune.backbone import Backbone, grid, linear_flops
from mixtune.errors import RequestError
from mixtune.objectives import TRAINED, Objective
from mixtune.space.objectives import InvarianceSettings
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy


class Pass(NamedTuple):
    """One pass of one view through the backbone: how its sequence is shortened, and whether gradients go back."""

    branch: Shortening
    is_trained: bool


class InvarianceObjective(Objective):
    """An objective over views that are encoded by one backbone, or by a momentum copy of it."""

    @abstractmethod
    def passes(self, joint: bool, strategy: Strategy) -> list[Pass]:
        """Return every view's pass through an encoder."""

    @abstractmethod
    def head_flops(self) -> float:
        """Return the FLOPs of all heads' forward and backward passes for one image."""

    def train_flops(self, backbone: Backbone, joint: bool, strategy: Strategy | None = None) -> float:
        """See :class:`Objective`."""
        passes = self.passes(joint, strategy or UNCOMPRESSED)
        return sum(_cost(each) * _pass_flops(backbone, each.branch) for each in passes) + self.head_flops()

    def forward_units(self, backbone: Backbone, strategy: Strategy, joint: bool = False, linear: bool = False) -> float:
        """Return the encoders' cost for one image in forward passes of the whole, uncompressed backbone.

        A forward pass costs c(L) of L tokens, a backward pass 2 c(L). c is counted in FLOPs; ``linear``: as the
        paper takes it, c = L / L0, class and register tokens included.
        """
        whole = _pass_flops(backbone, Shortening())

        def share(branch: Shortening) -> float:
            if linear:
                kept = count_kept(backbone, branch)
                return (kept + backbone.prefix) / (backbone.tokens + backbone.prefix)
            return _pass_flops(backbone, branch) / whole

        return sum(_cost(each) * share(each.branch) for each in self.passes(joint, strategy))


def _cost(each: Pass) -> int:
    return TRAINED if each.is_trained else 1


def _pass_flops(backbone: Backbone, branch: Shortening) -> float:
    return backbone.forward_flops(count_kept(backbone, branch), branch.patch_size)


def count_kept(backbone: Backbone, branch: Shortening) -> int:
    """Return how many patch tokens of a view are encoded: floor(L * (1 - rate)), exactly, but at least one."""
    patches = grid(backbone.image_size, branch.patch_size or backbone.patch_size) ** 2
    return max(1, math.floor(patches * (1 - Fraction(branch.token_dropout).limit_denominator(10**6))))


def encode(backbone: Backbone, images: Tensor, branch: Shortening, generator: Generator) -> Tensor:
    """Encode images (B, C, H, W) with a shortened sequence to tokens (B, prefix + K, D).

    Class and register tokens are never dropped. Without token dropout nothing is drawn from the generator.
    """
    keep = None
    if branch.token_dropout:
        patches = grid(images.shape[-1], branch.patch_size or backbone.patch_size) ** 2
        noise = torch.rand(len(images), patches, generator=generator, device=generator.device)
        keep = noise.argsort(dim=1)[:, : count_kept(backbone, branch)]
    return backbone(images, keep, branch.patch_size)  # type: ignore[no-any-return]


def pool(backbone: Backbone, tokens: Tensor) -> Tensor:
    """Return what the heads read of tokens (B, prefix + K, D): the class token, else the mean of the patches (B, D)."""
    return tokens[:, 0] if backbone.vit.cls_token is not None else tokens[:, backbone.prefix :].mean(dim=1)


def mlp(sizes: list[int]) -> nn.Sequential:
    """Return linear layers without biases, each followed by BatchNorm and all but the last by ReLU, as MoCo-v3's heads.

    The last BatchNorm has no weights. All norm by the batch at hand, so a head has no statistics to keep.
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=2):
        is_last = number == len(sizes)
        norm = nn.BatchNorm1d(outputs, affine=not is_last, track_running_stats=False)
        layers += [nn.Linear(inputs, outputs, bias=False), norm, *([] if is_last else [nn.ReLU()])]
    return nn.Sequential(*layers)


def mlp_flops(head: nn.Module) -> float:
    """Return the FLOPs of a head's linear layers for one image."""
    layers = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
    return sum(linear_flops(1, layer.in_features, layer.out_features) for layer in layers)


@torch.no_grad()
def follow(copy: nn.Module, model: nn.Module, momentum: float) -> None:
    """Move a copy's weights towards the model's: momentum * copy + (1 - momentum) * model."""
    torch._foreach_lerp_(list(copy.parameters()), list(model.parameters()), 1.0 - momentum)


def check_views(settings: InvarianceSettings, backbone: Backbone) -> None:
    """Raise RequestError for crops and patches that a backbone's images cannot have."""
    low, high = settings.crop_scale
    if low > high:
        raise RequestError(f"ssl.crop_scale: its low end {low:g} is above its high end {high:g}")
    given = settings.compression
    for shortening in (given, *given.stages):
        for name in ("patch_size", "key_patch_size"):
            size = getattr(shortening, name)
            if size is not None and not backbone.patch_size <= size <= backbone.image_size:
                raise RequestError(
                    f"ssl.compression.{name} {size} should be between the backbone's patch size {backbone.patch_size} "
                    f"and the image size {backbone.image_size}, in pixels"
                )
