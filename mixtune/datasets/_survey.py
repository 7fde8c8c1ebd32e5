"""What a dataset holds, for someone who sees it for the first time."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mixtune.datasets._decode import decode, open_image
from mixtune.datasets._load import file_errors_named, find_source, load_dataset
from mixtune.errors import RequestError

_OPENED = 200  # images, for the range of sizes


@dataclass(frozen=True)
class Survey:
    """A dataset's figures.

    name, root: as load_dataset() takes them; counts: training images by class name; test_images: how many; image_size,
    channels: as decoded; smallest, largest: (width, height) of the files, of up to 200 of them; mirror: see ImageSet.
    """

    name: str
    root: str | None
    counts: dict[str, int]
    test_images: int
    image_size: int
    channels: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    mirror: bool

    @property
    def train_images(self) -> int:
        """How many training images there are."""
        return sum(self.counts.values())

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has as the smallest."""
        return max(self.counts.values()) / min(self.counts.values())


def count_dataset(name: str, root: str | None = None, *, download: bool = True) -> tuple[int, int]:
    """Return how many images a dataset has before decoding, and the bytes of their files or arrays.

    The first one is decoded. Raises RequestError and DataError as load_dataset() does.
    """
    plugin, source = find_source(name, root, download)
    with file_errors_named(name):
        parts = plugin.read(source)
        files = [part.images for part in (parts.train, parts.test) if part is not None]
        decode(files[0], 0, "training", 1, 1)
        size = sum(_size(images[index]) for images in files for index in range(len(images)))
    return sum(len(images) for images in files), size


def _size(item: Any) -> int:
    """Return an undecoded image's bytes; of a PIL image those of its pixels, one a channel."""
    if isinstance(item, np.ndarray):
        return item.nbytes
    return math.prod((*item.size, len(item.getbands()))) if isinstance(item, Image.Image) else os.stat(item).st_size


def survey_dataset(name: str, root: str | None = None) -> Survey:
    """Decode a dataset, or find it in the cache, and return its figures.

    Raises RequestError and DataError as load_dataset() does, and RequestError where the images have no classes.
    """
    dataset = load_dataset(name, root)
    train = dataset.train
    if train.labels is None or dataset.test is None:
        raise RequestError(
            f"{root or name} has images but no classes: training needs a folder for each class (images without "
            "classes can serve as data.ssl_dataset alongside such a set)"
        )
    plugin, source = find_source(name, root)
    files = plugin.read(source).train.images
    sizes = []
    for index in np.linspace(0, len(files) - 1, num=min(_OPENED, len(files)), dtype=int):
        with open_image(files, int(index), "training") as image:
            sizes.append(image.size)
    counts = np.bincount(train.labels, minlength=len(train.classes))
    return Survey(
        name=name,
        root=root,
        counts={label: int(count) for label, count in zip(train.classes, counts, strict=True)},
        test_images=len(dataset.test.images),
        image_size=train.images.shape[2],
        channels=train.images.shape[1],
        smallest=min(sizes, key=lambda size: size[0] * size[1]),
        largest=max(sizes, key=lambda size: size[0] * size[1]),
        mirror=train.mirror,
    )
