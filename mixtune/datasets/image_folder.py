"""Folders of images: a folder a class, with or without train/ and test/; or images with no classes at all.

==============================================  ============================================================
``data.root`` holds                             it is read as
==============================================  ============================================================
train/<class>/... and test/<class>/...          training and test part (val/, valid/ or validation/ stand in
                                                for a missing test/)
train/<class>/... or <class>/...                training part; a stratified fifth is held out as the test part
images, or train/ with images                   images without labels, for self-supervised learning
==============================================  ============================================================

Images inside a class folder may be nested. Hidden files and files that are not images are ignored.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mixtune.datasets._files import digest_files, image_files, require_folder, subfolders
from mixtune.datasets._types import Part, Parts, Source
from mixtune.errors import RequestError

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")

_log = logging.getLogger("mixtune.datasets")


def read(source: Source) -> Parts:
    """Return the parts of ``source.root``, files unopened. Raises RequestError for another layout."""
    train, test = _find_parts(_root(source))
    folders = _class_folders(train)
    if not folders:
        images = image_files(train)
        if not images:
            raise RequestError(f"{train} holds neither class folders nor images: change data.root")
        return Parts(Part(images), test=None, classes=(), mirror=True)
    classes = tuple(folder.name for folder in folders)
    test_part = _read_test(test, classes) if test is not None else None
    return Parts(_read_classes(folders), test_part, classes, mirror=True)


def fingerprint(source: Source) -> str:
    """Return a digest of the image files' paths, sizes and times."""
    root = _root(source)
    return digest_files(image_files(root), root)


def _root(source: Source) -> Path:
    if not source.root_given:
        raise RequestError(
            "dataset image_folder needs data.root, or data.ssl_root for data.ssl_dataset: the folder of the images"
        )
    require_folder(source.root)
    return source.root


def _find_parts(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training part and of the test part, if there is one."""
    by_name = {folder.name.lower(): folder for folder in subfolders(root)}
    train = next((by_name[name] for name in _TRAIN if name in by_name), None)
    tests = [by_name[name] for name in _TEST if name in by_name]
    if train is None:
        if tests:
            raise RequestError(f"{root} has {tests[0].name}/ but no train/: add train/, or change data.root")
        return root, None
    others = [folder for name, folder in by_name.items() if name not in _TRAIN + _TEST]
    if not tests and not subfolders(train) and any(image_files(folder) for folder in others):
        return root, None  # a class may well be called "train"
    if len(tests) > 1:
        _log.info("%s: %s is the test part, %s is not used", root, tests[0].name, tests[1].name)
    return train, tests[0] if tests else None


def _class_folders(folder: Path) -> list[Path]:
    """Return the class folders; empty where ``folder`` holds images alone."""
    folders = subfolders(folder)
    loose = image_files(folder, nested=False)
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
        files = image_files(folder)
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
