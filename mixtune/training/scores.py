"""How good a classifier's answers on held-out images are, counted on the device that gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of the top-1 probability, equally wide, as in Guo et al. 2017
BLOCK = 2**21  # probabilities that are held at once, in double precision


@dataclass(frozen=True)
class Scores:
    """One task's figures, shares of 1; NaN where there are no images, and where a logit was not finite.

    accuracy: top-1, with its binomial standard error; balanced_accuracy: the mean of the recalls of the classes that
    have images, with its standard error, each recall's being binomial; macro_f1: the mean of the F1 of the classes
    that have images or were an answer; calibration_error: how far the top-1 probability is from the share of right
    answers, the mean over 15 bins of it, weighted by their images (Naeini et al. 2015, "Obtaining well calibrated
    probabilities using Bayesian binning"; Guo et al. 2017, "On calibration of modern neural networks", Eq. 3).
    """

    accuracy: float
    accuracy_se: float
    balanced_accuracy: float = math.nan
    balanced_accuracy_se: float = math.nan
    macro_f1: float = math.nan
    calibration_error: float = math.nan


SCORES = tuple(field.name for field in fields(Scores))


class Tally:
    """A classifier's answers, counted batch by batch without a wait for the device; memory is linear in the classes.

    counts: int64 (3, C), images by their class, by the answer, and by class where the answer is right; bins: float64
    (BINS, 3), by the probability of the answer: images, right answers, sum of the probabilities; finite: whether all
    logits were; labels, answers: each batch's.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.counts = torch.zeros(3, classes, dtype=torch.int64, device=device)
        self.bins = torch.zeros(BINS, 3, dtype=torch.float64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.labels: list[Tensor] = []
        self.answers: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (B, C), labels int64 (B,)."""
        classes = logits.shape[1]
        answers, dtype = logits.argmax(dim=1), torch.uint8 if classes <= 256 else torch.int32
        self.labels.append(labels.to(dtype))
        self.answers.append(answers.to(dtype))
        right, ones = answers == labels, torch.ones_like(labels)
        for counts, of, images in zip(self.counts, (labels, answers, labels), (ones, ones, right.long()), strict=True):
            counts.index_add_(0, of, images)
        parts = torch.split(logits, max(1, BLOCK // classes))
        confidence = torch.cat([part.double().softmax(dim=1).amax(dim=1) for part in parts])
        found = torch.stack([torch.ones_like(confidence), right.double(), confidence], dim=1)
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # ((m - 1) / 15, m / 15] is bin m
        self.bins += F.one_hot(bins, BINS).double().T @ found  # not added one by one: a GPU would choose the order
        for part in parts:
            self.finite &= part.isfinite().all()

    def predictions(self) -> Tensor:
        """Return the predicted class of every image, (images,), on the CPU, in the order in which they were counted."""
        return torch.cat(self.answers).cpu() if self.answers else torch.zeros(0, dtype=torch.uint8)

    def mistakes(self) -> list[tuple[int, int, int]]:
        """Return the class, the answer and the number of images of each mistake, by class and answer."""
        if not self.labels:
            return []
        labels, answers = (torch.cat(each).long().cpu() for each in (self.labels, self.answers))
        pairs = torch.stack([labels, answers], dim=1)[labels != answers]
        kinds, images = torch.unique(pairs, dim=0, return_counts=True)
        return [(label, answer, count) for (label, answer), count in zip(kinds.tolist(), images.tolist(), strict=True)]

    def scores(self) -> Scores:
        """Return the figures of what was counted."""
        images = int(self.counts[0].sum())
        if not images or not self.finite:
            return Scores(math.nan, math.nan)
        support, answered, right = self.counts.double()
        accuracy = int(self.counts[2].sum()) / images
        recalls = right[support > 0] / support[support > 0]
        variances = recalls * (1.0 - recalls) / support[support > 0]
        either = support + answered
        _, hits, confidence = self.bins.T
        return Scores(
            accuracy=accuracy,
            accuracy_se=standard_error(accuracy, images),
            balanced_accuracy=recalls.mean().item(),
            balanced_accuracy_se=variances.sum().sqrt().item() / len(recalls),
            macro_f1=(2.0 * right[either > 0] / either[either > 0]).mean().item(),
            calibration_error=(hits - confidence).abs().sum().item() / images,
        )


def mean_scores(tasks: Sequence[Scores]) -> Scores:
    """Return the means over the tasks, with the standard errors of means of independent figures."""

    def mean(name: str) -> float:
        values = [getattr(scores, name) for scores in tasks]
        return (math.hypot(*values) if name.endswith("_se") else sum(values)) / len(values)

    return Scores(**{name: mean(name) for name in SCORES})


def standard_error(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy on ``images`` images."""
    return math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / images) if images else math.nan
