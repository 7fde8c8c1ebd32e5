from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.datasets import SKIPPING, load_dataset, survey_dataset
from mixtune.errors import DataError

LOAD = """
import hashlib, logging, sys, time
from mixtune.datasets import SKIPPING, load_dataset, survey_dataset
logging.basicConfig(level=logging.INFO, format="%(message)s")
time.sleep(max(0, float(sys.argv[2]) - time.time()))
dataset = load_dataset("image_folder", sys.argv[1], image_size=48)
print(hashlib.sha256(dataset.train.images.tobytes() + dataset.test.images.tobytes()).hexdigest())
"""


def load(root, **options):
    return load_dataset("image_folder", str(root), **options)


def folders(cache):
    return sorted(path for path in cache.glob("[!.]*") if not path.is_symlink())


@pytest.fixture
def root(tmp_path, write_classes):
    write_classes(tmp_path / "data", 10)
    return tmp_path / "data"


def test_images_are_decoded_once_and_the_data_folder_is_left_as_it_was(root, cache, forget):
    before = sorted(root.rglob("*"))
    first = load(root)
    (folder,) = folders(cache)
    assert folder.name.startswith("image_folder-")
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    forget()
    second = load(root)
    assert folders(cache) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.train.labels, second.train.labels)
    assert (first.train.mean, first.train.std) == (second.train.mean, second.train.std)
    assert sorted(root.rglob("*")) == before


def test_a_reused_worker_gets_the_same_object_until_the_images_change(root, cache):
    before = load(root)
    (root / "notes.txt").write_text("no image")
    assert load(root) is load(str(root) + "/") is before
    assert load(root) is not load(root, image_size=16)
    shutil.copy(root / "0/001.png", root / "0/000.png")
    assert load(root) is not before
    (root / "0/000.png").unlink()
    shortened = load(root)
    assert len(shortened.train.images) + len(shortened.test.images) == 29
    assert len(folders(cache)) == 4


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


def test_a_look_and_a_search_decode_once(root, cache):
    """As `init` and `search` do: bad files passed over, then none allowed and the size said."""
    looked = survey_dataset("image_folder", str(root), reading=SKIPPING).dataset
    searched = load(root, image_size=looked.train.images.shape[2])
    assert str(searched.train.images.filename).startswith(str(cache))
    assert len(folders(cache)) == 1
    np.testing.assert_array_equal(looked.train.images, searched.train.images)


def test_a_damaged_cache_is_noticed_and_rebuilt(root, cache, forget):
    expected = np.array(load(root).train.images)
    (folder,) = folders(cache)
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
        assert folders(cache) == [folder]
        assert sorted(path.name for path in folder.iterdir()) == names, damage


def test_of_processes_that_begin_at_once_one_decodes(tmp_path, cache, write_classes):
    write_classes(tmp_path, 120, classes="01234")
    command = [sys.executable, "-W", "error", "-c", LOAD, str(tmp_path), str(time.time() + 1.5)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    workers = [subprocess.Popen(command, **pipes, text=True) for _ in range(4)]
    answers, logs = zip(*(worker.communicate(timeout=60) for worker in workers), strict=True)
    assert [worker.returncode for worker in workers] == [0] * 4
    assert len(set(answers)) == 1
    assert len(folders(cache)) == 1
    assert sorted("training images" in log for log in logs) == [False, False, False, True]


def test_a_full_disk_is_a_data_error_and_leaves_nothing_behind(root, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be written to .*decoded \(.*free space there, choose a sm"):
            load(root, image_size=96, channels=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folders(cache) == []
    assert load(root, image_size=96, channels=3).train.images.shape == (24, 3, 96, 96)


def test_an_unreadable_image_leaves_no_cache_behind(root, cache):
    victim = root / "2/005.png"
    victim.write_bytes(victim.read_bytes()[:60])  # the header is whole, the pixels are not
    with pytest.raises(DataError, match=str(victim)):
        load(root)
    assert folders(cache) == []


def test_what_a_killed_process_left_is_removed_after_a_day(root, cache):
    old, young = (cache / f"building-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "train_images.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    load(root)
    assert not old.exists()
    assert young.exists()


def test_no_writable_folder_is_a_data_error(root, cache):
    cache.write_text("in the way")
    with pytest.raises(DataError, match="set the environment variable MIXTUNE_DATA to a folder that can be written"):
        load(root)


def test_what_a_killed_process_had_decoded_is_not_decoded_again(tmp_path, cache, write_classes):
    write_classes(tmp_path, 170, classes="0123456789")
    command = [sys.executable, "-c", LOAD, str(tmp_path), "0"]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not any(path.stat().st_size > 300_000 for path in cache.glob("building-*/train_images.npy")):
            assert worker.poll() is None, "decoded before it could be killed"
    finally:
        worker.kill()
        worker.wait()
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(re.search(r"images, ([\d,]+) of which are there already", second.stderr)[1].replace(",", "")) >= 128
    shutil.rmtree(cache)
    assert second.stdout == subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(folders(cache)) == 1


def test_caches_that_were_not_used_for_longest_make_room(root, cache, monkeypatch):
    sizes = (40, 48, 56)
    for size in sizes:
        load(root, image_size=size)
    by_size = {np.load(place / "train_images.npy", mmap_mode="r").shape[2]: place for place in folders(cache)}
    for age, size in ((2, 40), (3, 48)):
        os.utime(by_size[size] / "meta.json", (time.time() - age * 86400, 0))
    held = sum(path.stat().st_size for size in (40, 56) for path in by_size[size].iterdir())
    monkeypatch.setenv("MIXTUNE_CACHE_GB", str((held + 30 * 8 * 8) / 1e9))
    load(root)
    assert [by_size[size].exists() for size in sizes] == [True, False, True]
    monkeypatch.setenv("MIXTUNE_CACHE_GB", "1e-6")
    load(root, image_size=16)
    assert [by_size[size].exists() for size in sizes] == [False, False, True], "used within the hour: it stays"


def test_a_moved_folder_keeps_its_cache(root, cache, tmp_path):
    load(root)
    before = folders(cache)
    root.rename(tmp_path / "moved")
    load(tmp_path / "moved")
    assert folders(cache) == before
