"""What a survey says of a dataset that nobody has looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mixtune.datasets import Reading, known_datasets, survey_dataset


def save(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([*str(path).encode()]).integers(0, 256, (height, width, 3), dtype=np.uint8)
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


def test_copies_are_counted_within_and_over_parts_and_classes_and_constant_images_are_none(tmp_path: Path) -> None:
    """As in published sets (RIAWELC 2, fashion-mnist 44): other names, saved again without loss."""
    for part, count in (("train", 8), ("test", 3)):
        for label in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / part / label / f"{i}.png", 40, 40)
    Image.open(tmp_path / "test/cat/0.png").save(tmp_path / "train/cat/again.bmp")
    Image.open(tmp_path / "train/dog/0.png").save(tmp_path / "train/cat/other.tif")
    for i in range(3):
        for part in ("train", "test"):
            Image.new("RGB", (40, 40), "white").save(tmp_path / part / "dog" / f"white{i}.png")
    found = survey_dataset("image_folder", str(tmp_path))
    assert found.repeated == {"train": 1, "test": 0}
    assert found.shared == {"test and training": 1}
    said = "; ".join(found.warnings())
    assert "6 images are of one colour only after decoding, 6 of them white" in said
    assert "1 image is in both the test and training parts (data.duplicates: drop trains without them)" in said
    assert "1 training image is equal to an earlier one" in said
    assert "1 image is in two classes" in said


def arrows(folder: Path, swap: bool) -> None:
    """Two classes of bars that are thick at one end: at the left or the right, or with ``swap`` False thick or thin."""
    rng = np.random.default_rng(0)
    for label in range(2):
        (folder / ["left", "right"][label]).mkdir(parents=True)
        for number in range(30):
            pixels = np.full((24, 24), 255, np.uint8)
            row = int(rng.integers(6, 18))
            pixels[row] = 40
            columns = slice(0, 6) if (number % 2 if not swap else label) else slice(18, 24)
            thick = 4 if swap or label else 2
            pixels[row - thick : row + thick + 1, columns] = 60
            Image.fromarray(pixels).save(folder / ["left", "right"][label] / f"{number}.png")


def test_classes_that_a_mirror_swaps_are_found(tmp_path: Path) -> None:
    """Arrows to the left and to the right (darknet 674, yolov5 2164): flips cost 28 points."""
    arrows(tmp_path / "arrows", swap=True)
    arrows(tmp_path / "bars", swap=False)
    found = survey_dataset("image_folder", str(tmp_path / "arrows"))
    assert found.misled is not None
    assert found.misled[0] > 0.9 > 0.1 > found.misled[1]
    assert any("set augment.flip to 0" in line for line in found.warnings())
    assert survey_dataset("image_folder", str(tmp_path / "bars")).misled is None


def test_few_levels_left_of_16_bits_are_told(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(5):
            pixels = np.random.default_rng([i, ord(label)]).integers(0, 4096, (16, 16)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    said = survey_dataset("image_folder", str(tmp_path), reading=Reading(range="full")).warnings()
    assert "only 17 levels of brightness are left of the files' values" in said[0]
    assert survey_dataset("image_folder", str(tmp_path)).warnings() == []
