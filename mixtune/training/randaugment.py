"""RandAugment for batches: each image draws operations of its own, and images that drew the same share one call.

Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space". Operations,
strengths, nearest interpolation and black beyond the border are those of torchvision's RandAugment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor

MAGNITUDES = 31  # from 0 to 30


class Operation(NamedTuple):
    """One operation on uint8 (B, C, H, W), C in {1, 3}, and its strength at the lowest and the highest magnitude.

    signed: half of the draws negate the strength; relative: the strengths are shares of the image's side.
    """

    apply: Callable[[Tensor, float], Tensor]
    lowest: float = 0.0
    highest: float = 0.0
    signed: bool = False
    relative: bool = False

    def strength(self, magnitude: int, side: int) -> float:
        """Return what ``apply`` takes for images of side x side pixels, before its sign."""
        scale = side if self.relative else 1
        return float(torch.linspace(self.lowest * scale, self.highest * scale, MAGNITUDES)[magnitude])


def _shear(images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    """Shear by x and y pixels a pixel, from the top left corner; torchvision takes degrees."""
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    done: Tensor = TF.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])
    return done


def _translate(images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    """Move right by x and down by y whole pixels."""
    done: Tensor = TF.affine(images, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])
    return done


OPERATIONS = {
    "Identity": Operation(lambda images, _: images),
    "ShearX": Operation(lambda images, s: _shear(images, x=s), highest=0.3, signed=True),
    "ShearY": Operation(lambda images, s: _shear(images, y=s), highest=0.3, signed=True),
    "TranslateX": Operation(lambda images, s: _translate(images, x=s), highest=150 / 331, signed=True, relative=True),
    "TranslateY": Operation(lambda images, s: _translate(images, y=s), highest=150 / 331, signed=True, relative=True),
    "Rotate": Operation(TF.rotate, highest=30.0, signed=True),  # degrees
    "Brightness": Operation(lambda images, s: TF.adjust_brightness(images, 1.0 + s), highest=0.9, signed=True),
    "Color": Operation(lambda images, s: TF.adjust_saturation(images, 1.0 + s), highest=0.9, signed=True),
    "Contrast": Operation(lambda images, s: TF.adjust_contrast(images, 1.0 + s), highest=0.9, signed=True),
    "Sharpness": Operation(lambda images, s: TF.adjust_sharpness(images, 1.0 + s), highest=0.9, signed=True),
    "Posterize": Operation(lambda images, s: TF.posterize(images, round(s)), lowest=8.0, highest=4.0),  # bits that stay
    "Solarize": Operation(TF.solarize, lowest=255.0, highest=0.0),  # invert from this value on
    "AutoContrast": Operation(lambda images, _: TF.autocontrast(images)),
    "Equalize": Operation(lambda images, _: TF.equalize(images)),
}


def _each(images: Tensor, apply: Callable[[Tensor, float], Tensor], strength: float) -> Tensor:
    """Apply an operation to images of any number of channels: torchvision knows 1 and 3."""
    if images.shape[1] in (1, 3):
        return apply(images, strength)
    return apply(images.flatten(0, 1)[:, None], strength).view_as(images)


def rand_augment(images: Tensor, operations: int, magnitude: int, generator: torch.Generator) -> Tensor:
    """Return the images after ``operations`` random operations each, at ``magnitude`` (0 to 30).

    images: uint8 (B, C, H, H); of one channel, Color leaves them as they are, and of other channels than 3 each is
    changed by itself, as if it were the only one. The draws are per image and come from ``generator``. The host must
    know the groups' sizes, so all draws cross to it in one copy a call, and the pixels are sorted into groups on their
    device. (On a GPU, torchvision's affine operations and Sharpness wait for the copy of a small matrix too.)
    """
    variants = [
        (operation.apply, sign * operation.strength(magnitude, images.shape[-1]))
        for operation in OPERATIONS.values()
        for sign in (1.0, -1.0 if operation.signed else 1.0)
    ]
    shape = (operations, len(images))
    drawn = torch.randint(len(variants), shape, generator=generator, device=images.device)
    for choices, on_host in zip(drawn, drawn.cpu(), strict=True):
        order = choices.argsort()
        groups = torch.split(images[order], on_host.bincount(minlength=len(variants)).tolist())
        done = [_each(group, apply, s) for group, (apply, s) in zip(groups, variants, strict=True) if len(group)]
        images = torch.empty_like(images).index_copy_(0, order, torch.cat(done))
    return images
