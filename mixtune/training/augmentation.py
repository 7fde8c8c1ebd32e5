"""Batched augmentation on the device that holds the images: no loop over images, no copy to the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images; nothing, by default. The fields are the recipe's, in ``augment``."""

    pad: int = 0
    flip: float = 0.0
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    randaugment: tuple[int, int] | None = None

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed images of the same shape, uint8 (B, C, H, H); the draws come from ``generator``."""
        if self.crop_scale is None:
            images = crop_and_flip(images, self.pad, self.flip, generator)
        else:
            images = resized_crop_and_flip(images, self.crop_scale, self.crop_ratio, self.flip, generator)
        if self.randaugment is None:
            return images
        from mixtune.training.randaugment import rand_augment  # torchvision takes a second to import

        return rand_augment(images, *self.randaugment, generator)


def crop_and_flip(images: Tensor, pad: int, flip: float, generator: torch.Generator) -> Tensor:
    """Pad by black ``pad`` pixels, crop at random to the old size, mirror with probability ``flip``.

    images: uint8 (B, C, H, W). The draws are per image and come from ``generator``.
    """
    if pad == 0 and flip == 0:
        return images
    batch, channels, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator, device=device)
    mirrored = torch.rand(batch, 1, generator=generator, device=device) < flip
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = left + torch.where(mirrored, width - 1 - columns, columns)  # (B, W)
    rows = top + torch.arange(height, device=device)  # (B, H)
    padded = F.pad(images, (pad, pad, pad, pad))
    pixels = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # (B, H, W)
    index = pixels.reshape(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(batch, channels, height, width)


def resized_crop_and_flip(
    images: Tensor, scale: tuple[float, float], ratio: tuple[float, float], flip: float, generator: torch.Generator
) -> Tensor:
    """Crop a random box, resize it to the old size (bicubic), mirror with probability ``flip``.

    images: uint8 (B, C, H, H); scale, ratio: see ``draw_boxes``. The draws are per image and come from ``generator``.
    """
    cropped = crop_boxes(images, draw_boxes(len(images), images.shape[-1], scale, ratio, generator))
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < flip
    return torch.where(mirrored, cropped.flip(-1), cropped)


def draw_boxes(
    batch: int, side: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Return boxes in images of side x side pixels: int64 (B, 4), top, left, height, width.

    As torchvision's RandomResizedCrop: the share of the area is uniform in ``scale``, width / height log-uniform in
    ``ratio``, the place uniform. But a box that is too wide or too high is cut to the image, not drawn again.
    """
    area, aspect, top, left = torch.rand(4, batch, generator=generator, device=generator.device)
    area = side * side * (scale[0] + (scale[1] - scale[0]) * area)
    aspect = ratio[0] * (math.log(ratio[1] / ratio[0]) * aspect).exp()
    height = (area / aspect).sqrt().round().clamp(1, side)
    width = (area * aspect).sqrt().round().clamp(1, side)
    top, left = (top * (side - height + 1)).floor(), (left * (side - width + 1)).floor()
    return torch.stack([top, left, height, width], dim=1).long()


def crop_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Return each image's box, resized to the whole image by bicubic interpolation that does not look beyond the box.

    images: uint8 (B, C, H, W); boxes: int64 (B, 4), top, left, height, width. Resizing is linear in rows and in
    columns, so it is two matrix products an image; without antialiasing, which enlarging has no need of.
    """
    top, left, height, width = boxes.unbind(1)
    rows = _bicubic_weights(top, height, images.shape[2])
    columns = _bicubic_weights(left, width, images.shape[3])
    pixels = torch.einsum("bih,bchw,bjw->bcij", rows, images.float(), columns)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _bicubic_weights(start: Tensor, size: Tensor, count: int) -> Tensor:
    """Return (B, count, count): the weights of the old pixels, start <= i < start + size, in each of the new ones.

    The kernel is Keys' (1981) of four pixels with a = -0.75, as PyTorch's; a box's outermost pixels continue beyond it.
    """
    device = start.device
    at = (torch.arange(count, device=device) + 0.5) * (size[:, None] / count) - 0.5  # (B, count), from the box's start
    pixels = at.floor() + torch.arange(-1, 3, device=device)[:, None, None]  # (4, B, count)
    d, a = (at - pixels).abs(), -0.75
    weights = torch.where(d <= 1, ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4))
    pixels = start[:, None] + torch.minimum(pixels.long().clamp(min=0), size[:, None] - 1)
    matrix = weights.new_zeros(len(start), count, count)
    for pixel, weight in zip(pixels, weights, strict=True):  # one by one, so that a GPU adds in one order
        matrix.scatter_add_(2, pixel[..., None], weight[..., None])
    return matrix


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (images / 255 - mean) / std in float32; images: uint8 (B, C, H, W); mean, std: (C, 1, 1)."""
    return images.float().mul_(1.0 / 255.0).sub_(mean).div_(std)
