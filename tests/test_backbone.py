"""Which ViTs can be a backbone, with which patches, and what is said of the others."""

from __future__ import annotations

import pytest
import torch

from mixtune.backbone import build_backbone, choose_patch_size
from mixtune.errors import RequestError
from mixtune.recipe import Model

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def build(size=16, channels=3, **settings):
    """Build without weights."""
    with torch.device("meta"):
        return build_backbone(Model(**settings), size, channels)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "tokens"),
    [(32, 2, 256), (64, 4, 256), (28, 2, 196), (8, 1, 64), (16, 1, 256), (96, 6, 256), (224, 14, 256), (17, 17, 1)],
)
def test_patches_are_the_smallest_that_leave_at_most_256(image_size, patch_size, tokens):
    assert choose_patch_size(image_size, None) == patch_size
    assert (image_size // patch_size) ** 2 == tokens


@pytest.mark.parametrize("patch_size", [1, 2, 4, 7, 14, 28])
def test_any_patch_that_divides_the_image_can_be_asked_for(patch_size):
    assert choose_patch_size(28, patch_size) == patch_size


@pytest.mark.parametrize("patch_size", [3, 5, 27, 29, 56])
def test_a_patch_that_does_not_divide_the_image_is_refused_with_those_that_do(patch_size):
    with pytest.raises(RequestError) as refused:
        choose_patch_size(28, patch_size)
    assert str(refused.value) == (
        f"model.patch_size {patch_size} does not divide the image size of 28 pixels: "
        "choose one of 1, 2, 4, 7, 14, 28, or set data.image_size"
    )


def test_the_default_is_the_papers_vit_tiny():
    backbone = build(32)
    assert (backbone.embed_dim, backbone.depth, backbone.num_heads) == (192, 12, 3)
    assert (backbone.patch_size, backbone.tokens, backbone.prefix, backbone.channels) == (2, 256, 1, 3)
    assert 5.3e6 < sum(p.numel() for p in backbone.parameters()) < 5.5e6


@pytest.mark.parametrize(
    ("name", "pool", "prefix"),
    [
        ("vit_tiny_patch16_224", "token", 1),
        ("vit_small_patch14_reg4_dinov2", "token", 5),
        ("vit_base_patch16_clip_224", "token", 1),
        ("vit_base_patch16_gap_224", "avg", 0),
        ("vit_base_patch16_reg4_gap_256", "avg", 4),
        ("vit_giant_patch14_dinov2", "token", 1),
        ("test_vit", "token", 1),
    ],
)
def test_a_plain_vit_takes_the_settings_asked_for(name, pool, prefix):
    backbone = build_backbone(Model(name=name, pool=pool, patch_size=4, **SMALL), 16, 1)
    assert (backbone.embed_dim, backbone.depth, backbone.num_heads) == (24, 2, 3)
    assert (backbone.patch_size, backbone.tokens, backbone.prefix, backbone.channels) == (4, 16, prefix, 1)
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = backbone(images)
    assert tokens.shape == (2, prefix + 16, 24)
    torch.testing.assert_close(tokens, backbone.vit.forward_features(images))
    keep = torch.tensor([[3, 0, 9], [15, 1, 2]])
    assert backbone(images, keep).shape == (2, prefix + 3, 24)
    unused = [
        n
        for n, p in backbone.named_parameters()
        if torch.autograd.grad(tokens.square().sum(), p, retain_graph=True, allow_unused=True)[0] is None
    ]
    assert unused == []


@pytest.mark.parametrize(
    ("given", "closest"),
    [("vit_tiny_patch16_225", "vit_tiny_patch16_224"), ("VIT_SMALL_PATCH16_224", "vit_small_patch16_224")],
)
def test_an_unknown_name_is_refused_with_the_closest(given, closest):
    with pytest.raises(RequestError) as refused:
        build(name=given)
    assert str(refused.value) == f"model.name: timm has no ViT {given!r}; did you mean {closest!r}?"


@pytest.mark.parametrize("name", ["resnet50", "xyz"])
def test_a_name_like_no_vits_is_refused(name):
    with pytest.raises(RequestError, match=rf"^model\.name: timm has no ViT '{name}'"):
        build(name=name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_small_patch16_dinov3", "it is a Eva"),
        ("vit_relpos_small_patch16_224", "it is a VisionTransformerRelPos"),
        ("vit_tiny_r_s16_p8_224", "its patches come from a HybridEmbed"),
        ("vit_small_patch16_18x2_224", "its blocks are of kind ParallelThingsBlock"),
        ("vit_pwee_patch16_reg1_gap_256", "its blocks are of kind ParallelScalingBlock"),
        ("vit_dwee_patch16_reg1_gap_256", "its attention is a DiffAttention"),
        ("vit_base_patch16_siglip_224", "it pools by attention"),
        ("vit_base_patch16_radio_v3", "it has no norm after its last block"),
    ],
)
def test_a_model_that_is_no_plain_vit_is_refused_with_the_reason(name, reason):
    with pytest.raises(RequestError) as refused:
        build(name=name, pool="avg", patch_size=4, **SMALL)
    assert str(refused.value) == f"model.name {name} is no plain ViT: {reason}"


@pytest.mark.parametrize("name", ["mobilevit_s", "maxvit_tiny_tf_224", "efficientvit_b0", "levit_128"])
def test_a_model_that_takes_no_image_or_patch_size_is_refused(name):
    with pytest.raises(RequestError, match=f"^model: timm cannot build {name} with .*unexpected keyword argument"):
        build(name=name)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"embed_dim": 64, "num_heads": 3}, "model.embed_dim 64 is no multiple of model.num_heads 3"),
        (
            {"name": "test_vit", "embed_dim": 63},
            "model: timm cannot build test_vit with {'embed_dim': 63}: dim should be divisible by num_heads",
        ),
        (
            {"name": "test_vit", "num_heads": 5},
            "model: timm cannot build test_vit with {'num_heads': 5}: dim should be divisible by num_heads",
        ),
    ],
)
def test_a_width_that_the_heads_cannot_share_is_refused(settings, named):
    with pytest.raises(RequestError) as refused:
        build(**settings)
    assert str(refused.value) == named


def test_a_classifier_cannot_read_a_class_token_that_is_not_there():
    with pytest.raises(RequestError) as refused:
        build(name="vit_base_patch16_gap_224", pool="token")
    assert str(refused.value) == "model.name vit_base_patch16_gap_224 has no class token: set model.pool: avg"
    assert build(name="vit_base_patch16_gap_224", pool="avg").prefix == 0
