"""Which ViTs can be a backbone, with which patches, and what is said of the others."""

from __future__ import annotations

import copy
import os
from itertools import product

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vits import VITS, build_visible, crops, slow_embed

from mixtune.backbone import build_backbone, choose_patch_size, grid
from mixtune.errors import DataError, RequestError
from mixtune.space.recipe import Model

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def build(size=16, channels=3, **settings):
    """Build without weights."""
    with torch.device("meta"):
        return build_backbone(Model(**settings), size, channels)


def test_patches_are_the_smallest_that_leave_at_most_256():
    for image_size, patch_size in ((32, 2), (64, 4), (28, 2), (8, 1), (16, 1), (96, 6), (224, 14), (17, 17)):
        assert choose_patch_size(image_size, None) == patch_size, image_size


def test_a_patch_that_does_not_divide_the_image_is_refused_with_those_that_do():
    assert choose_patch_size(28, 7) == 7
    expected = (
        "^model.patch_size 5 does not divide the image size of 28 pixels: choose one of 1, 2, 4, 7, 14, 28, or set "
        "data.image_size$"
    )
    with pytest.raises(RequestError, match=expected):
        choose_patch_size(28, 5)


def test_the_default_is_the_papers_vit_tiny():
    backbone = build(32)
    assert (backbone.embed_dim, backbone.depth, backbone.num_heads) == (192, 12, 3)
    assert (backbone.patch_size, backbone.tokens, backbone.prefix, backbone.channels) == (2, 256, 1, 3)
    assert 5.3e6 < sum(p.numel() for p in backbone.parameters()) < 5.5e6


def test_a_plain_vit_takes_the_settings_asked_for():
    for name, pool, prefix in (
        ("vit_tiny_patch16_224", "token", 1),
        ("vit_small_patch14_reg4_dinov2", "token", 5),
        ("vit_base_patch16_clip_224", "token", 1),
        ("vit_base_patch16_reg4_gap_256", "avg", 4),
        ("vit_giant_patch14_dinov2", "token", 1),
    ):
        backbone = build(16, 1, name=name, pool=pool, patch_size=4, **SMALL)
        assert (backbone.embed_dim, backbone.depth, backbone.num_heads) == (24, 2, 3)
        assert (backbone.patch_size, backbone.tokens, backbone.prefix, backbone.channels) == (4, 16, prefix, 1), name


def test_a_model_that_cannot_be_a_backbone_is_refused_with_the_reason():
    odd = {
        "vit_small_patch16_dinov3": "it is a Eva",
        "vit_tiny_r_s16_p8_224": "its patches come from a HybridEmbed",
        "vit_small_patch16_18x2_224": "its blocks are of kind ParallelThingsBlock",
        "vit_dwee_patch16_reg1_gap_256": "its attention is a DiffAttention",
        "vit_base_patch16_siglip_224": "it pools by attention",
        "vit_base_patch16_radio_v3": "it has no norm after its last block",
    }
    for name, settings, said in (
        ("VIT_TINY_PATCH16_225", {}, ".name: timm has no ViT 'VIT_TINY_PATCH16_225'; did you mean 'vit_ti"),
        ("resnet50", {}, ".name: timm has no ViT 'resnet50'"),
        ("mobilevit_s", {}, ": timm cannot build mobilevit_s with {}: .*unexpected keyword argument"),
        (
            "test_vit",
            {"num_heads": 5},
            ": timm cannot build .*{'num_heads': 5}: dim should be divisible by num_heads",
        ),
        ("vit_base_patch16_gap_224", {}, ".name vit_base_patch16_gap_224 has no class token: set model.pool: avg$"),
        *((name, {"pool": "avg", **SMALL}, f".name {name} is not a plain ViT: {why}$") for name, why in odd.items()),
    ):
        with pytest.raises(RequestError, match=f"^model{said}"):
            build(name=name, **settings)


WHOLE = {"name": "test_vit"}  # timm's smallest, at its own width and depth: 160 pixels, patches of 16


@pytest.fixture(scope="module")
def weights():
    """Random weights of a whole ViT with its classifier, as timm publishes them."""
    torch.manual_seed(0)
    return timm.create_model("test_vit").state_dict()


def save(weights, path):
    """Write weights in the format that the path's suffix names, or bytes as they are."""
    if isinstance(weights, bytes):
        path.write_bytes(weights)
    elif path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return str(path)


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """Keep the hub's client from the network, with an empty cache; return the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def check_resampled(backbone, weights, patch_size, grid, channels):
    """Assert that a backbone has exactly the weights, its embeddings resampled by timm's own functions."""
    patches = resample_patch_embed(weights["patch_embed.proj.weight"], [patch_size, patch_size])
    expected = {
        **{name: weight for name, weight in weights.items() if not name.startswith("head.")},
        "patch_embed.proj.weight": adapt_input_conv(channels, patches),
        "pos_embed": resample_abs_pos_embed(weights["pos_embed"], [grid, grid], num_prefix_tokens=1),
    }
    loaded = backbone.vit.state_dict()
    assert loaded.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(loaded[name], weight, rtol=0, atol=0, msg=name)


def test_weights_of_a_file_or_a_training_checkpoint_are_resampled_as_timm_does(weights, tmp_path):
    for suffix, content, size, patch_size, channels in (
        (".safetensors", weights, 32, 4, 1),
        (".safetensors", weights, 32, 2, 3),
        (".pth", weights, 64, 4, 3),
        (".bin", weights, 64, 32, 4),
        (".bin", weights, 160, 16, 3),
        (".pth", {"state_dict": weights}, 32, 4, 3),
        (".pth", {"model": weights, "epoch": 3}, 32, 4, 3),
    ):
        path = save(content, tmp_path / f"weights{suffix}")
        backbone = build_backbone(Model(**WHOLE, patch_size=patch_size, pretrained=path), size, channels)
        assert (backbone.patch_size, backbone.channels) == (patch_size, channels)
        check_resampled(backbone, weights, patch_size, size // patch_size, channels)


def test_a_backbone_of_other_sizes_loads_its_own_weights(tmp_path):
    """As of a smaller model that was trained on gray images: the file has no classifier and one channel."""
    small = Model(name="vit_tiny_patch16_224", patch_size=4, **SMALL)
    trained = build_backbone(small, 16, 1)
    path = save(trained.vit.state_dict(), tmp_path / "model.safetensors")
    again = build_backbone(small.model_copy(update={"pretrained": path}), 16, 1)
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(images), trained(images), rtol=0, atol=0)
    colour = build_backbone(small.model_copy(update={"pretrained": path}), 16, 3)
    torch.testing.assert_close(colour(images.expand(-1, 3, -1, -1)), trained(images))


def test_timms_weights_come_from_the_hubs_cache(weights, no_hub):
    """The cache is laid out as the hub's client leaves it after a download."""
    repository = no_hub / "models--timm--test_vit.r160_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save(weights, snapshot / "model.safetensors")
    check_resampled(build_backbone(Model(**WHOLE, patch_size=4, pretrained=True), 32, 1), weights, 4, 8, 1)


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, monkeypatch, capfd):
    """timm alone asks a dozen times, with pauses that add up to three quarters of a minute, and logs each."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    huggingface_hub.close_session()
    expected = r"^model\.pretrained: timm's weights for test_vit could not be had \(\[Errno .*takes the path of a file"
    with pytest.raises(DataError, match=expected):
        build_backbone(Model(**WHOLE, pretrained=True), 32, 3)
    assert capfd.readouterr().err == ""
    huggingface_hub.close_session()


def test_a_model_that_timms_weights_do_not_fit_is_refused():
    """The shapes of weights are those of any number of heads, but not what they mean."""
    unfit = "{} does not fit model.pretrained: timm's weights for test_vit have {}"
    unknown = "timm has no weights for vit_large_patch14_224; did you mean 'vit_large_patch16_224'?"
    for settings, said in (
        ({**WHOLE, "depth": 8}, f"model.depth {unfit.format(8, 6)}"),
        ({**WHOLE, "embed_dim": 32}, f"model.embed_dim {unfit.format(32, 64)}"),
        ({**WHOLE, "num_heads": 4}, f"model.num_heads {unfit.format(4, 2)}"),
        ({"name": "vit_large_patch14_224"}, f"model.pretrained: {unknown}"),
    ):
        with pytest.raises(RequestError) as refused:
            build(**settings, pretrained=True)
        assert str(refused.value) == said
    assert build(**WHOLE, embed_dim=64, depth=6, num_heads=2, pretrained=True).num_heads == 2


class Command:
    """What runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_file_that_is_no_weights_or_those_of_another_model_is_refused(tmp_path, weights):
    allowed = "(.safetensors, or a state dict by torch.save, by timm's names)"
    differs, missing = "Error(s) in loading state_dict for VisionTransformer: ", "Missing key(s) in state_dict: "
    lacking = {name: weight for name, weight in weights.items() if name != "blocks.3.norm1.weight"}
    narrow = {**weights, "blocks.0.mlp.fc1.weight": torch.ones(96, 64)}
    for suffix, content, settings, reason in (
        (".safetensors", b"not at all", {}, ""),
        (".bin", b"", {}, "EOFError"),
        (".pth", [1, 2], {}, ""),
        (".pth", {"epoch": 3}, {}, f"{differs}{missing}"),
        (".safetensors", lacking, {}, f'{differs}{missing}"blocks.3.norm1.weight"'),
        (".safetensors", narrow, {}, f"{differs}size mismatch for blocks.0.mlp.fc1.weight: "),
    ):
        path = tmp_path / f"weights{suffix}"
        save(content, path)
        with pytest.raises(RequestError) as refused:
            build_backbone(Model(**WHOLE, **settings, patch_size=4, pretrained=str(path)), 32, 3)
        said = str(refused.value)
        assert said.startswith(f"model.pretrained: {path} cannot be loaded into test_vit {allowed}: {reason}"), reason
        assert "\n" not in said


def test_a_setting_that_contradicts_the_weights_of_a_file_is_named(tmp_path, weights):
    path = save(weights, tmp_path / "weights.pth")
    patches_alone = {name: weight for name, weight in weights.items() if name != "cls_token"}
    without = save(patches_alone, tmp_path / "patches.pth")
    for given, file, said in (
        ({"depth": 3}, path, f"model.depth 3 does not fit model.pretrained: the weights in {path} have 6"),
        ({"depth": 8}, path, f"model.depth 8 does not fit model.pretrained: the weights in {path} have 6"),
        ({"embed_dim": 32}, path, f"model.embed_dim 32 does not fit model.pretrained: the weights in {path} have 64"),
        ({}, without, f"model.name does not fit model.pretrained: the weights in {without} have no class token"),
    ):
        with pytest.raises(RequestError) as refused:
            build_backbone(Model(**WHOLE, **given, patch_size=4, pretrained=file), 32, 3)
        assert str(refused.value) == said


def test_a_file_is_never_unpickled_into_code(tmp_path, weights):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    torch.save({**weights, "note": Command(f"touch {trace}")}, path)
    with pytest.raises(RequestError, match=r"cannot be loaded .*Unsupported globals: posix\.system"):
        build_backbone(Model(**WHOLE, patch_size=4, pretrained=str(path)), 32, 3)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trace.exists()


def test_a_file_that_is_not_there_is_refused_also_by_a_forecast():
    for path in ("nowhere/weights.safetensors", "", "."):
        with pytest.raises(RequestError, match=f"^model.pretrained: there is no file {path}$"):
            build(**WHOLE, pretrained=path)


def test_a_forecast_neither_reads_nor_downloads_weights(tmp_path, no_hub):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"unread")
    for pretrained in (True, str(path)):
        backbone = build(**WHOLE, pretrained=pretrained)
        assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
    assert not no_hub.exists()


# --- other patches and images than a backbone's own

each_kind = pytest.mark.parametrize("kind", [kind for kind in VITS if kind != "fashion"])


def small_backbone(kind="digits"):
    """Build a ViT for 12 pixels in patches of 3, with all its weights and biases visible."""
    return build_visible(VITS[kind][0].model_copy(update={"patch_size": 3}), 12, 3)


def photographs(size):
    return crops(2, size) / 127.5 - 1


def test_patches_that_do_not_fill_a_side_are_as_many_as_fit_best():
    assert [grid(8, patch_size) for patch_size in (2, 3, 5, 6, 8, 100)] == [4, 3, 2, 1, 1, 1]
    for size, patch_size in product((8, 32, 224), range(2, 300)):
        misfit = abs(size / patch_size - grid(size, patch_size))
        assert all(misfit <= abs(size / patch_size - n) for n in range(1, size)), (size, patch_size)


@each_kind
def test_own_patches_of_own_images_have_the_bits_of_timms_model(kind):
    """Its positions are for one size, its patches in a row, as timm builds it."""
    backbone, settings, images = small_backbone(kind), VITS[kind][0], photographs(12)
    sizes = settings.model_dump(include={"embed_dim", "depth", "num_heads"})
    model = timm.create_model(settings.name, img_size=12, patch_size=3, num_classes=0, fc_norm=False, **sizes)
    model.load_state_dict(backbone.vit.state_dict())
    assert torch.equal(backbone(images), model.forward_features(images))
    assert torch.equal(backbone(images, patch_size=3), model.forward_features(images))


@each_kind
@pytest.mark.parametrize(("size", "patch_size"), [(12, 4), (12, 12), (9, 3), (24, 3), (16, 8)])
def test_embeddings_and_positions_are_resampled_by_timms_functions(kind, size, patch_size):
    backbone, images = small_backbone(kind), photographs(size)
    embedded = slow_embed(backbone, images, patch_size)
    torch.testing.assert_close(backbone._embed(images, patch_size), embedded, rtol=1e-3, atol=1e-4)
    vit = backbone.vit
    expected = vit.norm(vit.blocks(vit.norm_pre(embedded)))
    torch.testing.assert_close(backbone(images, patch_size=patch_size), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "patch_size", "resized"), [(12, 5, 10), (12, 7, 14), (12, 9, 9), (15, 4, 16), (7, 3, 6)]
)
def test_an_image_that_the_patches_do_not_fill_is_resized_as_pillow_does(size, patch_size, resized):
    backbone, images = small_backbone(), photographs(size)
    fitting = torch.empty(2, 3, resized, resized)
    for number, image in enumerate(images.numpy()):
        for channel, plane in enumerate(image):
            drawn = Image.fromarray(plane).resize((resized, resized), Image.Resampling.BICUBIC)
            fitting[number, channel] = torch.from_numpy(np.array(drawn))
    found = backbone(images, patch_size=patch_size)
    torch.testing.assert_close(found, backbone(fitting, patch_size=patch_size), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(backbone._embed(images, patch_size), slow_embed(backbone, fitting, patch_size))


@each_kind
@pytest.mark.parametrize(("size", "patch_size"), [(12, 3), (12, 4), (12, 5), (24, 3)])
def test_gradients_through_resampled_weights_positions_and_images_are_the_finite_differences(kind, size, patch_size):
    """Of what is linear in each, a difference as large as one likes is exact."""
    backbone, images = small_backbone(kind).double(), photographs(size).double()
    backbone.vit.patch_embed.norm = torch.nn.Identity()
    vit, draws = backbone.vit, torch.Generator().manual_seed(0)
    weights = torch.randn(backbone._embed(images, patch_size).shape, generator=draws, dtype=torch.float64)

    def score():
        return (weights * backbone._embed(images, patch_size)).sum()

    tokens = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    inputs = [vit.patch_embed.proj.weight, vit.pos_embed, *tokens, images.requires_grad_()]
    gradients = torch.autograd.grad(score(), inputs)
    with torch.no_grad():
        for held, gradient in zip(inputs, gradients, strict=True):
            for _ in range(5):
                direction = torch.randn(held.shape, generator=draws, dtype=torch.float64)
                before = held.clone()
                scores = [(held.copy_(before + sign * direction), score())[1] for sign in (1, -1)]
                held.copy_(before)
                slope = (scores[0] - scores[1]) / 2
                assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4, abs=1e-3)


def test_other_patches_leave_weights_and_own_patches_as_they_were():
    backbone, images = small_backbone(), photographs(12)
    before, own = copy.deepcopy(backbone.state_dict()), backbone(images)
    with torch.inference_mode():
        backbone(images, patch_size=5)
    backbone(images, patch_size=4).sum().backward()
    backbone(images, patch_size=5).sum().backward()  # also after it was only looked at
    assert backbone.state_dict().keys() == before.keys() == {f"vit.{name}" for name in backbone.vit.state_dict()}
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(backbone(images), own)
    again = copy.deepcopy(backbone)
    assert torch.equal(again(images, patch_size=5), backbone(images, patch_size=5))


def test_operations_are_those_that_pytorch_counts_registers_gated_mlps_and_other_patches_included():
    """Alongside resampling the weights of other patches: a matrix product, once a batch."""
    images, dinov2 = photographs(12), ("vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2")
    names = ("vit_tiny_patch16_224", *dinov2, "vit_base_patch16_gap_224", "test_vit2")
    for name, patch_size in product(names, (2, 3, 4, 5, 6)):
        backbone = build_backbone(Model(name=name, patch_size=3, pool="avg", **SMALL), 12, 3)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            backbone(images, patch_size=patch_size)
        resampling = 0 if patch_size == 3 else 2 * 24 * 3 * 3**2 * patch_size**2
        found = 2 * backbone.forward_flops(grid(12, patch_size) ** 2, patch_size) + resampling
        assert found == pytest.approx(counter.get_total_flops(), rel=1e-9), (name, patch_size)
