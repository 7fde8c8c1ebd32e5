"""No held-out image is trained on: counted at the batches, by content, for whatever folder SSL images are from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.errors import RequestError
from mixtune.space.recipe import Recipe, parse_recipe
from mixtune.training.data import ImagePool, TrainingData, load_test_pools, load_training_data
from mixtune.training.plan import make_plan

STILL = {"pad": 0, "flip": 0.0, "ssl": False}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/ and test/ with two classes each, 60 and 20 distinct images a class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 20)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def recipe(root: Path, objective: str, **data: Any) -> Recipe:
    return parse_recipe(
        {
            "data": {"dataset": "image_folder", "root": str(root), "val_fraction": 0.25, **data},
            "model": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
            "epochs": {"ssl": 4, "sl": 3},
            "ssl": {"objective": objective},
            "optim": {"batch_size": 16},
            "augment": STILL,
        }
    )


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe, TrainingData], tuple[int, int]]:
    """Return how many images that SSL and mix batches are made of are validation or test images, and how many not."""
    read: list[bytes] = []
    pixels = ImagePool._pixels

    def noted(pool: ImagePool, chosen: torch.Tensor) -> torch.Tensor:
        images = pixels(pool, chosen)
        read.extend(image.numpy().tobytes() for image in images)
        return images

    def count(recipe: Recipe, data: TrainingData) -> tuple[int, int]:
        pools = (*(task.held_out for task in data.tasks), *load_test_pools(recipe, data))
        held = {image.numpy().tobytes() for pool in pools for image in pool.images[pool.indices]}
        with monkeypatch.context() as patch:
            patch.setattr(ImagePool, "_pixels", noted)
            for epoch in make_plan(recipe):
                if epoch.phase != "sl":
                    assert all(images.isfinite().all() for images, _ in data.batches(recipe, epoch))
        return sum(image in held for image in read), sum(image not in held for image in read)

    return count


def elsewhere(photos: Path) -> Path:
    """All images in one folder, under other names and saved again without loss."""
    pool = photos.parent / "pool"
    pool.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        Image.open(path).save(pool / f"{number:04}.bmp")
    return pool


ROOTS: dict[str, Callable[[Path], Path]] = {
    "the training part": lambda photos: photos / "train",
    "the whole set": lambda photos: photos,
    "a copy in one folder": elsewhere,
}


@pytest.mark.parametrize("objective", ["mae", "simclr"])
@pytest.mark.parametrize("name", ROOTS)
def test_ssl_images_of_a_folder_lose_what_is_held_out(
    photos: Path, name: str, objective: str, count: Callable[..., tuple[int, int]]
) -> None:
    asked = recipe(photos, objective, ssl_dataset="image_folder", ssl_root=str(ROOTS[name](photos)))
    data = load_training_data(asked)
    held, others = count(asked, data)
    assert (held, others > 100) == (0, True)
    assert len(data.tasks[0].ssl) == 90
    if name == "the whole set":  # which is the supervised set itself: it is split as that is
        assert not data.mixes_partners
        return
    assert data.mixes_partners
    lost, total = (30, 120) if name == "the training part" else (70, 160)
    assert data.lines == (f"{lost} of {total} SSL images are held out for validation or test: not trained on",)


def test_a_folder_of_held_out_images_alone_is_refused(photos: Path) -> None:
    with pytest.raises(RequestError, match="holds held-out images alone"):
        load_training_data(recipe(photos, "mae", ssl_dataset="image_folder", ssl_root=str(photos / "test")))


def test_copies_of_held_out_images_among_the_training_images_are_counted_and_can_be_dropped(
    photos: Path, count: Callable[..., tuple[int, int]]
) -> None:
    for number in range(4):
        shutil.copy(photos / f"test/cat/{number}.png", photos / f"train/cat/copy{number}.png")
    kept = load_training_data(recipe(photos, "mae"))
    dropped = load_training_data(recipe(photos, "mae", duplicates="drop"))
    assert kept.lines == ()
    (line,) = dropped.lines
    assert line.endswith("training images are copies of held-out ones: not trained on")
    assert len(kept.tasks[0].train) - len(dropped.tasks[0].train) == int(line.split()[0]) in (1, 2, 3, 4)
    assert count(recipe(photos, "mae", duplicates="drop"), dropped)[0] == 0


def test_few_labels_read_the_pool_and_nothing_held_out(photos: Path, count: Callable[..., tuple[int, int]]) -> None:
    asked = recipe(photos, "mae", fraction=0.4, ssl_fraction=1.0)
    data = load_training_data(asked)
    assert count(asked, data)[0] == 0
    assert len(data.tasks[0].ssl) == 90
