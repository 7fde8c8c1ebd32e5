"""The loop that someone would write first: an ImageFolder, PIL transforms, a DataLoader, and one step after another.

It trains the very modules that mixtune trains (backbone and self-supervised objective) on the same losses, so that
benchmarks/training.py compares loops and nothing else. Nothing here is slow on purpose: worker processes that stay,
pinned memory for a GPU, an incomplete last batch dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def make_loader(folder: Path, image_size: int, batch_size: int, workers: int, device: torch.device) -> DataLoader[Any]:
    """Return batches of (images, labels) from a folder of images, a class a folder; the images have the size given."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(image_size, padding=image_size // 8),  # 4 pixels at 32
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ]
    )
    return DataLoader(
        datasets.ImageFolder(str(folder), transform),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


class PlainLoop:
    """Backbone, objective and a linear classifier on the class token, under one AdamW."""

    def __init__(self, backbone: nn.Module, objective: nn.Module, head: nn.Module, device: torch.device) -> None:
        self.backbone, self.objective, self.head, self.device = backbone, objective, head, device
        self.masks = torch.Generator(device)
        self.optimizer = torch.optim.AdamW(nn.ModuleList([backbone, objective, head]).parameters(), lr=1e-4)

    def losses(self, phase: Literal["ssl", "mix", "sl"], images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one step; in the mix phase one backbone pass serves both losses, alpha is 0.5."""
        if phase == "ssl":
            loss, _ = self.objective(self.backbone, images, self.masks, joint=False)
            return loss  # type: ignore[no-any-return]
        if phase == "sl":
            return F.cross_entropy(self.head(self.backbone(images)[:, 0]), labels)
        loss, tokens = self.objective(self.backbone, images, self.masks, joint=True)
        return 0.5 * loss + 0.5 * F.cross_entropy(self.head(tokens[:, 0]), labels)

    def train_epoch(self, phase: Literal["ssl", "mix", "sl"], batches: Any, bfloat16: bool = False) -> float:
        """Train on every batch; return the mean loss."""
        self.backbone.train()
        running = 0.0
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
                loss = self.losses(phase, images, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            running += loss.item()
        return running / len(batches)
