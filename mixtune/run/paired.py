"""How certain the difference between two recipes is, where the same images judged both.

Of one training run each: the standard error of the mean over images of what one classifies rightly less what the other
does, where half an image is added to either kind of disagreement, so that one image never decides. Balanced accuracy
and F1: the standard deviation over resampled images. Of S seeds the classifications' means over seeds take the place of
one run's, since the images are the same for all; what seeds add is the variance of the paired differences over seeds,
pooled over the rows that are compared with one reference, over S. Where the ledger does not hold what was predicted, or
of other images, two standard errors are added as if the images were independent, which is too much rather than too
little.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from mixtune.metrics import metric_value
from mixtune.run.ledger import TrialRecord
from mixtune.run.predictions import Classes, HeldOut, decode_classes

Floats = npt.NDArray[np.float64]

DRAWS = 400  # of resampled images: a standard deviation within 4 %
DISAGREEMENT = 0.1  # of two recipes, before anything is known of them
PAIRED = ("val_accuracy", "val_balanced_accuracy", "val_macro_f1")  # the others' images are not in the ledger
WITH_ERRORS = (*PAIRED, "knn_accuracy", "probe_accuracy", "ssl_knn_accuracy", "ssl_probe_accuracy")


@dataclass(frozen=True)
class Judged:
    """One training run: its metrics, and the class that it gives each image of a digest, by task (encode_classes)."""

    metrics: Mapping[str, Any]
    validation: str | None = None
    predictions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, record: TrialRecord) -> Judged:
        """Return a trial's own training run."""
        return cls(record.metrics, record.validation, record.predictions)

    @classmethod
    def read(cls, event: Mapping[str, Any]) -> Judged:
        """Return what an event ``confirmed`` holds."""
        return cls(event["metrics"], event.get("validation"), event.get("predictions") or {})


Runs = Mapping[int, Judged]  # by seed


@dataclass(frozen=True)
class Difference:
    """A difference of means, its standard error, and that error's degrees of freedom."""

    mean: float
    error: float
    degrees: float = math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        quantile = float(student.ppf(0.975, self.degrees)) if math.isfinite(self.degrees) else 1.96
        return self.mean - quantile * self.error, self.mean + quantile * self.error

    @property
    def is_nothing(self) -> bool:
        """Whether the 95 % interval holds 0; not where there is no error."""
        low, high = self.interval
        return low <= 0 <= high

    @property
    def is_shown(self) -> bool:
        """Whether the 95 % interval does not hold 0."""
        low, high = self.interval
        return low > 0 or high < 0  # neither where there is no error


def compare_with(
    reference: Runs, others: Mapping[str, Runs], metric: str, held_out: Mapping[str, HeldOut]
) -> dict[str, Difference]:
    """Return each row's ``metric`` less the reference's, on the seeds that both have; rows without any are left out.

    held_out: the images by digest. metric: one of WITH_ERRORS; an error is NaN where an older ledger has none.
    """
    common = {name: sorted(runs.keys() & reference.keys()) for name, runs in others.items()}
    pairs = {name: [(others[name][seed], reference[seed]) for seed in seeds] for name, seeds in common.items() if seeds}
    per_seed = {name: np.array([_gap(*pair, metric) for pair in own]) for name, own in pairs.items()}
    variance, degrees = pooled_variance(list(per_seed.values()))
    found = {}
    for name, own in pairs.items():
        of_seeds, of_images = variance / len(own), _image_variance(own, metric, held_out)
        total = of_seeds + of_images
        error_degrees = math.inf if not of_seeds else degrees * (total / of_seeds) ** 2  # Welch and Satterthwaite
        found[name] = Difference(float(per_seed[name].mean()), math.sqrt(total), error_degrees)
    return found


def visible_difference(images: int) -> float:
    """Return, as a share of 1, the least difference that so many images show with one training run of each recipe.

    Two standard errors where a tenth of the images is classified rightly by one of two recipes alone (ours).
    """
    return 2.0 * math.sqrt(DISAGREEMENT / images)


def images_needed(images: int, error: float, difference: float) -> int:
    """Return of how many images an error would be so small that a difference is two of it."""
    return math.ceil(images * (2.0 * error / difference) ** 2)


def pooled_variance(samples: Sequence[Floats]) -> tuple[float, int]:
    """Return the variance of samples around their own means, pooled, and its degrees of freedom; 0 without any."""
    degrees = sum(max(0, len(sample) - 1) for sample in samples)
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in samples if len(sample))
    return (squares / degrees if degrees else 0.0), degrees


def paired_error(differences: Floats) -> float:
    """Return the standard error of a mean of differences between two classifiers on the same images, (images,).

    differences: 1 where the first alone is right, -1 where the second alone is, 0 otherwise, or means of such over
    seeds. Half an image is added to each of the first two kinds.
    """
    count, total = len(differences), float(differences.sum())
    return math.sqrt(max(0.0, float(differences @ differences) + 1.0 - total**2 / count)) / count


def mean_error(runs: Sequence[Judged], metric: str, held_out: Mapping[str, HeldOut]) -> float:
    """Return the images' standard error of a row's mean over its seeds; the seeds' own is not in it."""
    if _have_own_images(runs):
        return 0.0  # the spread over seeds holds it
    if metric != "val_accuracy" or not all(_is_known(run, held_out) for run in runs):
        return float(np.mean([metric_value(run.metrics, f"{metric}_se") for run in runs]))
    errors = []
    for task in held_out[str(runs[0].validation)].classes:
        right = np.mean([_right(run, task, held_out) for run in runs], axis=0)
        errors.append(float(right.std()) / math.sqrt(len(right)))
    return math.hypot(*errors) / len(errors)


def image_covariance(rows: Sequence[Sequence[Judged]], metric: str, held_out: Mapping[str, HeldOut]) -> Floats:
    """Return the covariance, (rows, rows), of what the images at hand add to the rows' figures, over all seeds.

    Of accuracy it is that of the mean classifications over images, less what seeds alone make it (of a row with one
    training run as much as of the others). Another score's standard errors are taken to be correlated like accuracies;
    where the ledger does not hold what was predicted, they are taken to be independent. It is 0 where each seed has
    images of its own: what these add is in the spread over seeds. Rows have at least one training run each.
    """
    runs = [run for own in rows for run in own]
    errors = np.array([np.mean([metric_value(run.metrics, f"{metric}_se") for run in own]) for own in rows])
    errors = np.nan_to_num(errors)  # not every figure has one
    if _have_own_images(runs):
        return np.zeros((len(rows), len(rows)))
    if not all(_is_known(run, held_out) for run in runs):
        return np.diag(errors**2)
    tasks = list(held_out[str(runs[0].validation)].classes)
    by_task = [[np.array([_right(run, task, held_out) for run in own]) for own in rows] for task in tasks]
    found = sum(covariance_of_means(right) for right in by_task) / len(tasks) ** 2
    if metric == "val_accuracy":
        return np.asarray(found)
    scale = errors / np.sqrt(np.maximum(np.diag(found), 1e-12))
    return np.asarray(found * np.outer(scale, scale))


def covariance_of_means(right: Sequence[Floats]) -> Floats:
    """Return image_covariance() of accuracies; right: for each row (runs, images), 1 where an image is classified."""
    runs, images = np.array([len(own) for own in right]), right[0].shape[1]
    within = np.array([own.var(axis=0, ddof=1).mean() if len(own) > 1 else math.nan for own in right])
    if np.isfinite(within).any():
        within = np.where(np.isnan(within), np.nanmedian(within), within)
    else:
        within = np.zeros(len(right))
    found = np.atleast_2d(np.cov([own.mean(axis=0) for own in right])) / images - np.diag(within / runs / images)
    values, vectors = np.linalg.eigh(found)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _gap(one: Judged, other: Judged, metric: str) -> float:
    return metric_value(one.metrics, metric) - metric_value(other.metrics, metric)


def _have_own_images(runs: Sequence[Judged]) -> bool:
    """Return whether each seed of a recipe was judged on images of its own."""
    return len({run.validation for run in runs} - {None}) > 1


def _image_variance(pairs: Sequence[tuple[Judged, Judged]], metric: str, held_out: Mapping[str, HeldOut]) -> float:
    runs = [run for pair in pairs for run in pair]
    if _have_own_images(runs) and all(one.validation == other.validation for one, other in pairs):
        return 0.0  # the spread of the differences over seeds holds it
    is_known = metric in PAIRED and all(_is_known(run, held_out) for run in runs)
    if len({run.validation for run in runs}) > 1 or not is_known:
        either = [sum(metric_value(run.metrics, f"{metric}_se") ** 2 for run in pair) for pair in pairs]
        return float(np.mean(either))
    tasks = list(held_out[str(runs[0].validation)].classes)
    if metric == "val_accuracy":
        errors = [
            paired_error(
                np.mean([_right(one, task, held_out) - _right(other, task, held_out) for one, other in pairs], axis=0)
            )
            for task in tasks
        ]
        return sum(error**2 for error in errors) / len(tasks) ** 2
    variances = [_resampled_variance(pairs, metric, task, held_out) for task in tasks]
    return sum(variances) / len(tasks) ** 2


def _is_known(run: Judged, held_out: Mapping[str, HeldOut]) -> bool:
    known = held_out.get(str(run.validation))
    if known is None or not run.predictions or run.predictions.keys() != known.labels.keys():
        return False
    return all(len(_decode(run.predictions[task])) == len(_decode(own)) for task, own in known.labels.items())


def _right(run: Judged, task: str, held_out: Mapping[str, HeldOut]) -> Floats:
    """Return 1 for each image that a run classifies rightly, else 0, (images,)."""
    labels = _decode(held_out[str(run.validation)].labels[task])
    return np.asarray(_decode(run.predictions[task]) == labels, dtype=np.float64)


def _resampled_variance(
    pairs: Sequence[tuple[Judged, Judged]], metric: str, task: str, held_out: Mapping[str, HeldOut]
) -> float:
    known = held_out[str(pairs[0][0].validation)]
    labels, classes = _decode(known.labels[task]), known.classes[task]
    answers = [[_decode(run.predictions[task]) for run in pair] for pair in pairs]
    rng, draws = np.random.default_rng(0), []
    for _ in range(DRAWS):
        drawn = rng.integers(len(labels), size=len(labels))
        scores = [[_score(labels[drawn], each[drawn], classes, metric) for each in pair] for pair in answers]
        draws.append(np.mean([one - other for one, other in scores]))
    return float(np.var(draws, ddof=1))


def _score(labels: Classes, answers: Classes, classes: int, metric: str) -> float:
    """Return balanced accuracy or macro F1 of images by class and predicted class, as Scores defines them."""
    counted = labels[labels == answers], labels, answers
    right, support, answered = (np.bincount(each, minlength=classes).astype(float) for each in counted)
    if metric == "val_balanced_accuracy":
        return float((right[support > 0] / support[support > 0]).mean())
    either = support + answered
    return float((2.0 * right[either > 0] / either[either > 0]).mean())


@functools.lru_cache(maxsize=4096)
def _decode(text: str) -> Classes:
    return decode_classes(text)
