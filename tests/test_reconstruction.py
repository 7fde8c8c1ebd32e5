"""Masked images of real digits, what trained runs make of them, and the figure."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mixtune.errors import DataError, RequestError
from mixtune.reconstruction import SAMPLE, draw_reconstructions, reconstruct_images
from mixtune.space.recipe import change_recipe
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.measure import measure
from mixtune.training.saved import load_trained, save_trained

# four seconds of training, after which a decoder knows more of a digit than the mean image
LEARNS = {"data.fraction": 1.0, "model.embed_dim": 32, "model.depth": 1, "epochs.ssl": 5, "epochs.sl": 3}
LEARNS |= {"ssl.encode": "full", "ssl.mask_ratio": 0.5, "ssl.decoder_depth": 1, "augment.pad": 0}
LEARNS |= {"optim.ssl.base_lr": 0.08, "optim.sl.base_lr": 0.08}


def save(state, folder):
    save_trained(folder, state, measure(state))
    return load_trained(folder)


@pytest.fixture(scope="module")
def make_run(make_state, tmp_path_factory):
    """Train the small recipe, with dotted values put over it, for a number of its epochs; save and load it."""

    def make(changes, epochs=None):
        state = make_state(changes)
        for result in train(state):
            if result.epoch == epochs:
                break
        return save(state, tmp_path_factory.mktemp("run"))

    return make


@pytest.fixture(scope="module")
def mixed(make_run):
    return make_run({"rho": 0.5})


@pytest.fixture(scope="module")
def ssl_sl(make_run):
    return make_run({"rho": 0.0})


def masked_pixels(made, patch_size=2):
    """Return which pixels are masked, (N, H, W): of the grey patches, told by their single value."""
    blocks = made.masked[:, 0].unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)
    grey = (blocks == 128).all(dim=-1).all(dim=-1)
    return grey.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)


# --- the finding


def test_only_mixtraining_still_reconstructs_after_the_whole_training(make_state, tmp_path):
    """Fig. 4, with the same encoding; SSL+SL could, before its supervised epochs."""
    made = {}
    for method, rho in (("mixtraining", 0.75), ("ssl_sl", 0.0)):
        state = make_state({**LEARNS, "rho": rho})
        for result in train(state):
            if result.epoch == 5:
                made[f"{method}, epoch 5"] = reconstruct_images(save(state, tmp_path / f"{method}5"), 1, 0)
        made[method] = reconstruct_images(save(state, tmp_path / method), 1, 0)
        assert made[method].method == method
    errors = {name: part.error / part.mean_image_error for name, part in made.items()}
    assert errors["ssl_sl, epoch 5"] < errors["mixtraining, epoch 5"] < 0.95
    assert errors["mixtraining"] < 1.0
    assert errors["ssl_sl"] > 1.3


# --- images and masks


def test_images_are_held_out_and_neither_mirrored_nor_moved(mixed):
    made = reconstruct_images(mixed, 12, 0)
    data = load_training_data(mixed.recipe).tasks[0]
    for part in (made.originals, made.masked, made.reconstructed):
        assert (part.dtype, part.shape) == (torch.uint8, (12, 1, 8, 8))

    def bytes_of(pool):
        return {image.numpy().tobytes() for image in pool.images[pool.indices]}

    shown = {image.numpy().tobytes() for image in made.originals}
    assert len(shown) == 12
    assert shown <= bytes_of(data.held_out) - bytes_of(data.train)
    assert made.source == "validation images of digits"
    assert made.sample == len(data.held_out) == 144


def test_test_images_are_shown_under_the_papers_protocol(make_run):
    run = make_run({"protocol": "paper", "epochs.ssl": 1, "epochs.sl": 1})
    made = reconstruct_images(run, 3, 0)
    held_out = load_training_data(run.recipe).tasks[0].held_out
    tests = {image.numpy().tobytes() for image in held_out.images[held_out.indices]}
    assert {image.numpy().tobytes() for image in made.originals} <= tests
    assert (made.source, made.sample) == ("test images of digits", SAMPLE)


def test_three_quarters_of_the_patches_are_grey_and_the_kept_ones_stay(mixed):
    made = reconstruct_images(mixed, 8, 0)
    hidden = masked_pixels(made)
    assert hidden.float().mean().item() == 0.75
    for part in (made.masked, made.reconstructed):
        assert torch.equal(part[:, 0][~hidden], made.originals[:, 0][~hidden])
    assert (made.reconstructed[:, 0][hidden] != made.originals[:, 0][hidden]).float().mean() > 0.8


def test_images_and_masks_follow_the_seed_alone(mixed, ssl_sl):
    made, other = (reconstruct_images(run, 6, 3) for run in (mixed, ssl_sl))
    assert torch.equal(made.originals, other.originals)
    assert torch.equal(made.masked, other.masked)
    assert not torch.equal(made.reconstructed, other.reconstructed)
    again = reconstruct_images(mixed, 6, 3)
    assert torch.equal(made.reconstructed, again.reconstructed)
    assert made.error == again.error
    fewer, another = reconstruct_images(mixed, 2, 3), reconstruct_images(mixed, 6, 4)
    assert torch.equal(fewer.masked, made.masked[:2])
    assert fewer.error == made.error  # over the whole sample, however many are shown
    assert not torch.equal(another.originals, made.originals)


def test_the_error_is_that_of_the_masked_patches_in_normalised_units(mixed):
    made = reconstruct_images(mixed, 144, 0)  # the whole sample
    hidden = masked_pixels(made).numpy()
    pool = load_training_data(mixed.recipe).tasks[0].held_out
    pixels = made.originals[:, 0].numpy() / 255
    guessed = made.reconstructed[:, 0].numpy() / 255
    std = pool.std.item()
    assert np.mean((guessed - pixels)[hidden] ** 2) / std**2 == pytest.approx(made.error, rel=0.05)  # clipped to 0..255
    mean_image = np.mean((pixels.mean(axis=0) - pixels)[hidden] ** 2) / std**2
    assert made.mean_image_error == pytest.approx(mean_image, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({"rho": 0.5}, True),
        ({"rho": 0.0}, False),
        ({"rho": 0.0, "ssl.encode": "full"}, True),
        ({"rho": 0.4, "epochs.ssl": 1, "epochs.sl": 2}, False),  # e_mix is 0
    ],
)
def test_the_encoder_is_fed_as_when_the_decoder_was_last_trained(make_run, changes, whole):
    run = make_run({"epochs.ssl": 2, "epochs.sl": 2, **changes}, epochs=1)
    seen = []
    run.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs) == 1))
    made = reconstruct_images(run, 1, 0)
    assert made.whole == whole
    assert set(seen) == {whole}


def test_several_tasks_share_a_reconstruction(make_run, write_crops, tmp_path):
    for number, path in enumerate(sorted(Path(write_crops(280)).iterdir())):
        (folder := tmp_path / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    roots = {"data.dataset": ["digits", "image_folder"], "data.root": [None, str(tmp_path / "photos")]}
    run = make_run({**roots, "data.fraction": 0.5, "epochs.ssl": 1, "epochs.sl": 1, "model.patch_size": 8})
    made = reconstruct_images(run, 30, 0)
    assert made.source == "validation images of digits, image_folder"
    coloured = (made.originals != made.originals[:, :1]).flatten(1).any(dim=1)
    assert 0 < coloured.sum() < 30
    hidden = masked_pixels(made, 8)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(made.reconstructed[~hidden], made.originals[~hidden])  # each in its own task's colours


# --- what is refused


def test_an_objective_that_cannot_reconstruct_is_refused(mixed):
    with pytest.raises(RequestError, match=r"run\d+: ssl\.objective mae cannot reconstruct images"):
        reconstruct_images(replace(mixed, objective=nn.Identity()), 8, 0)


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({}, 145, "145 images: should be 1 to 144, its validation images of dig"),
        ({"data.val_fraction": 0.0}, 8, r"no images are held out, since data\.val_fraction is 0"),
        ({"epochs.ssl": 0}, 8, r"epochs\.ssl is 0, so its decoder was never trained"),
    ],
)
def test_what_a_run_cannot_show_is_refused(make_run, changes, count, message):
    run = make_run({"epochs.ssl": 1, "epochs.sl": 1, **changes})
    with pytest.raises(RequestError, match=rf"run\d+: {message}"):
        reconstruct_images(run, count, 0)


def test_data_that_changed_since_the_training_are_refused(mixed):
    with pytest.raises(DataError, match=r"run\d+: the (size and colours|images|classes) of digits"):
        reconstruct_images(replace(mixed, recipe=change_recipe(mixed.recipe, {"data.image_size": 16})), 8, 0)


# --- the figure


def test_the_figure_has_a_column_an_image_a_row_a_run_and_a_caption(mixed, ssl_sl, tmp_path):
    runs = [("mixed", reconstruct_images(mixed, 5, 0)), ("ssl_sl " * 40, reconstruct_images(ssl_sl, 5, 0))]
    draw_reconstructions(runs, tmp_path / "fig4.png")
    picture = np.asarray(Image.open(tmp_path / "fig4.png"))
    assert picture.shape[1:] == (8 + 5 * 104, 3)
    parts = [runs[0][1].originals, runs[0][1].masked, runs[0][1].reconstructed, runs[1][1].reconstructed]
    for row, part in enumerate(parts):
        for number, image in enumerate(part):
            top, left = 8 + 104 * row, 8 + 104 * number
            shown = picture[top : top + 96 : 12, left : left + 96 : 12]  # 8 pixels, 12 times
            assert np.array_equal(shown, np.repeat(image[0].numpy()[:, :, None], 3, axis=2))
    caption = picture[8 + 4 * 104 :]
    assert (caption < 100).any()
    assert (caption[:, :8] == 255).all()  # nothing runs over the margin
    assert (caption[:, -8:] == 255).all()
    assert (caption[-8:] == 255).all()


def test_a_picture_is_replaced_and_nothing_else(mixed, tmp_path):
    made = [("mixed", reconstruct_images(mixed, 2, 0))]
    picture, other, link = tmp_path / "x.png", tmp_path / "ledger.jsonl", tmp_path / "link.png"
    draw_reconstructions(made, picture)
    picture.write_bytes(picture.read_bytes()[:2000])
    draw_reconstructions(made, picture)
    with Image.open(picture) as drawn:
        drawn.load()
    other.write_text("mine")
    link.symlink_to(other)
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (
            other,
            "ledger.jsonl is there already, and not a picture that mixtune drew: give another file, or move it away$",
        ),
        (link, "link.png cannot be written: it is a link$"),
        (tmp_path / "pipe", "pipe cannot be written: it is not a regular file$"),
    ):
        with pytest.raises(RequestError, match=message):
            draw_reconstructions(made, path)
    assert other.read_text() == "mine"


def test_runs_on_different_images_or_masks_share_no_figure(make_run, mixed, tmp_path):
    made = reconstruct_images(mixed, 4, 0)
    short = {"epochs.ssl": 1, "epochs.sl": 1}
    others = {
        "images differ: seed, data.val_fraction": make_run({**short, "seed": 1}),
        "masks differ: model.patch_size, ssl.mask_ratio": make_run({**short, "ssl.mask_ratio": 0.5}),
        "images differ: validation images of digits; test images of": make_run({**short, "protocol": "paper"}),
    }
    for reason, run in others.items():
        with pytest.raises(RequestError, match=f"^one and other cannot share a figure, since their {reason}"):
            draw_reconstructions([("one", made), ("other", reconstruct_images(run, 4, 0))], tmp_path / "no.png")
    with pytest.raises(RequestError, match="there is no run to draw"):
        draw_reconstructions([], tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()
