"""Files that are written whole or not at all, and folders that hold what one writer left there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mixtune.errors import DataError, RequestError

MANIFEST = ".mixtune-export.json"  # of a folder that write_folder() wrote: its files with their digests

_TEMPORARY = re.compile(r"\..+\.(?P<process>\d+)\.tmp")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part. Raises DataError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def is_temporary(path: Path) -> bool:
    """Return whether a file is what write_whole() has not finished, by its name."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Remove what write_whole() left unfinished in a folder, in processes that have ended."""
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _runs(int(match["process"])):
            with suppress(OSError):
                path.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there. Raises RequestError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{path} cannot be made: {error.strerror}") from error


def refuse_foreign(folder: Path) -> None:
    """Raise RequestError where a folder holds anything but what write_folder() wrote there, unchanged."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file: choose another folder")
    written = _read_manifest(folder)
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or (path.is_dir() and not path.is_symlink()):
            continue
        if name not in written:
            raise RequestError(f"{folder} holds {name}, which no export wrote: choose another folder")
        try:
            is_changed = written[name] != _digest(path.read_bytes())
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from error
        if is_changed:
            raise RequestError(f"{path} is not as an export wrote it: choose another folder, or remove that file")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder's files by their relative paths, in the place of those that a call before has left there.

    Nothing is in the folder before all are on the disk. Raises RequestError as refuse_foreign() does, and DataError.
    """
    refuse_foreign(folder)
    make_folder(folder)
    files = {**files, MANIFEST: json.dumps({name: _digest(content) for name, content in files.items()}).encode()}
    outdated = _read_manifest(folder).keys() - files.keys()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
            for name, content in files.items():
                make_folder((Path(aside) / name).parent)
                write_whole(Path(aside) / name, content)
            for name in files:
                make_folder((folder / name).parent)
                os.replace(Path(aside) / name, folder / name)
        for name in outdated:
            (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # it holds others
                (folder / name).parent.rmdir()
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error


def _read_manifest(folder: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # someone else's, or no number of a process at all
        return True
    return True
