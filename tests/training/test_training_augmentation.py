"""Crop and flip against torchvision, one image at a time; normalisation against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from sklearn.datasets import load_sample_images

from mixtune.training.augmentation import crop_and_flip, normalise


@pytest.fixture(scope="module")
def images():
    """uint8 (20, 3, 12, 12): different crops of a photograph."""
    photo = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)
    return torch.stack([photo[:, 20 * i : 20 * i + 12, 30 * i : 30 * i + 12] for i in range(20)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("pad", "flip"), [(4, 0.5), (1, 0.0), (0, 0.5), (3, 1.0), (15, 0.5)])
def test_crop_and_flip_is_torchvisions_pad_crop_and_flip_for_the_same_draws(images, channels, pad, flip):
    images = images[:, :channels]
    done = crop_and_flip(images, pad, flip, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    top, left = torch.randint(0, 2 * pad + 1, (2, 20, 1), generator=draws)
    mirrored = torch.rand(20, 1, generator=draws) < flip
    assert done.dtype == torch.uint8
    assert done.shape == images.shape
    for i, image in enumerate(images):
        expected = TF.crop(TF.pad(image, [pad] * 4), int(top[i]), int(left[i]), 12, 12)
        assert torch.equal(done[i], TF.horizontal_flip(expected) if mirrored[i] else expected)


def test_without_pad_and_flip_nothing_happens(images):
    assert torch.equal(crop_and_flip(images, 0, 0.0, torch.Generator()), images)


def test_flip_1_mirrors_all(images):
    assert torch.equal(crop_and_flip(images, 0, 1.0, torch.Generator()), images.flip(-1))


def test_the_given_images_stay_as_they_are(images):
    before = images.clone()
    crop_and_flip(images, 2, 0.5, torch.Generator())
    normalise(images, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    assert torch.equal(images, before)


def test_every_offset_and_both_directions_occur_for_each_image():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(2000, -1, -1, -1)
    done = crop_and_flip(image, 1, 0.5, torch.Generator().manual_seed(0))
    kinds, counts = done.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 3 * 3 * 2
    assert counts.min() > 2000 / 18 * 0.6
    assert counts.max() < 2000 / 18 * 1.4


def test_draws_come_from_the_generator_alone(images):
    one, again, other = (crop_and_flip(images, 3, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_normalise_gives_units_of_standard_deviation(images):
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.1, 0.2, 0.3])
    done = normalise(images, *(torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std)))
    expected = (images.numpy() / 255 - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    assert done.dtype == torch.float32
    np.testing.assert_allclose(done.numpy(), expected, rtol=1e-5, atol=1e-6)
