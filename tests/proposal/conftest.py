"""Folders of real images: scikit-learn's digits as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, counts: dict[int, int]) -> Path:
    """Write so many images of each digit, a folder a digit; return the folder."""
    digits = load_digits()
    for digit, count in counts.items():
        (folder / f"digit {digit}").mkdir(parents=True)
        for i, index in enumerate(np.flatnonzero(digits.target == digit)[:count]):
            pixels = (digits.images[index] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"digit {digit}" / f"{i:03}.png")
    return folder


@pytest.fixture
def digit_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes images in ``tmp_path / name``."""
    return lambda counts, name="digits": write_digits(tmp_path / name, counts)


@pytest.fixture(scope="session")
def even_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits, 60 images of each; a name that YAML would read as something else."""
    return write_digits(tmp_path_factory.mktemp("images") / "0: #1", {0: 60, 1: 60, 2: 60})
