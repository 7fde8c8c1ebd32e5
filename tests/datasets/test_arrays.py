"""Images and labels from Python, whatever holds them, and the folder that keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mixtune.datasets import Dataset, find_data, hold_dataset, load_dataset, to_parts, write_parts
from mixtune.errors import RequestError


class Pairs:
    """A torch Dataset of the plainest kind: PIL images of unequal width, of classes with names."""

    classes = tuple("abcdefghij")

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return Image.fromarray(self.images[index][:, : 6 + index % 3]), self.labels[index]


def by_kind(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The same digits as all kinds of data."""
    colours = np.stack([x, np.roll(x, 1, 2), 255 - x], axis=1)
    parts = {"train": slice(600), "validation": slice(600, 800), "test": slice(800, None)}
    return {
        "bytes": (x, y),
        "floats from 0 to 1": (x / 255, y.tolist()),
        "16 bits, text": (x.astype(np.uint16) * 257, [f"digit {label}" for label in y]),
        "channels first": (colours, y[:, None]),
        "channels last": (np.moveaxis(colours, 1, 3), torch.from_numpy(y)),
        "a tensor": (torch.from_numpy(colours), y),
        "five bands": (np.stack([np.roll(x, shift, 2) for shift in range(5)], axis=1), y),
        "four bands": (np.stack([x // 2 + 5 * shift for shift in range(1, 5)], axis=3), y),
        "unequal arrays": ([image[: 8 - index % 2] for index, image in enumerate(x)], y),
        "parts": {name: (x[chosen], y[chosen]) for name, chosen in parts.items()},
        "groups": (x, y, np.arange(len(x)) // 3),
        "torch": Pairs(x, y),
        "a torch subset": torch.utils.data.Subset(Pairs(x, y), range(400)),
        "TensorDataset": torch.utils.data.TensorDataset(torch.from_numpy(colours), torch.from_numpy(y)),
        "a table": pd.DataFrame({"image": list(x), "label": y}),
        "decoded": hold_dataset((x, y)),
    }


def assert_equal(one: Dataset, other: Dataset) -> None:
    for part in ("train", "val", "test"):
        here, there = getattr(one, part), getattr(other, part)
        assert (here is None) == (there is None)
        if here is not None:
            for values in ("images", "labels", "groups"):
                np.testing.assert_array_equal(getattr(here, values), getattr(there, values))
            assert (here.classes, here.mirror, here.mean) == (there.classes, there.mirror, there.mean)


def test_what_is_written_is_what_was_given_whatever_holds_it(digits, tmp_path):
    x, y = digits
    held = {}
    for number, (kind, data) in enumerate(by_kind(x, y).items()):
        parts, folder = to_parts(data), tmp_path / str(number)
        write_parts(parts, folder)
        held[kind] = hold_dataset(parts)
        assert_equal(load_dataset("arrays", str(folder)), held[kind])
        images = held[kind].train.images
        channels = 5 if "five" in kind else 4 if "four" in kind else 3 if images.shape[1] == 3 else 1
        assert images.shape[1:] == (
            channels,
            *(2 * ((64,) if kind in ("unequal arrays", "torch", "a torch subset") else (8,))),
        )
    shapes = {kind: dataset.train.images.shape[1:] for kind, dataset in held.items()}
    assert [shapes[kind] for kind in ("bytes", "five bands", "torch")] == [(1, 8, 8), (5, 8, 8), (1, 64, 64)]
    assert [shapes[kind] for kind in ("channels last", "four bands")] == [(3, 8, 8), (4, 8, 8)]
    plain, coloured = held["bytes"].train, held["channels last"].train
    for kind in ("floats from 0 to 1", "16 bits, text", "groups", "a table", "decoded"):
        same = set(map(bytes, held[kind].train.images)) | set(map(bytes, held[kind].test.images))
        assert same == set(map(bytes, plain.images)) | set(map(bytes, held["bytes"].test.images)), kind
    for kind in ("channels first", "a tensor", "TensorDataset"):
        np.testing.assert_array_equal(held[kind].train.images, coloured.images)
    assert plain.classes == tuple("0123456789")
    assert held["16 bits, text"].train.classes[3] == "digit 3"
    assert held["torch"].train.classes == held["a torch subset"].train.classes == Pairs.classes
    assert [len(part.images) for part in (held["parts"].train, held["parts"].val, held["parts"].test)] == [
        600,
        200,
        997,
    ]
    apart = {*held["groups"].train.groups.tolist()} & {*held["groups"].test.groups.tolist()}
    assert not apart


def test_a_hugging_face_dataset_keeps_its_files_bytes_and_the_names_of_its_classes(digits, tmp_path):
    datasets = pytest.importorskip("datasets", minversion="2")  # tests/datasets has none
    x, y = digits
    names = [f"digit {number}" for number in range(10)]
    features = datasets.Features(
        {"picture": datasets.Image(), "y": datasets.ClassLabel(names=names), "patient": datasets.Value("int64")}
    )
    columns = {"picture": [Image.fromarray(image) for image in x[:300]], "y": y[:300], "patient": range(300)}
    whole = datasets.Dataset.from_dict(columns, features=features)
    for data in (whole, whole.train_test_split(0.3, seed=0)):
        parts = to_parts(data)
        assert isinstance(parts.train.images[0], bytes)
        assert parts.classes == tuple(names)
        assert parts.train.groups is not None
        write_parts(parts, tmp_path / "data")
        assert_equal(load_dataset("arrays", str(tmp_path / "data")), hold_dataset(data))
    with pytest.raises(RequestError, match="is a stream, which has no length"):
        to_parts(whole.to_iterable_dataset())


def test_what_is_no_data_is_one_line_that_says_what_is(digits):
    x, y = digits
    for data, message in (
        (None, r"data should be \(images, labels\).*, got NoneType"),
        ("digits", "got str"),
        (x, "an array without labels"),
        ((x, y[:-1]), "labels should be one for each image: there are 1,796, and 1,797 images"),
        ((x.reshape(-1, 64), y), r"images should be \(N, H, W\), .* got uint8 \(1797, 64\)"),
        ((x.astype(object), y), "images should be numbers, got object"),
        ((np.zeros((9, 8, 8, 8)), [0, 1, 2] * 3), r"not certain which axis of \(9, 8, 8, 8\) the channels are"),
        ((x, np.eye(10)[y]), r"labels should be \(N,\).*one-hot rows take \.argmax\(1\)"),
        ((x, y / 3), "measurements, not classes"),
        ({"training": (x, y), "tset": (x, y)}, "has the keys 'training', 'tset': should be 'train'"),
        ({"train": (x, y), "test": (x, [f"n{label}" for label in y])}, "have test images but no training images"),
        ([{"image": x[0], "label": 1}] * 3, r"should be \(image, label\), got a dict with 'image', 'label'"),
    ):
        with pytest.raises(RequestError, match=message):
            to_parts(data)
    first = hold_dataset((torch.zeros(9, 8, 8, 8, dtype=torch.uint8), [0, 1, 2] * 3)).train.images
    assert first.shape[1:] == (8, 8, 8)


def test_transparency_stays_where_it_is_and_bad_pixels_are_named(digits):
    x, y = digits
    clear = np.stack([x, x, x, np.full_like(x, 255)], axis=3)
    held = hold_dataset((clear, y))
    assert held.train.images.shape[1] == 3
    assert "read as transparency" in held.account.notes[0]
    broken = x / 255
    broken[7, 2, 2] = np.nan
    with pytest.raises(
        RuntimeError, match=r"image 7 of the \w+ part cannot be read \(it has pixels that are not finite"
    ):
        hold_dataset({"train": (broken, y), "test": (x / 255, y)})


def test_a_folder_of_ones_own_arrays_is_a_dataset(digits, tmp_path):
    x, y = digits
    np.save(tmp_path / "images.npy", np.stack([x] * 5, axis=1))
    np.save(tmp_path / "labels.npy", np.array([f"d{label}" for label in y]))
    assert find_data(str(tmp_path)) == ("arrays", str(tmp_path))
    found = load_dataset("arrays", str(tmp_path))
    assert found.train.images.shape == (1437, 5, 8, 8)
    assert found.account.origins["train"] == "images.npy"
    np.save(tmp_path / "test_images.npy", np.stack([x[:50]] * 5, axis=1))
    np.save(tmp_path / "test_labels.npy", np.array([f"d{label}" for label in y[:50]]))
    found = load_dataset("arrays", str(tmp_path))
    assert (len(found.train.images), len(found.test.images)) == (1797, 50)
    assert load_dataset("arrays", str(tmp_path), labelled=False).train.labels is None
    np.save(tmp_path / "labels.npy", np.array([None] * len(y)), allow_pickle=True)
    with pytest.raises(RequestError, match=r"labels\.npy cannot be read as an array of numbers or text"):
        load_dataset("arrays", str(tmp_path))
    with pytest.raises(RequestError, match=r"holds no images\.npy: it should, and labels\.npy"):
        load_dataset("arrays", str(tmp_path.parent))
    with pytest.raises(
        RequestError, match=r"data\.test goes with image_folder and manifest, and data\.dataset is arrays"
    ):
        load_dataset("arrays", str(tmp_path), parts={"test": "x"})
