"""Views against a slow version, one image and one pixel's colours at a time, and roughly against torchvision."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from vits import crops

from mixtune.space.views import View
from mixtune.training.augmentation import resized_crop_and_flip
from mixtune.training.data import load_training_data
from mixtune.training.plan import make_plan
from mixtune.training.streams import torch_generator
from mixtune.training.views import jitter, make_view

RATIO = (3 / 4, 4 / 3)
# the first columns of NTSC's matrices, written out: how brightness and the two axes of colour follow from RGB and back
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@pytest.fixture(scope="module")
def photos():
    return crops(24, 16)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def draws_of(batch, strength, grayscale, draws):
    """Return each image's brightness, contrast, saturation and hue turn, from the same stream."""
    drawn = torch.rand(6, batch, generator=draws).double().tolist()
    for brightness, contrast, saturation, hue, applied, gray in zip(*drawn, strict=True):
        reach = strength if applied < 0.8 else 0.0
        factors = [max(0.0, 1 + 0.8 * reach * (2 * u - 1)) for u in (brightness, contrast, saturation)]
        if gray < grayscale:
            factors[2] = 0.0
        yield *factors, 2 * math.pi * 0.2 * reach * (2 * hue - 1)


def slow_jitter(image, brightness, contrast, saturation, turn):
    """Change one image (C, H, W) of 0 to 1 in float64, a step at a time; return it between 0 and 1."""
    changed = image.astype(np.float64) * brightness
    gray = np.tensordot(TO_YIQ[0], changed, axes=1) if len(image) == 3 else changed[0]
    mean = gray.mean()
    changed = mean + contrast * (changed - mean)
    if len(image) == 3:
        gray = np.tensordot(TO_YIQ[0], changed, axes=1)
        changed = gray + saturation * (changed - gray)
        y, i, q = np.tensordot(TO_YIQ, changed, axes=1)
        i, q = math.cos(turn) * i - math.sin(turn) * q, math.sin(turn) * i + math.cos(turn) * q
        changed = np.tensordot(np.linalg.inv(TO_YIQ), np.stack([y, i, q]), axes=1)
    return np.clip(changed, 0, 1)


def test_colours_change_as_one_image_at_a_time(photos):
    for channels, (strength, grayscale) in product((1, 3), ((0.5, 0.2), (1.0, 0.0), (0.0, 0.5), (2.0, 0.2))):
        images = photos[:, :channels].float() / 255
        done = jitter(images.clone(), strength, grayscale, generator())
        assert done.shape == images.shape
        for got, image, factors in zip(done, images, draws_of(24, strength, grayscale, generator()), strict=True):
            np.testing.assert_allclose(got.numpy(), slow_jitter(image.numpy(), *factors), atol=2e-6)


def test_bands_change_as_grey_images_do(photos):
    grey = photos[:, :1].float() / 255
    done = jitter(grey.expand(-1, 5, -1, -1), 0.5, 0.2, torch.Generator().manual_seed(1))
    alone = jitter(grey, 0.5, 0.2, torch.Generator().manual_seed(1))
    assert torch.allclose(done, alone.expand(-1, 5, -1, -1), atol=1e-6)


def test_a_view_is_a_crop_whose_colours_are_changed(photos):
    for channels, (strength, grayscale) in product((1, 3), ((0.5, 0.2), (0.0, 0.0))):
        images, draws = photos[:, :channels], generator()
        cropped = resized_crop_and_flip(images, (0.3, 0.9), RATIO, 0.5, draws).numpy() / 255
        done = make_view(images, View((0.3, 0.9), strength, grayscale), 0.5, generator())
        assert done.dtype == torch.float32
        for got, image, factors in zip(done, cropped, draws_of(24, strength, grayscale, draws), strict=True):
            np.testing.assert_allclose(got.numpy(), 255 * slow_jitter(image, *factors), atol=1e-3)


def test_draws_come_from_the_generator_alone_and_go_on(photos):
    view, before, draws = View((0.2, 1.0), 0.5, 0.2), photos.clone(), generator()
    one = make_view(photos, view, 0.5, draws)
    torch.manual_seed(99)
    again, other = (make_view(photos, view, 0.5, generator(seed)) for seed in (5, 2))
    assert torch.equal(one, again)
    for different in (other, make_view(photos, view, 0.5, draws)):
        assert ((one - different).abs().flatten(1).amax(dim=1) > 1).all()
    assert torch.equal(photos, before)


def only(channel, value):
    """Return a generator's stand-in for torch.rand: the middle of all draws but one; jitter is applied, gray not."""

    def rand(*shape, **_):
        drawn = torch.full(shape, 0.5)
        drawn[4], drawn[5] = 0.0, 1.0
        drawn[channel] = value
        return drawn

    return rand


def test_one_change_alone_is_torchvisions(photos, monkeypatch):
    """Its weights of brightness are 0.2989, 0.587 and 0.114."""
    images = photos.float() / 255
    gray = jitter(images.clone(), 0.0, 1.0, generator())
    torch.testing.assert_close(gray, TF.rgb_to_grayscale(images, 3), rtol=0, atol=1e-3)
    for channel, adjust in enumerate((TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)):
        for drawn in (0.0, 0.2, 0.7, 1.0):
            monkeypatch.setattr(torch, "rand", only(channel, drawn))
            done = jitter(images.clone(), 0.5, 0.0, generator())
            factor = 1 + 0.8 * 0.5 * (2 * drawn - 1)
            expected = torch.stack([adjust(image, factor) for image in images])
            torch.testing.assert_close(done, expected, rtol=0, atol=2e-3)
            assert (done - images).abs().mean() > 0.01, (adjust, drawn)


def test_hue_turns_by_a_share_of_the_circle_and_keeps_brightness(monkeypatch):
    """HSV's hue is no angle of YIQ: by as much as a mean over the circle, and the other way round, which a draw that is
    symmetric does not tell.
    """
    colours = torch.tensor([colorsys.hsv_to_rgb(h / 12, 0.3, 0.6) for h in range(12)]).view(12, 3, 1, 1)
    levels = torch.tensor(TO_YIQ[0]).float()
    for drawn in (0.0, 0.25, 0.75, 1.0):
        monkeypatch.setattr(torch, "rand", only(3, drawn))
        done = jitter(colours.clone(), 0.5, 0.0, generator())
        turn = 0.2 * 0.5 * (1 - 2 * drawn)  # of the circle
        torch.testing.assert_close(*(torch.einsum("c,bchw->b", levels, each) for each in (done, colours)))
        moved = []
        for before, after in zip(colours, done, strict=True):
            hues = [colorsys.rgb_to_hsv(*each.flatten().tolist())[0] for each in (before, after)]
            moved.append((hues[1] - hues[0] + 0.5) % 1 - 0.5)
        assert np.mean(moved) == pytest.approx(turn, abs=0.02), drawn
        assert all(move * turn > 0 for move in moved), drawn


TWO = {"ssl.objective": "simclr", "rho": 0.5}
COLOURS = {"ssl.color_jitter": 0.7, "ssl.grayscale": 0.1}


def epoch_of(recipe, phase):
    return next(epoch for epoch in make_plan(recipe) if epoch.phase == phase)


def batches_of(recipe, phase, data=None):
    return list((data or load_training_data(recipe)).batches(recipe, epoch_of(recipe, phase)))


def streams(recipe, phase):
    return lambda name: torch_generator(recipe.seed, name, epoch_of(recipe, phase).index)


def shown(pool, chosen, view, draws):
    """Return normalised views in float64; each image by itself would draw otherwise, so all at once."""
    pixels = make_view(pool.images[chosen], view, pool.augmentation.flip, draws)
    return (pixels.double() / 255 - pool.mean) / pool.std


def test_an_ssl_step_shows_first_all_first_views_then_all_second_ones(make_recipe):
    recipe = make_recipe({**TWO, "augment.flip": 0.5, "ssl.crop_scale": [0.3, 0.8], **COLOURS})
    data, stream = load_training_data(recipe), streams(recipe, "ssl")
    pool, view = data.tasks[0].ssl, View((0.3, 0.8), 0.7, 0.1)
    order, draws = pool.indices[torch.randperm(129, generator=stream("ssl_order"))], stream("ssl_augmentation")
    for step, (images, _) in enumerate(batches_of(recipe, "ssl", data)):
        chosen = order[32 * step : 32 * step + 32]
        expected = torch.cat([shown(pool, chosen, view, draws) for _ in range(2)])
        torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_classifiers_images_are_those_that_it_sees_alongside_masked_autoencoding(make_recipe):
    """They are the first view in the mix phase and the only one in the supervised phase."""
    recipe, plain = make_recipe({**TWO, **COLOURS, "augment.pad": 2}), make_recipe({"rho": 0.5, "augment.pad": 2})
    data, stream = load_training_data(recipe), streams(recipe, "mix")
    pool, view, draws = data.tasks[0].train, View((0.2, 1.0), 0.7, 0.1), stream("ssl_augmentation")
    order = pool.indices[torch.randperm(129, generator=stream("order"))]
    for phase in ("mix", "sl"):
        pairs = zip(batches_of(recipe, phase, data), batches_of(plain, phase), strict=True)
        for step, ((images, labels), (expected, answers)) in enumerate(pairs):
            assert torch.equal(images[:32], expected)
            assert torch.equal(labels, answers)
            if phase == "mix":
                second = shown(pool, order[32 * step : 32 * step + 32], view, draws)
                torch.testing.assert_close(images[32:].double(), second, rtol=1e-5, atol=1e-5)
            else:
                assert len(images) == 32


def test_views_are_not_mirrored_where_ssl_is_not_augmented_but_the_classifiers_image_is(make_recipe):
    """With flip 1 against flip 0, which make the same draws."""
    for phase, ssl in product(("ssl", "mix"), (False, True)):
        plain, turned = (
            batches_of(make_recipe({**TWO, "augment.ssl": ssl, "augment.flip": flip}), phase)[0][0].view(2, 32, 1, 8, 8)
            for flip in (0.0, 1.0)
        )
        mirrored = (ssl or phase == "mix", ssl)
        expected = torch.stack([view.flip(-1) if turns else view for view, turns in zip(plain, mirrored, strict=True)])
        torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-4)


def test_two_datasets_mix_both_views_of_the_same_pair(make_recipe, write_crops):
    other_set = {"data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(20)}
    still = {"ssl.color_jitter": 0.0, "ssl.crop_scale": [1.0, 1.0], "augment.pad": 0, "augment.flip": 0.0}
    for lambda_ in (0.0, 0.3, 1.0):
        recipe = make_recipe({**TWO, **other_set, **still, "lambda": lambda_})
        data, stream = load_training_data(recipe), streams(recipe, "mix")
        own, other = data.tasks[0].train, data.tasks[0].ssl
        order = own.indices[torch.randperm(129, generator=stream("order"))]
        partners, draws, view = stream("partners"), stream("ssl_augmentation"), recipe.ssl.views(joint=True)[1]
        for step, (images, labels) in enumerate(batches_of(recipe, "mix", data)):
            chosen = order[32 * step : 32 * step + 32]
            drawn = other.indices[torch.randint(20, (32,), generator=partners)]
            pairs = (
                (own.plain(chosen), other.plain(drawn)),
                (shown(own, chosen, view, draws), shown(other, drawn, view, draws)),
            )
            for got, (x_sl, x_ssl) in zip(images.chunk(2), pairs, strict=True):
                mixed = lambda_ * x_sl.double() + (1 - lambda_) * x_ssl.double()
                torch.testing.assert_close(got.double(), mixed, rtol=1e-5, atol=1e-5)
            assert labels[0].tolist() == own.labels[chosen].tolist(), lambda_


def test_several_tasks_keep_their_order_within_each_view(make_recipe, three_tasks):
    """Each task's images are made one shade here, which no crop changes."""
    still = {"ssl.color_jitter": 0.0, "ssl.grayscale": 0.0, "augment.pad": 0}
    recipe = make_recipe({**three_tasks, **TWO, **still})
    data, tasks, shades = load_training_data(recipe), [], []
    for task, shade in zip(data.tasks, (50, 120, 200), strict=True):
        pixels = torch.full_like(task.train.images, shade)
        pools = {name: replace(getattr(task, name), images=pixels) for name in ("train", "ssl")}
        tasks.append(replace(task, **pools))
        shades.append((shade / 255 - task.train.mean) / task.train.std)
    for phase in ("ssl", "mix"):
        batches = batches_of(recipe, phase, replace(data, tasks=tuple(tasks)))
        assert len(batches) == 3
        for (images, labels), (_, answers) in zip(batches, batches_of(recipe, phase, data), strict=True):
            assert images.shape == (2 * 3 * 16, 3, 12, 12)
            for number, part in enumerate(images.chunk(6)):
                torch.testing.assert_close(part, shades[number % 3].expand_as(part), rtol=1e-4, atol=1e-4)
            if phase == "mix":
                assert labels.shape == (3, 16)
                assert torch.equal(labels, answers)
