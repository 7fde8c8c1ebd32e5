"""Several tasks: gray digits, photographs in colour and in gray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def three_tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Recipe values: digits (8 x 8, gray), two photographs' crops (12 x 12, RGB), the same in gray (10 x 10)."""
    photos = load_sample_images().images
    roots = []
    for mode, size, count in (("RGB", 12, 40), ("L", 10, 50)):
        roots.append(tmp_path_factory.mktemp(mode))
        for name, photo in zip(("temple", "flower"), photos, strict=True):
            (roots[-1] / name).mkdir()
            for i in range(count):
                top, left = 20 * (i // 20), 20 * (i % 20)
                crop = Image.fromarray(np.ascontiguousarray(photo[top : top + size, left : left + size]))
                crop.convert(mode).save(roots[-1] / name / f"{i}.png")
    return {
        "data.dataset": ["digits", "image_folder", "image_folder"],
        "data.root": [None, *map(str, roots)],
        "data.fraction": 1.0,
        "model.patch_size": 3,
        "optim.batch_size": 16,
        "rho": 0.5,
    }
