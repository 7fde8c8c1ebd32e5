"""Stratified splits: validation and a share of the training set by seed, and a held-out test part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.datasets._types import Images, Part, Parts
from mixtune.errors import RequestError

HELD_OUT = 0.2


def split_indices(
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    *,
    val_fraction: float,
    fraction: float,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (train_idx, val_idx), int64 indices into ``labels`` (N,), disjoint and stratified.

    All N images are put in one stratified random order. Its first round(val_fraction * N) are the validation
    part; of the M that remain, the first round(fraction * M) are the training part. So for one state of
    ``rng`` the 10 % set lies inside the 25 % set, and validation does not depend on ``fraction``.
    val_fraction in [0, 1), fraction in (0, 1]; val_fraction 0 gives no validation images.
    Raises RequestError for values outside these ranges and where a class is absent from either part.
    """
    if not 0 <= val_fraction < 1:
        raise RequestError(f"data.val_fraction must be at least 0 and below 1, not {val_fraction}")
    if not 0 < fraction <= 1:
        raise RequestError(f"data.fraction must be above 0 and at most 1, not {fraction}")
    order = stratified_order(labels, rng)
    val_idx, rest = np.split(order, [round(val_fraction * len(order))])
    train_idx = rest[: round(fraction * len(rest))]
    if val_fraction:
        for name, count in _absent(labels, classes, val_idx):
            raise RequestError(
                f"class {name!r} has {count} of {len(labels):,} images, and none of them falls into the "
                f"validation part at data.val_fraction {val_fraction:g}: raise data.val_fraction, or "
                "merge or remove the class"
            )
    for name, count in _absent(labels, classes, train_idx):
        raise RequestError(
            f"class {name!r} has {count} of {len(labels):,} images, and none of them is left for training at "
            f"data.fraction {fraction:g} and data.val_fraction {val_fraction:g}: raise data.fraction, lower "
            "data.val_fraction, or merge or remove the class"
        )
    return train_idx, val_idx


def stratified_order(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a random order of all images, int64 (N,), any prefix of which is stratified.

    Within a class of n images in random order, image i stands at (i + 0.5) / n; the order sorts by these
    positions and breaks ties at random. A prefix of m images holds m * n / N of the class, give or take one.
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    positions = np.concatenate([(np.arange(n) + 0.5) / n for n in counts]) if len(counts) else np.empty(0)
    return by_class[np.lexsort((rng.random(len(labels)), positions))].astype(np.int64)


def with_test_part(parts: Parts) -> Parts:
    """Return ``parts`` with a test part: its own, or a stratified fifth (rounded up) of the training images.

    The fifth depends on the labels and their order alone, not on any seed. Parts without labels stay as they
    are. Raises RequestError where a class has too few images to be in both.
    """
    if parts.test is not None or parts.train.labels is None:
        return parts
    labels = np.asarray(parts.train.labels, dtype=np.int64)
    order = stratified_order(labels, np.random.default_rng(0))
    test_idx, train_idx = np.split(order, [math.ceil(HELD_OUT * len(order))])
    for idx in (test_idx, train_idx):
        for name, count in _absent(labels, parts.classes, idx):
            raise RequestError(
                f"class {name!r} has {count} of {len(labels):,} images, too few to hold out a fifth of them "
                "as the test part: add images, merge or remove the class, or add a test part to the dataset"
            )
    return Parts(
        train=_choose(parts.train.images, labels, np.sort(train_idx)),
        test=_choose(parts.train.images, labels, np.sort(test_idx)),
        classes=parts.classes,
        mirror=parts.mirror,
    )


class _Chosen:
    """The images that ``index`` names, in its order, as a lazy sequence."""

    def __init__(self, images: Images, index: npt.NDArray[np.int64]) -> None:
        self._images = images
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Any:
        return self._images[int(self._index[position])]


def _choose(images: Images, labels: npt.NDArray[np.int64], index: npt.NDArray[np.int64]) -> Part:
    return Part(_Chosen(images, index), labels[index])


def _absent(
    labels: npt.NDArray[np.int64], classes: Sequence[str], chosen: npt.NDArray[np.int64]
) -> list[tuple[str, int]]:
    """Return (name, images in all) of each class that has none among ``chosen``."""
    total = np.bincount(labels, minlength=len(classes))
    held = np.bincount(labels[chosen], minlength=len(classes))
    return [(name, int(total[label])) for label, name in enumerate(classes) if not held[label]]
