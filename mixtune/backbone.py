"""The backbone: a timm ViT that can encode a part of its tokens and knows what that costs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.layers.patch_embed import PatchEmbedResamplerFixedOrigSize
from timm.models import adapt_input_conv, get_pretrained_cfg, load_state_dict
from timm.models.vision_transformer import Attention, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from mixtune.errors import DataError, RequestError, one_line, suggest
from mixtune.space.recipe import Model

MAX_TOKENS = 256  # the paper's count at patch 2 of 32 pixels and patch 4 of 64


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
        self.image_size = math.isqrt(self.tokens) * self.patch_size
        self.resample = PatchEmbedResamplerFixedOrigSize((self.patch_size, self.patch_size))

    def forward(self, images: Tensor, keep: Tensor | None = None, patch_size: int | None = None) -> Tensor:
        """Encode square images (B, C, H, H) to normalised tokens (B, prefix + K, D).

        keep: int64 (B, K), the patch tokens that are encoded, by their row-major position; None encodes all. patch_size
        and H: the backbone's own by default; others have ``grid(H, patch_size)`` ** 2 patch tokens.
        """
        vit = self.vit
        tokens = self._embed(images, patch_size or self.patch_size)
        if keep is not None:
            patches = gather_tokens(tokens[:, self.prefix :], keep)
            tokens = torch.cat([tokens[:, : self.prefix], patches], dim=1)
        return vit.norm(vit.blocks(vit.norm_pre(tokens)))  # type: ignore[no-any-return]

    def _embed(self, images: Tensor, patch_size: int) -> Tensor:
        """Return tokens (B, prefix + L, D) with positions, interpolated where L is not the backbone's own.

        The weights of another patch size are resampled by their pseudo-inverse (FlexiViT, Beyer et al. 2023).
        """
        vit, embed, count = self.vit, self.vit.patch_embed, grid(images.shape[-1], patch_size)
        if (patch_size, images.shape[-1]) == (self.patch_size, self.image_size):
            return vit._pos_embed(embed(images))  # type: ignore[no-any-return]
        side = patch_size * count
        if side != images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
        weight = self.resample(embed.proj.weight, [patch_size, patch_size])
        patches = F.conv2d(images, weight, embed.proj.bias, stride=patch_size).flatten(2).transpose(1, 2)
        with_position = 0 if vit.no_embed_class else self.prefix  # of the special tokens
        positions = resample_abs_pos_embed(vit.pos_embed, [count, count], num_prefix_tokens=with_position)
        special = [t.expand(len(images), -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
        tokens = torch.cat([*special, embed.norm(patches)], dim=1)
        return vit.pos_drop(tokens + F.pad(positions, (0, 0, tokens.shape[1] - positions.shape[1], 0)))  # type: ignore[no-any-return]

    def forward_flops(self, patches: int, patch_size: int | None = None) -> float:
        """Return the FLOPs of embedding one image's patches and encoding ``patches`` of them.

        patch_size: the backbone's own by default. Resampling weights, once a batch, is left out.
        """
        patch_size = patch_size or self.patch_size
        count = grid(self.image_size, patch_size) ** 2
        embedding = linear_flops(count, patch_size**2 * self.channels, self.embed_dim)
        mlp = self.vit.blocks[0].mlp
        hidden = (mlp.fc1.out_features + mlp.fc2.in_features) / 2  # they differ in a gated MLP
        return embedding + self.depth * block_flops(patches + self.prefix, self.embed_dim, hidden)


def grid(image_size: int, patch_size: int) -> int:
    """Return how many patches there are a side: where they do not fill it, the image is resized to the nearest fit."""
    return max(1, round(image_size / patch_size))


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return tokens (B, K, D) of tokens (B, L, D) at index (B, K)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))


def choose_patch_size(image_size: int, given: int | None) -> int:
    """Return the patch size in pixels: the given one, or the smallest that gives at most 256 tokens.

    Raises RequestError where it does not divide the image.
    """
    divisors = [p for p in range(1, image_size + 1) if image_size % p == 0]
    if given is None:
        return next(p for p in divisors if (image_size // p) ** 2 <= MAX_TOKENS)
    if given not in divisors:
        raise RequestError(
            f"model.patch_size {given} does not divide the image size of {image_size} pixels: "
            f"choose one of {', '.join(map(str, divisors))}, or set data.image_size"
        )
    return given


def build_backbone(settings: Model, image_size: int, channels: int) -> Backbone:
    """Build the ViT for square images, with random weights or the pretrained ones of ``settings.pretrained``.

    timm resamples pretrained patch and position embeddings to the sizes requested, and fits them to the channels. The
    classifier that comes with the weights is left out. On the meta device weights are neither read nor downloaded.

    Raises RequestError, naming the field, for settings it cannot have, and DataError where weights cannot be had.
    """
    patch_size = choose_patch_size(image_size, settings.patch_size)
    if settings.name not in timm.list_models("*vit*"):
        plain = timm.list_models("*vit*", module="vision_transformer")
        raise RequestError(f"model.name: timm has no ViT {settings.name!r}{suggest(settings.name, plain)}")
    sizes = settings.model_dump(include={"embed_dim", "depth", "num_heads"}, exclude_none=True)
    shape = {"img_size": image_size, "patch_size": patch_size, "in_chans": channels, **sizes}
    create = partial(timm.create_model, settings.name, num_classes=0, **shape)
    try:
        vit = create()
    except (TypeError, ValueError, AssertionError) as error:
        raise RequestError(f"model: timm cannot build {settings.name} with {sizes}: {one_line(error)}") from error
    oddity = _find_oddity(vit)
    if oddity:
        raise RequestError(f"model.name {settings.name} is not a plain ViT: {oddity}")
    if settings.pool == "token" and vit.cls_token is None:
        raise RequestError(f"model.name {settings.name} has no class token: set model.pool: avg")
    if settings.pretrained is True:
        vit = _with_timm_weights(vit, settings.name, create)
    elif settings.pretrained is not False:
        _load_file(vit, settings.name, os.path.expanduser(settings.pretrained))
    return Backbone(vit)


def _with_timm_weights(
    vit: VisionTransformer, name: str, create: Callable[..., VisionTransformer]
) -> VisionTransformer:
    """Return a ViT of the same sizes with the weights that timm has for the name."""
    if not timm.is_model_pretrained(name):
        known = [n for n in timm.list_models("*vit*", module="vision_transformer") if timm.is_model_pretrained(n)]
        raise RequestError(f"model.pretrained: timm has no weights for {name}{suggest(name, known)}")
    with torch.device("meta"):
        published = timm.create_model(name, num_classes=0)
    for field, size in _sizes(vit).items():  # timm would leave blocks out, and no shape tells the number of heads
        of = _sizes(published)[field]
        if size != of:
            raise RequestError(
                f"model.{field} {size} does not fit model.pretrained: timm's weights for {name} have {of}"
            )
    if torch.get_default_device().type == "meta":
        return vit
    try:
        # without an answer timm's download tries six times for each of several file names: minutes. One question first
        source = get_pretrained_cfg(name)
        wanted = source.hf_hub_id, source.hf_hub_filename or "model.safetensors"
        if source.hf_hub_id and not isinstance(huggingface_hub.try_to_load_from_cache(*wanted), str):
            huggingface_hub.file_exists(*wanted)
        return create(pretrained=True)
    except Exception as error:
        raise DataError(
            f"model.pretrained: timm's weights for {name} could not be had ({one_line(error)}): "
            "model.pretrained takes the path of a file of them too"
        ) from error


def _load_file(vit: VisionTransformer, name: str, path: str) -> None:
    """Load a ViT's weights from a file, by timm's names: all of them, embeddings and channels adapted as timm does.

    A file does not tell the number of heads: it is as the settings say.
    """
    if not os.path.isfile(path):
        raise RequestError(f"model.pretrained: there is no file {path}")
    if torch.get_default_device().type == "meta":
        return
    resampling = {"interpolation": "bilinear", "antialias": False} if "flexi" in name else {}  # as timm has it
    embedding = "patch_embed.proj.weight"
    try:
        held = load_state_dict(path, weights_only=True)  # only tensors and plain values are unpickled
        weights = checkpoint_filter_fn(held, vit, **resampling)
        own = {key: weight for key, weight in weights.items() if not key.startswith("head.")}
        if embedding in own:
            own[embedding] = adapt_input_conv(vit.patch_embed.proj.in_channels, own[embedding], own[embedding].shape[1])
        misfit = _find_misfit(vit, own)
        if misfit is None:
            vit.load_state_dict(own)
    except Exception as error:
        raise RequestError(
            f"model.pretrained: {path} cannot be loaded into {name} (.safetensors, or a state dict by torch.save, by "
            f"timm's names): {one_line(error)}"
        ) from error
    if misfit is not None:
        raise RequestError(f"{misfit[0]} does not fit model.pretrained: the weights in {path} have {misfit[1]}")


def _find_misfit(vit: VisionTransformer, weights: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the setting of a ViT that contradicts a file's weights, by timm's names, and what these have; or None."""
    sizes = {"depth": len({name.split(".")[1] for name in weights if name.startswith("blocks.")})}
    if "pos_embed" in weights:
        sizes["embed_dim"] = weights["pos_embed"].shape[-1]
    for field, size in sizes.items():
        if size and size != _sizes(vit)[field]:
            return f"model.{field} {_sizes(vit)[field]}", str(size)
    if sizes["depth"] and vit.cls_token is not None and "cls_token" not in weights:
        return "model.name", "no class token"
    return None


def _sizes(vit: VisionTransformer) -> dict[str, int]:
    """Return the sizes that the weights of a ViT are made for, by the names of their settings."""
    return {"embed_dim": vit.embed_dim, "depth": len(vit.blocks), "num_heads": vit.blocks[0].attn.num_heads}


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
    """Return the FLOPs of one transformer block: attention's four matrices, its two products, the MLP."""
    attention = 4 * linear_flops(tokens, width, width) + 2 * linear_flops(tokens, width, tokens)
    return attention + 2 * linear_flops(tokens, width, 4 * width if hidden is None else hidden)
