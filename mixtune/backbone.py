"""The backbone: a timm ViT that can encode a part of its tokens and knows what that costs."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from mixtune.errors import RequestError, suggest
from mixtune.recipe import Model

MOST_TOKENS = 256  # the paper's count at patch 2 of 32 pixels and patch 4 of 64


class Backbone(nn.Module):
    """A timm ViT without its classifier.

    ``tokens`` patch tokens of width ``embed_dim`` stand behind ``prefix`` class and register tokens. The norm of a
    ViT that norms what it has pooled (``fc_norm``) is moved before the pooling, as by timm's ``fc_norm=False``: a
    decoder reads the tokens too.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        if isinstance(vit.norm, nn.Identity):
            vit.norm, vit.fc_norm = vit.fc_norm, vit.norm
        self.vit = vit
        self.embed_dim: int = vit.embed_dim
        self.num_heads: int = vit.blocks[0].attn.num_heads
        self.depth = len(vit.blocks)
        self.prefix: int = vit.num_prefix_tokens
        self.tokens: int = vit.patch_embed.num_patches
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.channels: int = vit.patch_embed.proj.in_channels

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode images (B, C, H, W) to normalised tokens (B, prefix + K, D).

        keep: int64 (B, K), the patch tokens that are encoded, by their row-major position; None encodes all.
        """
        vit = self.vit
        tokens = vit._pos_embed(vit.patch_embed(images))
        if keep is not None:
            patches = gather_tokens(tokens[:, self.prefix :], keep)
            tokens = torch.cat([tokens[:, : self.prefix], patches], dim=1)
        return vit.norm(vit.blocks(vit.norm_pre(tokens)))  # type: ignore[no-any-return]

    def forward_flops(self, patches: int) -> float:
        """Return the operations of embedding one image's patches and encoding ``patches`` of them."""
        embedding = linear_flops(self.tokens, self.patch_size**2 * self.channels, self.embed_dim)
        mlp = self.vit.blocks[0].mlp
        hidden = (mlp.fc1.out_features + mlp.fc2.in_features) / 2  # they differ in a gated MLP
        return embedding + self.depth * block_flops(patches + self.prefix, self.embed_dim, hidden)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return tokens (B, K, D) of tokens (B, L, D) at index (B, K)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))


def choose_patch_size(image_size: int, given: int | None) -> int:
    """Return the patch size in pixels: the given one, or the smallest that gives at most 256 tokens.

    Raises RequestError where it does not divide the image.
    """
    divisors = [p for p in range(1, image_size + 1) if image_size % p == 0]
    if given is None:
        return next(p for p in divisors if (image_size // p) ** 2 <= MOST_TOKENS)
    if given not in divisors:
        raise RequestError(
            f"model.patch_size {given} does not divide the image size of {image_size} pixels: "
            f"choose one of {', '.join(map(str, divisors))}, or set data.image_size"
        )
    return given


def build_backbone(settings: Model, image_size: int, channels: int) -> Backbone:
    """Build the ViT for square images. Raises RequestError, naming the field, for settings it cannot have."""
    patch_size = choose_patch_size(image_size, settings.patch_size)
    if settings.name not in timm.list_models("*vit*"):
        plain = timm.list_models("*vit*", module="vision_transformer")
        raise RequestError(f"model.name: timm has no ViT {settings.name!r}{suggest(settings.name, plain)}")
    overrides: dict[str, Any] = {
        name: value
        for name, value in settings.model_dump(include={"embed_dim", "depth", "num_heads"}).items()
        if value is not None
    }
    if settings.embed_dim and settings.num_heads and settings.embed_dim % settings.num_heads:
        raise RequestError(
            f"model.embed_dim {settings.embed_dim} is no multiple of model.num_heads {settings.num_heads}"
        )
    try:
        vit = timm.create_model(
            settings.name,
            num_classes=0,
            img_size=image_size,
            patch_size=patch_size,
            in_chans=channels,
            **overrides,
        )
    except (TypeError, ValueError, AssertionError) as error:
        reason = str(error) or type(error).__name__
        raise RequestError(f"model: timm cannot build {settings.name} with {overrides}: {reason}") from error
    oddity = _find_oddity(vit)
    if oddity:
        raise RequestError(f"model.name {settings.name} is no plain ViT: {oddity}")
    if settings.pool == "token" and vit.cls_token is None:
        raise RequestError(f"model.name {settings.name} has no class token: set model.pool: avg")
    return Backbone(vit)


def _find_oddity(vit: nn.Module) -> str | None:
    """Return what keeps a timm model from being a Backbone, or None."""
    if not isinstance(vit, VisionTransformer):
        return f"it is a {type(vit).__name__}"
    if not isinstance(vit.patch_embed, PatchEmbed):
        return f"its patches come from a {type(vit.patch_embed).__name__}"
    block = vit.blocks[0]
    if not hasattr(block, "attn"):
        return f"its blocks are of kind {type(block).__name__}"
    if type(block.attn) is not Attention:
        return f"its attention is a {type(block.attn).__name__}"
    if vit.attn_pool is not None:
        return "it pools by attention"
    if isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity):
        return "it has no norm after its last block"
    return None


def linear_flops(tokens: int, inputs: int, outputs: float) -> float:
    """Return the floating-point operations of a linear layer over ``tokens`` tokens: 2 a multiply-accumulate.

    Here and below norms, activations, softmax and biases are left out, as by PyTorch's own counter.
    """
    return 2.0 * tokens * inputs * outputs


def block_flops(tokens: int, width: int, hidden: float | None = None) -> float:
    """Return the operations of one transformer block: attention's four matrices, its two products, the MLP."""
    attention = 4 * linear_flops(tokens, width, width) + 2 * linear_flops(tokens, width, tokens)
    return attention + 2 * linear_flops(tokens, width, 4 * width if hidden is None else hidden)
