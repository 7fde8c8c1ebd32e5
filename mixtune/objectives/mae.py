"""Masked autoencoding (He et al. 2022), the objective of the MixTraining paper (A.2)."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Generator, Tensor, nn

from mixtune.backbone import Backbone, block_flops, gather_tokens, linear_flops
from mixtune.errors import RequestError
from mixtune.objectives import TRAINED, Objective
from mixtune.space.objectives import MaeSettings as Settings
from mixtune.space.views import Strategy


class MaskedAutoencoder(Objective):
    """A decoder of the backbone's own width and heads over all patch positions."""

    def __init__(self, settings: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.patch_size = backbone.patch_size
        self.kept = kept_tokens(backbone.tokens, settings.mask_ratio)
        width = backbone.embed_dim
        self.embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions: Tensor
        self.register_buffer("positions", _positions(backbone), persistent=False)
        self.blocks = nn.Sequential(
            *(Block(width, backbone.num_heads, qkv_bias=True) for _ in range(settings.decoder_depth))
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, self.patch_size**2 * backbone.channels)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, backbone: Backbone, images: Tensor, generator: Generator, joint: bool, strategy: Strategy | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Mask, encode, decode and compare; see :class:`Objective`."""
        keep = self.draw_kept(len(images), backbone.tokens, generator)
        tokens, features = encode(backbone, images, keep, self.sees_whole(joint))
        loss = self.loss(self.decode(features, keep, backbone), images, keep)
        return loss, tokens if joint else None

    def sees_whole(self, joint: bool) -> bool:
        """Return whether the encoder sees whole images: in the mix phase, and with ``encode: full``."""
        return joint or self.settings.encode == "full"

    @torch.no_grad()
    def reconstruct(self, backbone: Backbone, images: Tensor, keep: Tensor, whole: bool) -> Tensor:
        """Return images (B, C, H, W) whose masked patches are the decoder's, in the space of ``images``.

        images: float32 (B, C, H, W), normalised; keep: int64 (B, K), the patches that stay as they are; whole:
        whether the encoder sees all patches before features are dropped, or the kept ones alone. With ``norm_pix``
        each prediction is brought to the mean and standard deviation of the very patch that it stands for, which no
        decoder knows, as He et al. (2022) do for display.
        """
        _, features = encode(backbone, images, keep, whole)
        predicted, patches = self.decode(features, keep, backbone).float(), patchify(images, self.patch_size)
        if self.settings.norm_pix:
            mean, deviation = _patch_statistics(patches)
            predicted = predicted * deviation + mean
        kept = torch.zeros_like(patches[:, :, :1], dtype=torch.bool).scatter(1, keep[:, :, None], True)  # (B, L, 1)
        return unpatchify(torch.where(kept, patches, predicted), self.patch_size)

    def draw_kept(self, batch: int, tokens: int, generator: Generator) -> Tensor:
        """Return the positions of the kept patches, int64 (B, K), drawn without replacement."""
        noise = torch.rand(batch, tokens, generator=generator, device=generator.device)
        return noise.argsort(dim=1)[:, : self.kept]

    def decode(self, features: Tensor, keep: Tensor, backbone: Backbone) -> Tensor:
        """Predict all patches (B, L, p * p * C) from features (B, prefix + K, D) of the kept ones."""
        embedded = self.embed(features)
        batch, _, width = embedded.shape
        patches = self.mask_token.to(embedded.dtype).expand(batch, backbone.tokens, width)
        index = keep[:, :, None].expand(-1, -1, width)
        patches = patches.scatter(1, index, embedded[:, backbone.prefix :]) + self.positions
        decoded = self.blocks(torch.cat([embedded[:, : backbone.prefix], patches], dim=1))
        return self.predict(self.norm(decoded[:, backbone.prefix :]))  # type: ignore[no-any-return]

    def loss(self, predicted: Tensor, images: Tensor, keep: Tensor) -> Tensor:
        """Return the mean squared error over the patches that ``loss_on`` names.

        predicted: (B, L, p * p * C); images: (B, C, H, W); keep: (B, K).
        """
        target = patchify(images, self.patch_size)
        if self.settings.norm_pix:
            mean, deviation = _patch_statistics(target)
            target = (target - mean) / deviation
        error = (predicted.float() - target).square().mean(dim=-1)  # (B, L)
        if self.settings.loss_on == "all":
            return error.mean()
        kept_error = error.gather(1, keep).sum()
        if self.settings.loss_on == "unmasked":
            return kept_error / keep.numel()
        return (error.sum() - kept_error) / (error.numel() - keep.numel())

    def train_flops(self, backbone: Backbone, joint: bool, strategy: Strategy | None = None) -> float:
        """See :class:`Objective`; the encoder counts the kept tokens only where ``encode`` is visible."""
        width, length = backbone.embed_dim, backbone.tokens + backbone.prefix
        encoder = backbone.forward_flops(backbone.tokens if self.sees_whole(joint) else self.kept)
        decoder = (
            linear_flops(self.kept + backbone.prefix, width, width)
            + self.settings.decoder_depth * block_flops(length, width)
            + linear_flops(backbone.tokens, width, self.predict.out_features)
        )
        return TRAINED * (encoder + decoder)


def build(settings: Settings, backbone: Backbone) -> MaskedAutoencoder:
    """Return the objective with fresh weights from torch's global generator.

    Raises RequestError for a backbone with a single patch, and for a width that 2-D positions cannot have.
    """
    if backbone.tokens < 2:
        raise RequestError(
            f"ssl.objective mae masks some of an image's patches, but model.patch_size {backbone.patch_size} leaves "
            "a single one: set a smaller model.patch_size, or a data.image_size with more divisors"
        )
    if backbone.embed_dim % 4:
        width = backbone.embed_dim
        raise RequestError(f"ssl.objective mae needs a model.embed_dim that is a multiple of 4, not {width}")
    return MaskedAutoencoder(settings, backbone)


def kept_tokens(tokens: int, mask_ratio: float) -> int:
    """Return how many of the patch tokens are kept: floor(L * (1 - mask_ratio)), exactly, but 1 to L - 1."""
    kept = math.floor(tokens * (1 - Fraction(mask_ratio).limit_denominator(10**6)))
    return min(max(kept, 1), tokens - 1)


def encode(backbone: Backbone, images: Tensor, keep: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Return the tokens that the backbone encodes, and the kept ones' features (B, prefix + K, D).

    The tokens are (B, prefix + L, D) of ``whole`` images, else the features themselves.
    """
    if not whole:
        features = backbone(images, keep)
        return features, features
    tokens = backbone(images)
    patches = gather_tokens(tokens[:, backbone.prefix :], keep)
    return tokens, torch.cat([tokens[:, : backbone.prefix], patches], dim=1)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) to patches (B, L, p * p * C) in row-major order."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Return the square images (B, C, H, W) that patchify() cut to patches (B, L, p * p * C)."""
    batch, count, values = patches.shape
    side, channels = math.isqrt(count), values // patch_size**2
    cut = patches.reshape(batch, side, side, patch_size, patch_size, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * patch_size, side * patch_size)


def _patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation, never 0, of patches (B, L, p * p * C): each (B, L, 1)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def _positions(backbone: Backbone) -> Tensor:
    side = math.isqrt(backbone.tokens)
    return build_sincos2d_pos_embed([side, side], backbone.embed_dim)[None]  # type: ignore[no-any-return]
