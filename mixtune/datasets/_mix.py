"""The mixing function g of the paper, for a self-supervised set that differs from the supervised one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def mix_images(supervised: torch.Tensor, ssl: torch.Tensor, weight: float) -> torch.Tensor:
    """Return ``weight * supervised + (1 - weight) * ssl`` (Eq. 2, weight = lambda), all (B, C, H, W).

    Raises ValueError, with both shapes, where they differ: the SSL images are to be loaded at the supervised
    set's image size and channels.
    """
    if supervised.shape != ssl.shape:
        raise ValueError(
            f"images to mix must have one shape, but supervised is {tuple(supervised.shape)} "
            f"and ssl is {tuple(ssl.shape)}"
        )
    return weight * supervised + (1 - weight) * ssl
