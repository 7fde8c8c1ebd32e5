"""TinyImageNet from its ``tiny-imagenet-200`` folder: 200 classes, 64 x 64 pixels.

``data.root`` is that folder or the one that holds it. Training images stand in class folders; the validation
images stand in one folder with a table of their classes, and are the test part here, because the real test
images have no public labels.
"""

from __future__ import annotations

from pathlib import Path

from mixtune.datasets._files import digest_files, image_files, require_folder, subfolders
from mixtune.datasets._types import Part, Parts, Source
from mixtune.errors import RequestError

_NAME = "tiny-imagenet-200"
_TABLE = "val/val_annotations.txt"


def read(source: Source) -> Parts:
    """Return train/ and val/. Raises RequestError for a folder that is not laid out as published."""
    folder = _find_folder(source)
    wnids = [path.name for path in subfolders(folder / "train")]
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    train: list[Path] = []
    train_labels: list[int] = []
    for wnid, label in label_of.items():
        files = image_files(folder / "train" / wnid)
        if not files:
            raise RequestError(f"{folder / 'train' / wnid} has no images: unpack {_NAME}.zip again")
        train += files
        train_labels += [label] * len(files)
    test, test_labels = _read_validation(folder, label_of)
    return Parts(
        Part(train, train_labels, origin="train/"),
        Part(test, test_labels, origin="val/"),
        _class_names(folder, wnids),
        mirror=True,
    )


def fingerprint(source: Source) -> str:
    """Return a digest of the images' and the tables' paths, sizes and times."""
    folder = _find_folder(source)
    tables = [path for path in (folder / _TABLE, folder / "words.txt") if path.is_file()]
    return digest_files([*image_files(folder / "train"), *image_files(folder / "val"), *tables], folder)


def _find_folder(source: Source) -> Path:
    if source.root_given:
        require_folder(source.root)
    for folder in (source.root, source.root / _NAME):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            if not (folder / _TABLE).is_file():
                raise RequestError(
                    f"{folder / _TABLE} is missing, so the validation images have no classes: unpack "
                    f"{_NAME}.zip again, or, if val/ holds class folders, use dataset image_folder"
                )
            return folder
    raise RequestError(
        f"there is no {_NAME} folder (with train/ and val/) at data.root {source.root}: "
        f"download http://cs231n.stanford.edu/{_NAME}.zip, unpack it, and set data.root to the folder"
    )


def _read_validation(folder: Path, label_of: dict[str, int]) -> tuple[list[Path], list[int]]:
    """Return the images that the table lists, and their labels; a row is file, wnid, and a box."""
    files, labels = [], []
    for number, line in enumerate((folder / _TABLE).read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in label_of:
            raise RequestError(
                f"{folder / _TABLE}, line {number}: expected a file name, a tab and a class of train/, got {line!r}"
            )
        files.append(folder / "val" / "images" / fields[0])
        labels.append(label_of[fields[1]])
    return files, labels


def _class_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """Return each class's first name in words.txt, or the wnids where that file is missing or ambiguous."""
    words = folder / "words.txt"
    if not words.is_file():
        return tuple(wnids)
    rows = (line.partition("\t") for line in words.read_text(encoding="utf-8").splitlines())
    first = {wnid: names.split(",")[0].strip() for wnid, _, names in rows}
    named = tuple(first.get(wnid) or wnid for wnid in wnids)
    return named if len(set(named)) == len(named) else tuple(wnids)
