"""torchvision's sets, from the digits and photographs written in each set's own layout. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from mixtune.datasets import load_dataset, torchvision_sets
from mixtune.errors import DataError, RequestError

TRAIN, TEST = slice(0, 100), slice(100, 150)


def write_idx(path, values):
    """Write an idx file, the format of MNIST: 1-byte or big-endian 4-byte integers with their shape ahead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = 8 if values.dtype == np.uint8 else 12
    header = bytes([0, 0, kind, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.astype(values.dtype.newbyteorder(">")).tobytes())


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def write_mnist(root, name, images, labels):
    for prefix, part in (("train", TRAIN), ("t10k", TEST)):
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", images[part])
        write_idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", labels[part].astype(np.uint8))


def write_qmnist(root, images, labels):
    for prefix, part in (("train", TRAIN), ("test", TEST)):
        table = np.zeros((len(labels[part]), 8), dtype=np.int32)
        table[:, 0] = labels[part]
        table[:, 1] = 7
        write_idx(root / "QMNIST/raw" / f"qmnist-{prefix}-images-idx3-ubyte", images[part])
        write_idx(root / "QMNIST/raw" / f"qmnist-{prefix}-labels-idx2-int", table)


def write_food101(root, images, labels):
    for name, part in (("train", range(100)), ("test", range(100, 150))):
        listed: dict[str, list[str]] = {}
        for number in part:
            key = f"dish{labels[number]}"
            listed.setdefault(key, []).append(f"{key}/{number}")
            write_png(root / "food-101/images" / key / f"{number}.jpg", images[number])
        (root / "food-101/meta").mkdir(exist_ok=True)
        (root / "food-101/meta" / f"{name}.json").write_text(json.dumps(listed))


def write_pets(root, images, labels):
    (root / "oxford-iiit-pet/annotations").mkdir(parents=True)
    for name, part in (("trainval", range(100)), ("test", range(100, 150))):
        rows = []
        for number in part:
            rows.append(f"big_cat{labels[number]}_{number} {labels[number] + 1} 1 1")
            write_png(root / f"oxford-iiit-pet/images/{rows[-1].split()[0]}.jpg", images[number])
        (root / f"oxford-iiit-pet/annotations/{name}.txt").write_text("\n".join(rows))


def write_clevr(root, images, labels):
    """Counts start at 3, as in the real set."""
    base = root / "clevr/CLEVR_v1.0"
    (base / "scenes").mkdir(parents=True)
    for name, part in (("train", range(100)), ("val", range(100, 150))):
        scenes = []
        for number in part:
            write_png(base / "images" / name / f"{number:04d}.png", images[number])
            scenes.append({"image_filename": f"{number:04d}.png", "objects": [{}] * (labels[number] + 3)})
        (base / f"scenes/CLEVR_{name}_scenes.json").write_text(json.dumps({"scenes": scenes}))


LAYOUTS = {
    "MNIST": lambda root, images, labels: write_mnist(root, "MNIST", images, labels),
    "QMNIST": write_qmnist,
    "Food101": write_food101,
    "OxfordIIITPet": write_pets,
    "CLEVRClassification": write_clevr,
}


def fingerprints(images, labels):
    """Each image with its label as text, in order of text: sets that list files by class change the order."""
    return sorted(f"{label} {np.asarray(pixels).tolist()}" for pixels, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_gives_its_own_parts(tmp_path, digits, name):
    images, labels = digits
    LAYOUTS[name](tmp_path, images, labels)
    dataset = load_dataset(name, str(tmp_path), download=False, channels=1)
    for part, chosen in ((dataset.train, TRAIN), (dataset.test, TEST)):
        assert fingerprints(part.images[:, 0], part.labels) == fingerprints(images[chosen], labels[chosen])
    assert len(dataset.train.classes) == 10


def test_class_names_are_torchvisions_and_only_sets_that_keep_their_meaning_are_mirrored(tmp_path, digits):
    write_mnist(tmp_path, "MNIST", *digits)
    write_mnist(tmp_path, "FashionMNIST", *digits)
    assert not load_dataset("MNIST", str(tmp_path)).train.mirror
    train = load_dataset("FashionMNIST", str(tmp_path)).train
    assert (train.mirror, train.classes[:2], train.images.shape) == (True, ("T-shirt/top", "Trouser"), (100, 1, 8, 8))
    assert "SVHN" not in torchvision_sets._NO_MIRROR


def test_a_set_without_parts_gets_a_stratified_fifth_as_test_part(tmp_path, write_classes):
    folder = tmp_path / "caltech101/101_ObjectCategories"
    write_classes(folder, 10, suffix=".jpg")
    (folder / "BACKGROUND_Google").mkdir()
    for label, name in zip("012", ("ant", "beaver", "crab"), strict=True):
        (folder / label).rename(folder / name)
        for number, path in enumerate(sorted((folder / name).iterdir()), start=1):
            path.rename(path.with_name(f"image_{number:04d}.jpg"))
    dataset = load_dataset("Caltech101", str(tmp_path), download=False)
    assert dataset.train.classes == ("ant", "beaver", "crab")
    assert np.bincount(dataset.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2, 2]
    assert dataset.train.images.shape == (24, 1, 8, 8)


def test_of_several_names_of_a_class_the_first_is_shown(tmp_path, write_classes):
    for part, count in (("train", 4), ("val", 2)):
        write_classes(tmp_path / "imagenette2" / part, count, suffix=".JPEG")
        for label, wnid in enumerate(("n01440764", "n02102040", "n02979186")):
            (tmp_path / "imagenette2" / part / str(label)).rename(tmp_path / "imagenette2" / part / wnid)
    dataset = load_dataset("Imagenette", str(tmp_path), download=False)
    assert dataset.train.classes == ("tench", "English springer", "cassette player")
    assert np.bincount(dataset.train.labels).tolist() == [4, 4, 4]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2, 2]


def test_an_unreadable_file_of_a_set_is_named(tmp_path, digits):
    write_food101(tmp_path, *digits)
    victim = next((tmp_path / "food-101/images/dish3").iterdir())
    victim.write_text("no image")
    with pytest.raises(DataError, match=rf"{victim} cannot be read"):
        load_dataset("Food101", str(tmp_path))


def test_every_listed_set_exists_in_torchvision_and_takes_its_keywords():
    for name, parts in torchvision_sets._SETS.items():
        extra = {} if name in torchvision_sets._BY_HAND else {"download": False}
        for keywords in (each for each in parts if each is not None):
            inspect.signature(getattr(torchvision.datasets, name)).bind("root", **keywords, **extra)


@pytest.fixture
def no_network(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)


FOLDERS = {"CIFAR10": "cifar-10-batches-py", "MNIST": "MNIST/raw", "SVHN": ""}


@pytest.mark.parametrize(("name", "expected"), FOLDERS.items())
def test_a_failed_download_is_one_line_with_the_place_and_a_way_out(tmp_path, no_network, capfd, name, expected):
    with pytest.raises(DataError) as caught:
        load_dataset(name, str(tmp_path / "data"))
    message = str(caught.value)
    assert message.startswith(f"{name} could not be downloaded (")
    assert f"under {(tmp_path / 'data' / expected)};" in message
    assert "data.download: false works" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["CIFAR100", "MNIST", "Places365"])
def test_missing_files_without_download_say_what_to_set(tmp_path, capfd, name):
    with pytest.raises(RequestError, match=r"set data\.download: true, or change data\.root") as caught:
        load_dataset(name, str(tmp_path), download=False)
    assert "download=True" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("download", [True, False])
def test_a_set_that_cannot_be_downloaded_says_so(tmp_path, download):
    with pytest.raises(RequestError, match=r"torchvision cannot download it.*place them there by hand"):
        load_dataset("FER2013", str(tmp_path), download=download)


@pytest.mark.skipif(importlib.util.find_spec("h5py") is not None, reason="h5py is installed")
def test_a_missing_package_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"PCAM is not at data\.root .*pip install h5py"):
        load_dataset("PCAM", str(tmp_path), download=False)


def test_a_cached_set_needs_neither_its_files_nor_a_network(tmp_path, digits, no_network, forget):
    write_mnist(tmp_path, "MNIST", *digits)
    before = np.array(load_dataset("MNIST", str(tmp_path)).train.images)
    shutil.rmtree(tmp_path / "MNIST")
    forget()
    np.testing.assert_array_equal(load_dataset("MNIST", str(tmp_path)).train.images, before)
