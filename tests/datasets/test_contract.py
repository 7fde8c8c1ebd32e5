"""The contract of dataset plug-ins: names, suggestions, and someone else's plug-in."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import mixtune.datasets
from mixtune.datasets import load_dataset, mix_images
from mixtune.errors import DataError, RequestError


def test_an_unknown_name_gets_the_closest_and_the_known_ones():
    for given, meant in {
        "digit": "digits",
        "cifar10": "CIFAR10",
        "CIFAR-100": "CIFAR100",
        "fashion_mnist": "FashionMNIST",
        "imagefolder": "image_folder",
        "TinyImageNet": "tiny_imagenet",
        "svnh": "SVHN",
    }.items():
        with pytest.raises(RequestError) as caught:
            load_dataset(given)
        message = str(caught.value)
        assert message.endswith(f"did you mean {meant!r}?")
        assert (
            "arrays, digits, image_folder, manifest, tiny_imagenet, any torchvision classification set, such as CIFAR10"
            in message
        )


def test_impossible_sizes_and_channels_are_refused():
    for key, value in {"image_size": 0, "channels": 2}.items():
        with pytest.raises(RequestError, match=rf"data\.{key} must be"):
            load_dataset("digits", **{key: value})


def test_the_ends_of_mixing_are_the_images_to_the_bit_and_shapes_that_differ_are_both_named():
    supervised, ssl = torch.rand(2, 2, 3, 8, 8)
    assert torch.equal(mix_images(supervised, ssl, 1.0), supervised)
    assert torch.equal(mix_images(supervised, ssl, 0.0), ssl)
    with pytest.raises(ValueError, match=r"supervised is \(2, 3, 8, 8\) and ssl is \(2, 1, 8, 8\)"):
        mix_images(supervised, ssl[:, :1], 0.5)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Make the example of the package's docstring importable as my_scans, alongside a file it reads."""
    _, _, indented = mixtune.datasets.__doc__.partition("::\n")
    example = indented.partition("\n`Part.images`")[0]
    (tmp_path / "my_scans.py").write_text(textwrap.dedent(example))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scans", raising=False)
    return tmp_path


def test_the_plugin_of_the_docstring_works_as_it_stands(elsewhere, digits):
    images, labels = digits
    chosen = labels < 2
    np.savez(elsewhere / "scans.npz", x=images[chosen], y=labels[chosen])
    dataset = load_dataset("my_scans:Scans", str(elsewhere))
    assert dataset.train.classes == ("benign", "malignant")
    assert len(dataset.train.images) + len(dataset.test.images) == chosen.sum()
    assert dataset.train.images.shape[1:] == (1, 8, 8)
    np.savez(elsewhere / "scans.npz", x=images[chosen][:50], y=labels[chosen][:50])
    assert len(load_dataset("my_scans:Scans", str(elsewhere)).train.images) == 40


def test_what_is_wrong_with_a_plugin_is_told(elsewhere, digits):
    with pytest.raises(RequestError, match="dataset 'my_scans:np' has no function read"):
        load_dataset("my_scans:np", str(elsewhere))
    with pytest.raises(DataError, match=r"dataset 'my_scans:Scans' cannot be read: .*scans\.npz"):
        load_dataset("my_scans:Scans", str(elsewhere))
    np.savez(elsewhere / "scans.npz", x=digits[0], y=digits[1])
    with pytest.raises(ValueError, match="training labels run from 0 to 9, but 2 classes are named"):
        load_dataset("my_scans:Scans", str(elsewhere))


def test_importing_the_package_loads_neither_torch_nor_torchvision_nor_sklearn():
    code = "import sys, mixtune.datasets; print(sorted({'torch', 'torchvision', 'sklearn'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_parts_are_named_only_where_a_dataset_takes_them():
    with pytest.raises(
        RequestError, match=r"data\.val goes with image_folder and manifest, and data.dataset is digits"
    ):
        load_dataset("digits", parts={"val": "elsewhere"})
