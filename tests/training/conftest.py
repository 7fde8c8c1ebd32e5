"""Real trainings of a second: scikit-learn's digits, a ViT of width 16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mixtune.recipe import Recipe, parse_recipe, with_values
from mixtune.training.data import load_training_data
from mixtune.training.state import TrainState, start_state

# 16 tokens of width 16; a tenth of the digits, 129 images, makes 4 steps of 32
SMALL: dict[str, Any] = {
    "data": {"dataset": "digits", "fraction": 0.1},
    "model": {"patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "epochs": {"ssl": 2, "sl": 3},
    "optim": {"batch_size": 32, "ssl": {"base_lr": 0.02}, "sl": {"base_lr": 0.02}},
}


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    """The small recipe, with dotted values put over it."""

    def make(changes: Mapping[str, Any] | None = None) -> Recipe:
        return parse_recipe(with_values(SMALL, changes or {}))

    return make


@pytest.fixture(scope="session")
def make_state(make_recipe: Callable[..., Recipe]) -> Callable[..., TrainState]:
    """The small recipe, with dotted values put over it, ready to train."""

    def make(changes: Mapping[str, Any] | None = None) -> TrainState:
        recipe = make_recipe(changes)
        return start_state(recipe, load_training_data(recipe))

    return make


@pytest.fixture
def write_crops(tmp_path: Path) -> Callable[[int], str]:
    """Write ``count`` different RGB crops of 24 x 30 pixels, without classes, into a folder; return its path."""

    def write(count: int) -> str:
        photo = load_sample_images().images[0]
        folder = tmp_path / f"crops{count}"
        folder.mkdir()
        for number in range(count):
            top, left = 30 * (number // 20), 30 * (number % 20)
            Image.fromarray(np.ascontiguousarray(photo[top : top + 24, left : left + 30])).save(
                folder / f"{number:03d}.png"
            )
        return str(folder)

    return write
