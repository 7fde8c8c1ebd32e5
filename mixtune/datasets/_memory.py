"""Anyone's arrays as a dataset in memory, read as files are, without a cache."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.datasets._load import check_parts, decode_into
from mixtune.datasets._split import with_test_part
from mixtune.datasets._types import DEFAULT_READING, Dataset, Images, ImageSet, Part, Parts
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
    with tempfile.TemporaryDirectory(prefix="mixtune-") as folder:
        place = Path(folder) / "decoded"
        dataset = decode_into(parts, image_size, None, DEFAULT_READING, place, Path(), alone=False)
        train, val, test = (part and _in_memory(part) for part in (dataset.train, dataset.val, dataset.test))
    assert train is not None
    return replace(dataset, train=train, val=val, test=test)


def _in_memory(part: ImageSet) -> ImageSet:
    def copy(array: npt.NDArray[Any] | None) -> Any:
        return None if array is None else np.array(array)

    labels, groups, index = map(copy, (part.labels, part.groups, part.index))
    return replace(part, images=copy(part.images), labels=labels, groups=groups, index=index)


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
