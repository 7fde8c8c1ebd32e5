"""Batched augmentation on the device that holds the images: one gather for crop and flip together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (images / 255 - mean) / std in float32; images: uint8 (B, C, H, W); mean, std: (C, 1, 1)."""
    return images.float().mul_(1.0 / 255.0).sub_(mean).div_(std)
