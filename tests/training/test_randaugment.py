"""RandAugment against torchvision's own, one image at a time."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torchvision
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from mixtune.training.randaugment import MAGNITUDES, OPERATIONS, rand_augment

THEIRS = v2.RandAugment()


@pytest.fixture(scope="module")
def images():
    """uint8 (40, 3, 32, 32): different crops of a photograph."""
    photo = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)
    return torch.stack([photo[:, 9 * i : 9 * i + 32, 14 * i : 14 * i + 32] for i in range(40)])


def apply_theirs(image, name, magnitude, sign):
    """Apply torchvision's operation at a magnitude to one image (C, H, W)."""
    strengths, signed = THEIRS._AUGMENTATION_SPACE[name]
    strengths = strengths(MAGNITUDES, *image.shape[1:])
    strength = 0.0 if strengths is None else float(strengths[magnitude]) * (sign if signed else 1)
    return THEIRS._apply_image_or_video_transform(
        image, name, strength, interpolation=THEIRS.interpolation, fill=THEIRS._fill
    )


def test_strengths_are_torchvisions_for_every_magnitude():
    for side in (8, 32, 64, 224, 331):
        theirs = torchvision.transforms.RandAugment()._augmentation_space(MAGNITUDES, (side, side))
        assert list(theirs) == list(OPERATIONS)
        for name, (strengths, signed) in theirs.items():
            ours = torch.tensor([OPERATIONS[name].strength(magnitude, side) for magnitude in range(MAGNITUDES)])
            ours = ours.round() if name == "Posterize" else ours
            assert torch.equal(ours, strengths.expand(MAGNITUDES).float()), (name, side)
            assert OPERATIONS[name].signed == signed, name


def test_each_operation_is_torchvisions(images):
    for (name, operation), channels in product(OPERATIONS.items(), (1, 3)):
        few = images[:8, :channels]
        for magnitude, sign in product((0, 9, 17, 30), (1, -1) if operation.signed else (1,)):
            done = operation.apply(few, sign * operation.strength(magnitude, 32))
            assert (done.dtype, done.shape) == (torch.uint8, few.shape)
            expected = torch.stack([apply_theirs(image, name, magnitude, sign) for image in few])
            assert torch.equal(done, expected), (name, channels, magnitude, sign)


def test_each_image_gets_the_operations_that_it_drew_in_their_order(images):
    for channels, (operations, magnitude) in product((1, 3), ((1, 30), (2, 9), (3, 14))):
        given = images[:, :channels]
        done = rand_augment(given, operations, magnitude, torch.Generator().manual_seed(3))
        drawn = torch.randint(28, (operations, len(given)), generator=torch.Generator().manual_seed(3))
        assert done.dtype == torch.uint8
        for image, draws, got in zip(given, drawn.T.tolist(), done, strict=True):
            for draw in draws:
                image = apply_theirs(image, list(OPERATIONS)[draw // 2], magnitude, -1 if draw % 2 else 1)
            assert torch.equal(got, image), draws


def test_images_of_one_batch_draw_every_operation_and_sign_as_often_as_the_others(images):
    batch = images[:1].expand(2800, -1, -1, -1)
    done = rand_augment(batch, 1, 12, torch.Generator().manual_seed(0)).flatten(1)
    for name, operation in OPERATIONS.items():
        for sign in (1, -1) if operation.signed else (1,):
            expected = apply_theirs(images[0], name, 12, sign).flatten()
            count = int((done == expected).all(dim=1).sum())
            wanted = 100 if operation.signed else 200
            assert 0.65 * wanted < count < 1.35 * wanted, (name, sign)


def test_draws_come_from_the_generator_alone_and_the_given_images_stay_as_they_are(images):
    before = images.clone()
    one, again, other = (rand_augment(images, 2, 9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(images, before)
