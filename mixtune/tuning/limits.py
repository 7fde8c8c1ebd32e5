"""What this process may have of its machine: CPUs and memory, as its affinity and its control groups allow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60  # bytes; version 1 writes a number as large as this


def usable_cpus() -> int:
    """Return how many CPU cores this process may use, whole ones, by its affinity and its control groups' quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.floor(cpu_quota() or cores)))


def cpu_quota() -> float | None:
    """Return how many CPUs' time the control groups grant this process, None where they set no limit."""
    found = []
    for folder, version in _groups("cpu"):
        with suppress(OSError, ValueError):  # a group without the controller; "max"
            if version == 2:
                quota, period = map(float, (folder / "cpu.max").read_text().split())
            else:
                quota, period = (float((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            found += [quota / period] if quota > 0 else []
    return min(found, default=None)


def memory_limit() -> int | None:
    """Return the bytes that the control groups let this process and its neighbours have, None without a limit."""
    found = []
    for folder, version in _groups("memory"):
        with suppress(OSError, ValueError):
            limit = int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text())
            found += [limit] if limit < _NO_LIMIT else []
    return min(found, default=None)


def killed_for_memory() -> int:
    """Return how many processes the kernel has ended so far because memory was full, of a control group or in all."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))
    return 0


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's control groups, the innermost first, and their version.

    In a container the path in /proc may be the host's, and what is mounted is the container's own group.
    """
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = _GROUPS / controller if controllers else _GROUPS
            below = top / path.lstrip("/")
            for folder in (below, *below.parents):
                if folder.is_relative_to(top):
                    yield folder, 1 if controllers else 2
