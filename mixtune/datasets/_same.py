"""Which images are one: equal bytes of their files, or equal pixels as a network receives them.

An image of one colour is never a copy of another. All functions take what ImageSet.index holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.datasets._types import ImageSet


def is_constant(index: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which images have one colour only, (N,)."""
    constant: npt.NDArray[np.bool_] = _digests(index, "pixels") == b""
    return constant


def matches(index: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which images are among the others, (N,)."""
    same = [np.isin(_digests(index, kind), _digests(others, kind)) for kind in ("file", "pixels")]
    return (same[0] | same[1]) & ~is_constant(index)


def repeats(index: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which images equal one that comes earlier, (N,)."""
    first = np.zeros(len(index), dtype=bool)
    first[np.unique(_digests(index, "pixels"), return_index=True)[1]] = True
    return ~first & ~is_constant(index)


def in_two_classes(images: ImageSet) -> int:
    """Return how many images, each counted once, come with more than one label."""
    if images.labels is None or images.index is None:
        return 0
    kept = ~is_constant(images.index)
    _, number = np.unique(_digests(images.index, "pixels")[kept], return_inverse=True)
    pairs = np.unique(np.stack([number, images.labels[kept]]), axis=1)
    return int((np.bincount(pairs[0], minlength=1) > 1).sum())


def _digests(index: npt.NDArray[Any], kind: str) -> npt.NDArray[np.bytes_]:
    """Return digests as bytes that NumPy sorts; all-zero ones are empty."""
    return np.ascontiguousarray(index[kind]).view("S16")
