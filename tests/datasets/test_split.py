from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from mixtune.datasets import Part, Parts, absent_classes, check_split, split_indices
from mixtune.datasets._split import with_test_part
from mixtune.errors import RequestError

CLASSES = tuple("0123456789")
RECORDED = "e9ca077069fcfee26d1fe33eef99e06b61ada85e7c07171743eb2adc17494539"


def split(labels, val_fraction=0.1, fraction=1.0, seed=0, classes=CLASSES, groups=None):
    rng = np.random.default_rng(seed)
    return split_indices(labels, classes, val_fraction=val_fraction, fraction=fraction, rng=rng, groups=groups)


def test_without_groups_the_split_is_the_one_that_runs_have_recorded(labels):
    train_idx, val_idx = split(labels, fraction=0.25, seed=7)
    assert hashlib.sha256(np.concatenate([val_idx, train_idx]).tobytes()).hexdigest() == RECORDED
    assert list(map(len, (train_idx, val_idx))) == [404, 180]


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


def test_rare_classes_stay_in_training_and_their_names_can_be_told():
    labels = np.concatenate([np.repeat(np.arange(20), 30), [20], [21, 21]])  # 20 classes of 30, one of 1, one of 2
    classes = [f"class {number}" for number in range(22)]
    for seed in range(20):
        for fraction in (0.05, 1.0):
            train_idx, val_idx = split(labels, fraction=fraction, seed=seed, classes=classes)
            assert absent_classes(labels[train_idx], classes) == []
            assert absent_classes(labels[val_idx], classes) == ["class 20", "class 21"]
            assert not set(train_idx) & set(val_idx)
    small, large = (split(labels, fraction=fraction, classes=classes)[0] for fraction in (0.05, 0.2))
    assert set(small) < set(large)
    train_idx, val_idx = split(np.array([0, 0, 0, 1]), 0.5, classes=classes[:2])  # even where half is held out
    assert 3 in train_idx
    assert len(val_idx)


def test_what_cannot_be_split_is_told_all_at_once_from_labels_alone():
    def refused(labels, message, classes=CLASSES[:3], **shares):
        with pytest.raises(RequestError, match=message) as caught:
            check_split(labels, classes, **{"val_fraction": 0.1, "fraction": 1.0, **shares})
        assert "\n" not in str(caught.value)

    refused([0, 0, 1], "class '2' has 0 of 3 images.*; data.val_fraction 0.1 of 3 images is none: raise it to .* 0.34")
    refused([0, 1] * 9, "classes 'x', 'y' have 0 of 18", classes=("a", "b", "x", "y"))
    refused([0, 1, 2] * 9, "2 training images are left for 3 classes at data.fraction 0.1 and", fraction=0.1)
    refused([0, 1, 2] * 9, "val_fraction must be.*; data.fraction must be", val_fraction=1.0, fraction=0)
    refused([0, 1, 2] * 9, "all 27 images are one group", groups=[7] * 27)
    check_split([0, 1, 2] * 9, CLASSES[:3], val_fraction=0, fraction=1.0, groups=[7] * 27)


@pytest.fixture
def patients(labels):
    """A patient for each image: of 1 to 40 images, and mostly of one class."""
    rng = np.random.default_rng(3)
    order = np.argsort(labels + rng.normal(0, 0.4, len(labels)))
    sizes = rng.integers(1, 40, len(labels))
    groups = np.empty(len(labels), dtype=np.int64)
    groups[order] = np.repeat(np.arange(len(sizes)), sizes)[: len(labels)]
    return groups


def test_no_group_is_on_both_sides_and_shares_are_kept_as_far_as_groups_allow(labels, patients):
    seen = set()
    for seed in range(10):
        for val_fraction in (0.1, 0.25, 0.4):
            train_idx, val_idx = split(labels, val_fraction, seed=seed, groups=patients)
            assert sorted([*train_idx, *val_idx]) == list(range(len(labels)))
            assert not set(patients[train_idx]) & set(patients[val_idx])
            assert abs(len(val_idx) / len(labels) - val_fraction) < 0.02
            share = np.bincount(labels[val_idx], minlength=10) / np.bincount(labels)
            assert np.abs(share - val_fraction).max() < 0.12
            seen.add(tuple(sorted(val_idx)))
    assert len(seen) == 30  # a seed, a split
    parts = [split(labels, fraction=fraction, groups=patients) for fraction in (0.1, 0.25, 1.0)]
    for (small, val_small), (large, val_large) in itertools.pairwise(parts):
        assert set(small) < set(large)
        np.testing.assert_array_equal(val_small, val_large)


def test_large_groups_are_held_out_whole_but_never_all_of_a_class():
    labels = np.repeat([0, 1, 0, 1, 2], [50, 50, 30, 30, 10])
    groups = np.repeat([0, 1, 2, 3, 4], [50, 50, 30, 30, 10])
    for seed in range(10):
        train_idx, val_idx = split(labels, 0.05, seed=seed, classes=CLASSES[:3], groups=groups)
        assert set(groups[val_idx]) in ({2}, {3})  # nearer to 5 % than the larger ones
        assert set(labels[train_idx]) == {0, 1, 2}
    with pytest.raises(RequestError, match="none of 100 images of 2 classes in 2 groups can be validated"):
        split(labels[:100], classes=CLASSES[:2], groups=groups[:100])


def test_a_held_out_test_part_keeps_groups_whole_and_the_rest_of_what_is_known(labels, patients):
    val = Part(np.zeros((3, 8, 8), np.uint8), [0, 1, 2], origin="val/")
    train = Part([f"{number}.png" for number in range(len(labels))], labels, patients, origin="train/")
    parts = Parts(train, None, CLASSES, mirror=False, val=val, left_out={".txt": 2}, notes=("a note",))
    whole = with_test_part(parts)
    assert whole.val is val
    assert (whole.left_out, whole.notes, whole.classes) == ({".txt": 2}, ("a note",), CLASSES)
    assert (whole.train.origin, whole.test.origin) == ("train/", "a fifth of train/")
    assert not set(whole.train.groups) & set(whole.test.groups)
    assert abs(len(whole.test.images) / len(labels) - 0.2) < 0.01
    for part in (whole.train, whole.test):
        numbers = [int(image.removesuffix(".png")) for image in part.images]
        np.testing.assert_array_equal(part.labels, labels[numbers])
        np.testing.assert_array_equal(part.groups, patients[numbers])
    assert with_test_part(whole) is whole


def test_rare_classes_are_not_tested_and_two_images_are_too_few():
    labels = np.repeat([0, 1, 2], [40, 40, 1])
    whole = with_test_part(Parts(Part(np.arange(81), labels), None, ("a", "b", "rare"), mirror=True))
    assert absent_classes(whole.test.labels, whole.classes) == ["rare"]
    assert len(whole.test.images) == 17
    assert absent_classes(whole.train.labels, whole.classes) == []
    with pytest.raises(RequestError, match="2 images of 2 classes are too few to hold out a fifth"):
        with_test_part(Parts(Part(np.arange(2), [0, 1]), None, ("a", "b"), mirror=True))


def test_shares_out_of_range_are_refused(labels):
    for shares in ((1.0, 1.0), (-0.1, 1.0), (0.1, 0.0), (0.1, 1.5)):
        with pytest.raises(RequestError, match=r"data\.(val_)?fraction must be"):
            split(labels, *shares)
