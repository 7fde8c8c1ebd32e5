"""What `mixtune doctor` finds on a machine that is bad in many ways, and on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mixtune.doctor import check_clock

MIXTUNE = str(Path(sys.executable).with_name("mixtune"))

# $1: a folder that cannot be written to; no shared memory is left, and no interface is up, loopback neither
BAD_MACHINE = """
mount -t tmpfs -o ro none "$1"
mount -t tmpfs -o size=64k none /dev/shm
exec "$2" doctor --no-ray
"""


def test_a_bad_machine_gets_a_line_for_each_of_its_faults(disturbances: SimpleNamespace, tmp_path: Path) -> None:
    if reason := disturbances.nodes.why_impossible():
        pytest.skip(reason)
    read_only = tmp_path / "read_only"
    read_only.mkdir()
    variables = {"TMPDIR": str(tmp_path), "RAY_TMPDIR": "/sys", "MIXTUNE_DATA": str(read_only)}
    command = ["unshare", "-m", "-n", "sh", "-c", BAD_MACHINE, "sh", str(read_only), MIXTUNE]
    done = subprocess.run(
        command, env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    found = {line.split()[1]: (line.split()[0], line) for line in done.stdout.splitlines()}
    for name, state, words in (
        ("Python", "ok", "3."),
        ("temporary", "fault", "RAY_TMPDIR: /sys cannot be written to: "),
        ("/dev/shm", "warning", "docker run --shm-size=1g"),
        ("cache", "fault", "cannot be written to: Read-only file system: set MIXTUNE_DATA to another folder"),
        ("runs", "ok", str(tmp_path)),
        ("loopback", "fault", "ip link set lo up"),
    ):
        assert found[name][0] == state, found[name]
        assert words in found[name][1]


def test_ray_starts_where_tmpdir_is_too_long_and_nothing_private_is_in_the_json(
    disturbances: SimpleNamespace, tmp_path: Path
) -> None:
    long, home = tmp_path / ("x" * 80), tmp_path / "somebody"
    long.mkdir()
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_TMPDIR", "MIXTUNE_DATA")}
    environment |= {"TMPDIR": str(long), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    words = [MIXTUNE, "doctor", "--json"]
    if (reason := disturbances.nodes.why_impossible()) is None:  # without shared memory, too
        words = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none /dev/shm; exec "$@"', "sh", *words]
    done = subprocess.run(words, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    checks = {check["name"]: check for check in told["checks"]}
    assert told["versions"]["mixtune"]
    assert checks["Ray"]["state"] == "ok", checks["Ray"]
    assert (checks["/dev/shm"]["state"] == "warning") == (reason is None)
    assert checks["temporary"]["state"] == "warning"
    assert "Ray's session is in /tmp" in checks["temporary"]["found"]
    assert "somebody" not in done.stdout
    assert [path.name for path in long.iterdir() if path.name.startswith(("ray", "mixtune-ray"))] == []


def test_a_clock_that_jumps_or_is_behind_is_named() -> None:
    assert check_clock(10.0, 10.1).state == "ok"
    assert "it moved by +7200.0 s in 10 s" in check_clock(7210.0, 10.0).found
    assert check_clock(1.0, 1.0, installed=time.time() + 86400).change == "set the clock"
