"""Who may write a folder: the command that made it, one process at a time.

A run directory has one driver, and not before the last one's workers have ended.

Two files, flock-ed. ``.driver.lock`` is held alone by the process that searches, resumes or confirms, and says who
that is. ``.trials.lock`` is held shared by each process that trains a trial: it lives on for a second or two when
its driver is killed. The kernel frees what a dead process held, so nobody has to remove the files. A folder of another
command has ``.mixtune-COMMAND.json``, which says whose it is, too.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixtune.errors import RequestError
from mixtune.files import is_temporary, make_folder, open_regular, remove_temporary

DRIVER_LOCK, TRIALS_LOCK = ".driver.lock", ".trials.lock"

_POLL_S = 0.05
_GLANCE_S = 0.3  # how long a driver tries: holder() may have the lock for a moment, and its owner may be signing it
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

_log = logging.getLogger("mixtune")


@contextmanager
def hold_run(
    directory: str | os.PathLike[str],
    doing: str,
    wait_s: float = 30.0,
    on_wait: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Be the one driver of a run directory, which must exist; ``doing``: "search", "resume", "confirm" or "clean".

    Workers of a former driver are waited for, at most wait_s seconds; ``on_wait`` receives a line, once. Raises
    RequestError where another driver has the directory, where workers do not end, and where there is no directory or
    none that may be written. A file system without locks gives one warning in the log, and no protection.
    """
    directory = Path(directory)
    driver = _open_or_refuse(directory, DRIVER_LOCK)
    try:
        try:
            _take_and_sign(driver, directory, doing)
            _await_workers(directory, wait_s, on_wait)
            remove_temporary(directory)  # what a killed driver has left
        except _NoLocksError as error:
            _log.warning("%s is not protected from another driver: its file system has no locks (%s)", directory, error)
        yield
    finally:
        os.close(driver)


@contextmanager
def hold_folder(folder: Path, command: str, is_ours: Callable[[Path], bool] = lambda folder: False) -> Iterator[None]:
    """Be the one process that writes a folder of a command, which is made; ``command``: "train" or "export", say.

    A folder is taken that is new or empty or has the command's marker; is_ours: whether an older version, which had
    none, wrote a folder. What killed writers left in it is removed. Raises RequestError where the folder is someone
    else's, in use, or cannot be written.
    """
    refuse_foreign(folder, command, is_ours)
    make_folder(folder)
    file = _open_or_refuse(folder, _marker_of(command))
    try:
        try:
            _take_and_sign(file, folder, command)
        except _NoLocksError as error:
            _log.warning("%s is not protected from another writer: its file system has no locks (%s)", folder, error)
        remove_temporary(folder)
        yield
        with suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, b"{}\n", 0)
    finally:
        os.close(file)


def refuse_foreign(folder: Path, command: str, is_ours: Callable[[Path], bool] = lambda folder: False) -> None:
    """Raise RequestError unless a folder is new or empty, or its command's; see hold_folder()."""
    try:
        names = [path.name for path in folder.iterdir() if not is_temporary(path)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise RequestError(f"{folder} cannot be written to: {error.strerror}") from error
    if names and _marker_of(command) not in names and not is_ours(folder):
        first = min(names, key=lambda name: (name.startswith("."), name))
        raise RequestError(f"{folder} holds {first}, which no {command} wrote: choose another folder")


def share_run(directory: str | os.PathLike[str]) -> int | None:
    """Note that this process trains a trial of the run, until it ends or closes the descriptor that is returned.

    None where this host has no such folder, as in a cluster without a shared file system, none that may be written,
    or a file system without locks. A program that is started does not keep the lock.
    """
    try:
        file = open_regular(Path(directory) / TRIALS_LOCK, os.O_RDWR | os.O_CREAT)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH)  # a driver that looks for workers has it for a moment
    except OSError as error:
        os.close(file)
        if error.errno in _NO_LOCKS:
            return None
        raise
    return file


def ask_to_end(directory: str | os.PathLike[str], asked: bool = True) -> None:
    """Let the run's workers store after each epoch, since each may be the last; not asked: as ever, again."""
    with suppress(OSError):  # a full disk: they lose an epoch more
        file = open_regular(Path(directory) / TRIALS_LOCK, os.O_WRONLY)
        os.ftruncate(file, 1 if asked else 0)
        os.close(file)


def is_asked_to_end(directory: str | os.PathLike[str]) -> bool:
    """Return whether the run's driver is about to end, as far as this host sees its folder."""
    try:
        return os.stat(Path(directory) / TRIALS_LOCK).st_size > 0
    except OSError:
        return False


def holder(directory: str | os.PathLike[str]) -> str | None:
    """Return who drives the run now, "search, process 1234 on host", or None; nothing is written or waited for."""
    try:
        file = open_regular(Path(directory) / DRIVER_LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        if _take(file, fcntl.LOCK_SH):
            return None
        by = _read_holder(file)
        return f"{by[1]}, {by[0]}" if by else "another process"
    except _NoLocksError:
        return None
    finally:
        os.close(file)


class _NoLocksError(Exception):
    """The file system has no flock."""


def _await_workers(directory: Path, wait_s: float, on_wait: Callable[[str], None]) -> None:
    """Return once no process trains a trial of the run; the lock is given back at once, for our own workers."""
    workers = _open_or_refuse(directory, TRIALS_LOCK)
    try:
        if _take(workers):
            return
        on_wait(f"{directory}: waiting for trials of the driver before to end, at most {wait_s:.0f} s")
        if not _take_within(workers, wait_s):
            raise RequestError(
                f"{directory}: trials of the driver before still run after {wait_s:.0f} s: end their processes, which "
                f"fuser {shlex.quote(str(directory / TRIALS_LOCK))} lists on the host that they run on, and try again"
            )
    finally:
        os.close(workers)


def _marker_of(command: str) -> str:
    return f".mixtune-{command}.json"


def _take_and_sign(file: int, folder: Path, doing: str) -> None:
    """Take a folder's lock and say who has it. Raises RequestError where another process has it, and _NoLocksError."""
    if not _take_within(file, _GLANCE_S):
        by = _read_holder(file)
        who = f"{by[0]} ({by[1]} since {by[2]})" if by else "another process"
        is_own_study = by is not None and by[:2] == (f"process {os.getpid()} on {platform.node()}", "study")
        close = "; it is this process: close() its study first" if is_own_study else ""
        raise RequestError(f"{folder} is in use by {who}{close}")
    _sign(file, doing)


def _take_within(file: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _take(file):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _take(file: int, how: int = fcntl.LOCK_EX) -> bool:
    """Return whether the lock could be had at once. Raises _NoLocksError."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise _NoLocksError(error.strerror) from error
        raise
    return True


def _sign(file: int, doing: str) -> None:
    by = {"pid": os.getpid(), "host": platform.node(), "doing": doing, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # a full disk: the lock holds without a name, and the search will say what is wrong
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(by).encode(), 0)


def _read_holder(file: int) -> tuple[str, str, str] | None:
    """Return "process 1234 on host", what it does and since when, or None where it has not signed yet."""
    try:
        by = json.loads(os.pread(file, 4096, 0))
        return f"process {by['pid']} on {by['host']}", str(by["doing"]), str(by["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_or_refuse(directory: Path, name: str) -> int:
    try:
        return open_regular(directory / name, os.O_RDWR | os.O_CREAT)
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"there is no run directory {directory}") from None
    except OSError as error:
        raise RequestError(f"{directory / name} cannot be opened: {error.strerror}") from error
