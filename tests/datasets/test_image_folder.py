from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from mixtune.datasets import load_dataset
from mixtune.errors import RequestError


def load(root, **options):
    return load_dataset("image_folder", str(root), **options)


def by_hand(paths):
    """Grayscale files as (N, 1, H, W)."""
    return np.stack([np.asarray(Image.open(path))[None] for path in paths])


def test_train_and_test_folders_are_the_two_parts(tmp_path, write_classes):
    for test_name in ("test", "val", "valid", "validation", "Test"):
        root = tmp_path / f"with {test_name}"
        train = write_classes(root / "train", 6)
        test = write_classes(root / test_name, 2, first=6)
        dataset = load(root)
        np.testing.assert_array_equal(dataset.train.images, by_hand(train))
        np.testing.assert_array_equal(dataset.test.images, by_hand(test))
        assert dataset.train.labels.tolist() == np.repeat([0, 1, 2], 6).tolist()
        assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2], test_name
        assert dataset.train.classes == dataset.test.classes == ("0", "1", "2")
        assert dataset.train.mirror
    write_classes(tmp_path / "with test" / "val", 3, first=8)  # where both are there, test is the one
    assert len(load(tmp_path / "with test").test.images) == 6


def test_without_a_test_folder_a_stratified_fifth_is_held_out(tmp_path, write_classes):
    for root, inside in ((tmp_path / "a", "."), (tmp_path / "b", "train")):
        write_classes(root / inside, 10)
        dataset = load(root)
        assert np.bincount(dataset.train.labels).tolist() == [8, 8, 8], inside
        assert np.bincount(dataset.test.labels).tolist() == [2, 2, 2], inside


def test_a_class_may_be_called_train(tmp_path, write_classes):
    write_classes(tmp_path, 10)
    (tmp_path / "0").rename(tmp_path / "train")
    assert load(tmp_path).train.classes == ("1", "2", "train")


def test_a_folder_of_images_of_mixed_sizes_is_unlabelled_and_has_no_test_part(tmp_path, write_photos):
    paths = write_photos(tmp_path / "classes")
    assert load(tmp_path / "classes").train.images.shape[1:] == (3, 64, 64)
    for root, inside in ((tmp_path / "a", "."), (tmp_path / "b", "train")):
        (root / inside).mkdir(parents=True)
        for number, path in enumerate(paths):
            shutil.copy(path, root / inside / f"{number}.jpg")
        dataset = load(root)
        assert dataset.train.images.shape == (12, 3, 64, 64)
        assert dataset.train.labels is dataset.train.tensors()[1] is dataset.test is None
        assert dataset.train.classes == ()


def test_nested_images_are_found_and_hidden_and_other_files_ignored(tmp_path, write_classes):
    paths = write_classes(tmp_path / "train", 6)
    write_classes(tmp_path / "test", 2)
    (tmp_path / "train/0/more/deep").mkdir(parents=True)
    paths[5].rename(tmp_path / "train/0/more/deep/x.PNG")
    (tmp_path / "train/0/._000.png").write_text("left by a file manager")
    (tmp_path / "train/0/notes.txt").write_text("no image")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/Thumbs.db").write_text("no image")
    dataset = load(tmp_path)
    assert np.bincount(dataset.train.labels).tolist() == [6, 6, 6]
    assert dataset.train.classes == ("0", "1", "2")


def test_linked_folders_are_followed_and_loops_are_not(tmp_path, write_classes):
    write_classes(tmp_path / "elsewhere", 10)
    (tmp_path / "data").mkdir()
    for name in "012":
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere/0/loop").symlink_to(tmp_path / "elsewhere/0")
    dataset = load(tmp_path / "data")
    assert len(dataset.train.images) + len(dataset.test.images) == 30


def test_a_root_is_relative_to_the_current_folder(tmp_path, write_classes, monkeypatch):
    write_classes(tmp_path / "data", 10)
    monkeypatch.chdir(tmp_path)
    assert len(load("data").train.images) == 24


def test_a_root_that_is_no_folder_is_told_with_what_may_be_meant(tmp_path):
    (tmp_path / "flowers").mkdir()
    (tmp_path / "flowers.zip").write_bytes(b"PK")
    for root, message in {
        "flower": rf"{tmp_path}/flower does not exist; did you mean 'flowers'\?",
        "flower/red": rf"there is no {tmp_path}/flower\); did you mean 'flowers'\?",
        "flowers.zip": r"flowers\.zip is a file, not a folder",
    }.items():
        with pytest.raises(RequestError, match=message):
            load(tmp_path / root)
    with pytest.raises(RequestError, match=r"image_folder needs data\.root"):
        load_dataset("image_folder")


def test_a_folder_that_cannot_be_classified_says_why(tmp_path, write_classes):
    def refused(name, message):
        with pytest.raises(RequestError, match=message):
            load(tmp_path / name)

    (tmp_path / "empty").mkdir()
    refused("empty", "holds neither class folders nor images")
    (tmp_path / "empty" / "readme.txt").write_text("hello")
    refused("empty", "holds neither class folders nor images")
    write_classes(tmp_path / "loose")[0].rename(tmp_path / "loose" / "a.png")
    refused("loose", r"both class folders \(0/\) and loose images \(a\.png\)")
    write_classes(tmp_path / "one", classes="7")
    refused("one", "one class only, '7': a classifier needs at least two")
    write_classes(tmp_path / "few", 20, classes="01")
    write_classes(tmp_path / "few", 2, classes="2")
    refused("few", "class '2' has 2 of 42 images, too few to hold out a fifth")
    write_classes(tmp_path / "parts" / "test", classes="01")
    refused("parts", "has test/ but no train/")
    write_classes(tmp_path / "parts" / "train")
    refused("parts", "class '2' .* not in")
    write_classes(tmp_path / "parts" / "test", classes="23")
    refused("parts", "class '3' is in")
    write_classes(tmp_path / "gap/train")
    (tmp_path / "gap/train/empty").mkdir()
    refused("gap", "train/empty has no images: add some or remove the folder")
