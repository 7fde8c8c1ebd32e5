"""Errors of paired differences against slow computations that share nothing with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from mixtune.run.paired import Judged, compare_with, mean_error, paired_error, pooled_variance
from mixtune.run.predictions import HeldOut, decode_classes, encode_classes

CLASSES = 4


def held_out(labels: np.ndarray) -> HeldOut:
    return HeldOut.of({"digits": (CLASSES, labels, np.arange(len(labels)))})


def judged(predicted: np.ndarray, images: HeldOut, **metrics: float) -> Judged:
    right = predicted == decode_classes(images.labels["digits"])
    accuracy = right.mean()
    metrics = {"val_accuracy": accuracy, "val_accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(right))} | metrics
    return Judged(metrics, images.digest, {"digits": encode_classes(predicted)})


def guesses(rng: np.random.Generator, labels: np.ndarray, share: float) -> np.ndarray:
    """Return predictions of which about so many are right."""
    return np.where(rng.random(len(labels)) < share, labels, rng.integers(CLASSES, size=len(labels)))


def slow_error(one: Sequence[bool], other: Sequence[bool]) -> float:
    """The error of a difference of two paired proportions, half an image added to each discordant cell."""
    count = len(one)
    first = Fraction(1, 2) + sum(a and not b for a, b in zip(one, other, strict=True))
    second = Fraction(1, 2) + sum(b and not a for a, b in zip(one, other, strict=True))
    return math.sqrt((first + second - (first - second) ** 2 / count) / count**2)


def test_one_run_of_each_has_the_error_of_two_paired_proportions() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 144):
        for _ in range(20):
            one, other = rng.random((2, count)) < rng.random((2, 1))
            assert paired_error(one.astype(float) - other) == pytest.approx(slow_error(list(one), list(other)))


def test_neither_one_image_nor_none_apart_decides() -> None:
    for count in (2, 10, 1000):
        difference = np.zeros(count)
        assert paired_error(difference) > 0
        difference[0] = 1.0
        assert paired_error(difference) > difference.mean()


def test_of_seeds_the_images_error_is_of_the_mean_and_the_seeds_own_shrinks_with_their_number() -> None:
    """By hand: the variance over seeds, pooled over two rows, over the seeds, plus that of the images' means."""
    rng = np.random.default_rng(1)
    labels = rng.integers(CLASSES, size=60)
    images = held_out(labels)
    shares = {"best": 0.8, "near": 0.75, "far": 0.4}
    predicted = {name: [guesses(rng, labels, share) for _ in range(3)] for name, share in shares.items()}
    runs = {name: {seed: judged(p, images) for seed, p in enumerate(own)} for name, own in predicted.items()}
    others = {name: runs[name] for name in ("near", "far")}
    found = compare_with(runs["best"], others, "val_accuracy", {images.digest: images})
    gaps = {
        name: [(predicted[name][s] == labels).mean() - (predicted["best"][s] == labels).mean() for s in range(3)]
        for name in others
    }
    squares = sum((gap - sum(own) / 3) ** 2 for own in gaps.values() for gap in own)
    for name, own in gaps.items():
        each = [
            sum(int(predicted[name][s][i] == labels[i]) - int(predicted["best"][s][i] == labels[i]) for s in range(3))
            / 3
            for i in range(60)
        ]
        of_images = (sum(e * e for e in each) + 1 - sum(each) ** 2 / 60) / 60**2
        assert found[name].mean == pytest.approx(sum(own) / 3)
        assert found[name].error == pytest.approx(math.sqrt(squares / 4 / 3 + of_images))
        assert found[name].degrees > 4  # of the seeds' share alone
    assert pooled_variance([np.array(own) for own in gaps.values()]) == (pytest.approx(squares / 4), 4)


def test_other_scores_are_resampled_as_scikit_learn_computes_them() -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice(CLASSES, size=200, p=[0.5, 0.3, 0.15, 0.05])
    images = held_out(labels)
    one, other = guesses(rng, labels, 0.7), guesses(rng, labels, 0.5)
    scores = {
        "val_balanced_accuracy": balanced_accuracy_score,
        "val_macro_f1": lambda truth, predicted: f1_score(truth, predicted, average="macro"),
    }
    for metric, score in scores.items():
        reference, row = (judged(p, images, **{metric: score(labels, p)}) for p in (one, other))
        found = compare_with({0: reference}, {"row": {0: row}}, metric, {images.digest: images})["row"]
        assert found.mean == pytest.approx(score(labels, other) - score(labels, one))
        drawn = [rng.integers(200, size=200) for _ in range(600)]
        slow = np.std([score(labels[d], other[d]) - score(labels[d], one[d]) for d in drawn])
        assert found.error == pytest.approx(slow, rel=0.15), metric


def test_other_images_or_no_predictions_are_compared_as_if_they_were_independent() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(CLASSES, size=100)
    images, shifted = held_out(labels), HeldOut.of({"digits": (CLASSES, labels, np.arange(1, 101))})
    assert images.digest != shifted.digest
    known = {each.digest: each for each in (images, shifted)}
    one, other = judged(guesses(rng, labels, 0.7), images), judged(guesses(rng, labels, 0.6), shifted)
    older = Judged(other.metrics)
    expected = math.hypot(one.metrics["val_accuracy_se"], other.metrics["val_accuracy_se"])
    for row in (other, older):
        found = compare_with({0: one}, {"row": {0: row}}, "val_accuracy", known)["row"]
        assert found.error == pytest.approx(expected)
    assert math.isnan(compare_with({0: one}, {"row": {0: older}}, "val_macro_f1", known)["row"].error)
    assert mean_error([one], "val_accuracy", known) == pytest.approx(one.metrics["val_accuracy_se"])
    features = [judged(labels, images, knn_accuracy=at, knn_accuracy_se=0.03) for at in (0.7, 0.6)]  # of other guesses
    found = compare_with({0: features[0]}, {"row": {0: features[1]}}, "knn_accuracy", known)["row"]
    assert (found.mean, found.error) == pytest.approx((-0.1, 0.03 * math.sqrt(2)))


@pytest.mark.parametrize("classes", [1, 256, 257, 70_000])
def test_predictions_survive_their_text(classes: int) -> None:
    predicted = np.random.default_rng(4).integers(classes, size=50)
    predicted[0] = classes - 1
    assert np.array_equal(decode_classes(encode_classes(predicted)), predicted)
    assert len(decode_classes(encode_classes(np.zeros(0, dtype=np.int64)))) == 0
