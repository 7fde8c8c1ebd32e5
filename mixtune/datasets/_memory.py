"""Anyone's arrays as a dataset in memory, read as files are, without a cache."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.datasets._convert import to_parts
from mixtune.datasets._load import check_parts, decode_into
from mixtune.datasets._split import with_test_part
from mixtune.datasets._types import DEFAULT_READING, Dataset, ImageSet, Reading
from mixtune.errors import RequestError


def hold_dataset(data: Any, image_size: int | None = None, reading: Reading = DEFAULT_READING) -> Dataset:
    """Return data as a dataset in memory.

    data: as for to_parts(); a Dataset is returned as it is. image_size, reading: as in load_dataset(). Without test
    images a stratified fifth is held out. Raises RequestError where data are not that, DataError where an image cannot
    be read.
    """
    if isinstance(data, Dataset):
        return data
    parts = to_parts(data)
    try:
        check_parts(parts, "in memory")
    except ValueError as error:
        raise RequestError(str(error)) from error
    parts = with_test_part(parts)
    with tempfile.TemporaryDirectory(prefix="mixtune-") as folder:
        place = Path(folder) / "decoded"
        dataset = decode_into(parts, image_size, None, reading, place, Path(), alone=False)
        train, val, test = (part and _in_memory(part) for part in (dataset.train, dataset.val, dataset.test))
    assert train is not None
    return replace(dataset, train=train, val=val, test=test)


def _in_memory(part: ImageSet) -> ImageSet:
    def copy(array: npt.NDArray[Any] | None) -> Any:
        return None if array is None else np.array(array)

    labels, groups, index = map(copy, (part.labels, part.groups, part.index))
    return replace(part, images=copy(part.images), labels=labels, groups=groups, index=index)
