"""Views of images for augmentation-invariance objectives: batched on the device, every image with draws of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixtune.space.views import View
from mixtune.training.augmentation import resized_crop_and_flip

CROP_RATIO = (3 / 4, 4 / 3)  # width to height
JITTERED = 0.8  # probability (SimCLR)
# of red, green and blue: brightness, which no turn of the hue changes, and the two axes that it turns (NTSC's YIQ)
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = torch.linalg.inv(_YIQ)


def make_view(images: Tensor, view: View, flip: float, generator: torch.Generator) -> Tensor:
    """Return a view of each image, float32 (B, C, H, H) from 0 to 255; images: uint8 of the same shape.

    flip: the probability that an image is mirrored.
    """
    cropped = resized_crop_and_flip(images, view.crop_scale, CROP_RATIO, flip, generator)
    return jitter(cropped.float() / 255.0, view.color_jitter, view.grayscale, generator).mul_(255.0)


def jitter(images: Tensor, strength: float, grayscale: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order, of images (B, C, H, W) from 0 to 1.

    All are linear in the colours of a pixel, so they are one matrix and one offset an image; colours are brought back
    to 0 to 1 once, at the end. Images of other channels than three have no saturation and no hue.
    """
    batch, channels = images.shape[:2]
    drawn = torch.rand(6, batch, generator=generator, device=images.device)
    reach = strength * (drawn[4] < JITTERED)
    brightness, contrast, saturation = 1.0 + 0.8 * reach * (2.0 * drawn[:3] - 1.0)
    turn = 2.0 * math.pi * 0.2 * reach * (2.0 * drawn[3] - 1.0)
    saturation = torch.where(drawn[5] < grayscale, 0.0, saturation)
    brightness, contrast, saturation = (factor.clamp(min=0.0) for factor in (brightness, contrast, saturation))
    levels = _YIQ[0].to(images.device) if channels == 3 else images.new_full((channels,), 1 / channels)
    mean = torch.einsum("c,bchw->b", levels, images) / images[0, 0].numel() * brightness  # contrast is around it
    changed = images * (brightness * contrast)[:, None, None, None] + ((1.0 - contrast) * mean)[:, None, None, None]
    if channels == 3:
        changed = torch.einsum("bij,bjhw->bihw", _colour_matrix(saturation, turn), changed)
    return changed.clamp_(0.0, 1.0)


def _colour_matrix(saturation: Tensor, turn: Tensor) -> Tensor:
    """Return (B, 3, 3) that scale (B,) the distance to grey and turn the hue by an angle (B,) in radians."""
    cos, sin = saturation * turn.cos(), saturation * turn.sin()
    one, none = torch.ones_like(cos), torch.zeros_like(cos)
    turned = torch.stack([one, none, none, none, cos, -sin, none, sin, cos], dim=-1).view(-1, 3, 3)
    matrix: Tensor = _RGB.to(cos.device) @ turned @ _YIQ.to(cos.device)
    return matrix
