"""`mixtune doctor`: whether this machine has what a search needs, and what to change where it has not.

What may be broken, PyTorch and Ray, is imported where a check needs it, after the check of that.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from mixtune import _version
from mixtune.errors import RequestError, one_line
from mixtune.tuning.limits import cpu_quota, memory_limit, usable_cpus

State = Literal["ok", "warning", "fault"]

PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "moocore", "numpy", "pandas")
MIN_BYTES, FEW_BYTES = 1_000_000_000, 4_000_000_000  # of memory and of disks: a search needs, and is safe with
MIN_FILES = 1024  # that a process may open; Ray's alone open hundreds
RAY_S = 120.0  # for Ray to start, run a task and end; a busy machine takes a fifth
DRIFT_S = 0.5  # between two clocks, while Ray starts


@dataclass(frozen=True)
class Check:
    """One thing that a search needs: ``found`` is what is here, ``change`` what to do where that is not enough."""

    name: str
    state: State
    found: str
    change: str = ""

    def line(self) -> str:
        """Return it for a terminal."""
        return f"{self.state:7}  {self.name:9}  {self.found}" + (f": {self.change}" if self.change else "")


def examine(start_ray: bool = True) -> Iterator[Check]:
    """Yield the checks of this machine one by one, from the folder of the command; with ``start_ray`` Ray really runs.

    A fault is what a search would fail of. Nothing stays behind.
    """
    wall, steady = time.time(), time.monotonic()
    yield Check("Python", "ok", f"{platform.python_version()}, {platform.platform()}")
    packages = check_packages()
    yield packages
    if packages.state == "fault":
        return
    from mixtune.datasets import cache_folder

    yield from check_devices()
    yield check_cpus()
    yield check_memory()
    yield check_limits()
    yield check_temporary_folder()
    yield check_shared_memory()
    yield check_folder("cache", cache_folder(), "set MIXTUNE_DATA to another folder")
    yield check_folder("runs", Path.cwd(), "give --out a folder elsewhere")
    yield check_locks()
    yield check_loopback()
    if start_ray:
        yield check_ray()
    yield check_clock(time.time() - wall, time.monotonic() - steady)


def check_packages() -> Check:
    """Look whether what a search imports is there and fits together."""
    found, broken = [f"mixtune {_version.__version__}"], []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
            found.append(f"{name} {version(name)}")
        except Exception as error:  # noqa: BLE001  whatever packages raise that do not fit together
            broken.append(f"{name} ({one_line(error)})")
    if broken:
        return Check("packages", "fault", f"cannot be imported: {', '.join(broken)}", "pip install --upgrade mixtune")
    return Check("packages", "ok", ", ".join(found))


def check_devices() -> Iterator[Check]:
    """Compute on every device that trials may have."""
    import torch

    from mixtune.training.device import describe_device

    if not torch.cuda.is_available():
        seen = Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
        why = "is built without CUDA" if torch.version.cuda is None else f"has CUDA {torch.version.cuda}"
        found = describe_device(torch.device("cpu"))
        if seen:
            change = f"PyTorch {why}: install one for this driver (https://pytorch.org/get-started)"
            yield Check("device", "warning", f"{found}; an NVIDIA driver is there, and PyTorch sees no GPU", change)
        else:
            yield Check("device", "ok", f"{found}; no GPU")
        return
    for index in range(torch.cuda.device_count()):
        try:
            device = torch.device("cuda", index)
            values = torch.ones(64, 64, device=device)
            assert float((values @ values).sum()) == 64**3
            free, total = torch.cuda.mem_get_info(device)
            found = f"{torch.cuda.get_device_name(device)}, {_gb(free)} of {_gb(total)} free"
            is_taken = free < total / 2
            change = "another process is on it (nvidia-smi): times and packing will suffer" if is_taken else ""
            yield Check("device", "warning" if is_taken else "ok", found, change)
        except (RuntimeError, AssertionError) as error:
            change = f"leave it out (CUDA_VISIBLE_DEVICES), or install a PyTorch for it; it has {torch.version.cuda}"
            yield Check("device", "fault", f"GPU {index} does not compute: {one_line(error)}", change)


def check_cpus() -> Check:
    """Compare what there is with what this process may use."""
    import torch

    here, quota, threads = os.cpu_count() or 1, cpu_quota(), torch.get_num_threads()
    found = f"{usable_cpus()} of {here} may be used, {threads} thread{'s' * (threads != 1)} by default"
    if quota is not None:
        found += f"; a control group grants {quota:.3g} CPUs' time"
    if threads > usable_cpus():
        return Check("CPUs", "warning", found, f"set OMP_NUM_THREADS={usable_cpus()} for train and compare")
    return Check("CPUs", "ok", found)


def check_memory() -> Check:
    """Look at the memory that is free, and at the control group's limit."""
    limit, free = memory_limit(), _free_memory()
    found = f"{_gb(free)} free" + (f"; a control group allows {_gb(limit)} in all" if limit is not None else "")
    least = min(free, limit or free)
    if least < MIN_BYTES:
        return Check("memory", "fault", found, f"a search needs {_gb(MIN_BYTES)}, and what its trials take")
    if least < FEW_BYTES:
        return Check("memory", "warning", found, "give few trials at once (--cpus-per-trial)")
    return Check("memory", "ok", found)


def check_limits() -> Check:
    """Look at how many files and processes this user may have."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)[1], resource.getrlimit(resource.RLIMIT_NPROC)[0]
    said = [f"{'any number of' if count == resource.RLIM_INFINITY else f'{count:,}'}" for count in (files, most)]
    found = f"{said[0]} open files, {said[1]} processes and threads"
    if files != resource.RLIM_INFINITY and files < MIN_FILES:
        return Check("limits", "warning", found, f"ulimit -n {MIN_FILES}")
    if most != resource.RLIM_INFINITY and most < MIN_FILES:
        return Check("limits", "warning", found, f"ulimit -u {MIN_FILES}: Ray starts hundreds of threads")
    return Check("limits", "ok", found)


def check_temporary_folder() -> Check:
    """Look at the folder of device locks, and at the one of Ray's session, whose sockets need a short path."""
    from mixtune.tuning.session import session_folder

    try:
        folder, line = session_folder()
        folders = sorted({str(folder), tempfile.gettempdir()})
    except (RequestError, OSError) as error:
        return Check("temporary", "fault", str(error))
    if line is not None:
        return Check("temporary", "warning", line)
    free = min(shutil.disk_usage(folder).free for folder in folders)
    change = "make room, or set TMPDIR to another disk"
    return _by_room("temporary", f"{' and '.join(folders)}, {_gb(free)} free", free, change)


def check_shared_memory() -> Check:
    """Look at /dev/shm, which Ray's processes share objects in."""
    from mixtune.tuning.session import SHARED_MEMORY, folder_problem, shared_memory_bytes

    if shared_memory_bytes():
        return Check("/dev/shm", "ok", f"{_gb(shutil.disk_usage(SHARED_MEMORY).free)} free")
    problem = folder_problem(SHARED_MEMORY) or f"has {_gb(shutil.disk_usage(SHARED_MEMORY).free)} free"
    return Check("/dev/shm", "warning", f"{problem}; files take its place", "docker run --shm-size=1g")


def check_folder(name: str, folder: Path, change: str) -> Check:
    """Look whether a folder, or the first one above it that is there, can be written to and has room."""
    from mixtune.tuning.session import folder_problem

    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if (problem := folder_problem(there, longest=4096)) is not None:
        return Check(name, "fault", f"{there} {problem}", change)
    free = shutil.disk_usage(there).free
    return _by_room(name, f"{folder}, {_gb(free)} free", free, f"make room, or {change}")


def check_locks() -> Check:
    """Look whether the file system of the run directory has locks."""
    try:
        with tempfile.TemporaryFile(dir=".") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        found = f"none in this folder: {error.strerror}"
        return Check(
            "locks", "warning", found, "let one process alone write a run directory, or give --out another disk"
        )
    return Check("locks", "ok", "files can be locked in this folder")


def check_loopback() -> Check:
    """Connect to a port of this machine as Ray's processes do."""
    from mixtune.tuning.session import loopback_problem

    problem = loopback_problem()
    return Check("loopback", "ok" if problem is None else "fault", problem or "127.0.0.1 answers")


def check_ray() -> Check:
    """Let a process of its own start Ray, run a task and end it, as a search does."""
    from mixtune.tuning.session import session_folder

    words = [sys.executable, "-c", "from mixtune.doctor import run_a_task; run_a_task()"]
    began = time.monotonic()
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        said, _ = child.communicate(timeout=RAY_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        change = f"look into {session_folder()[0]}/ray/session_latest/logs"
        return Check("Ray", "fault", f"no task ran within {RAY_S:.0f} s", change)
    took = time.monotonic() - began
    if child.returncode:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        return Check("Ray", "fault", last, "see the lines above; without one, send this with --json")
    return Check("Ray", "ok", f"a session started, ran a task and ended in {took:.0f} s")


def run_a_task() -> None:
    """Start Ray, run a task and end it; exit with a line where that fails."""
    import ray

    from mixtune.tuning.session import ray_session

    try:
        with ray_session(None, 1, 0):
            assert ray.get(ray.remote(lambda: 1).remote()) == 1
    except (RequestError, ray.exceptions.RayError) as error:
        sys.exit(one_line(error))


def check_clock(wall_s: float, steady_s: float, installed: float | None = None) -> Check:
    """Compare what two clocks say of the same seconds, and the date with when the package was ``installed``."""
    installed = Path(_version.__file__).stat().st_mtime if installed is None else installed
    today = time.strftime("%Y-%m-%d %H:%M:%S")
    if abs(wall_s - steady_s) > DRIFT_S:
        found = f"{today}, and it moved by {wall_s - steady_s:+.1f} s in {steady_s:.0f} s"
        return Check("clock", "warning", found, "let it be set once (timedatectl, chronyc tracking)")
    if time.time() < installed:
        then = time.strftime("%Y-%m-%d", time.localtime(installed))
        return Check("clock", "warning", f"{today}, before mixtune's files were written ({then})", "set the clock")
    return Check("clock", "ok", today)


def to_json(checks: Sequence[Check]) -> str:
    """Return the checks for a bug report; the home folder and the user's name are left out of paths."""
    versions: dict[str, str | None] = {"mixtune": _version.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    with suppress(ImportError):
        versions["cuda"] = importlib.import_module("torch").version.cuda
    found: dict[str, Any] = {"versions": versions, "platform": platform.platform()}
    found["checks"] = [{name: _shown(text) for name, text in asdict(check).items()} for check in checks]
    return json.dumps(found, indent=2)


def _by_room(name: str, found: str, free: int, change: str) -> Check:
    if free < FEW_BYTES:
        return Check(name, "fault" if free < MIN_BYTES else "warning", found, change)
    return Check(name, "ok", found)


def _free_memory() -> int:
    """Return the bytes that could be had now; where the kernel does not say, what the machine has."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shown(text: object) -> str:
    """Return text without what a path says of a person."""
    home = str(Path("~").expanduser())
    said = str(text).replace(home, "~") if len(home) > 1 else str(text)
    name = Path(home).name
    return re.sub(rf"(?<=/){re.escape(name)}(?=/|\b)", "USER", said) if name and name != "root" else said


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
