"""Figures of a classifier's answers: against scikit-learn's, and calibration against a slow count by hand."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from torch.utils._python_dispatch import TorchDispatchMode

from mixtune.training.scores import BINS, BLOCK, SCORES, Scores, Tally, mean_scores, standard_error

CPU = torch.device("cpu")


def draw_answers(seed, images, classes):
    """Return logits and labels: frequent and rare classes, some without images, answers better than chance."""
    rng = np.random.default_rng(seed)
    frequency = rng.dirichlet(np.full(classes, 0.4))
    labels = torch.from_numpy(rng.choice(classes, images, p=frequency))
    logits = torch.from_numpy(rng.normal(0, 2, (images, classes))).float()
    logits[torch.arange(images), labels] += float(rng.uniform(0, 4))
    return logits, labels


def count(logits, labels, batch=7):
    tally = Tally(logits.shape[1], CPU)
    for part in zip(logits.split(batch), labels.split(batch), strict=True):
        tally.add(*part)
    return tally


CASES = [(seed, images, classes) for seed, (images, classes) in enumerate([(1, 2), (5, 3), (40, 10), (144, 10)] * 3)]
CASES += [(20, 500, 3), (21, 500, 100), (22, 30, 200)]


def test_accuracies_f1_and_confusion_are_those_of_scikit_learn():
    for seed, images, classes in CASES:
        logits, labels = draw_answers(seed, images, classes)
        answers = logits.argmax(dim=1)
        tally = count(logits, labels)
        confusion = confusion_matrix(labels, answers, labels=range(classes))
        counts = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
        assert np.array_equal(tally.counts, counts), seed
        wrong = [(i, j, confusion[i, j]) for i, j in zip(*confusion.nonzero(), strict=True) if i != j]
        assert tally.mistakes() == wrong, seed
        scores = tally.scores()
        assert scores.accuracy == accuracy_score(labels, answers), seed
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
            warnings.filterwarnings("ignore", "A single label was found")
            assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, answers)), seed
        assert scores.macro_f1 == pytest.approx(f1_score(labels, answers, average="macro", zero_division=0)), seed


def calibration_by_hand(logits, labels):
    """Return the expected calibration error, image by image and bin by bin."""
    answers = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        odds = [math.exp(value - max(row)) for value in row]
        answers.append((max(odds) / sum(odds), row.index(max(row)) == label))
    error = 0.0
    for low, high in pairwise(m / BINS for m in range(BINS + 1)):
        inside = [(p, right) for p, right in answers if low < p <= high]
        if inside:
            sure, right = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            error += len(inside) / len(answers) * abs(right - sure)
    return error


def test_calibration_is_that_by_hand():
    for seed, images, classes in CASES:
        logits, labels = draw_answers(seed, images, classes)
        found = count(logits, labels).scores().calibration_error
        assert found == pytest.approx(calibration_by_hand(logits, labels)), seed


def test_a_sure_classifier_that_guesses_is_as_far_off_as_it_is_wrong():
    labels = torch.arange(1000) % 10
    sure = torch.full((1000, 10), -1e4)
    sure[:, 3] = 1e4
    scores = count(sure, labels).scores()
    assert (scores.accuracy, scores.balanced_accuracy, scores.calibration_error) == pytest.approx((0.1, 0.1, 0.9))
    assert count(torch.zeros(1000, 10), labels).scores().calibration_error == pytest.approx(0)  # unsure, rightly
    right = torch.full((1000, 10), -1e4).scatter(1, labels[:, None], 1e4)
    assert count(right, labels).scores() == Scores(1.0, 0.0, 1.0, 0.0, 1.0, 0.0)


def test_lower_precision_is_counted_as_what_it_says():
    logits, labels = draw_answers(6, 300, 10)
    rounded = logits.bfloat16()
    assert count(rounded, labels).scores() == count(rounded.float(), labels).scores()


def test_a_logit_that_is_no_number_and_no_images_make_all_figures_so():
    for value in (math.nan, math.inf, -math.inf):
        logits, labels = draw_answers(7, 50, 4)
        logits[13, 2] = value
        assert all(math.isnan(figure) for figure in asdict(count(logits, labels).scores()).values()), value
    assert all(math.isnan(figure) for figure in asdict(Tally(3, CPU).scores()).values())


def test_the_standard_error_is_that_of_a_coin_thrown_for_each_image():
    rng = np.random.default_rng(0)
    assert standard_error(0.9, 144) == pytest.approx(np.std(rng.binomial(144, 0.9, 100_000) / 144), rel=0.02)
    assert standard_error(0.5, 100) == 0.05
    assert standard_error(1.0, 144) == standard_error(0.0, 144) == 0
    assert math.isnan(standard_error(math.nan, 0))


def test_the_balanced_standard_error_is_that_of_a_coin_for_each_class():
    recalls, images = np.array([0.9, 0.5, 0.75]), np.array([20, 100, 8])
    labels = torch.from_numpy(np.repeat([0, 1, 2], images))
    right = np.concatenate([np.arange(n) < round(r * n) for r, n in zip(recalls, images, strict=True)])
    logits = torch.eye(3)[torch.where(torch.from_numpy(right), labels, (labels + 1) % 3)]
    scores = count(logits, labels).scores()
    drawn = np.random.default_rng(0).binomial(images, recalls, (100_000, 3)) / images
    assert scores.balanced_accuracy == pytest.approx(recalls.mean())
    assert scores.balanced_accuracy_se == pytest.approx(drawn.mean(axis=1).std(), rel=0.02)


def test_several_tasks_count_alike():
    one, other = Scores(0.9, 0.03, 0.8, 0.04, 0.7, 0.1), Scores(0.5, 0.04, 0.6, 0.03, 0.3, 0.2)
    assert asdict(mean_scores([one, other])) == pytest.approx(asdict(Scores(0.7, 0.025, 0.7, 0.025, 0.5, 0.15)))
    assert mean_scores([one]) == one
    assert list(asdict(one)) == list(SCORES)


class NewMemory(TorchDispatchMode):
    """Notes the most bytes that one result has of its own, apart from a tensor that was there."""

    def __init__(self, given):
        super().__init__()
        self.given, self.most = given.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, list | tuple) else [found]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.given:
                self.most = max(self.most, tensor.untyped_storage().nbytes())
        return found


def test_memory_grows_with_the_classes_and_not_with_their_square():
    classes = 20_000
    logits, labels = torch.randn(1024, classes), torch.arange(1024)
    tally = Tally(classes, CPU)
    with NewMemory(logits) as memory:
        tally.add(logits, labels)
        tally.scores()
        tally.mistakes()
    assert memory.most <= 8 * BLOCK  # of one step, beyond the batch's logits
    held = [tally.counts, tally.bins, *tally.labels, *tally.answers]
    assert sum(tensor.nbytes for tensor in held) < 1e6
    whole = logits.double().softmax(dim=1).amax(dim=1)
    assert tally.bins[:, 2].sum().item() == pytest.approx(whole.sum().item())
