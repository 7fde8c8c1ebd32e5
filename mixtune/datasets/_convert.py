"""What Python code holds, arrays, tables, torch's and Hugging Face's datasets, to parts: one way for all uses."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixtune.datasets._files import PARTS, name_some, part_of
from mixtune.datasets._types import Dataset, Images, ImageSet, Part, Parts
from mixtune.datasets.manifest import Rows, add_table, image_column, parts_of_rows, with_indices
from mixtune.errors import RequestError, one_line

MAX_CHANNELS = 32
_SAMPLE = 200  # images whose fourth channel is looked at
_CLEAR_OR_OPAQUE = 0.9  # share of the pixels where a fourth channel is 0 or 255
_KINDS = (
    "(images, labels) or (images, labels, groups), a torch Dataset of such pairs, a Hugging Face dataset, a "
    "pandas.DataFrame of paths and labels, a dict of one for each of train, val and test, or Parts or a Dataset of "
    "mixtune.datasets"
)


def to_parts(data: Any, name: str = "data") -> Parts:
    """Return the parts of anyone's images and labels; name: for messages.

    data: one of _KINDS. Images are an array (N, H, W), (N, H, W, C) or (N, C, H, W) of numbers, or a sequence of
    arrays, PIL images, paths or files' bytes, of any sizes; labels are N texts or numbers; images of a group stay
    together. Classes are in the order of their numbers, or of the names that a dataset gives. Four channels of bytes
    are taken for red, green, blue and transparency where the fourth is almost only 0 or 255, and else for bands.

    Raises RequestError where it is not that, and where it is not certain which axis the channels are.
    """
    if isinstance(data, Parts):
        return data
    if isinstance(data, Dataset):
        return _undecoded(data)
    rows, stored = Rows(), _Joined()
    for where, split, given in _by_part(data, name):
        if hasattr(given, "iloc") and hasattr(given, "columns"):
            add_table(rows, given, Path.cwd(), where, split)
        else:
            _add(rows, stored, given, where, split)
    if len(stored):
        if len(stored) != len(rows.images):
            raise RequestError(f"{name}: some parts hold images, and others name files: one kind is read")
        rows.stored = stored
    return parts_of_rows(rows, labelled=True)


def channels_last(images: npt.NDArray[Any], where: str, *, of_torch: bool = False) -> npt.NDArray[Any]:
    """Return images (N, H, W), or (N, H, W, C) of (N, C, H, W); of_torch: whose channels come first in doubt.

    Raises RequestError where that is not certain, and where these are no images.
    """
    shape, kind = images.shape, images.dtype
    if not (np.issubdtype(kind, np.integer) or np.issubdtype(kind, np.floating) or kind == np.bool_):
        raise RequestError(f"{where}: images should be numbers, got {kind} {shape}")
    if len(shape) not in (3, 4) or 0 in shape[1:]:
        raise RequestError(f"{where}: images should be (N, H, W), (N, H, W, C) or (N, C, H, W), got {kind} {shape}")
    if len(shape) == 3:
        return images
    _, first, _, last = shape
    if first <= MAX_CHANNELS and first < min(shape[2:]):
        return np.moveaxis(images, 1, 3)
    if last <= MAX_CHANNELS and last < min(shape[1:3]):
        return images
    if of_torch and first <= MAX_CHANNELS:
        return np.moveaxis(images, 1, 3)
    if last in (1, 3, 4):
        return images
    raise RequestError(
        f"{where}: it is not certain which axis of {shape} the channels are: the second or the last one is taken where "
        f"it is at most {MAX_CHANNELS} and smaller than height and width, and else the second one of a torch tensor: "
        "give torch.from_numpy(images), or that of images.transpose(0, 3, 1, 2)"
    )


def _by_part(data: Any, name: str) -> list[tuple[str, str, Any]]:
    """Return what each part is called in messages, its name, "" where that is not given, and what was given for it."""
    if not isinstance(data, Mapping):
        return [(name, "", data)]
    named: dict[str, tuple[str, Any]] = {}
    for key, given in data.items():
        part = part_of(str(key))
        if part not in PARTS or part in named:
            raise RequestError(
                f"{name} has the keys {name_some(map(str, data))}: should be 'train' and, where there are such, 'val' "
                "and 'test'"
            )
        named[part] = (f"{name}[{key!r}]", given)
    if "train" not in named:
        raise RequestError(f"{name} has no key 'train', but {name_some(map(str, data))}")
    return [(where, part, given) for part, (where, given) in named.items()]


def _add(rows: Rows, stored: _Joined, data: Any, where: str, split: str) -> None:
    """Add a part's labels to rows, and its images to those that are stored."""
    import pandas as pd

    names: dict[str, Sequence[str]] = {}
    images: Images
    if hasattr(data, "column_names") and hasattr(data, "features"):
        images, table, names = _of_hugging_face(data, where)
    elif (isinstance(data, tuple) and len(data) == 3) or (isinstance(data, tuple | list) and len(data) == 2):
        images, (labels, groups) = _images(data[0], where), (*data[1:], None)[:2]
        columns = {"label": labels} | ({} if groups is None else {"group": groups})
        table = pd.DataFrame(
            {column: _values(values, len(images), f"{where}: {column}s") for column, values in columns.items()}
        )
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes | Mapping):
        images, labels, classes = _of_torch(data, where)
        table = pd.DataFrame({"label": labels})
        names = {"label": classes} if classes else {}
    else:
        raise RequestError(f"{where} should be {_KINDS}, got {type(data).__name__}")
    if not len(images):
        raise RequestError(f"{where} has no images")
    images = _with_bands(images, where, rows.notes)
    table = with_indices(table, len(stored), len(images))
    add_table(rows, table, Path.cwd(), where, split, names, stored=True)
    stored.add(images)


def _images(given: Any, where: str) -> Images:
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return channels_last(_array(given), where, of_torch=hasattr(given, "detach"))
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise RequestError(f"{where}: images should be an array or a sequence of images, got {type(given).__name__}")
    return _Items(given, where)


def _values(given: Any, count: int, what: str) -> list[Any]:
    if given is None:
        return [None] * count
    if not hasattr(given, "__len__") or isinstance(given, str | bytes):
        raise RequestError(f"{what} should be one for each image, got {type(given).__name__}")
    if hasattr(given, "shape"):
        array = _array(given)
        array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        if array.ndim != 1:
            hint = ": of one-hot rows take .argmax(1)" if array.ndim == 2 else ""
            raise RequestError(f"{what} should be (N,), one for each image, got {array.shape}{hint}")
        given = array.tolist()
    if len(given) != count:
        raise RequestError(f"{what} should be one for each image: there are {len(given):,}, and {count:,} images")
    return [_label(value) for value in given]


def _label(value: Any) -> Any:
    """Return one label as plain Python, of an array of one value that value."""
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "detach"):
        array = _array(value)
        return array.item() if array.size == 1 else array
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _array(value: Any) -> npt.NDArray[Any]:
    """Return an array of NumPy's own, of a torch tensor on any device too."""
    try:
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError) as error:
        raise RequestError(f"data: {type(value).__name__} cannot be read as an array: {one_line(error)}") from error


def _of_torch(dataset: Any, where: str) -> tuple[Images, list[Any], Sequence[str]]:
    """Return a dataset's images, read when asked for, their labels, and the names of these, as far as it has any."""

    def pair(index: int) -> tuple[Any, Any]:
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise RequestError(
                f"{where}: an item of {type(dataset).__name__} should be (image, label), got {_kind(item)}"
            )
        return item[0], item[1]

    if hasattr(dataset, "shape") and hasattr(dataset, "dtype"):
        raise RequestError(f"{where} is an array without labels: should be (images, labels)")
    count = len(dataset)
    if not count:
        return [], [], ()
    first, listed = _label(pair(0)[1]), getattr(dataset, "targets", None)
    labels: list[Any] = []
    if listed is not None and getattr(dataset, "target_transform", None) is None and len(listed) == count:
        labels = [_label(value) for value in (_array(listed).tolist() if hasattr(listed, "shape") else listed)]
    if not labels or labels[0] != first:  # what is listed is something else
        labels = [_label(pair(index)[1]) for index in range(count)]
    inner = dataset
    while not hasattr(inner, "classes") and hasattr(inner, "dataset"):  # of torch.utils.data.Subset
        inner = inner.dataset
    named = getattr(inner, "classes", None)
    classes = named if isinstance(named, list | tuple) and all(isinstance(name, str) for name in named) else ()
    if not all(isinstance(label, int) and 0 <= label < len(classes) for label in labels):
        classes = ()
    return _Items(_Mapped(dataset, lambda item: item[0]), where), labels, classes


def _of_hugging_face(dataset: Any, where: str) -> tuple[Images, Any, dict[str, Sequence[str]]]:
    """Return a dataset's images, the table of its other columns, and the names of classes by column."""
    if not hasattr(dataset, "__len__"):
        raise RequestError(f"{where} is a stream, which has no length: load the dataset without streaming=True")
    features = dataset.features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    column = next((name for name, kind in kinds.items() if kind == "Image"), None) or image_column(list(features))
    if column is None:
        raise RequestError(f"{where} has no column of images: it has {name_some(features)}")
    if kinds[column] == "Image" and hasattr(dataset, "cast_column"):
        dataset = dataset.cast_column(column, type(features[column])(decode=False))  # the files' own bytes
    plain = [name for name, kind in kinds.items() if kind in ("Value", "ClassLabel") and name != column]
    table = dataset.select_columns(plain).to_pandas()
    names = {name: features[name].names for name in plain if kinds[name] == "ClassLabel"}
    return _Items(_Mapped(dataset, lambda row: row[column]), where), table, names


def _undecoded(dataset: Dataset) -> Parts:
    def part(images: ImageSet | None) -> Part | None:
        if images is None:
            return None
        pixels = np.moveaxis(images.images, 1, 3)
        pixels = pixels.astype(np.uint16) if pixels.shape[3] == 4 else pixels  # bands, not transparency
        return Part(pixels, images.labels, images.groups)

    train = part(dataset.train)
    assert train is not None
    return Parts(train, part(dataset.test), dataset.train.classes, dataset.train.mirror, part(dataset.val))


def _with_bands(images: Images, where: str, notes: list[str]) -> Images:
    """Return images whose four channels are not taken for transparency unless they are: bands are in 16 bits."""
    if not _may_be_transparent(images[0]):
        return images
    chosen = np.unique(np.linspace(0, len(images) - 1, num=min(_SAMPLE, len(images)), dtype=int)).tolist()
    some = [image for index in chosen if _may_be_transparent(image := images[index])]
    if np.mean([np.isin(image[..., 3], (0, 255)).mean() for image in some]) >= _CLEAR_OR_OPAQUE:
        notes.append(f"{where}: the fourth of 4 channels is read as transparency, since it is 0 or 255")
        return images
    notes.append(f"{where}: 4 channels are read as bands: as transparency the fourth would be 0 or 255")
    return _Mapped(images, lambda image: image.astype(np.uint16) if _may_be_transparent(image) else image)


def _may_be_transparent(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 4 and image.dtype == np.uint8


class _Items:
    """A sequence's images, one at a time whatever thread asks: arrays have their channels last."""

    def __init__(self, images: Any, where: str) -> None:
        self._images, self._where, self._lock = images, where, threading.Lock()
        self._moves: bool | None = None  # whether channels come first, as the first image tells for all
        if len(images):
            self._moves = self._look(images[0])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        with self._lock:
            item = self._images[index]
        if isinstance(item, Mapping) and "bytes" in item:
            item = item["bytes"] if item["bytes"] is not None else item.get("path")
        if isinstance(item, str):
            return Path(item)
        if isinstance(item, Path | bytes | Image.Image):
            return item
        array = _array(item)
        moves = self._look(item) if self._moves is None else self._moves
        return np.moveaxis(array, 0, 2) if moves and array.ndim == 3 else array

    def _look(self, item: Any) -> bool | None:
        if isinstance(item, Mapping | str | Path | bytes | Image.Image):
            return None
        array = _array(item)
        return channels_last(array[None], self._where, of_torch=hasattr(item, "detach")).shape[1:] != array.shape


class _Mapped:
    """What a function makes of each item of a sequence, when it is asked for."""

    def __init__(self, items: Any, change: Callable[[Any], Any]) -> None:
        self._items, self._change = items, change

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._change(self._items[index])


class _Joined:
    """Several sequences of images, one after the other."""

    def __init__(self) -> None:
        self._parts: list[Images] = []
        self._starts = [0]

    def add(self, images: Images) -> None:
        """Add a sequence at the end."""
        self._parts.append(images)
        self._starts.append(len(self) + len(images))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Any:
        number = bisect_right(self._starts, index) - 1
        return self._parts[number][index - self._starts[number]]


def _kind(item: Any) -> str:
    """Say what an item is that is no pair."""
    if isinstance(item, Mapping):
        return f"a dict with {name_some(map(str, item), 8)}"
    return f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
