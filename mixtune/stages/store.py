"""States on disk by their keys: whole or absent, shared by processes, bounded in size, never needed.

A file is ``<key>.state``: a line with a digest of the key and of what follows, then the state as torch.save wrote it.
Files appear by a rename, so a reader sees all of one or none. A damaged file, a full disk or a folder that cannot be
had cost time alone, since epochs are trained again: no method raises for them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import logging
import os
import pickle
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

STATE, DAMAGED, TEMPORARY = ".state", ".damaged", ".tmp"
MAX_BYTES = 20 * 10**9  # of all states of a run
KEPT_DAMAGED = 3  # the latest, for whoever wants to know what happened
KEPT_FREE = 64 * 2**20  # bytes of the disk that a state leaves to others: a search's ledger has to go on

_HEADER = 2 * hashlib.sha256().digest_size + 1  # bytes
_STARTING_S = 60.0  # between a writer's making a file and its locking it, at the very most

_log = logging.getLogger("mixtune.training")


class StateStore:
    """The states of a folder, which is made when the first one comes; any number of processes may share it.

    A state is a dict of tensors and plain values. max_bytes: of all files together, None for no bound; above it the
    states that were not read or written for longest go first, never the one just written. pinned: asked, whenever
    some have to go, for keys that this process must keep. A writer that died has its temporary file removed here.
    ``warnings`` holds what went to the log, for a process whose log nobody reads.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        max_bytes: int | None = None,
        pinned: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._pinned = pinned
        self.warnings: list[str] = []
        self._warned = False
        self._sweep()

    def save(self, key: str, state: dict[str, Any]) -> bool:
        """Store a state, unless its key is there; return whether it is there now. The first False is in the log."""
        if key in self:
            self._touch(key)
            return True
        packed = io.BytesIO()
        torch.save(state, packed)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(key, packed.getbuffer())
        except OSError as error:
            self._warn_once(f"cannot be written ({error.strerror})")
            return False
        self._evict(key)
        return True

    def load(self, key: str) -> dict[str, Any] | None:
        """Return a state, its tensors on the CPU, or None where it is absent or damaged.

        A damaged file is set aside as ``<key>.damaged``, with a warning in the log.
        """
        try:
            with self._path(key).open("rb") as file:
                header, content = file.read(_HEADER), file.read()
                opened = os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once(f"cannot be read ({error.strerror})")
            return None
        if header != _header(key, content):
            self._set_aside(key, opened, "its digest is not that of its content")
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError):
            self._set_aside(key, opened, "this PyTorch does not read it as tensors and plain values")
            return None
        self._touch(key)
        return state

    def longest(self, keys: Sequence[str]) -> tuple[int, dict[str, Any]] | None:
        """Return (k, the state of ``keys[k]``) for the greatest k whose state is stored and whole, or None."""
        for epochs in reversed(range(len(keys))):
            state = self.load(keys[epochs])
            if state is not None:
                return epochs, state
        return None

    def __contains__(self, key: str) -> bool:
        """Return whether a state is stored; only load() finds out whether it is whole."""
        return os.path.isfile(self._path(key))

    def remove(self, key: str) -> None:
        """Remove a state, if it is there and can be removed."""
        with suppress(OSError):
            self._path(key).unlink()

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each stored state by its key, the one not used for longest first."""
        return {path.stem: status.st_size for path, status in self._files(STATE)}

    def _path(self, key: str) -> Path:
        assert key.isalnum(), key
        return self.folder / f"{key}{STATE}"

    def _files(self, suffix: str) -> list[tuple[Path, os.stat_result]]:
        """Return the files of a kind, the oldest first; another process may remove them at any time."""
        found = []
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.suffix == suffix:
                    with suppress(OSError):
                        found.append((path, path.stat()))
        return sorted(found, key=lambda file: file[1].st_mtime_ns)

    def _touch(self, key: str) -> None:
        with suppress(OSError):
            os.utime(self._path(key))

    def _write(self, key: str, content: memoryview) -> None:
        """Write a state whole. Raises OSError, also before it would fill the disk or be more than all may be."""
        free = shutil.disk_usage(self.folder).free
        if free < len(content) + KEPT_FREE:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free / 1e6:.0f} MB are free")
        if self.max_bytes is not None and len(content) + _HEADER > self.max_bytes:
            raise OSError(errno.EFBIG, f"it has {len(content):,} bytes, all states may have {self.max_bytes:,}")
        temporary = self.folder / f".{key}-{secrets.token_hex(8)}{TEMPORARY}"
        try:
            with temporary.open("xb") as file:
                with suppress(OSError):  # a file system without locks keeps what a dead writer leaves
                    fcntl.flock(file, fcntl.LOCK_EX)
                file.write(_header(key, content))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, self._path(key))
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove dead writers' files: a living writer locks its file before it writes."""
        for path, status in self._files(TEMPORARY):
            if not status.st_size and time.time() - status.st_mtime < _STARTING_S:
                continue
            with suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def _evict(self, written: str) -> None:
        """Remove files until the bound is kept: damaged ones first, then states."""
        if self.max_bytes is None:
            return
        files = self._files(DAMAGED) + self._files(STATE)
        excess = sum(status.st_size for _, status in files) - self.max_bytes
        kept = {self._path(key) for key in (written, *self._pinned())} if excess > 0 else set()
        for path, status in files:
            if excess > 0 and path not in kept:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    excess -= status.st_size

    def _set_aside(self, key: str, opened: os.stat_result, reason: str) -> None:
        path = self._path(key)
        self._warn(f"{path} is damaged ({reason}): it is set aside, and its epochs are trained again")
        self._touch(key)
        with suppress(OSError):
            if os.path.samestat(opened, path.stat()):  # else another process has replaced it meanwhile
                os.replace(path, path.with_suffix(DAMAGED))
        for old, _ in self._files(DAMAGED)[:-KEPT_DAMAGED]:
            with suppress(OSError):
                old.unlink()

    def _warn_once(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"a trial's state in {self.folder} {problem}: epochs are trained again instead of reused")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        _log.warning(text)


def _header(key: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key.encode())  # of the key too: a file is not taken for another's
    digest.update(content)
    return f"{digest.hexdigest()}\n".encode()
