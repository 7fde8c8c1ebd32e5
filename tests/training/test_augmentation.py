"""Crops and flips against torchvision, one image at a time."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from vits import crops

from mixtune.training.augmentation import crop_and_flip, crop_boxes, draw_boxes, normalise, resized_crop_and_flip
from mixtune.training.randaugment import rand_augment


@pytest.fixture(scope="module")
def images():
    return crops(20, 12)


def test_crop_and_flip_is_torchvisions_pad_crop_and_flip_for_the_same_draws(images):
    for channels, (pad, flip) in product((1, 3), ((4, 0.5), (1, 0.0), (0, 0.5), (3, 1.0), (15, 0.5))):
        given = images[:, :channels]
        done = crop_and_flip(given, pad, flip, torch.Generator().manual_seed(5))
        draws = torch.Generator().manual_seed(5)
        top, left = torch.randint(0, 2 * pad + 1, (2, 20, 1), generator=draws)
        mirrored = torch.rand(20, 1, generator=draws) < flip
        assert (done.dtype, done.shape) == (torch.uint8, given.shape)
        for i, image in enumerate(given):
            expected = TF.crop(TF.pad(image, [pad] * 4), int(top[i]), int(left[i]), 12, 12)
            expected = TF.horizontal_flip(expected) if mirrored[i] else expected
            assert torch.equal(done[i], expected), (channels, pad, flip, i)
    assert torch.equal(crop_and_flip(images, 0, 0.0, torch.Generator()), images)
    assert torch.equal(crop_and_flip(images, 0, 1.0, torch.Generator()), images.flip(-1))


def test_draws_come_from_the_generator_alone_and_the_given_images_stay_as_they_are(images):
    before = images.clone()
    for augment in (
        lambda generator: crop_and_flip(images, 3, 0.5, generator),
        lambda generator: resized_crop_and_flip(images, (0.5, 1.0), (0.8, 1.25), 0.5, generator),
        lambda generator: rand_augment(images, 2, 9, generator),
        lambda generator: normalise(images, torch.zeros(3, 1, 1), torch.rand(3, 1, 1, generator=generator)),
    ):
        one, again, other = (augment(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert torch.equal(images, before)


def test_a_box_is_torchvisions_resized_crop(images):
    """In float64: for uint8 on a CPU torchvision rounds between its two passes as well."""
    corners = [(0, 0, 12, 12), (0, 0, 5, 7), (7, 4, 5, 8), (0, 6, 9, 6), (6, 0, 6, 11), (11, 11, 1, 1), (0, 0, 1, 12)]
    boxes = torch.tensor(corners + [(i % 4, i % 3, 5 + i % 4, 9 - i % 5) for i in range(20 - len(corners))])
    for given in (images[:, :1], images):
        done = crop_boxes(given, boxes)
        assert (done.dtype, done.shape) == (torch.uint8, given.shape)
        for image, box, got in zip(given.double(), boxes.tolist(), done, strict=True):
            size, cubic = [12, 12], TF.InterpolationMode.BICUBIC
            exact = TF.resized_crop(image, *box, size=size, interpolation=cubic, antialias=False).clamp(0, 255)
            assert (got - exact).abs().max() < 0.5 + 1e-3, box


def test_of_the_whole_image_as_box_a_share_of_flip_is_mirrored_and_nothing_else_changes(images):
    image = images[:1]
    for flip in (0.0, 0.3, 1.0):
        generator = torch.Generator().manual_seed(0)
        done = resized_crop_and_flip(image.expand(2000, -1, -1, -1), (1.0, 1.0), (1.0, 1.0), flip, generator)
        plain, mirrored = ((done == kind).flatten(1).all(dim=1) for kind in (image, image.flip(-1)))
        assert (plain | mirrored).all()
        assert mirrored.float().mean().item() == pytest.approx(flip, abs=0.04 * (0 < flip < 1))


def test_areas_are_uniform_and_ratios_log_uniform():
    boxes = draw_boxes(4000, 1000, (0.2, 0.5), (0.75, 4 / 3), torch.Generator().manual_seed(0))
    top, left, height, width = boxes.double().unbind(1)
    area = height * width / 1000**2
    aspect = (width / height).log() / math.log(4 / 3)
    for draws, low, high in [
        (area, 0.2, 0.5),
        (aspect, -1, 1),
        (top / (1000 - height), 0, 1),
        (left / (1000 - width), 0, 1),
    ]:
        uniform = torch.linspace(low, high, 4000, dtype=torch.float64)
        assert (draws.sort().values - uniform).abs().max() < 0.03 * (high - low)
    correlations = torch.corrcoef(torch.stack([area, aspect, top / (1000 - height), left / (1000 - width)]))
    assert (correlations - torch.eye(4)).abs().max() < 0.06


def test_every_place_of_a_box_is_as_likely():
    boxes = draw_boxes(3000, 3, (4 / 9, 4 / 9), (1.0, 1.0), torch.Generator().manual_seed(0))
    kinds, counts = boxes.unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[top, left, 2, 2] for top in (0, 1) for left in (0, 1)]
    assert counts.min() > 3000 / 4 * 0.9
    assert counts.max() < 3000 / 4 * 1.1


def test_a_box_that_is_too_long_is_cut_to_the_image():
    boxes = draw_boxes(500, 64, (0.9, 1.0), (0.5, 2.0), torch.Generator().manual_seed(0))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 64).all()
    wide, high = boxes[:, 3] == 64, boxes[:, 2] == 64
    assert (wide | high).float().mean() > 0.8
    assert boxes[wide, 2].min() < 48  # sqrt(0.9 / 2) * 64 = 43
    assert boxes[high, 3].min() < 48
