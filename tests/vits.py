"""Small Vision Transformers of every kind, real images for them, and their patches embedded one at a time."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits, load_sample_images
from timm.layers import resample_abs_pos_embed, resample_patch_embed
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
    return build_visible(*VITS[vit])


def build_visible(settings, image_size, channels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(settings, image_size, channels)
        for parameter in backbone.parameters():  # timm starts biases at 0 and small scales at 1e-5: show them
            nn.init.normal_(parameter, mean=1.0 * (parameter.ndim == 1), std=0.3)
    return backbone


@functools.cache
def real_images(vit="digits", count=4):
    """Return ``count`` images, normalised: digits, or crops of a photograph."""
    _, size, channels = VITS[vit]
    pixels = torch.from_numpy(load_digits().images[:count, None]) if size == 8 else crops(count, size)[:, :channels]
    pixels = pixels.float()
    return (pixels - pixels.mean()) / pixels.std()


def crops(count, size):
    """Return different crops of a photograph, uint8 (count, 3, size, size)."""
    photo = torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1)
    return torch.stack([photo[:, 9 * i : 9 * i + size, 14 * i : 14 * i + size] for i in range(count)])


def slow_embed(backbone, images, patch_size):
    """Embed images that the patches divide, one patch at a time, with weights and positions that timm resamples."""
    vit, embed, side = backbone.vit, backbone.vit.patch_embed, images.shape[-1] // patch_size
    weight = resample_patch_embed(embed.proj.weight, [patch_size, patch_size])
    special = [t for token in (vit.cls_token, vit.reg_token) if token is not None for t in token[0]]
    before = 0 if vit.no_embed_class else len(special)  # positions that belong to class and register tokens
    positions = resample_abs_pos_embed(vit.pos_embed, [side, side], num_prefix_tokens=before)[0]
    rows = []
    for image in images:
        tokens = [token + positions[i] if before else token for i, token in enumerate(special)]
        for number in range(side**2):
            top, left = number // side * patch_size, number % side * patch_size
            pixels = image[:, top : top + patch_size, left : left + patch_size]
            token = (weight * pixels).sum(dim=(1, 2, 3))
            token = embed.norm(token if embed.proj.bias is None else token + embed.proj.bias)
            tokens.append(token + positions[before + number])
        rows.append(torch.stack(tokens))
    return torch.stack(rows)
