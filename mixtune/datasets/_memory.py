"""Anyone's arrays as a dataset in memory, read as files are, without a cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixtune.datasets._cache import decoded_blocks, statistics
from mixtune.datasets._decode import choose_layout
from mixtune.datasets._load import check_parts
from mixtune.datasets._split import with_test_part
from mixtune.datasets._types import Dataset, Images, ImageSet, Part, Parts
from mixtune.errors import RequestError

Arrays = tuple[Images, npt.ArrayLike]
AnyData = Dataset | Parts | Arrays


def hold_dataset(data: AnyData, image_size: int | None = None) -> Dataset:
    """Return data as a dataset in memory.

    data: (images, labels): uint8 (N, H, W) or (N, H, W, C) with C in {1, 3, 4}, and N labels, whose sorted values are
    the classes; or Parts, which name classes and test images; a Dataset is returned as it is. image_size: as in
    load_dataset(). Without test images a stratified fifth is held out. Raises RequestError where data are not that,
    DataError where an image cannot be read.
    """
    if isinstance(data, Dataset):
        return data
    parts = data if isinstance(data, Parts) else _label(data)
    try:
        check_parts(parts, "in memory")
    except ValueError as error:
        raise RequestError(str(error)) from error
    parts = with_test_part(parts)
    size, channels = choose_layout(parts, image_size, None)

    def decode(part: Part, name: str) -> tuple[npt.NDArray[np.uint8], str]:
        digest = hashlib.sha256()
        blocks = [*decoded_blocks(part, name, size, channels, Path(), digest)]
        return np.concatenate(blocks), digest.hexdigest()

    images, source = decode(parts.train, "training")
    mean, std = (tuple(values) for values in statistics(images))

    def held(part: Part, images: npt.NDArray[np.uint8], source: str) -> ImageSet:
        labels = None if part.labels is None else np.asarray(part.labels, dtype=np.int64)
        return ImageSet(images, labels, parts.classes, parts.mirror, mean, std, source)

    test = None if parts.test is None else held(parts.test, *decode(parts.test, "test"))
    return Dataset(held(parts.train, images, source), test)


def _label(data: Arrays) -> Parts:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise RequestError(
            f"data should be (images, labels), Parts or a Dataset of mixtune.datasets, got {type(data).__name__}"
        )
    images, labels = data
    dtype, shape = getattr(images, "dtype", None), tuple(getattr(images, "shape", ()))
    if dtype is not None and (
        dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4))
    ):
        raise RequestError(
            f"images should be uint8 (N, H, W) or (N, H, W, C) with 1, 3 or 4 channels, got {dtype} {shape}"
        )
    values, numbers = np.unique(np.asarray(labels), return_inverse=True)
    return Parts(Part(images, numbers), test=None, classes=tuple(str(value) for value in values), mirror=True)
