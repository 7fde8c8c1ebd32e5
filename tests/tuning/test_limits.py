"""What a control group grants is what is used; a real group of this machine, where one can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixtune.tuning.limits import cpu_quota, usable_cpus

IN_GROUP = (
    "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
    "from mixtune.tuning.limits import cpu_quota, usable_cpus; print(cpu_quota(), usable_cpus())"
)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group for CPU time, of whichever version is here."""
    old = Path("/sys/fs/cgroup/cpu")
    folder = (old if old.is_dir() else old.parent) / f"mixtune-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.parametrize(("quota", "cpus"), [(150_000, 1), (25_000, 1), (100_000_000, len(os.sched_getaffinity(0)))])
def test_a_quota_is_whole_cpus_and_at_least_one(group: Path, quota: int, cpus: int) -> None:
    try:
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} 100000")
    except OSError as error:
        pytest.skip(f"this machine's control groups take no quota: {error.strerror}")
    words = [sys.executable, "-c", IN_GROUP, str(group / "cgroup.procs")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(quota / 100_000), str(cpus)]


def test_without_a_quota_it_is_the_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    words = ["taskset", "-c", str(one), sys.executable, "-c", IN_GROUP, os.devnull]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(cpu_quota()), "1"]
    assert usable_cpus() >= 1
