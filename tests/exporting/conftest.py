"""Real images in colour."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Recipe values for a folder of two classes of JPEG crops, 40 x 60 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for name, photo in zip(("church", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir()
        for number in range(60):
            top, left = 40 * (number // 10), 60 * (number % 10)
            Image.fromarray(photo[top : top + 40, left : left + 60].copy()).save(folder / name / f"{number:02d}.jpg")
    values = {"data.dataset": "image_folder", "data.root": str(folder), "data.fraction": 1.0, "data.image_size": 16}
    return {**values, "optim.batch_size": 16}
