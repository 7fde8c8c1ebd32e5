"""Files that are written whole or not at all, and read only where they are files."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from mixtune.errors import DataError, RequestError

_TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.[0-9a-f]{8})?\.(?P<process>\d+)\.tmp")


def refuse_existing(path: Path) -> None:
    """Raise RequestError where a new file cannot be written: an old one is never overwritten."""
    if path.exists():
        raise RequestError(f"{path} is there already: give another name with -o, or move it away")
    if not path.parent.is_dir():
        raise RequestError(f"-o {path}: there is no folder {path.parent}")


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part. Raises DataError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def open_regular(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """Open a regular file as os.open() does; return its descriptor.

    Raises OSError, too for a link, a pipe, a device or a folder.
    """
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", path) from error
        raise
    return _refuse_irregular(file, path)


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return the content of a regular file, or of one that a link names.

    Raises OSError, too for a pipe, a device or a folder, and for a file of more than ``max_bytes``.
    """
    file = _refuse_irregular(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), path)
    with os.fdopen(file, "rb") as opened:
        size = os.fstat(file).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and may have {max_bytes:,}", path)
        return opened.read(max_bytes)


def refuse_link(path: Path) -> None:
    """Raise RequestError where a name below a folder of ours is a link: what it points to is someone else's."""
    if path.is_symlink():
        raise RequestError(f"{path} is a link to {os.readlink(path)}, and nothing is written through it: remove it")


def refuse_other_file(path: Path, mark: bytes, what: str) -> None:
    """Raise RequestError where a file is there that does not begin as what mixtune would replace it by.

    mark: what the first bytes of mixtune's own hold; what: those, in words, as "a picture that mixtune drew".
    """
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            begins = file.read(1024)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    if mark not in begins:
        raise RequestError(f"{path} is there already, and not {what}: give another file, or move it away")


def is_temporary(path: Path) -> bool:
    """Return whether a file is what write_whole() has not finished, by its name."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporary(folder: Path, name: str | None = None) -> None:
    """Remove what write_whole() left unfinished in a folder, of a file or of all, in processes that have ended.

    What cannot be listed or removed stays.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match and name in (None, match["name"]) and not _runs(int(match["process"])):
                with suppress(OSError):
                    path.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there. Raises RequestError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{path} cannot be made: {error.strerror}") from error


def _refuse_irregular(file: int, path: str | os.PathLike[str]) -> int:
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "it is not a regular file", path)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # someone else's, or no number of a process at all
        return True
    return True
