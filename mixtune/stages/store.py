"""States on disk by their keys: whole or absent, shared by processes, bounded in size, never needed.

A file is ``<key>.state``, of 40 hexadecimal digits: a line with a digest of the key and of what follows, then the state
as torch.save wrote it. Other files of the folder, and a folder that is a link, are someone else's and stay as they are.
A damaged file, a full disk or a folder that cannot be made costs time alone, since epochs are trained again: no method
raises for them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mixtune.errors import DataError, RequestError
from mixtune.files import make_folder, read_regular, refuse_link, remove_temporary, write_whole

MAX_BYTES = 20 * 10**9  # of all states of a run
KEPT_FREE = 64 * 2**20  # bytes of the disk that a state leaves to others: a search's ledger has to continue

_NAME = re.compile(r"[0-9a-f]{40}\.state")
_HEADER = 2 * hashlib.sha256().digest_size + 1  # bytes

_log = logging.getLogger("mixtune.training")


class StateStore:
    """The states of a folder, which is made when the first one comes; any number of processes may share it.

    A state is a dict of tensors and plain values. max_bytes: of all files together, None for no bound; above it the
    states that were not read or written for longest go first, never the one just written. What a writer that died
    left is removed here. ``warnings`` holds what went to the log, for a process whose log nobody reads.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.warnings: list[str] = []
        self._warned = False
        with suppress(OSError):
            if not self.folder.is_symlink():
                remove_temporary(self.folder)

    def save(self, key: str, state: dict[str, Any]) -> bool:
        """Store a state, unless its key is there; return whether it is there now. The first False is in the log."""
        if key in self:
            self._touch(key)
            return True
        packed = io.BytesIO()
        packed.write(bytes(_HEADER))
        torch.save(state, packed)
        content = packed.getbuffer()
        content[:_HEADER] = _header(key, content[_HEADER:])
        return self._write(key, content)

    def receive(self, key: str, content: bytes) -> bool:
        """Store what read() gave elsewhere; return whether it is there now: not if it is another's, or damaged."""
        return content[:_HEADER] == _header(key, content[_HEADER:]) and self._write(key, content)

    def adopt(self, key: str, folder: Path) -> bool:
        """Have a state of another folder here, too, by a hard link or a copy; return whether it is there now."""
        if key in self:
            return True
        source = StateStore(folder)
        try:
            refuse_link(self.folder)
            make_folder(self.folder)
            os.link(source.path(key), self.path(key))  # no file of states is ever written to a second time
        except (OSError, RequestError):
            content = source.read(key)
            return content is not None and self.receive(key, content)
        self._evict(key)
        return True

    def read(self, key: str) -> bytes | None:
        """Return a state's file, None where it is absent or cannot be read."""
        try:
            return read_regular(self.path(key), MAX_BYTES)
        except OSError:
            return None

    def _write(self, key: str, content: bytes | memoryview) -> bool:
        try:
            refuse_link(self.folder)
            make_folder(self.folder)
            free = shutil.disk_usage(self.folder).free
            if free < len(content) + KEPT_FREE:
                raise DataError(f"{self.folder}: no space left on the disk: {free / 1e6:.0f} MB are free")
            if self.max_bytes is not None and len(content) > self.max_bytes:
                raise DataError(f"{self.folder}: a state has {len(content):,} bytes, all may have {self.max_bytes:,}")
            write_whole(self.path(key), content)
        except (OSError, RequestError, DataError) as error:
            self._warn_once(str(error))
            return False
        self._evict(key)
        return True

    def load(
        self, key: str, why_unfit: Callable[[dict[str, Any]], str | None] = lambda _: None
    ) -> dict[str, Any] | None:
        """Return a state, its tensors on the CPU, or None where it is absent or damaged.

        why_unfit: says of a state what is wrong with it, None where nothing is. A damaged file, and one with something
        wrong, is removed, with a warning in the log.
        """
        try:
            whole = memoryview(read_regular(self.path(key), MAX_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once(f"{self.path(key)} cannot be read: {error.strerror}")
            return None
        header, content = whole[:_HEADER], whole[_HEADER:]
        damage = "its digest is not that of its content"
        if header == _header(key, content):
            try:
                state: dict[str, Any] = torch.load(_not_inflated(content), map_location="cpu", weights_only=True)
                problem = why_unfit(state) if isinstance(state, dict) else "it is no state"
                if problem is None:
                    self._touch(key)
                    return state
                damage = problem
            except (pickle.UnpicklingError, RuntimeError, zipfile.BadZipFile):
                damage = "this PyTorch does not read it as tensors and plain values"
        self._warn(f"{self.path(key)} was damaged ({damage}): it is removed, and its epochs are trained again")
        self.remove(key)
        return None

    def longest(
        self,
        keys: Sequence[str],
        fetch: Callable[[str], bool] = lambda key: False,
        why_unfit: Callable[[int, dict[str, Any]], str | None] = lambda epochs, state: None,
    ) -> tuple[int, dict[str, Any]] | None:
        """Return (k, the state of ``keys[k]``) for the greatest k whose state is stored and whole, or None.

        fetch: brings a state that is not here, and returns whether it came. why_unfit: see load(); receives k first.
        """
        for epochs in reversed(range(len(keys))):
            fits = functools.partial(why_unfit, epochs)
            state = self.load(keys[epochs], fits)
            if state is None and fetch(keys[epochs]):
                state = self.load(keys[epochs], fits)
            if state is not None:
                return epochs, state
        return None

    def __contains__(self, key: str) -> bool:
        """Return whether a state is stored; only load() finds out whether it is whole."""
        return os.path.isfile(self.path(key))

    def remove(self, key: str) -> None:
        """Remove a state, if it is there and can be removed."""
        with suppress(OSError):
            if not self.folder.is_symlink():
                self.path(key).unlink()

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each checkpoint by its key, the one not used for longest first."""
        found = []
        with suppress(OSError):
            for path in [] if self.folder.is_symlink() else self.folder.iterdir():
                with suppress(OSError):  # another process has removed it
                    if _NAME.fullmatch(path.name):
                        found.append((path.lstat(), path.stem))
        return {key: status.st_size for status, key in sorted(found, key=lambda file: file[0].st_mtime_ns)}

    def path(self, key: str) -> Path:
        """Return where a state is, or would be."""
        name = f"{key}.state"
        assert _NAME.fullmatch(name), name
        return self.folder / name

    def _touch(self, key: str) -> None:
        with suppress(OSError):
            if not self.folder.is_symlink():
                os.utime(self.path(key), follow_symlinks=False)

    def _evict(self, written: str) -> None:
        if self.max_bytes is None:
            return
        sizes = self.sizes()
        excess = sum(sizes.values()) - self.max_bytes
        for key, size in sizes.items():
            if excess > 0 and key != written:
                self.remove(key)
                excess -= size

    def _warn_once(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"{problem}: epochs are trained again instead of reused")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        _log.warning(text)


def _not_inflated(content: memoryview) -> io.BytesIO:
    """Return what torch.save() wrote, which deflates nothing. Raises BadZipFile for what would grow in memory."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file) as archive:
        if sum(item.file_size for item in archive.infolist()) > len(content):
            raise zipfile.BadZipFile("it is deflated")
    file.seek(0)
    return file


def _header(key: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key.encode())  # of the key too: a file is not read as another's
    digest.update(content)
    return f"{digest.hexdigest()}\n".encode()
