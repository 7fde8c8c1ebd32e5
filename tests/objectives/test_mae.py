"""Masked autoencoding against a slow version, written here with loops: one image and one patch at a time."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from vits import SMALL, VITS, make_backbone, real_images, slow_embed

from mixtune.backbone import build_backbone
from mixtune.errors import RequestError
from mixtune.objectives import Reconstructs, mae
from mixtune.space.recipe import Model


@pytest.fixture(params=list(VITS))
def parts(request):
    """A backbone and four real images for it."""
    return make_backbone(request.param), real_images(request.param)


def make_objective(backbone, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return mae.build(mae.Settings(**settings), backbone)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_patches(image, p):
    """Return the patches of one image (C, H, W), row by row; in a patch row by row, a pixel's channels together."""
    channels, height, width = image.shape
    return [
        [float(image[c, top + y, left + x]) for y in range(p) for x in range(p) for c in range(channels)]
        for top in range(0, height, p)
        for left in range(0, width, p)
    ]


def slow_unpatchify(patches, p, channels):
    """Return the image (C, H, W) of patches (L, p * p * C)."""
    side = math.isqrt(len(patches))
    image = torch.empty(channels, side * p, side * p)
    for number, patch in enumerate(patches):
        for i, value in enumerate(patch):
            y, x, c = i // channels // p, i // channels % p, i % channels
            image[c, number // side * p + y, number % side * p + x] = value
    return image


def slow_encode(backbone, image, kept):
    """Encode one image's patches ``kept``; return (prefix + K, D)."""
    vit, tokens = backbone.vit, slow_embed(backbone, image[None], backbone.patch_size)[0]
    tokens = torch.cat([tokens[: backbone.prefix], tokens[backbone.prefix :][kept]])
    return vit.norm(vit.blocks(vit.norm_pre(tokens[None])))[0]


def slow_decode(objective, features, kept, backbone):
    """Predict one image's patches (L, p * p * C) from features (prefix + K, D) of the kept ones."""
    embedded = [objective.embed.weight @ feature + objective.embed.bias for feature in features]
    tokens = embedded[: backbone.prefix]
    for number in range(backbone.tokens):
        own = embedded[backbone.prefix + kept.index(number)] if number in kept else objective.mask_token[0, 0]
        tokens.append(own + objective.positions[0, number])
    decoded = objective.norm(objective.blocks(torch.stack(tokens)[None]))[0]
    return objective.predict(decoded[backbone.prefix :])


def slow_loss(objective, predicted, images, keep):
    """Return the mean squared error over the patches that count, pixel by pixel, in float64."""
    settings, errors = objective.settings, []
    for guesses, image, kept in zip(predicted.tolist(), images, keep.tolist(), strict=True):
        for number, patch in enumerate(slow_patches(image, objective.patch_size)):
            if settings.norm_pix:
                centre = np.mean(patch)
                patch = [(value - centre) / math.sqrt(np.var(patch, ddof=1) + 1e-6) for value in patch]
            counts = {"all": True, "unmasked": number in kept, "masked": number not in kept}
            if counts[settings.loss_on]:
                errors += [(guess - value) ** 2 for guess, value in zip(guesses[number], patch, strict=True)]
    return sum(errors) / len(errors)


def test_patches_are_cut_row_by_row_and_put_together_again(parts):
    backbone, images = parts
    patches = mae.patchify(images, backbone.patch_size)
    assert patches.shape == (4, backbone.tokens, backbone.patch_size**2 * backbone.channels)
    for image, cut in zip(images, patches, strict=True):
        assert cut.tolist() == slow_patches(image, backbone.patch_size)
        assert torch.equal(slow_unpatchify(cut.tolist(), backbone.patch_size, backbone.channels), image)
    assert torch.equal(mae.unpatchify(patches, backbone.patch_size), images)
    other = patches.flip(1)  # no images that patchify saw
    assert torch.equal(mae.patchify(mae.unpatchify(other, backbone.patch_size), backbone.patch_size), other)


def test_the_kept_count_is_exact_for_all_thousandths():
    assert mae.kept_tokens(10, 0.9) == 1  # 10 * (1 - 0.9) is 0.9999999999999998
    for tokens in (2, 4, 9, 10, 16, 49, 100, 196, 256, 1000):
        for k in range(1, 1000):
            exact = tokens * (1000 - k) // 1000  # but at least one is kept, and one is masked
            assert mae.kept_tokens(tokens, k / 1000) == min(max(exact, 1), tokens - 1), (tokens, k)


def test_masks_are_drawn_without_replacement_every_patch_as_often_and_independently():
    objective = make_objective(make_backbone("digits"))
    keep = objective.draw_kept(20_000, 16, generator())
    assert torch.equal(keep, objective.draw_kept(20_000, 16, generator()))
    assert not torch.equal(keep, objective.draw_kept(20_000, 16, generator(1)))
    kept = torch.zeros(20_000, 16).scatter(1, keep, 1.0)
    assert (kept.sum(dim=1) == 4).all()
    assert (kept.mean(dim=0) - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 20_000)
    pairs = (kept.T @ kept / 20_000)[~torch.eye(16, dtype=torch.bool)]
    both = 4 * 3 / (16 * 15)  # of 16 patches, 4 without replacement
    assert (pairs - both).abs().max() < 5 * math.sqrt(both * (1 - both) / 20_000)


def test_kept_patches_are_encoded_alone_and_without_a_mask_all_as_by_timm(parts):
    backbone, images = parts
    every = torch.arange(backbone.tokens).expand(4, -1)
    for keep in (make_objective(backbone).draw_kept(4, backbone.tokens, generator()), every):
        tokens = backbone(images, keep)
        assert tokens.shape == (4, backbone.prefix + keep.shape[1], 16)
        for image, kept, encoded in zip(images, keep.tolist(), tokens, strict=True):
            torch.testing.assert_close(encoded, slow_encode(backbone, image, kept), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(backbone(images), tokens)
    torch.testing.assert_close(backbone(images), backbone.vit.forward_features(images))


def test_each_place_has_its_own_position_and_rows_differ_from_columns():
    positions = make_objective(make_backbone("digits")).positions[0]
    assert positions.shape == (16, 16)
    assert len({tuple(row.tolist()) for row in positions}) == 16
    grid = positions.view(4, 4, 16)
    half = {axis: (grid.diff(dim=axis).abs().amax(dim=(0, 1)) > 1e-6) for axis in (0, 1)}
    assert not (half[0] & half[1]).any()  # a feature tells the row or the column
    assert half[0].sum() == half[1].sum() == 8


def test_the_loss_is_the_mean_squared_error_of_the_patches_named(parts):
    backbone, images = parts
    predicted = torch.randn(mae.patchify(images, backbone.patch_size).shape, generator=generator(2))
    for loss_on, norm_pix in product(("masked", "unmasked", "all"), (False, True)):
        objective = make_objective(backbone, loss_on=loss_on, norm_pix=norm_pix)
        keep = objective.draw_kept(4, backbone.tokens, generator())
        expected = slow_loss(objective, predicted, images, keep)
        assert objective.loss(predicted, images, keep).item() == pytest.approx(expected, rel=1e-4), (loss_on, norm_pix)


def slow_features(backbone, image, kept, whole):
    """Return the features (prefix + K, D) of the kept patches of an image that is encoded whole, or these alone."""
    if not whole:
        return slow_encode(backbone, image, kept)
    encoded = slow_encode(backbone, image, list(range(backbone.tokens)))
    return torch.cat([encoded[: backbone.prefix], encoded[backbone.prefix :][kept]])


def test_the_whole_objective_is_the_slow_one_whose_masks_no_encoding_changes(parts):
    backbone, images = parts
    keep = make_objective(backbone).draw_kept(4, backbone.tokens, generator(3))
    for encode, joint in product(("visible", "full"), (False, True)):
        objective = make_objective(backbone, encode=encode, norm_pix=True, loss_on="all")
        loss, tokens = objective(backbone, images, generator(3), joint=joint)
        predicted = []
        for image, kept in zip(images, keep.tolist(), strict=True):
            features = slow_features(backbone, image, kept, whole=joint or encode == "full")
            predicted.append(slow_decode(objective, features, kept, backbone))
        expected = slow_loss(objective, torch.stack(predicted), images, keep)
        assert loss.item() == pytest.approx(expected, rel=1e-3), (encode, joint)
        if joint:
            torch.testing.assert_close(tokens, backbone(images))
        else:
            assert tokens is None


def slow_reconstruct(objective, backbone, image, kept, whole):
    """Return one image (C, H, W) whose patches but ``kept`` are the decoder's."""
    guesses = slow_decode(objective, slow_features(backbone, image, kept, whole), kept, backbone).tolist()
    patches = slow_patches(image, objective.patch_size)
    for number in set(range(backbone.tokens)) - set(kept):
        patch, scale, shift = patches[number], 1.0, 0.0
        if objective.settings.norm_pix:
            scale, shift = math.sqrt(np.var(patch, ddof=1) + 1e-6), np.mean(patch)
        patches[number] = [guess * scale + shift for guess in guesses[number]]
    return slow_unpatchify(patches, objective.patch_size, backbone.channels)


def test_masked_patches_are_the_decoders_and_the_others_stay(parts):
    backbone, images = parts[0], parts[1][:2]
    for whole, norm_pix in product((False, True), (False, True)):
        objective = make_objective(backbone, norm_pix=norm_pix)
        assert isinstance(objective, Reconstructs)
        keep = objective.draw_kept(2, backbone.tokens, generator())
        made = objective.reconstruct(backbone, images, keep, whole)
        assert (made.shape, made.requires_grad) == (images.shape, False)
        for image, kept, drawn in zip(images, keep.tolist(), made, strict=True):
            expected = slow_reconstruct(objective, backbone, image, kept, whole)
            torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)
        changed = (mae.patchify(images, backbone.patch_size) != mae.patchify(made, backbone.patch_size)).any(dim=-1)
        assert torch.equal(changed, torch.ones_like(changed).scatter(1, keep, False)), (whole, norm_pix)


def test_the_decoder_has_the_backbones_width_and_heads_and_the_depth_asked_for():
    backbone = make_backbone("registers")
    assert [len(make_objective(backbone, decoder_depth=depth).blocks) for depth in (1, 2, 5)] == [1, 2, 5]
    block = make_objective(backbone).blocks[0]
    assert (block.attn.num_heads, block.attn.qkv.in_features, block.mlp.fc1.out_features) == (2, 16, 64)


def test_a_single_patch_and_a_width_without_2d_positions_are_refused():
    with pytest.raises(RequestError, match=r"model\.patch_size 8 leaves a single one"):
        make_objective(build_backbone(Model(**SMALL, patch_size=8), 8, 1))
    with pytest.raises(RequestError, match=r"model\.embed_dim that is a multiple of 4, not 6"):
        make_objective(build_backbone(Model(embed_dim=6, depth=1, num_heads=3, patch_size=4), 8, 1))
