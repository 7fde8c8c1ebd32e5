"""Real images on disk for the tests: scikit-learn's digits as files, and crops of its two photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from mixtune.datasets import _load


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of decoded images, empty."""
    folder = tmp_path_factory.mktemp("default")
    monkeypatch.setenv("MIXTUNE_DATA", str(folder))
    _load._load.cache_clear()
    yield folder / "decoded"
    _load._load.cache_clear()


@pytest.fixture
def forget() -> Callable[[], None]:
    """Make this process like a fresh one: the next load has only what is on disk."""
    return _load._load.cache_clear


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1797, 8, 8) and labels (1797,)."""
    held = load_digits()
    return np.round(held.images * 255 / 16).astype(np.uint8), held.target


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Two RGB photographs, uint8 (427, 640, 3): a temple and a flower."""
    return load_sample_images().images


@pytest.fixture(scope="session")
def write_classes(digits: tuple[np.ndarray, np.ndarray]) -> Callable[..., list[Path]]:
    """Write ``count`` digits of each label as folder/<label><suffix>; return the paths in order of label."""
    images, labels = digits

    def write(
        folder: Path, count: int = 6, *, first: int = 0, classes: str = "012", suffix: str = ".png"
    ) -> list[Path]:
        paths = []
        for label in classes:
            (folder / label).mkdir(parents=True)
            for number, pixels in enumerate(images[labels == int(label)][first : first + count]):
                paths.append(folder / label / f"{number:03d}{suffix}")
                Image.fromarray(pixels).save(paths[-1])
        return paths

    return write


@pytest.fixture(scope="session")
def write_photos(photos: list[np.ndarray]) -> Callable[..., list[Path]]:
    """Write crops of mixed sizes, folder/temple/ and folder/flower/, as JPEG; return the paths."""

    def write(folder: Path, count: int = 6) -> list[Path]:
        paths = []
        for name, photo in zip(("flower", "temple"), reversed(photos), strict=True):
            (folder / name).mkdir(parents=True)
            for number in range(count):
                crop = photo[20 * number : 20 * number + 100 + 10 * number, 30 * number : 30 * number + 120]
                paths.append(folder / name / f"{number}.jpg")
                Image.fromarray(crop).save(paths[-1])
        return paths

    return write
