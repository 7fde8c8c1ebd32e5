"""The Ray session that a search runs in: one of its own, the one that is there, or a cluster's; quiet, and put back."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.ray_logging import stdout_deduplicator
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from mixtune.errors import RequestError, TrainingError, one_line

_log = logging.getLogger("mixtune.tuning")
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the old one is silent, the new one prints a table
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it ends the search and keeps what is done
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the ledger is the one truth; Ray's own state is never read
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # a search hands out what its slots take; all may start at once
    "TUNE_WARN_THRESHOLD_S": "10",
}
_OURS = ("RAY_", "TUNE_", "PYTHONBREAKPOINT")  # how variables begin that a session may set
_HOST_PORT = re.compile(r"\[?([^\[\]]+)\]?:(\d+)")
_TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
SHARED_MEMORY = Path("/dev/shm")
STORE_BYTES = 100_000_000  # of objects that processes hand to each other, where there is no shared memory
_PRIVATE = re.compile(r"mx[0-9a-f]{4}")  # of a session of ours, in the folder for sessions
# of a folder for sessions: a socket's path has 107 characters, and below it Ray's are as long as this
MAX_FOLDER = 107 - len(f"/mx1234/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
_PROCESSES = {  # of a session, without which it is none
    "gcs_server": "Ray's head process (gcs_server) has ended",
    "raylet": "Ray's process for this machine (raylet) has ended",
}
_WORDS: dict[type[BaseException], str] = {  # the first that fits
    ray.exceptions.OutOfMemoryError: "the machine's memory is full: Ray ended the worker process",
    ray.exceptions.OutOfDiskError: "the disk with Ray's session is full",
    ray.exceptions.ObjectStoreFullError: "the memory that Ray's processes share is full",
    ray.exceptions.LocalRayletDiedError: _PROCESSES["raylet"],
    ray.exceptions.NodeDiedError: "its node was lost",
    ray.exceptions.ObjectLostError: "what a lost process held for others is gone",
    ray.exceptions.RuntimeEnvSetupError: "Ray could not set up a worker process",
    ray.exceptions.AuthenticationError: "Ray's processes have another token",
    ray.exceptions.RpcError: "Ray's head process (gcs_server) does not answer",
    ray.exceptions.GetTimeoutError: "Ray has not answered in time",
    ray.exceptions.TaskUnschedulableError: "Ray finds no node for a task",
    ray.exceptions.ActorUnschedulableError: "Ray finds no node for a trial",
    ray.exceptions.WorkerCrashedError: "the worker process died",
    ray.exceptions.RayActorError: "the worker process died",
    ray.exceptions.RaySystemError: "Ray's processes have lost each other",
}
ALIVE_S = 2.0  # to take a connection
ENDING_S = 8.0  # for a search that a signal ends to see that its head is gone
HEAD_S = 45.0  # Ray itself gives up after a minute
POLL_S = 2.0  # between two looks at a cluster
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a job


def session_address(address: str | None) -> str | None:
    """Return the address of the cluster that a search joins: the given one, inside a Ray job the job's; else None.

    Raises RequestError for one that cannot drive a search.
    """
    if address is None and IN_JOB in os.environ:
        return "auto"
    if address is not None and address.startswith("ray://"):
        raise RequestError(
            f"--address {address}: a search's driver belongs on the cluster, not behind Ray Client: run it as a job, "
            "ray job submit --working-dir . -- mixtune search SPACE --address auto --out DIR"
        )
    return address


def is_in_job_folder(path: Path) -> bool:
    """Return whether a folder goes with the Ray job that it is in: below the job's working directory."""
    return "runtime_resources" in path.resolve().parts


@dataclass(frozen=True)
class Session:
    """A Ray session; ``start`` starts another one once it is shut down, None where it is not ours to shut down."""

    start: Callable[[], None] | None = None


@contextmanager
def ray_session(address: str | None, cpus: int, gpus: int) -> Iterator[Session]:
    """Run with Ray: the cluster at ``address``, the session that is there already, or one of our own.

    Only a session of our own is shut down, and the environment is then as it was before. Raises RequestError for an
    address that does not answer, or is another version's, and TrainingError in our words for what Ray raises meanwhile.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    is_there = ray.is_initialized()
    try:
        os.environ.update({name: value for name, value in _QUIET.items() if name not in before})
        session = nullcontext(Session()) if is_there else _own_session(address, cpus, gpus)
        with _silenced("ray"), _silenced("ray.tune"), _without_raylets_logs(), session as opened:
            yield opened
    except ray.exceptions.RayError as error:
        raise TrainingError(ray_words(error) or one_line(error)) from error
    finally:
        for name in [name for name in os.environ if name.startswith(_OURS) and name not in before]:
            del os.environ[name]
        os.environ.update(before)
        if not is_there:
            _refresh_authentication()


@contextmanager
def head_watched(last_words: str, interrupted: Callable[[], str | None]) -> Iterator[None]:
    """Say last words and end this process where the session's head is gone for HEAD_S; a head may come back before.

    interrupted: says so, and how to continue, where a signal ends the search anyway, and has ended the head too.

    Ray ends a process whose head is gone for a minute in C++, without a word that helps, and raises nothing before.
    """
    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    host = host.strip("[]")  # of IPv6
    ended = threading.Event()

    def watch() -> None:
        answered = time.monotonic()
        while not ended.wait(POLL_S):
            if answers(host, int(port)):
                answered = time.monotonic()
            elif time.monotonic() - answered > ENDING_S and (words := interrupted()) is not None:
                print(f"mixtune: {words}", file=sys.stderr, flush=True)
                os._exit(130)
            elif time.monotonic() - answered > HEAD_S:
                print(f"mixtune: {last_words}", file=sys.stderr, flush=True)
                os._exit(1)

    threading.Thread(target=watch, name="mixtune-head", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def answers(host: str, port: int) -> bool:
    """Return whether a process takes connections there."""
    try:
        socket.create_connection((host, port), timeout=ALIVE_S).close()
    except OSError:
        return False
    return True


def lost_process() -> str | None:
    """Return which process of a session on this machine has ended, in words; None where all run, or it is a cluster's.

    Ray notices neither, or after a minute, when it ends this process without a word that helps.
    """
    node = ray._private.worker._global_node
    ended = {kind for kind, _ in node.dead_processes()} if node is not None else set()
    return next((words for kind, words in _PROCESSES.items() if kind in ended), None)


def ray_words(error: BaseException) -> str | None:
    """Return in our words what went wrong in Ray, None for what is not Ray's."""
    return next((words for kind, words in _WORDS.items() if isinstance(error, kind)), None)


@contextmanager
def _own_session(address: str | None, cpus: int, gpus: int) -> Iterator[Session]:
    if address is not None:
        _start(address, cpus, gpus)
        try:
            yield Session()
        finally:
            ray.shutdown()
        return
    with _private_folder() as folder:
        _start(None, cpus, gpus, folder)
        try:
            yield Session(functools.partial(_start, None, cpus, gpus, folder))
        finally:
            ray.shutdown()


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Make a folder for Ray's files that nobody else can enter; those whose process was killed are removed."""
    within, line = session_folder()
    if line is not None:
        _log.warning(line)
    for other in within.iterdir():
        if not _PRIVATE.fullmatch(other.name):
            continue
        with suppress(OSError):  # someone else's, whose session runs, or gone by now
            if (other / "ray").is_dir():  # one without begins just now
                lock = os.open(other, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(lock).st_uid == os.geteuid():
                        shutil.rmtree(other, ignore_errors=True)
                finally:
                    os.close(lock)
    folder = _make_private(within)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_SH)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _make_private(within: Path) -> Path:
    """Make a folder as tempfile.mkdtemp() does, with a shorter name: each character counts in a socket's path."""
    while True:
        folder = within / f"mx{secrets.token_hex(2)}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder


def _start(address: str | None, cpus: int, gpus: int, folder: Path | None = None) -> None:
    """Start Ray, or join a cluster; folder: for the files of a session of our own."""
    if address is not None and (found := _HOST_PORT.fullmatch(address)) and not answers(found[1], int(found[2])):
        raise RequestError(f"--address {address}: no Ray cluster there: nothing answers")  # Ray would try for minutes
    own: dict[str, Any] = {}
    if address is None:
        if (problem := loopback_problem()) is not None:
            raise RequestError(f"Ray did not start here: {problem}")
        os.environ["RAY_TMPDIR"] = str(folder)
        # nobody reads them without a dashboard, and where the head is gone Ray's end waits to send them
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        own = {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False}
        own |= {} if shared_memory_bytes() else {"_plasma_directory": str(folder), "object_store_memory": STORE_BYTES}
    _authenticate(address)
    try:
        with _importing_alike():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except SystemExit:  # what Ray makes of a SIGTERM while it starts
        raise KeyboardInterrupt from None
    except Exception as error:  # whatever Ray raises, of a machine that it does not like
        if address is None:
            said = "a folder or file of it: " if isinstance(error, OSError) else ""
            raise RequestError(f"Ray did not start here: {said}{one_line(error)}; mixtune doctor looks why") from error
        raise RequestError(f"--address {address}: {_why_not(error)}") from error


def session_folder() -> tuple[Path, str | None]:
    """Return where Ray keeps the files of a session of our own: RAY_TMPDIR, or TMPDIR, or /tmp where that will not do.

    The second is a line where it is not the folder that was named. Raises RequestError with the variable to set.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "TMPDIR")
    folder = Path(os.environ.get(name) or "/tmp")
    problem = folder_problem(folder)
    if problem is None:
        return folder, None
    if name == "RAY_TMPDIR" or folder_problem(Path("/tmp")) is not None:
        raise RequestError(
            f"{name}: {folder} {problem}: set {name} to a folder of yours, for Ray's session, of at most {MAX_FOLDER} "
            "characters"
        )
    return Path("/tmp"), f"TMPDIR: {folder} {problem}: Ray's session is in /tmp; RAY_TMPDIR gives it another folder"


def folder_problem(folder: Path, longest: int = MAX_FOLDER) -> str | None:
    """Return why files cannot be written in a folder, or sockets below it, None where they can."""
    if not folder.is_dir():
        return "is not a folder" if folder.exists() else "is not there"
    if len(os.fsencode(folder.resolve())) > longest:
        return f"is {len(os.fsencode(folder.resolve()))} characters long, and a socket's path has room for {longest}"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"a word")
            file.flush()
    except OSError as error:
        return f"cannot be written to: {error.strerror}"
    return None


def loopback_problem() -> str | None:
    """Return why this machine's processes cannot reach each other, None where they can; Ray would try for minutes."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=ALIVE_S).close()
    except OSError as error:
        return f"127.0.0.1 does not answer ({error.strerror or error}): bring it up, as by ip link set lo up"
    return None


def shared_memory_bytes() -> int:
    """Return the bytes that are free in /dev/shm; 0 where it is not there, cannot be written to or is as good as full.

    Ray wants it, and a search does without: what its processes hand to each other is small.
    """
    if folder_problem(SHARED_MEMORY) is not None:
        return 0
    free = shutil.disk_usage(SHARED_MEMORY).free
    return free if free >= STORE_BYTES else 0


@contextmanager
def _importing_alike() -> Iterator[None]:
    """Let the processes that Ray starts meanwhile find the modules that this one finds, plug-ins among them."""
    before, installed = os.environ.get("PYTHONPATH"), set(sysconfig.get_paths().values())
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path if path not in installed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _why_not(error: Exception) -> str:
    """Return a line on a cluster that could not be joined."""
    said = one_line(error)
    if "Version mismatch" in said:
        return f"the cluster has another version of Ray or Python: {said}"
    if isinstance(error, RuntimeError):
        return said
    hint = ""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        hint = "; one that wants a token gets that of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    return f"no Ray cluster there, or not with this token: {said}{hint}"


def _authenticate(address: str | None) -> None:
    """Let a session of our own want a token, which nothing but its processes knows, and a cluster get the user's.

    Ray would write a token for a session of ours into the home folder, and every later cluster there would want it.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        if address is None:
            os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _own_token()})
        elif _has_token():
            os.environ["RAY_AUTH_MODE"] = "token"
    _refresh_authentication()


def _has_token() -> bool:
    return any(name in os.environ for name in _TOKEN_SOURCES) or Path("~/.ray/auth_token").expanduser().is_file()


@functools.cache
def _own_token() -> str:
    return secrets.token_hex(32)


def _refresh_authentication() -> None:
    """Let Ray, which reads them once a process, read mode and token again."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _without_raylets_logs() -> Iterator[None]:
    """Keep off the terminal what Ray prints of a lost node's log; ``log_to_driver`` does not."""
    before = stdout_deduplicator.skip_re
    stdout_deduplicator.skip_re = re.compile("")
    try:
        yield
    finally:
        stdout_deduplicator.skip_re = before


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Keep a logger off the terminal: a trial's failure is reported once, by us, with its reason."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
