"""torchvision's classification sets by torchvision's own names, downloaded where that is allowed.

Adding a set is adding a row to ``_SETS``: the keywords that give its training part and its test part (None:
it has none, and a stratified fifth is held out). The cache is keyed by the set's name and root, not by its files:
whoever replaces the files by hand calls ``mixtune clean --cache`` too.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixtune.datasets._types import Images, Part, Parts, Source
from mixtune.errors import DataError, RequestError, one_line

_Keywords = dict[str, Any]

_FLAG: tuple[_Keywords, _Keywords] = ({"train": True}, {"train": False})
_SPLIT: tuple[_Keywords, _Keywords] = ({"split": "train"}, {"split": "test"})
_TRAINVAL: tuple[_Keywords, _Keywords] = ({"split": "trainval"}, {"split": "test"})
_VAL: tuple[_Keywords, _Keywords] = ({"split": "train"}, {"split": "val"})
_WHOLE: tuple[_Keywords, None] = ({}, None)

_SETS: dict[str, tuple[_Keywords, _Keywords | None]] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "CLEVRClassification": _VAL,
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": _SPLIT,
    "DTD": _SPLIT,
    "EMNIST": ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "EuroSAT": _WHOLE,
    "FER2013": _SPLIT,
    "FGVCAircraft": _TRAINVAL,
    "FashionMNIST": _FLAG,
    "Flowers102": _SPLIT,
    "Food101": _SPLIT,
    "GTSRB": _SPLIT,
    "ImageNet": _VAL,
    "Imagenette": _VAL,
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "OxfordIIITPet": _TRAINVAL,
    "PCAM": _SPLIT,
    "Places365": ({"split": "train-standard", "small": True}, {"split": "val", "small": True}),
    "QMNIST": _FLAG,
    "RenderedSST2": _SPLIT,
    "SEMEION": _WHOLE,
    "STL10": _SPLIT,
    "SUN397": _WHOLE,
    "SVHN": _SPLIT,
    "StanfordCars": _SPLIT,
    "USPS": _FLAG,
}
_BY_HAND = frozenset({"FER2013", "ImageNet", "StanfordCars"})

# Digits, letters, written words and traffic signs mean something else in a mirror. SVHN's house numbers do
# too, but the MixTraining paper flips them.
_NO_MIRROR = frozenset({"EMNIST", "GTSRB", "KMNIST", "MNIST", "QMNIST", "RenderedSST2", "SEMEION", "USPS"})

_STALLED_S = 60.0  # a connection that is silent for this long has failed

_log = logging.getLogger("mixtune.datasets")


def dataset_names() -> list[str]:
    """Return the names of the sets, spelt as torchvision spells them."""
    return list(_SETS)


def read(source: Source) -> Parts:
    """Return the set's parts. Raises RequestError where files are missing and DataError where a download fails."""
    train_keywords, test_keywords = _SETS[source.name]
    train = _open_set(source, train_keywords)
    test = None if test_keywords is None else _open_set(source, test_keywords)
    train_part = _part(train)
    test_part = None if test is None else _part(test)
    classes = _class_names(train)
    if not classes:
        train_part, test_part, classes = _number_classes(train_part, test_part)
    return Parts(train_part, test_part, classes, mirror=source.name not in _NO_MIRROR)


def fingerprint(source: Source) -> str:
    """Return the set's name and place: published sets do not change."""
    return f"{source.name}\n{source.root}"


def _open_set(source: Source, keywords: _Keywords) -> Any:
    """Return torchvision's dataset object, from the files that are there or else after a download.

    torchvision's classes raise whatever their files make them raise, hence the broad handlers; each ends in
    an error that says what to do. What they print is swallowed.
    """
    import torchvision.datasets  # takes seconds to import

    make = getattr(torchvision.datasets, source.name)
    where = f"torchvision expects the files of {source.name} under {_expected_at(make, source.root)}"
    try:
        with _silence():
            return make(source.root, **keywords)
    except Exception as error:
        if source.name in _BY_HAND:
            raise RequestError(
                f"{source.name} is not at data.root ({_said(error)}), and torchvision cannot download "
                f"it: {where}; place them there by hand, or change data.root"
            ) from error
        if not source.download:
            raise RequestError(
                f"{source.name} is not at data.root ({_said(error)}): {where}; "
                "set data.download: true, or change data.root"
            ) from error
    _log.info("downloading %s to %s", source.name, source.root)
    try:
        source.root.mkdir(parents=True, exist_ok=True)
        with _silence():
            return make(source.root, **keywords, download=True)
    except Exception as error:
        raise DataError(
            f"{source.name} could not be downloaded ({_said(error)}): {where}; with files placed there "
            "by hand, data.download: false works without a network"
        ) from error


def _expected_at(make: Any, root: Path) -> Path:
    base = getattr(make, "base_folder", None)
    if isinstance(base, str):
        return root / base
    if any(parent.__name__ == "MNIST" for parent in inspect.getmro(make)):
        return root / str(make.__name__) / "raw"
    return root


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Swallow what torchvision prints, and let no connection hang."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout)


def _part(held: Any) -> Part:
    """Return a dataset object's images and labels: its files where it lists them, so that a damaged one has a name."""
    lists = ("_image_files", "_images", "samples", "_samples", "imgs")
    listed: list[Any] = next((getattr(held, name) for name in lists if getattr(held, name, None)), [])
    entries = [entry if isinstance(entry, tuple) else (entry, None) for entry in listed]
    tables = ("targets", "labels", "_labels", "y")
    kept = next((getattr(held, name) for name in tables if getattr(held, name, None) is not None), None)
    if kept is None:
        kept = [label for _, label in entries] or [held[index][1] for index in range(len(held))]
    labels = np.asarray(kept, dtype=np.int64)
    labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the class is the first of 8 columns
    if not entries or not isinstance(entries[0][0], str | Path):
        return Part(_Items(held), labels)
    paths = [Path(path) for path, _ in entries]
    order = sorted(range(len(paths)), key=paths.__getitem__)  # some sets list files as the disk does
    return Part([paths[i] for i in order], labels[order])


def _class_names(held: Any) -> tuple[str, ...]:
    """Return the class names, of several synonyms the first; empty where the set has none."""
    names = getattr(held, "classes", None) or getattr(held, "categories", None) or ()
    return tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)


def _number_classes(train: Part, test: Part | None) -> tuple[Part, Part | None, tuple[str, ...]]:
    """Name classes by their numbers and let labels start at 0 (CLEVR counts 3 to 10 objects)."""
    values = np.unique(np.concatenate([np.asarray(part.labels) for part in (train, test) if part]))

    def renumber(part: Part) -> Part:
        return Part(part.images, np.searchsorted(values, np.asarray(part.labels)))

    return renumber(train), None if test is None else renumber(test), tuple(map(str, values))


class _Items:
    """The images of a torchvision dataset, as a sequence."""

    def __init__(self, held: Any) -> None:
        self._held: Images = held

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Any:
        return self._held[index][0]


def _said(error: BaseException) -> str:
    """Return torchvision's error without its advice on an argument that users do not see."""
    return re.sub(r" ?You can (use|set) download=True to download it\.?", "", one_line(error))
