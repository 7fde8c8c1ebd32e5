"""Folders of images as version 0.1 understood them (``data.reading: 1``), for the runs that rest on it.

Nothing here changes: the same files, in the same order, with the same classes. val/ stands in for a missing test/.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mixtune.datasets._files import digest_files
from mixtune.datasets._types import Part, Parts
from mixtune.errors import RequestError

_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")

_log = logging.getLogger("mixtune.datasets")


def read(root: Path) -> Parts:
    """Return the parts of ``root``, files unopened. Raises RequestError for another layout."""
    train, test = _find_parts(root)
    folders = _class_folders(train)
    if not folders:
        images = _image_files(train)
        if not images:
            raise RequestError(f"{train} holds neither class folders nor images: change data.root")
        return Parts(Part(images), test=None, classes=(), mirror=True)
    classes = tuple(folder.name for folder in folders)
    test_part = _read_test(test, classes) if test is not None else None
    return Parts(_read_classes(folders), test_part, classes, mirror=True)


def fingerprint(root: Path) -> str:
    """Return a digest of the image files' paths, sizes and times."""
    return digest_files(_image_files(root), root)


def _find_parts(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training part and of the test part, if there is one."""
    by_name = {folder.name.lower(): folder for folder in _subfolders(root)}
    train = next((by_name[name] for name in _TRAIN if name in by_name), None)
    tests = [by_name[name] for name in _TEST if name in by_name]
    if train is None:
        if tests:
            raise RequestError(f"{root} has {tests[0].name}/ but no train/: add train/, or change data.root")
        return root, None
    others = [folder for name, folder in by_name.items() if name not in _TRAIN + _TEST]
    if not tests and not _subfolders(train) and any(_image_files(folder) for folder in others):
        return root, None  # a class may well be called "train"
    if len(tests) > 1:
        _log.info("%s: %s is the test part, %s is not used", root, tests[0].name, tests[1].name)
    return train, tests[0] if tests else None


def _class_folders(folder: Path) -> list[Path]:
    """Return the class folders; empty where ``folder`` holds images alone."""
    folders = _subfolders(folder)
    loose = _image_files(folder, nested=False)
    if folders and loose:
        raise RequestError(
            f"{folder} holds both class folders ({folders[0].name}/) and loose images ({loose[0].name}): "
            "move the images into class folders, or away"
        )
    return folders


def _read_classes(folders: list[Path]) -> Part:
    images: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = _image_files(folder)
        if not files:
            raise RequestError(f"class folder {folder} has no images: add some or remove the folder")
        images += files
        labels += [label] * len(files)
    return Part(images, labels)


def _read_test(folder: Path, classes: tuple[str, ...]) -> Part:
    folders = _class_folders(folder)
    found = {path.name for path in folders}
    missing = sorted(set(classes) - found)
    extra = sorted(found - set(classes))
    if missing:
        raise RequestError(
            f"class {missing[0]!r} is in the training part but not in {folder}: add {folder / missing[0]} "
            f"with images of it, or move {folder.name}/ away to have a test part held out"
        )
    if extra:
        raise RequestError(
            f"class {extra[0]!r} is in {folder} but not in the training part: remove it there, or add it to train/"
        )
    return _read_classes(folders)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path, *, nested: bool = True) -> list[Path]:
    return sorted(_walk(folder, nested, set()))


def _walk(folder: Path, nested: bool, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if nested:
                    yield from _walk(Path(entry.path), nested, seen)
            elif os.path.splitext(entry.name)[1].lower() in _SUFFIXES:
                yield Path(entry.path)
