"""A search's Ray session: its own tokens, a cluster's, and nothing of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mixtune.errors import RequestError
from mixtune.run.directory import RunDirectory
from mixtune.space.space import space_from_dict
from mixtune.tuning.run import Signals
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.session import IN_JOB, is_in_job_folder, session_address

TWO_LOCAL_THEN_A_CLUSTER = """
import os, subprocess, sys
from pathlib import Path
import ray
from mixtune.errors import RequestError
from mixtune.tuning.session import ray_session

before, within = dict(os.environ), Path(os.environ["RAY_TMPDIR"])
(within / "mx0a0b" / "ray").mkdir(parents=True)
(within / "mxothers").mkdir()
STRANGER = "import sys, ray; ray.init(address=sys.argv[1], logging_level='CRITICAL'); print(ray.cluster_resources())"
for number in range(2):
    with ray_session(None, 1, 0):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        (folder,) = (path for path in within.glob("mx*") if path.name != "mxothers")
        assert (folder / "ray").is_dir() and folder.stat().st_mode & 0o77 == 0
        if number == 0:
            words = [sys.executable, "-c", STRANGER, ray.get_runtime_context().gcs_address]
            stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
            done = subprocess.run(words, env=stranger, capture_output=True, text=True)
            assert done.returncode != 0 and "CPU" not in done.stdout, done.stdout
    assert dict(os.environ) == before
    assert [path.name for path in within.glob("mx*")] == ["mxothers"]
assert not Path("~/.ray/auth_token").expanduser().exists()
os.environ["RAY_AUTH_TOKEN"] = sys.argv[2]
before = dict(os.environ)
with ray_session(sys.argv[1], 1, 0):
    print(int(ray.cluster_resources()["CPU"]), ray.get(ray.remote(lambda: "a task").remote()))
assert dict(os.environ) == before
ray.__version__ = "2.52.0"
for address in ("127.0.0.1:1", sys.argv[1]):
    try:
        with ray_session(address, 1, 0):
            print("joined")
    except RequestError as error:
        print(error)
"""

ENDED_WHILE_RAY_STARTS = """
import os, signal, threading, time
from pathlib import Path
from mixtune.tuning.session import ray_session

within = Path(os.environ["RAY_TMPDIR"])

def end():
    while not list(within.glob("mx*/ray/session_*/logs/monitor.out")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end, daemon=True).start()
try:
    with ray_session(None, 1, 0):
        print("it started")
except KeyboardInterrupt:
    print("interrupted", os.listdir(within))
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_swallowed_ends_a_search_all_the_same(small_space: Any, tmp_path: Path) -> None:
    """Python ignores what is raised in a callback of a weak reference: Ray's loop goes on, and looks at the search."""
    search = RunningSearch(space_from_dict(small_space()), tmp_path / "ledger.jsonl")
    referred = {1}
    end = weakref.finalize(referred, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with Signals(RunDirectory(tmp_path), grace_s=None) as signals:
        signals.search = search
        del referred
    assert not end.alive
    assert search.ends_by is not None
    assert search.ends_by <= time.monotonic()


def test_a_sigterm_while_ray_starts_is_an_interruption() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets need a short name
        words = [sys.executable, "-c", ENDED_WHILE_RAY_STARTS]
        done = subprocess.run(words, env={**os.environ, "RAY_TMPDIR": folder}, capture_output=True, text=True)
    assert done.stdout == "interrupted []\n", done


def test_a_process_searches_here_twice_and_then_on_a_cluster_with_a_token_of_its_own(
    disturbances: SimpleNamespace,
) -> None:
    """Ray keeps mode and token for a process's life, and writes a token for a local session into the home folder."""
    if reason := disturbances.nodes.why_impossible():
        pytest.skip(reason)
    token = "0123456789abcdef" * 4
    with disturbances.nodes.Cluster({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}) as cluster:
        head = cluster.start("n1", head=True)
        words = ["env", "-u", "RAY_AUTH_MODE", "-u", "RAY_AUTH_TOKEN", sys.executable, "-c", TWO_LOCAL_THEN_A_CLUSTER]
        joined, nobody, other_version = head.run([*words, cluster.address, token]).splitlines()[-3:]
        assert joined == "1 a task"
        assert nobody == "--address 127.0.0.1:1: no Ray cluster there: nothing answers"
        assert other_version.startswith(
            f"--address {cluster.address}: the cluster has another version of Ray or Python"
        )


def test_inside_a_job_the_jobs_cluster_is_used_and_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(IN_JOB, raising=False)
    assert session_address(None) is None
    assert session_address("127.0.0.1:6379") == "127.0.0.1:6379"
    monkeypatch.setenv(IN_JOB, "{}")
    assert session_address(None) == "auto"
    assert session_address("127.0.0.1:6379") == "127.0.0.1:6379"
    assert is_in_job_folder(Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1/runs/x"))
    assert not is_in_job_folder(Path("runs/x"))
    with pytest.raises(RequestError, match=r"ray job submit --working-dir \. -- mixtune search SPACE"):
        session_address("ray://127.0.0.1:10001")
