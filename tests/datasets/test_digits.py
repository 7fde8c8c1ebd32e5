from __future__ import annotations

import numpy as np
from PIL import Image

from mixtune.datasets import load_dataset


def test_digits_have_1437_training_and_360_test_images_of_8_by_8():
    dataset = load_dataset("digits")
    assert dataset.train.images.shape == (1437, 1, 8, 8)
    assert dataset.test.images.shape == (360, 1, 8, 8)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.classes == tuple("0123456789")
    assert not dataset.train.mirror


def test_every_digit_is_in_one_part_and_unchanged_but_for_its_scale(digits):
    images, labels = digits
    dataset = load_dataset("digits")
    rows = [
        np.column_stack([part.images.reshape(len(part.images), -1), part.labels])
        for part in (dataset.train, dataset.test)
    ]
    expected = np.column_stack([images.reshape(len(images), -1), labels])
    np.testing.assert_array_equal(np.sort(np.concatenate(rows), axis=0), np.sort(expected, axis=0))
    found = {row.tobytes() for row in np.concatenate(rows)}
    assert found == {row.tobytes() for row in expected}


def test_the_held_out_test_part_is_stratified_and_the_same_each_time(tmp_path, forget):
    first = load_dataset("digits", str(tmp_path / "a"))
    forget()
    second = load_dataset("digits", str(tmp_path / "b"))
    np.testing.assert_array_equal(first.test.images, second.test.images)
    share = np.bincount(first.test.labels) / (np.bincount(first.train.labels) + np.bincount(first.test.labels))
    np.testing.assert_allclose(share, 0.2, atol=1 / 170)


def test_size_and_channels_are_as_asked():
    own = load_dataset("digits").train
    asked = load_dataset("digits", image_size=20, channels=3).train
    assert asked.images.shape == (1437, 3, 20, 20)
    assert len(asked.mean) == len(asked.std) == 3
    by_hand = Image.fromarray(own.images[7, 0]).convert("RGB").resize((20, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(asked.images[7], np.asarray(by_hand).transpose(2, 0, 1))
