from __future__ import annotations

import itertools

import numpy as np
import pytest

from mixtune.datasets import split_indices
from mixtune.errors import RequestError

CLASSES = tuple("0123456789")


def split(labels, val_fraction=0.1, fraction=1.0, seed=0, classes=CLASSES):
    rng = np.random.default_rng(seed)
    return split_indices(labels, classes, val_fraction=val_fraction, fraction=fraction, rng=rng)


@pytest.fixture
def labels(digits):
    return digits[1].astype(np.int64)


def test_parts_are_disjoint_and_cover_everything_also_without_validation(labels):
    for val_fraction in (0.1, 0):
        train_idx, val_idx = split(labels, val_fraction)
        assert train_idx.dtype == val_idx.dtype == np.int64
        assert sorted([*train_idx, *val_idx]) == list(range(len(labels)))
        assert len(val_idx) == round(val_fraction * len(labels))


def test_both_parts_are_stratified_to_one_image(labels):
    share = np.bincount(labels) / len(labels)
    for fraction in (0.05, 0.1, 0.25, 0.5, 1.0):
        for idx in split(labels, fraction=fraction):
            # a window of the stratified order misses the exact share by less than one image at either end
            assert np.abs(np.bincount(labels[idx]) - share * len(idx)).max() < 2, fraction


def test_rare_classes_keep_their_share():
    labels = np.repeat([0, 1, 2], [10_000, 100, 30])
    train_idx, val_idx = split(labels, classes=CLASSES[:3])
    assert np.bincount(labels[val_idx]).tolist() == [1000, 10, 3]
    assert np.bincount(labels[train_idx]).tolist() == [9000, 90, 27]


def test_smaller_fractions_lie_inside_larger_ones_and_leave_validation_alone(labels):
    parts = [split(labels, fraction=fraction) for fraction in (0.1, 0.25, 0.5, 1.0)]
    for (small, val_small), (large, val_large) in itertools.pairwise(parts):
        assert set(small) < set(large)
        np.testing.assert_array_equal(val_small, val_large)


def test_within_a_class_each_image_is_as_likely_to_be_validated():
    labels = np.repeat([0, 1], [20, 80])
    times = np.zeros(100)
    for seed in range(2000):
        times[split(labels, 0.2, seed=seed, classes=CLASSES[:2])[1]] += 1
    # binomial(2000, 0.2): standard deviation 17.9
    assert np.abs(times - 400).max() < 5 * 17.9


def test_a_class_absent_from_a_part_is_named_with_its_count_and_a_remedy():
    labels, classes = np.repeat([0, 1], [97, 3]), ("common", "rare")
    with pytest.raises(RequestError, match=r"class 'rare' has 3 of 100 images.*validation.*raise data\.val_frac"):
        split(labels, classes=classes)
    with pytest.raises(RequestError, match=r"class 'rare' has 3 of 100 images.*training.*raise data\.fraction"):
        split(labels, val_fraction=0.2, fraction=0.05, classes=classes)
    with pytest.raises(RequestError, match="class 'nowhere' has 0 of 10 images"):
        split(np.repeat([0, 1], 5), classes=("a", "b", "nowhere"), val_fraction=0)


def test_shares_out_of_range_are_refused(labels):
    for shares in ((1.0, 1.0), (-0.1, 1.0), (0.1, 0.0), (0.1, 1.5)):
        with pytest.raises(RequestError, match=r"data\.(val_)?fraction must be"):
            split(labels, *shares)
