"""Folders of image files: what is in them, whether it changed, and what to say where it is not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mixtune.errors import RequestError, suggest

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)


def require_folder(folder: Path, key: str = "data.root") -> None:
    """Raise RequestError where ``folder`` is not a folder, naming the closest existing sibling."""
    if folder.is_dir():
        return
    if folder.exists():
        raise RequestError(f"{key} {folder} is a file, not a folder")
    missing = folder
    while not missing.parent.is_dir():
        missing = missing.parent
    siblings = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir()]
    where = "" if missing == folder else f" (there is no {missing})"
    raise RequestError(f"{key} {folder} does not exist{where}{suggest(missing.name, siblings)}")


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` by name; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path, *, nested: bool = True) -> list[Path]:
    """Return the image files in ``folder`` and, if ``nested``, below it, in one order on every machine.

    Files are told by their suffix; hidden files and folders are left out, links are followed.
    """
    return sorted(_walk(folder, nested, set()))


def digest_files(files: Iterable[Path], root: Path) -> str:
    """Return a digest of the files' paths below ``root``, sizes and modification times."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)}\0{_stamp(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except FileNotFoundError:  # a link to nowhere: decoding it will name it
        return "missing"
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


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
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield Path(entry.path)
