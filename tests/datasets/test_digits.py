from __future__ import annotations

import numpy as np

from mixtune.datasets import load_dataset


def test_every_digit_is_in_one_part_and_unchanged_but_for_its_scale(digits):
    images, labels = digits
    dataset = load_dataset("digits")
    train, test = dataset.train, dataset.test
    assert (train.images.shape, test.images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int64)
    assert (train.classes, train.mirror) == (tuple("0123456789"), False)
    rows = np.concatenate([np.column_stack([part.images.reshape(-1, 64), part.labels]) for part in (train, test)])
    expected = np.column_stack([images.reshape(-1, 64), labels])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, expected))


def test_the_held_out_test_part_is_stratified_and_the_same_each_time(tmp_path, forget):
    first = load_dataset("digits", str(tmp_path / "a"))
    forget()
    second = load_dataset("digits", str(tmp_path / "b"))
    np.testing.assert_array_equal(first.test.images, second.test.images)
    share = np.bincount(first.test.labels) / (np.bincount(first.train.labels) + np.bincount(first.test.labels))
    np.testing.assert_allclose(share, 0.2, atol=1 / 170)
