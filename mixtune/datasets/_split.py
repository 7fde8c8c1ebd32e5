"""Stratified splits: validation and a share of the training set by seed, and a held-out test part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.datasets._files import name_some
from mixtune.datasets._types import Images, Part, Parts
from mixtune.errors import RequestError

HELD_OUT = 0.2

_GROUP_ORDERS = 16  # random orders of few groups, of which the best balanced one counts

Indices = npt.NDArray[np.int64]


def split_indices(
    labels: Indices,
    classes: Sequence[str],
    *,
    val_fraction: float,
    fraction: float,
    rng: np.random.Generator,
    groups: Indices | None = None,
) -> tuple[Indices, Indices]:
    """Return (train_idx, val_idx), int64 indices into ``labels`` (N,), disjoint and stratified.

    All N images are put in one stratified random order. Its first round(val_fraction * N) are the validation
    part; of the M that remain, the first round(fraction * M) are the training part. So for one state of
    ``rng`` the 10 % set lies inside the 25 % set, and validation does not depend on ``fraction``.
    val_fraction in [0, 1), fraction in (0, 1]; val_fraction 0 gives no validation images.

    groups (N,): images of one group are never on both sides; validation is as near to val_fraction as groups allow.
    A class that is too rare for a part is not validated, but has at least one training image; see absent_classes().
    Raises RequestError as check_split() does.
    """
    check_split(labels, classes, val_fraction=val_fraction, fraction=fraction, groups=groups)
    if groups is None:
        order = stratified_order(labels, rng)
        val_idx, rest = _keep_each_class(labels, *np.split(order, [round(val_fraction * len(order))]))
    else:
        held = _hold_out_groups(labels, groups, val_fraction, rng)
        order = stratified_order(labels, rng)
        val_idx, rest = order[held[order]], order[~held[order]]
    if val_fraction and not len(val_idx):
        of = "" if groups is None else f" in {len(np.unique(groups)):,} groups"
        raise RequestError(
            f"none of {len(labels):,} images of {len(classes):,} classes{of} can be validated without a class losing "
            "its last training image: set data.val_fraction to 0, name validation images by data.val, or add images"
        )
    train_idx = rest[: round(fraction * len(rest))]
    missing = np.setdiff1d(labels, labels[train_idx])
    if len(missing):
        first = [np.flatnonzero(labels[rest] == label)[0] for label in missing]  # a larger share's among its images
        train_idx = np.concatenate([train_idx, rest[np.sort(first)]])
    return train_idx, val_idx


def check_split(
    labels: npt.ArrayLike,
    classes: Sequence[str],
    *,
    val_fraction: float,
    fraction: float,
    groups: npt.ArrayLike | None = None,
) -> None:
    """Raise RequestError, with all problems in its line, where labels (N,) cannot be split so; needs no images.

    val_fraction: 0 where the dataset has validation images of its own.
    """
    labels = np.asarray(labels)
    count = len(labels)
    problems = []
    if not 0 <= val_fraction < 1:
        problems.append(f"data.val_fraction must be at least 0 and below 1, not {val_fraction}")
    if not 0 < fraction <= 1:
        problems.append(f"data.fraction must be above 0 and at most 1, not {fraction}")
    absent = absent_classes(labels, classes)
    if absent:
        one = len(absent) == 1
        problems.append(
            f"class{'' if one else 'es'} {name_some(absent)} {'has' if one else 'have'} 0 of {count:,} images: add "
            f"some, or remove the class{'' if one else 'es'}"
        )
    if groups is not None and val_fraction and len(np.unique(np.asarray(groups))) < 2:
        problems.append(
            f"all {count:,} images are one group, so none can be validated: set data.val_fraction to 0, or add groups"
        )
    if 0 <= val_fraction < 1 and 0 < fraction <= 1:
        validated = round(val_fraction * count)
        left = round(fraction * (count - validated))
        if val_fraction and not validated and groups is None:
            problems.append(
                f"data.val_fraction {val_fraction:g} of {count:,} images is none: raise it to at least {_up(1 / count)}"
            )
        if left < len(classes):
            problems.append(
                f"{left:,} training images are left for {len(classes):,} classes at data.fraction {fraction:g} and "
                f"data.val_fraction {val_fraction:g}: raise data.fraction, or lower data.val_fraction"
            )
    if problems:
        raise RequestError("; ".join(problems))


def absent_classes(labels: npt.ArrayLike, classes: Sequence[str]) -> list[str]:
    """Return the names of the classes that none of ``labels`` has: of a validation part, those not validated."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if not count]


def stratified_order(labels: Indices, rng: np.random.Generator) -> Indices:
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

    The fifth depends on labels, groups and their order alone, not on any seed, and holds whole groups. Classes that are
    too rare for it stay in the training part. Parts without labels stay as they are, and so do validation images.
    Raises RequestError where there are too few images to hold any out.
    """
    train = parts.train
    if parts.test is not None or train.labels is None:
        return parts
    labels = np.asarray(train.labels, dtype=np.int64)
    groups = None if train.groups is None else np.asarray(train.groups, dtype=np.int64)
    rng = np.random.default_rng(0)
    if groups is None:
        order = stratified_order(labels, rng)
        test_idx, train_idx = _keep_each_class(labels, *np.split(order, [math.ceil(HELD_OUT * len(order))]))
    else:
        held = _hold_out_groups(labels, groups, HELD_OUT, rng)
        test_idx, train_idx = np.flatnonzero(held), np.flatnonzero(~held)
    if not len(test_idx):
        of = "" if groups is None else f" in {len(np.unique(groups)):,} groups"
        raise RequestError(
            f"{len(labels):,} images of {len(parts.classes):,} classes{of} are too few to hold out a fifth of them as "
            "the test part: add images, or name test images by data.test"
        )

    def choose(index: Indices, origin: str) -> Part:
        index = np.sort(index)
        return Part(Chosen(train.images, index), labels[index], None if groups is None else groups[index], origin)

    fifth = f"a fifth of {train.origin}" if train.origin else "a fifth of the training images"
    return replace(parts, train=choose(train_idx, train.origin), test=choose(test_idx, fifth))


class Chosen:
    """The images that ``index`` names, in its order, as a lazy sequence."""

    def __init__(self, images: Images, index: Indices) -> None:
        self._images = images
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Any:
        return self._images[int(self._index[position])]


def _keep_each_class(labels: Indices, held: Indices, rest: Indices) -> tuple[Indices, Indices]:
    """Return (held, rest) with an image of each class among the rest: the last held one of a class that has none."""
    missing = np.setdiff1d(labels[held], labels[rest])
    back = [np.flatnonzero(labels[held] == label)[-1] for label in missing]
    return np.delete(held, back), np.concatenate([held[np.sort(back)], rest]) if back else rest


def _hold_out_groups(labels: Indices, groups: Indices, share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which images are held out, bool (N,): whole groups, about ``share`` of each class and of all images.

    Groups come in random order, and one is held out where that brings the classes' held-out counts nearer to the share
    of the images so far; of several orders the one counts that ends nearest. Each class keeps a group that is not held
    out. (scikit-learn's StratifiedGroupKFold takes 9 s for 20,000 groups, and holds out the same large groups for most
    seeds.)
    """
    names, members = np.unique(groups, return_inverse=True)
    kinds, label_of = np.unique(labels, return_inverse=True)
    if not share or not len(names):
        return np.zeros(len(labels), dtype=np.bool_)
    pairs, counts = np.unique(members * len(kinds) + label_of, return_counts=True)
    held_classes: list[list[tuple[int, int]]] = [[] for _ in names]  # of each group: (class, images)
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        held_classes[pair // len(kinds)].append((pair % len(kinds), count))
    totals = np.bincount(label_of).astype(np.float64)

    def distance(chosen: list[int]) -> float:
        got = np.zeros(len(kinds))
        for group in chosen:
            for kind, count in held_classes[group]:
                got[kind] += count
        return float(
            ((got - share * totals) ** 2 / totals).sum() + (got.sum() - share * len(labels)) ** 2 / len(labels)
        )

    orders = [rng.permutation(len(names)).tolist() for _ in range(max(1, min(_GROUP_ORDERS, 20_000 // len(names))))]
    choices = [_walk_groups(order, held_classes, totals, len(labels), share) for order in orders]
    choices = [_give_back(chosen, held_classes, totals) for chosen in choices]
    best = min(choices, key=distance)
    if not best:  # all groups are large: one of them is better than none
        alone = [chosen for group in orders[0] if (chosen := _give_back([group], held_classes, totals))]
        best = min(alone, key=distance, default=[])
    return np.isin(members, best)


def _walk_groups(
    order: list[int],
    held_classes: list[list[tuple[int, int]]],
    totals: npt.NDArray[np.float64],
    images: int,
    share: float,
) -> list[int]:
    """Return the groups that are held out on a walk through all of them."""
    owed = [0.0] * (len(totals) + 1)  # images of each class, and of all, that should be held out by now and are not
    weights = [*(1 / totals).tolist(), 1 / images]
    chosen = []
    for group in order:
        everything = len(totals)
        held = [*held_classes[group], (everything, sum(count for _, count in held_classes[group]))]
        gain = 0.0
        for kind, count in held:
            owed[kind] += share * count
            gain += weights[kind] * count * (2 * owed[kind] - count)  # owed^2 - (owed - count)^2
        if gain > 0:
            chosen.append(group)
            for kind, count in held:
                owed[kind] -= count
    return chosen


def _give_back(
    chosen: list[int], held_classes: list[list[tuple[int, int]]], totals: npt.NDArray[np.float64]
) -> list[int]:
    """Return the chosen groups without those that leave a class no other group, smaller ones given back first."""
    left = totals.copy()
    for group in chosen:
        for kind, count in held_classes[group]:
            left[kind] -= count
    kept = dict.fromkeys(chosen)
    for group in sorted(chosen, key=lambda group: sum(count for _, count in held_classes[group])):
        if any(not left[kind] for kind, _ in held_classes[group]):
            del kept[group]
            for kind, count in held_classes[group]:
                left[kind] += count
    return list(kept)


def _up(value: float) -> str:
    """Return a number rounded up to two digits."""
    scale = 10.0 ** (1 - math.floor(math.log10(value)))
    return f"{math.ceil(value * scale) / scale:g}"
