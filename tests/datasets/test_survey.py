"""What a survey says of a dataset that nobody has looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mixtune.datasets import known_datasets, survey_dataset


def save(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_digits_are_counted_by_class() -> None:
    found = survey_dataset("digits")
    assert found.train_images + found.test_images == 1_797
    assert list(found.counts) == [str(digit) for digit in range(10)]
    assert 1.0 < found.imbalance < 1.1
    assert (found.image_size, found.channels, found.mirror) == (8, 1, False)
    assert found.smallest == found.largest == (8, 8)


def test_a_folders_sizes_are_those_of_its_files(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 2)):
        for i in range(count):
            save(tmp_path / part / "many" / f"{i}.png", 120 + 10 * i, 100)
        save(tmp_path / part / "few" / "0.png", 50, 70)
    found = survey_dataset("image_folder", str(tmp_path))
    assert found.counts == {"few": 1, "many": 6}
    assert (found.train_images, found.test_images, found.imbalance) == (7, 3, 6.0)
    assert (found.smallest, found.largest) == ((50, 70), (170, 100))
    assert (found.image_size, found.channels, found.mirror) == (64, 3, True)


def test_known_datasets_are_plugins_and_what_they_list() -> None:
    assert {"digits", "image_folder", "CIFAR10"} <= set(known_datasets())
    assert "torchvision_sets" not in known_datasets()
