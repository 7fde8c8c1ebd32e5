"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from mixtune.errors import DataError, RequestError

_TEMPORARY = re.compile(r"\..+\.(?P<process>\d+)\.tmp")


def refuse_existing(path: Path) -> None:
    """Raise RequestError where a new file cannot be written: an old one is never overwritten."""
    if path.exists():
        raise RequestError(f"{path} is there already: give another name with -o, or move it away")
    if not path.parent.is_dir():
        raise RequestError(f"-o {path}: there is no folder {path.parent}")


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
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


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # someone else's, or no number of a process at all
        return True
    return True
