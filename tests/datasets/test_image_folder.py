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


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation", "Test"])
def test_train_and_test_folders_are_the_two_parts(tmp_path, write_classes, test_name):
    train = write_classes(tmp_path / "train", 6)
    test = write_classes(tmp_path / test_name, 2, first=6)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.train.images, by_hand(train))
    np.testing.assert_array_equal(dataset.test.images, by_hand(test))
    assert dataset.train.labels.tolist() == np.repeat([0, 1, 2], 6).tolist()
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.train.classes == dataset.test.classes == ("0", "1", "2")
    assert dataset.train.mirror


def test_test_comes_before_val_where_both_are_there(tmp_path, write_classes):
    write_classes(tmp_path / "train", 6)
    write_classes(tmp_path / "val", 3, first=6)
    test = write_classes(tmp_path / "test", 2, first=9)
    np.testing.assert_array_equal(load(tmp_path).test.images, by_hand(test))


@pytest.mark.parametrize("inside", ["", "train"])
def test_without_a_test_folder_a_stratified_fifth_is_held_out(tmp_path, write_classes, inside):
    write_classes(tmp_path / inside if inside else tmp_path / "data", 10)
    dataset = load(tmp_path if inside else tmp_path / "data")
    assert np.bincount(dataset.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2, 2]


def test_a_class_may_be_called_train(tmp_path, write_classes):
    write_classes(tmp_path, 10)
    (tmp_path / "0").rename(tmp_path / "train")
    assert load(tmp_path).train.classes == ("1", "2", "train")


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_folder_of_images_is_unlabelled_and_has_no_test_part(tmp_path, write_photos, inside):
    folder = tmp_path / "flat" / inside
    folder.mkdir(parents=True)
    for number, path in enumerate(write_photos(tmp_path / "classes")):
        shutil.copy(path, folder / f"{number}.jpg")
    dataset = load(tmp_path / "flat")
    assert dataset.train.images.shape == (12, 3, 64, 64)
    assert dataset.train.labels is None
    assert dataset.train.classes == ()
    assert dataset.train.tensors()[1] is None
    assert dataset.test is None


def test_images_of_mixed_sizes_are_brought_to_one_size(tmp_path, write_photos):
    write_photos(tmp_path)
    assert load(tmp_path).train.images.shape[1:] == (3, 64, 64)


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


def test_a_missing_root_names_the_path_and_the_closest_sibling(tmp_path):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(RequestError, match=rf"{tmp_path}/flower does not exist; did you mean 'flowers'\?"):
        load(tmp_path / "flower")


def test_a_root_missing_higher_up_names_the_missing_folder(tmp_path):
    (tmp_path / "datasets").mkdir()
    with pytest.raises(RequestError, match=rf"there is no {tmp_path}/dataset\); did you mean 'datasets'\?"):
        load(tmp_path / "dataset" / "flowers")


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "flowers.zip").write_bytes(b"PK")
    with pytest.raises(RequestError, match=r"flowers\.zip is a file, not a folder"):
        load(tmp_path / "flowers.zip")


def test_a_root_is_required():
    with pytest.raises(RequestError, match=r"image_folder needs data\.root"):
        load_dataset("image_folder")


def test_a_root_is_relative_to_the_current_folder(tmp_path, write_classes, monkeypatch):
    write_classes(tmp_path / "data", 10)
    monkeypatch.chdir(tmp_path)
    assert len(load("data").train.images) == 24


@pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / "readme.txt").write_text("hello")])
def test_a_folder_without_images_is_refused(tmp_path, make):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    with pytest.raises(RequestError, match="holds neither class folders nor images"):
        load(tmp_path / "data")


def test_an_empty_class_folder_is_named(tmp_path, write_classes):
    write_classes(tmp_path / "train")
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(RequestError, match="train/empty has no images: add some or remove the folder"):
        load(tmp_path)


def test_one_class_only_is_refused(tmp_path, write_classes):
    write_classes(tmp_path, classes="7")
    with pytest.raises(RequestError, match="one class only, '7': a classifier needs at least two"):
        load(tmp_path)


@pytest.mark.parametrize(("test_classes", "message"), [("01", "class '2' .* not in"), ("0123", "class '3' is in")])
def test_test_classes_must_be_the_training_classes(tmp_path, write_classes, test_classes, message):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", classes=test_classes)
    with pytest.raises(RequestError, match=message):
        load(tmp_path)


def test_a_class_too_small_to_hold_out_a_test_part_is_named(tmp_path, write_classes):
    write_classes(tmp_path, 20, classes="01")
    write_classes(tmp_path, 2, classes="2")
    with pytest.raises(RequestError, match="class '2' has 2 of 42 images, too few to hold out a fifth"):
        load(tmp_path)


def test_a_test_folder_without_a_train_folder_is_refused(tmp_path, write_classes):
    write_classes(tmp_path / "test")
    with pytest.raises(RequestError, match="has test/ but no train/"):
        load(tmp_path)


def test_loose_images_beside_class_folders_are_refused(tmp_path, write_classes):
    paths = write_classes(tmp_path)
    paths[0].rename(tmp_path / "loose.png")
    with pytest.raises(RequestError, match=r"both class folders \(0/\) and loose images \(loose\.png\)"):
        load(tmp_path)
