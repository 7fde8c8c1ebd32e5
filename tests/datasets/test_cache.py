from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.datasets import load_dataset
from mixtune.errors import DataError

LOAD = """
import hashlib, logging, sys, time
from mixtune.datasets import load_dataset
logging.basicConfig(level=logging.INFO, format="%(message)s")
time.sleep(max(0, float(sys.argv[2]) - time.time()))
dataset = load_dataset("image_folder", sys.argv[1], image_size=48)
print(hashlib.sha256(dataset.train.images.tobytes() + dataset.test.images.tobytes()).hexdigest())
"""


def load(root, **options):
    return load_dataset("image_folder", str(root), **options)


def cache_folders(root):
    return sorted((root / ".mixtune").glob("*"))


@pytest.fixture
def root(tmp_path, write_classes):
    write_classes(tmp_path / "data", 10)
    return tmp_path / "data"


def test_images_are_decoded_once_and_cached_beside_the_data(root, forget):
    first = load(root)
    (folder,) = cache_folders(root)
    assert folder.name.startswith("image_folder-")
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    forget()
    second = load(root)
    assert cache_folders(root) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.train.labels, second.train.labels)
    assert (first.train.mean, first.train.std) == (second.train.mean, second.train.std)


def test_a_reused_worker_gets_the_same_object_until_the_images_change(root):
    before = load(root)
    (root / "notes.txt").write_text("no image")
    assert load(root) is load(str(root) + "/") is before
    assert load(root) is not load(root, image_size=16)
    shutil.rmtree(root / ".mixtune")
    shutil.copy(root / "0/001.png", root / "0/000.png")
    assert load(root) is not before
    (root / "0/000.png").unlink()
    shortened = load(root)
    assert len(shortened.train.images) + len(shortened.test.images) == 29
    assert len(cache_folders(root)) == 2


def test_images_are_a_read_only_map_of_the_file_and_a_dataset_is_pickled_as_its_values(root):
    train = load(root).train
    assert isinstance(train.images, np.memmap)
    for array in (train.images, train.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(copy.images, train.images)
    assert copy.classes == train.classes


def test_tensors_share_the_map_without_a_copy_or_a_warning_and_never_change_the_file(root, forget):
    train = load(root).train
    images, labels = train.tensors()
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert images.data_ptr() == train.images.ctypes.data
    assert labels.data_ptr() == train.labels.ctypes.data
    assert torch.equal(images, torch.tensor(np.array(train.images)))
    before = images[0].clone()
    images[0] = 255 - images[0]
    forget()
    assert torch.equal(load(root).train.tensors()[0][0], before)


def test_mean_and_std_are_those_of_the_training_images_and_std_is_never_zero(tmp_path, write_photos):
    write_photos(tmp_path / "photos")
    dataset = load(tmp_path / "photos")
    scaled = np.array(dataset.train.images) / 255
    np.testing.assert_allclose(dataset.train.mean, scaled.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(dataset.train.std, scaled.std(axis=(0, 2, 3)))
    assert (dataset.test.mean, dataset.test.std) == (dataset.train.mean, dataset.train.std)
    (tmp_path / "dark").mkdir()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "dark" / "dark.png")
    assert load(tmp_path / "dark").train.std == (1 / 255,)


def test_a_damaged_cache_is_noticed_and_rebuilt(root, forget):
    expected = np.array(load(root).train.images)
    (folder,) = cache_folders(root)
    meta = json.loads((folder / "meta.json").read_text())
    names = sorted(path.name for path in folder.iterdir())
    for damage, do in {
        "a truncated array": lambda: os.truncate(folder / "train_images.npy", 200),
        "no meta": (folder / "meta.json").unlink,
        "half a meta": lambda: os.truncate(folder / "meta.json", 20),
        "a missing array": (folder / "train_labels.npy").unlink,
        "another format": lambda: (folder / "meta.json").write_text(json.dumps(meta | {"format": 0})),
    }.items():
        do()
        forget()
        np.testing.assert_array_equal(load(root).train.images, expected, damage)
        assert cache_folders(root) == [folder]
        assert sorted(path.name for path in folder.iterdir()) == names, damage


def test_of_processes_that_begin_at_once_one_decodes(tmp_path, write_classes):
    write_classes(tmp_path, 120, classes="01234")
    command = [sys.executable, "-W", "error", "-c", LOAD, str(tmp_path), str(time.time() + 1.5)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    workers = [subprocess.Popen(command, **pipes, text=True) for _ in range(4)]
    answers, logs = zip(*(worker.communicate(timeout=60) for worker in workers), strict=True)
    assert [worker.returncode for worker in workers] == [0] * 4
    assert len(set(answers)) == 1
    assert len(cache_folders(tmp_path)) == 1
    assert sorted("train images" in log for log in logs) == [False, False, False, True]


def test_a_full_disk_is_a_data_error_and_leaves_nothing_behind(root):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be written to .*\.mixtune .*free space there, or choose a sm"):
            load(root, image_size=96, channels=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cache_folders(root) == []
    assert load(root, image_size=96, channels=3).train.images.shape == (24, 3, 96, 96)


def test_an_unreadable_image_leaves_no_cache_behind(root):
    victim = root / "2/005.png"
    victim.write_bytes(victim.read_bytes()[:60])  # the header is whole, the pixels are not
    with pytest.raises(DataError, match=str(victim)):
        load(root)
    assert (root / ".mixtune").is_dir()
    assert cache_folders(root) == []


def test_what_a_killed_process_left_is_removed_after_a_day(root):
    old, young = (root / ".mixtune" / f"building-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "train_images.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    load(root)
    assert not old.exists()
    assert young.exists()


def test_a_read_only_root_is_cached_in_the_default_folder(write_classes, monkeypatch, forget):
    with tempfile.TemporaryDirectory(prefix="mixtune", dir="/tmp") as name:  # pytest's folders are one user's alone
        base = Path(name)
        write_classes(base / "data", 10)
        (base / "default").mkdir()
        (base / "default").chmod(0o777)
        base.chmod(0o755)
        (base / "data").chmod(0o555)
        monkeypatch.setenv("MIXTUNE_DATA", str(base / "default"))
        user = os.geteuid()
        if user == 0:  # root may write everywhere
            os.seteuid(65534)
        try:
            first = load(base / "data")
            forget()
            second = load(base / "data")
        finally:
            os.seteuid(user)
        assert not (base / "data/.mixtune").exists()
        assert len(cache_folders(base / "default")) == 1
        np.testing.assert_array_equal(first.train.images, second.train.images)


def test_no_writable_folder_at_all_is_a_data_error(root, tmp_path):
    (root / ".mixtune").write_text("in the way")
    (tmp_path / "default").write_text("in the way")
    with pytest.raises(DataError, match="set the environment variable MIXTUNE_DATA to a folder that can be written"):
        load(root)


def test_a_moved_folder_keeps_its_cache(root, tmp_path):
    load(root)
    before = cache_folders(root)
    root.rename(tmp_path / "moved")
    load(tmp_path / "moved")
    assert [path.name for path in cache_folders(tmp_path / "moved")] == [path.name for path in before]
