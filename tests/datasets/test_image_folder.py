from __future__ import annotations

import os
import shutil
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from mixtune.datasets import _files, digest_files, image_files, load_dataset
from mixtune.datasets._types import Source
from mixtune.datasets.image_folder import fingerprint, read
from mixtune.errors import RequestError


def load(root, **options):
    return load_dataset("image_folder", str(root), **options)


def source(root, **options):
    parts = tuple((name, root / options.pop(name)) for name in ("train", "val", "test") if name in options)
    return Source("image_folder", root, root_given=True, download=False, parts=parts, **options)


def understand(root, **options):
    return read(source(root, **options))


def refused(root, message, **options):
    with pytest.raises(RequestError, match=message) as caught:
        understand(root, **options)
    assert "\n" not in str(caught.value)


def by_hand(paths):
    """Grayscale files as (N, 1, H, W)."""
    return np.stack([np.asarray(Image.open(path))[None] for path in paths])


def test_parts_go_by_many_names(tmp_path, write_classes):
    families = (
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("training_set", "dev_set", "test_set"),
        ("seg_train", "seg_dev", "seg_test"),
        ("train2017", "val2017", "test2017"),
        ("TRAIN_IMAGES", "VALID_IMAGES", "TEST_IMAGES"),
    )
    for number, names in enumerate(families):
        root = tmp_path / str(number)
        train, val, test = (
            write_classes(root / name, count, first=first)
            for name, count, first in zip(names, (6, 3, 2), (0, 6, 9), strict=True)
        )
        parts = understand(root)
        assert parts.classes == ("0", "1", "2")
        assert (parts.train.images, parts.val.images, parts.test.images) == (train, val, test)
        assert parts.train.labels == np.repeat([0, 1, 2], 6).tolist()
        assert [part.origin for part in (parts.train, parts.val, parts.test)] == [f"{name}/" for name in names]
        assert (parts.notes, parts.left_out) == ((), {})
    shutil.rmtree(tmp_path / "0/test")
    parts = understand(tmp_path / "0")
    assert parts.test is None  # a fifth of train/: one's own validation images are for validation
    assert len(parts.val.images) == 9


def test_reading_1_is_what_version_0_1_did(tmp_path, write_classes):
    train = write_classes(tmp_path / "train", 6)
    val = write_classes(tmp_path / "val", 2, first=6)
    (tmp_path / "train/0/extra.tga").write_bytes(b"not read")
    (tmp_path / "training_set").mkdir()
    parts = understand(tmp_path, reading=1)
    assert (parts.train.images, parts.test.images, parts.val) == (train, val, None)
    assert fingerprint(source(tmp_path, reading=1)) == digest_files([*train, *val], tmp_path)
    assert fingerprint(source(tmp_path)) != fingerprint(source(tmp_path, reading=1))


def test_the_two_parts_reach_the_decoded_images(tmp_path, write_classes):
    train = write_classes(tmp_path / "train", 6)
    test = write_classes(tmp_path / "Test", 2, first=6)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.train.images, by_hand(train))
    np.testing.assert_array_equal(dataset.test.images, by_hand(test))
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.train.classes == dataset.test.classes == ("0", "1", "2")
    assert dataset.train.mirror


def test_without_a_test_folder_a_stratified_fifth_is_held_out(tmp_path, write_classes):
    for root, inside in ((tmp_path / "a", "."), (tmp_path / "b", "train")):
        write_classes(root / inside, 10)
        dataset = load(root)
        assert np.bincount(dataset.train.labels).tolist() == [8, 8, 8], inside
        assert np.bincount(dataset.test.labels).tolist() == [2, 2, 2], inside


def test_a_class_may_be_called_train(tmp_path, write_classes):
    write_classes(tmp_path / "flat", 10)
    (tmp_path / "flat/0").rename(tmp_path / "flat/train")
    assert load(tmp_path / "flat").train.classes == ("1", "2", "train")
    for name in ("bus", "car", "train"):
        write_classes(tmp_path / "nested" / name, 4, classes="01")
    for inside in ("own", "web"):  # the same in each, but few
        for name in ("bus", "car", "train"):
            (tmp_path / "nested" / name / ("0" if inside == "own" else "1")).rename(tmp_path / "nested" / name / inside)
    parts = understand(tmp_path / "nested")
    assert parts.classes == ("bus", "car", "train")
    assert np.bincount(parts.train.labels).tolist() == [8, 8, 8]
    shutil.rmtree(tmp_path / "nested/bus/own")
    assert understand(tmp_path / "nested").classes == ("bus", "car", "train")


def test_what_may_be_parts_or_classes_is_asked_and_can_be_answered(tmp_path, write_classes):
    def make(name, *folders):
        for folder in folders:
            write_classes(tmp_path / name / folder, 4)
        return tmp_path / name

    refused(make("folds", "fold1", "fold_2"), r"holds fold1/, fold_2/: 'fold1', 'fold_2' may be parts or classes; ")
    refused(make("sites", "a", "b"), r"a/, b/: each holds '0', '1', '2'.*; say.* data\.train: a \(data\.train: \. ")
    refused(make("numbered", *(f"site_{letter}" for letter in "abcd")), "each holds '0', '1', '2'")
    refused(make("twice", "train", "training_set"), "'train', 'training_set' may be parts")
    root = make("extra", "train", "test", "extra")
    refused(root, r"holds extra/, test/, train/: 'test', 'train' may be parts or classes")
    write_classes(tmp_path / "inner/cat", classes="01")
    write_classes(tmp_path / "inner/dog", classes="01")
    (tmp_path / "inner/cat/0").rename(tmp_path / "inner/cat/train")
    (tmp_path / "inner/cat/1").rename(tmp_path / "inner/cat/test")
    refused(tmp_path / "inner", r"cat/ holds parts \(test/, train/\): did you mean data\.root .*inner/cat\?")
    (tmp_path / "inner/dog/0").rename(tmp_path / "inner/dog/train")
    (tmp_path / "inner/dog/1").rename(tmp_path / "inner/dog/test")
    refused(tmp_path / "inner", "each holds 'test', 'train', so that either may be the classes")

    parts = understand(root, train="train")
    assert (len(parts.train.images), len(parts.test.images), parts.val) == (12, 12, None)  # test/ says it by its name
    parts = understand(root, train="train", val="extra")
    assert [part.origin for part in (parts.train, parts.val, parts.test)] == ["train/", "extra/", "test/"]
    parts = understand(root, test="extra")
    assert (parts.test.origin, parts.val) == ("extra/", None)
    assert parts.notes == ("test/ is not used, for data.test is given",)
    assert understand(root, train=".").classes == ("extra", "test", "train")
    assert understand(tmp_path / "folds", train="fold1", test="fold_2").classes == ("0", "1", "2")
    parts = understand(make("inside", ".", "1 aside"), val="1 aside")  # what is named is no class
    assert (parts.classes, parts.val.origin) == (("0", "1", "2"), "1 aside/")


def test_parts_that_are_named_must_be_folders_of_their_own(tmp_path, write_classes):
    write_classes(tmp_path / "train")
    (tmp_path / "val.csv").write_text("path,label\n")
    refused(tmp_path, r"data\.test .*/tset does not exist", test="tset")
    refused(tmp_path, r"data\.val .*/val\.csv is a table: .* manifest reads tables", val="val.csv")
    refused(tmp_path, r"each part needs a folder of its own", train="train", test="train")
    elsewhere = Source("image_folder", tmp_path / "none", False, False, parts=(("train", tmp_path / "train"),))
    assert read(elsewhere).classes == ("0", "1", "2")
    assert fingerprint(elsewhere) != fingerprint(source(tmp_path))


def test_a_root_one_level_too_high_is_understood_and_said(tmp_path, write_classes):
    for name in ("train", "test"):
        write_classes(tmp_path / "archive/data" / name)
    (tmp_path / "__MACOSX/archive").mkdir(parents=True)
    shutil.copy(tmp_path / "archive/data/train/0/000.png", tmp_path / "__MACOSX/archive/x.png")
    parts = understand(tmp_path)
    assert (parts.train.origin, parts.test.origin) == ("archive/data/train/", "archive/data/test/")
    assert parts.notes == (f"{tmp_path} has its images in archive/data/, which is read",)
    for name in ("seg_train", "seg_test"):
        write_classes(tmp_path / "intel" / name / name)
    (tmp_path / "intel/seg_pred/seg_pred").mkdir(parents=True)
    shutil.copy(tmp_path / "archive/data/train/0/000.png", tmp_path / "intel/seg_pred/seg_pred/1.png")
    parts = understand(tmp_path / "intel")
    assert (parts.classes, len(parts.test.images)) == (("0", "1", "2"), 18)
    assert "seg_pred/ is not used: 1 images" in parts.notes


def test_test_images_without_classes_are_left_out_and_said(tmp_path, write_classes):
    write_classes(tmp_path / "train", 10)
    loose = write_classes(tmp_path / "more", 2)
    for number, path in enumerate(loose):
        (tmp_path / "test/unknown").mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / f"test/unknown/{number}.png")
    shutil.rmtree(tmp_path / "more")
    for _ in range(2):
        parts = understand(tmp_path)
        assert parts.test is None
        (note,) = parts.notes
        assert "holds images without classes: 6 images are not used, and a fifth of the training images is the" in note
        assert parts.left_out == {"image without a class": 6}
        if (tmp_path / "test/unknown").exists():
            for path in (tmp_path / "test/unknown").iterdir():
                path.rename(tmp_path / "test" / path.name)
            (tmp_path / "test/unknown").rmdir()
    assert len(load(tmp_path).test.images) == 6
    refused(tmp_path, r"data\.test .*/test holds images without class folders", test="test")


def test_an_accent_in_two_forms_is_one_class(tmp_path, write_classes):
    for part, form in (("train", "NFC"), ("val", "NFD")):
        write_classes(tmp_path / part, classes="01")
        (tmp_path / part / "0").rename(tmp_path / part / unicodedata.normalize(form, "café"))
    parts = understand(tmp_path)
    assert parts.classes == ("1", unicodedata.normalize("NFC", "café"))
    assert np.bincount(parts.val.labels).tolist() == [6, 6]


def test_class_names_that_are_not_utf8_are_refused_all_at_once(tmp_path, write_classes):
    write_classes(tmp_path)
    os.rename(tmp_path / "0", os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    os.rename(tmp_path / "1", os.path.join(os.fsencode(tmp_path), b"th\xe9"))
    refused(tmp_path, r"not UTF-8: 'caf\\xe9', 'th\\xe9': rename them")


def test_all_that_pillow_reads_is_read_and_the_rest_is_counted(tmp_path, write_classes):
    paths = write_classes(tmp_path, 8, classes="01")
    image = Image.open(paths[0])
    for suffix, form in {".jpe": "JPEG", ".mpo": "MPO", ".tga": "TGA", ".TIFF": "TIFF", ".qoi": "QOI"}.items():
        image.convert("RGB").save(tmp_path / f"0/x{suffix}", format=form)
    image.save(tmp_path / "0/no_suffix", format="PNG")
    image.save(tmp_path / "1/2024.05", format="JPEG")
    for name in (
        "notes.txt",
        "labels.csv",
        "0/a.txt",
        "1/odd.xyz",
        "1/readme",
        "0/._000.png",
        "Thumbs.db",
        ".DS_Store",
    ):
        (tmp_path / name).write_bytes(b"no image")
    for folder in ("@eaDir", "1/.ipynb_checkpoints", "lost+found"):
        shutil.copytree(tmp_path / "0", tmp_path / folder)
    shutil.copy(paths[0], tmp_path / "0/.hidden.png")
    os.mkfifo(tmp_path / "0/pipe")  # whoever opens it waits for ever
    parts = understand(tmp_path)
    assert parts.classes == ("0", "1")
    assert np.bincount(parts.train.labels).tolist() == [14, 9]
    assert parts.left_out == {".txt": 2, ".csv": 1, ".xyz": 1, "no suffix": 2, "hidden file": 1}
    assert load(tmp_path).train.images.shape[1:] == (3, 8, 8)


def test_heic_is_left_out_with_its_count_where_its_package_is_missing(tmp_path, write_classes, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    _files.reads_heic.cache_clear()
    write_classes(tmp_path, 4)
    for path in (tmp_path / "0").iterdir():
        shutil.copy(path, path.with_suffix(".HEIC"))
    parts = understand(tmp_path)
    assert parts.left_out == {".heic": 4}
    assert parts.notes == ("4 HEIC files are left out: pillow-heif reads them (pip install pillow-heif)",)
    for path in (tmp_path / "0").glob("*.png"):
        path.unlink()
    refused(tmp_path, r"class folder '0' of .* has no images that can be read, but 4 HEIC files: pillow-heif reads")
    _files.reads_heic.cache_clear()


def test_heic_is_read_where_its_package_is_installed(tmp_path, photos):
    heif = pytest.importorskip("pillow_heif")
    _files.reads_heic.cache_clear()
    for name, photo in zip(("a", "b"), photos, strict=True):
        (tmp_path / name).mkdir()
        for number in range(5):
            heif.from_pillow(Image.fromarray(photo[number:64, :64])).save(tmp_path / name / f"{number}.heic")
    (tmp_path / "a/4.heic").rename(tmp_path / "a/4")
    assert len(understand(tmp_path).train.images) == 10
    assert len(load(tmp_path).train.images) == 8


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
    (tmp_path / "a/metadata.csv").write_text("file_name,label\n")
    refused(tmp_path / "a", r"no class folders, but metadata\.csv next to the images: set data\.dataset: manifest")


def test_unlabelled_images_may_be_in_any_folders(tmp_path, write_classes):
    paths = write_classes(tmp_path / "deep", 5)
    paths += write_classes(tmp_path / "deep/down", 1, classes="7")
    (tmp_path / "deep/loose.png").write_bytes(paths[0].read_bytes())
    parts = understand(tmp_path, labelled=False)
    assert parts.train.images == sorted([*paths, tmp_path / "deep/loose.png"])
    assert (parts.train.labels, parts.test, parts.classes) == (None, None, ())
    assert fingerprint(source(tmp_path, labelled=False)) != fingerprint(source(tmp_path))
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"holds no images: change data\.ssl_root", labelled=False)


def test_files_come_in_the_order_of_their_paths_and_circles_of_links_end(tmp_path, write_classes):
    write_classes(tmp_path / "elsewhere", 10)
    (tmp_path / "data").mkdir()
    for name in "012":
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere/0/loop").symlink_to(tmp_path / "elsewhere/0")
    (tmp_path / "elsewhere/1/more/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/1/009.png").rename(tmp_path / "elsewhere/1/more/deep/x.PNG")
    (tmp_path / "elsewhere/1/008.png").rename(tmp_path / "elsewhere/1/more-9.png")
    dataset = load(tmp_path / "data")
    assert len(dataset.train.images) + len(dataset.test.images) == 30
    files = image_files(tmp_path / "data/1")
    assert files == sorted(files)
    assert len(files) == 10
    assert len(image_files(tmp_path / "data/1", nested=False)) == 9


def test_a_file_that_changes_changes_the_fingerprint(tmp_path, write_classes):
    paths = write_classes(tmp_path)
    before = fingerprint(source(tmp_path))
    (tmp_path / "0/notes.txt").write_text("no image")
    assert fingerprint(source(tmp_path)) == before
    os.utime(paths[0], (1, 1))
    changed = fingerprint(source(tmp_path))
    paths[1].rename(tmp_path / "1/new")
    assert len({before, changed, fingerprint(source(tmp_path)), fingerprint(source(tmp_path, val="0"))}) == 4


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


def test_a_folder_that_cannot_be_classified_says_why_and_names_all_at_once(tmp_path, write_classes):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds neither class folders nor images")
    (tmp_path / "empty" / "readme.txt").write_text("hello")
    refused(tmp_path / "empty", "holds neither class folders nor images")
    write_classes(tmp_path / "loose")[0].rename(tmp_path / "loose" / "a.png")
    refused(tmp_path / "loose", r"both class folders \(0/\) and loose images \(a\.png\)")
    write_classes(tmp_path / "one", classes="7")
    with pytest.raises(RequestError, match="one class only, '7': a classifier needs at least two"):
        load(tmp_path / "one")
    write_classes(tmp_path / "parts" / "test", classes="01")
    refused(tmp_path / "parts", "has test/ but no train/")
    write_classes(tmp_path / "parts" / "train", classes="01234")
    assert understand(tmp_path / "parts").notes == ("test/ has no images of '2', '3', '4': not tested",)
    write_classes(tmp_path / "parts" / "test", classes="89")
    refused(tmp_path / "parts", "classes '8', '9' are in .*/test but not in the training part")
    write_classes(tmp_path / "gap/train")
    for name in ("empty", "void"):
        (tmp_path / "gap/train" / name).mkdir()
    write_classes(tmp_path / "sole/full")
    (tmp_path / "sole/empty").mkdir()  # full/ is a class, not one level too many
    refused(tmp_path / "sole", "class folder 'empty' of .*/sole has no images")
    refused(tmp_path / "gap", "class folders 'empty', 'void' of .*/train have no images: add some or remove the fol")
