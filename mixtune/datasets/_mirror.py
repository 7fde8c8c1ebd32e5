"""Whether mirrored images of a class look like another class: arrows, letters, left and right hands."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mixtune.datasets._types import ImageSet

_IMAGES = 1000  # compared, at most
_SIDE = 16  # pixels that they are brought to
_DROP = 0.15  # of the share whose nearest neighbour is of their own class, from which on mirroring changes the meaning
_SURE = 3.0  # standard errors that the drop must have


def mirroring_misleads(images: ImageSet) -> tuple[float, float] | None:
    """Return how often an image's nearest neighbour is of its class, as it is and mirrored, where the latter is rarer.

    None where mirroring does no visible harm. Nearest: by the squared distance of grey pixels among up to 1,000 evenly
    spaced images (ours; cheap, and it need only find classes that a mirror swaps).
    """
    if images.labels is None or len(images.images) < 2:
        return None
    chosen = np.unique(np.linspace(0, len(images.images) - 1, min(_IMAGES, len(images.images)), dtype=int))
    labels = np.asarray(images.labels)[chosen]
    grey = images.images[chosen].mean(axis=1, dtype=np.float32)
    grey = _shrunk(grey)
    right = [_right(grey, other, labels) for other in (grey, grey[:, :, ::-1])]
    as_is, mirrored = (float(each.mean()) for each in right)
    change = right[0].astype(float) - right[1]
    error = float(change.std() / np.sqrt(len(change)))
    if as_is - mirrored <= max(_DROP, _SURE * error):
        return None
    return as_is, mirrored


def _shrunk(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return square images (N, H, H) as means over blocks, at most _SIDE a side."""
    side = grey.shape[1]
    block = max(1, side // _SIDE)
    kept = side // block * block
    cut = grey[:, :kept, :kept].reshape(len(grey), kept // block, block, kept // block, block)
    small: npt.NDArray[np.float32] = cut.mean(axis=(2, 4))
    return small


def _right(
    known: npt.NDArray[np.float32], asked: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return whether the nearest of the others is of an image's class, (N,)."""
    a, b = asked.reshape(len(asked), -1), known.reshape(len(known), -1)
    distance = (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)
    np.fill_diagonal(distance, np.inf)
    right: npt.NDArray[np.bool_] = labels[distance.argmin(axis=1)] == labels
    return right
