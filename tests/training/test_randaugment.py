"""RandAugment against torchvision's own, one image at a time."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torchvision
from torchvision.transforms import v2
from vits import crops

from mixtune.training.randaugment import MAGNITUDES, OPERATIONS, rand_augment

THEIRS = v2.RandAugment()


@pytest.fixture(scope="module")
def images():
    return crops(40, 32)


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


def test_each_of_five_bands_is_changed_as_if_it_were_alone(images):
    bands = torch.cat([images, 255 - images[:, :2]], dim=1)
    done = rand_augment(bands, 2, 14, torch.Generator().manual_seed(3))
    for band in range(5):
        alone = rand_augment(bands[:, band : band + 1], 2, 14, torch.Generator().manual_seed(3))
        assert torch.equal(done[:, band : band + 1], alone)


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
