"""Small Vision Transformers of every kind, and real images for them: what the objectives' tests share."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

from mixtune.backbone import build_backbone
from mixtune.space.recipe import Model

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2}
# name -> settings, image size, channels: class token; registers; pre-norm; no class token; positions for patches alone
VITS = {
    "digits": (Model(**SMALL, patch_size=2), 8, 1),
    "fashion": (Model(**SMALL, patch_size=4), 28, 1),
    "registers": (Model(**SMALL, name="vit_small_patch14_reg4_dinov2", patch_size=3), 12, 3),
    "clip": (Model(**SMALL, name="vit_base_patch16_clip_224", patch_size=4), 16, 3),
    "gap": (Model(**SMALL, name="vit_base_patch16_gap_224", patch_size=5, pool="avg"), 15, 3),
    "reg4_gap": (Model(**SMALL, name="vit_base_patch16_reg4_gap_256", patch_size=4, pool="avg"), 16, 1),
}


def make_backbone(vit="digits"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(*VITS[vit])
        for parameter in backbone.parameters():  # timm starts biases at 0 and small scales at 1e-5: show them
            nn.init.normal_(parameter, mean=1.0 * (parameter.ndim == 1), std=0.3)
    return backbone


@functools.cache
def real_images(vit="digits", count=4):
    """Return ``count`` images, normalised: digits, or crops of a photograph."""
    _, size, channels = VITS[vit]
    if size == 8:
        pixels = torch.from_numpy(load_digits().images[:count, None] / 16)
    else:
        photo = torch.from_numpy(load_sample_images().images[1] / 255).permute(2, 0, 1)[:channels]
        pixels = torch.stack([photo[:, 9 * i : 9 * i + size, 19 * i : 19 * i + size] for i in range(count)])
    return ((pixels - pixels.mean()) / pixels.std()).float()
