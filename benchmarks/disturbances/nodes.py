"""Real Ray clusters on one machine whose nodes share nothing.

Each node is a ``ray start`` in mount and UTS namespaces of its own: it has its own host name, home, temporary folder
and work folder, below one path that is the same on all nodes. Linux and root are needed: see why_impossible().
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

CLUSTER, NODE = "MIXTUNE_CLUSTER", "MIXTUNE_NODE"  # environment variables of every process, and of a node's own
PATIENCE_S = 300.0  # for a command; then it hangs
START_S = 120.0  # for a node to register, on a busy machine
STORE_BYTES = 80_000_000  # about the least that Ray takes
STARTED = "Ray runtime started."  # printed once the head knows the node
RAY = (sys.executable, "-m", "ray.scripts.scripts")
FOREIGN = ("RAY_", "TUNE_", "MIXTUNE_", "XDG_", "TMPDIR", "HOME")  # variables that a node does not take over

# shell: $1 host name, $2 the node's folder, $3 where all nodes see theirs, $4 a file for /proc/cpuinfo or nothing
ENTER = """
set -e
hostname "$1"
mount --bind "$2" "$3"
if [ -n "$4" ]; then mount --bind "$4" /proc/cpuinfo; fi
cd "$3/work"
shift 4
exec "$@"
"""


def why_impossible() -> str | None:
    """Return in a line why no cluster can be started here, None where it can."""
    if sys.platform != "linux":
        return "nodes have namespaces of their own, which only Linux has"
    if os.geteuid() != 0:
        return "nodes have namespaces of their own, which needs root"
    if missing := [name for name in ("unshare", "nsenter", "mount", "hostname") if shutil.which(name) is None]:
        return f"nodes have namespaces of their own, which needs {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as folder:
        trial = subprocess.run(
            ["unshare", "-m", "-u", "mount", "--bind", folder, folder], capture_output=True, text=True, check=False
        )
    return f"namespaces cannot be made here: {trial.stderr.strip()}" if trial.returncode else None


def marked_processes(variable: str, value: str) -> dict[int, str]:
    """Return the commands of the processes with this environment variable by process id, the oldest first."""
    mark, found = f"{variable}={value}".encode(), []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended meanwhile, or is nobody's
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                started = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
                found.append((started, int(entry.name), command))
    return {process: command for _, process, command in sorted(found)}


def kill_marked(variable: str, value: str) -> None:
    """Kill these processes, and those that they start meanwhile; all are stopped first, so that few report others' end.

    Children die before their parents: a stopped child is continued when its parent dies.
    """
    while left := marked_processes(variable, value):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in reversed(left):
                with suppress(ProcessLookupError):
                    os.kill(process, number)
        time.sleep(0.05)


def free_port() -> int:
    """Return a port that nobody has on any address."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class Command:
    """A running command; what it prints goes to a file."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                list(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def output(self) -> str:
        """Return what it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def wait_until(self, condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait for a condition. Raises RuntimeError with the output where the command ends before, or in time."""
        deadline = time.monotonic() + patience_s
        while not condition():
            if self.status is not None and not condition():
                raise RuntimeError(f"ended with status {self.status} before {what}: {self.output()[-2000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not {what} after {patience_s:.0f} s: {self.output()[-2000:]}")
            time.sleep(0.05)

    def finish(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for the end and return the exit status. Raises RuntimeError where it hangs, and kills it then."""
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"hangs after {patience_s:.0f} s: {self.output()[-2000:]}") from None

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL to the command alone, and wait for its end."""
        self._process.kill()
        self._process.wait()


class Node:
    """One node of a cluster; ``work`` is its work folder as the outside sees it."""

    def __init__(self, cluster: Cluster, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.folder = cluster.folder / "nodes" / name
        self.work = self.folder / "work"
        self.mark = f"{cluster.folder}/{name}"
        self._cluster = cluster
        self._ray: Command
        self._again: Callable[[], None]

    def launch(self, arguments: Sequence[str], cpuinfo: Path | None, env: Mapping[str, str]) -> None:
        """Start Ray here, without waiting for it; home and work folder stay as an earlier node of this name left them.

        arguments: of ``ray start``; cpuinfo: a file that stands for /proc/cpuinfo; env: more of the environment.
        """
        self._again = partial(self.launch, arguments, cpuinfo, env)
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        for name in ("tmp", "home", "work"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        enter = ["unshare", "-m", "-u", "sh", "-c", ENTER, "sh"]
        enter += [self.name, str(self.folder), str(self._cluster.here), str(cpuinfo or "")]
        own = [f"--node-ip-address={self.address}", f"--object-store-memory={STORE_BYTES}"]
        quiet = ["--include-log-monitor=false", "--min-worker-port=0", "--max-worker-port=0", "--block"]
        self._ray = self._cluster.begin(
            [*enter, *RAY, "start", *arguments, *own, *quiet], {NODE: self.mark} | dict(env)
        )

    @property
    def is_gone(self) -> bool:
        """Whether Ray does not run here any more."""
        return self._ray.status is not None

    def wait_for_ray(self) -> None:
        """Wait until the head knows the node; Ray gives up after 30 s, which a busy machine may need.

        Raises RuntimeError with the node's log.
        """
        for _ in range(2):
            self._ray.wait_until(lambda: STARTED in self._ray.output() or self.is_gone, f"a node {self.name}", START_S)
            if not self.is_gone:
                return
            self.kill()
            self._again()
        self._ray.wait_until(lambda: STARTED in self._ray.output(), f"a node {self.name}", START_S)

    def popen(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> Command:
        """Start a command in the node's work folder; it is not the node's own, so it outlives kill()."""
        enter = ["nsenter", "-m", "-u", "-t", str(self._ray.pid), f"--wdns={self._cluster.here / 'work'}"]
        return self._cluster.begin([*enter, *command], env or {})

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
        """Return what a command prints. Raises RuntimeError where it fails."""
        started = self.popen(command, env)
        if started.finish():
            raise RuntimeError(f"{' '.join(command)} ended with status {started.status}: {started.output()[-2000:]}")
        return started.output()

    def drain(self, seconds: int) -> None:
        """Tell the cluster that this node goes in so many seconds, as a cloud warns of a preemption."""
        raylet = next(command for command in marked_processes(NODE, self.mark).values() if "/raylet " in command)
        number = next(word.partition("=")[2] for word in raylet.split() if word.startswith("--node_id="))
        why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        when = [f"--deadline-remaining-seconds={seconds}", f"--node-id={number}"]
        self._cluster.head.run([*RAY, "drain-node", f"--address={self._cluster.address}", *why, *when])

    def stop(self) -> None:
        """End Ray here as ``ray stop`` does."""
        self._ray.terminate()
        with suppress(RuntimeError):
            self._ray.finish(20.0)
        self.kill()

    def kill(self) -> None:
        """Kill all that Ray runs here, at once."""
        kill_marked(NODE, self.mark)
        self._ray.kill()


class Cluster:
    """A Ray cluster in a new temporary folder; at the end every process is killed and the folder removed.

    here: the path that is a folder of each node's own inside it, with home, tmp and work; address: of the head, which
    is the first node; dashboard: its address, where there is one. env: more of the environment of all processes.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mixtune-cl-", dir="/tmp"))  # short, as Ray's sockets need it
        self.here = self.folder / "here"
        self.here.mkdir()
        self.nodes: dict[str, Node] = {}
        self.address = ""
        self.dashboard = ""
        self._network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"  # clusters share no address
        self._addresses = 10
        self._begun: list[Command] = []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self.environment = inherited | {
            CLUSTER: str(self.folder),
            "HOME": str(self.here / "home"),
            "TMPDIR": str(self.here / "tmp"),
            "RAY_TMPDIR": str(self.here / "tmp"),
            "RAY_AUTH_MODE": "disabled",  # a token of one home is unknown in the others
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "200",
            **(env or {}),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill_marked(CLUSTER, str(self.folder))
        for command in self._begun:
            command.kill()  # it has ended; this reads its status
        shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self, command: Sequence[str], env: Mapping[str, str]) -> Command:
        """Start a command that ends with the cluster."""
        log = self.folder / f"command-{len(self._begun)}.log"
        self._begun.append(Command(command, log, self.environment | dict(env)))
        return self._begun[-1]

    @property
    def head(self) -> Node:
        """The node that the others registered at."""
        return next(iter(self.nodes.values()))

    def start(
        self,
        name: str,
        cpus: int = 1,
        head: bool = False,
        cpuinfo: Path | None = None,
        env: Mapping[str, str] | None = None,
        dashboard: bool = False,
    ) -> Node:
        """Start a node and return it once it is registered; see start_all()."""
        return self.start_all(name, cpus=cpus, head=head, cpuinfo=cpuinfo, env=env, dashboard=dashboard)[0]

    def start_all(
        self,
        *names: str,
        cpus: int = 1,
        head: bool = False,
        cpuinfo: Path | None = None,
        env: Mapping[str, str] | None = None,
        dashboard: bool = False,
    ) -> list[Node]:
        """Start nodes alongside each other and return them once they are registered at the head.

        The name of a node that was killed may be given again: the new one has its home and work folder, and another
        address. cpuinfo: a file that stands for /proc/cpuinfo; env: more of the environment. Raises RuntimeError with
        the log of a node that does not start.
        """
        arguments = [f"--num-cpus={cpus}"]
        if head:
            port, client, board = free_port(), free_port(), free_port()
            arguments += ["--head", f"--port={port}", f"--ray-client-server-port={client}"]
            arguments += [f"--include-dashboard={str(dashboard).lower()}", f"--dashboard-port={board}"]
            self.dashboard = f"http://127.0.0.1:{board}"
            self.nodes.clear()
        nodes = []
        for name in names:
            self._addresses += 1
            node = Node(self, name, f"{self._network}.{self._addresses}")
            if head:
                self.address = f"{node.address}:{port}"
            node.launch([*arguments, *([] if head else [f"--address={self.address}"])], cpuinfo, env or {})
            self.nodes[name] = node
            nodes.append(node)
        for node in nodes:
            node.wait_for_ray()
        return nodes
