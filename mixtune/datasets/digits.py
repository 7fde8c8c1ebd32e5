"""scikit-learn's digits: 1,797 grayscale images of 8 x 8 pixels that come with the package."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from mixtune.datasets._types import Part, Parts, Source


def read(source: Source) -> Parts:
    """Return all images as the training part; values 0..16 are scaled to 0..255."""
    from sklearn.datasets import load_digits

    held = load_digits()
    images = np.round(held.images * (255 / 16)).astype(np.uint8)
    return Parts(Part(images, held.target), test=None, classes=tuple("0123456789"), mirror=False)


def fingerprint(source: Source) -> str:
    """Return scikit-learn's version."""
    return version("scikit-learn")
