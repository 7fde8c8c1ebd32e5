"""What the room hands out (`Dataset`), and what a plug-in gets (`Source`) and returns (`Parts`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Reading:
    """How images become arrays; the fields of ``data`` in a recipe say what they mean. rules: ``data.reading``."""

    fit: str = "auto"
    background: str = "auto"
    range: str | tuple[float, float] = "auto"
    max_megapixels: float = 178.0
    on_bad_file: str = "stop"
    rules: int = 2


DEFAULT_READING = Reading()


@dataclass(frozen=True)
class Account:
    """What became of a source's files.

    origins: where each part is from, by "train", "val", "test"; left_out: how many files were not taken, by reason;
    bad: (name, reason) of each file that could not be read and was skipped; notes: lines on how the source was
    understood; frames: how many files have several images, of which the first was taken.
    """

    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    frames: int = 0


INDEX = np.dtype(
    [
        ("named", "V32"),  # digest of a file's name and bytes
        ("file", "V16"),  # of its bytes
        ("pixels", "V16"),  # of the decoded pixels; all zero for an image of one colour
        ("width", "u4"),
        ("height", "u4"),
        ("mode", "S8"),
        ("format", "S8"),
        ("gray", "?"),
        ("frames", "?"),  # whether the file holds several images
    ]
)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of one part of a dataset, shared between processes by the page cache.

    images: uint8 (N, C, H, W), H = W; C is 1, 3, or an array's own number of channels; a read-only memory map.
    labels: int64 (N,) with values in [0, len(classes)), or None where the images have no labels.
    classes: class names, by label; empty where the images have no labels.
    mirror: whether an image keeps its meaning when mirrored left to right. False for digits and letters;
        True for SVHN all the same, because the MixTraining paper flips it.
    mean, std: per channel, in units of 0..1, of the training part (the test part carries the same values, for
        it is normalised by them); over at most 10,000 evenly spaced images; std is at least 1/255.
    source: a digest of the images before decoding: of files by their bytes and relative names, or of arrays.
    groups: int64 (N,), equal for images that may not be parted by a split (of one patient, say), or None.
    index: what each file was before decoding (INDEX, N), or None where that is not known.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    classes: tuple[str, ...]
    mirror: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""
    groups: npt.NDArray[np.int64] | None = None
    index: npt.NDArray[Any] | None = None

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return images (N, C, H, W) uint8 and labels (N,) int64 or None, without copying.

        The memory is mapped copy-on-write: writing to a tensor changes this process's pages, never the cache.
        """
        return _share(self.images), None if self.labels is None else _share(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The parts of a dataset; ``test`` is None where the source has no labels and so no test part.

    val: validation images of the source's own, or None: then a share of the training images validates. reading: how
    they were read, without ``auto``.
    """

    train: ImageSet
    test: ImageSet | None
    val: ImageSet | None = None
    reading: Reading = DEFAULT_READING
    account: Account = Account()


@dataclass(frozen=True)
class Source:
    """Where a plug-in is to look.

    name: the dataset's name as the user wrote it.
    root: absolute path; the default data folder where the user named none (``root_given`` is False).
    download: whether a plug-in that can download may do so.
    parts: where the user says that single parts are (``data.train``, ``data.val``, ``data.test``): absolute paths.
    reading: the rules of reading, see ``data.reading``. labelled: False where classes do not matter: all images below
    ``root`` are wanted, as one part without labels (``data.ssl_root``).
    """

    name: str
    root: Path
    root_given: bool
    download: bool
    parts: tuple[tuple[str, Path], ...] = ()
    reading: int = 2
    labelled: bool = True


class Images(Protocol):
    """Undecoded images: whatever has a length and gives item i on request, from any thread.

    An item is the path of an image file, the bytes of one, a PIL image (opened is enough, pixels are read later), or a
    array of numbers (H, W) or (H, W, C); four channels of bytes are RGBA. A list of paths and an array (N, H, W) are
    such sequences.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a dataset before decoding.

    labels: integers (N,), or None where there are none; groups: integers (N,), see `ImageSet`; origin: where the images
    are from, for people to read ("train/", "a fifth of train/", "labels.csv, split test").
    """

    images: Images
    labels: npt.ArrayLike | None = None
    groups: npt.ArrayLike | None = None
    origin: str = ""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a plug-in returns.

    test None with labelled training images: the common code holds out a stratified fifth as the test part,
    the same for every seed. classes: names by label, empty where there are no labels. mirror: see `ImageSet`. val:
    images to validate by, if the source has such. left_out: how many files were not taken, by reason (".txt", "hidden
    file", "no label"); notes: what else a person should know of how the source was understood, a line each.
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    mirror: bool
    val: Part | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Plugin(Protocol):
    """The contract of a dataset plug-in; a module or any other object that has these two functions."""

    def read(self, source: Source) -> Parts:
        """Describe the dataset's parts without decoding them. Raises RequestError and DataError."""

    def fingerprint(self, source: Source) -> str:
        """Return, cheaply, a text that changes when the files do. Raises RequestError for missing files."""


def _share(array: npt.NDArray[Any]) -> torch.Tensor:
    import torch

    # PyTorch has no read-only tensors and warns about read-only arrays. The map is copy-on-write underneath.
    writable = array.view(np.ndarray)
    writable.flags.writeable = True
    return torch.from_numpy(writable)
