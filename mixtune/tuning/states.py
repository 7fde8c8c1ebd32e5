"""States of a search whose nodes share no disk: each stays where it was trained, and who needs it fetches it by key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state as cluster_state

from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import TrialRecord
from mixtune.stages.store import StateStore
from mixtune.tuning.nodes import alive_nodes, on_node, own_node_id
from mixtune.tuning.trial import Place, SearchContext

FETCH_S = 300.0  # for one state


def digest_space(directory: Path) -> str | None:
    """Return a digest of a run's space.yaml, None where this machine does not have it."""
    try:
        return hashlib.sha256(RunDirectory(directory).space_file.read_bytes()).hexdigest()
    except OSError:
        return None


class NodePlace(Place):
    """A worker's node: its disk is the run directory's, or its own, which other nodes do not see."""

    def __init__(self, context: SearchContext) -> None:
        self._context, self._stages = context, RunDirectory(context.directory).stages
        self._own = own_node_id()
        is_shared = context.space_digest is None or digest_space(Path(context.directory)) == context.space_digest
        self.address = None if is_shared else ray.util.get_node_ip_address()

    def fetch(self, key: str) -> bool:
        """Bring a state that another node has here; return whether it came."""
        if self._context.home is None or key not in self._context.states:
            return False
        address = self._context.states[key]
        node = self._context.home if address is None else _node_at(address)
        if node is None or node == self._own:
            return False
        content = _read_there(node, self._stages, key)
        return content is not None and StateStore(self._stages, self._context.states_bytes).receive(key, content)

    def is_leaving(self) -> bool:
        """Return whether this node will be taken away."""
        return self._context.home is not None and self._own in cluster_state.get_draining_nodes()

    def send_home(self, key: str) -> bool:
        """Bring a state from here to the run directory; return whether it is there."""
        content = StateStore(self._stages).read(key)
        if content is None or self._context.home is None:
            return False
        name = StateStore(self._stages).path(key)
        return _run_there(self._context.home, _make_write(), str(name), content) is not None


def collect_states(directory: Path, records: Collection[TrialRecord]) -> list[tuple[str, int]]:
    """Bring trials' latest states from their nodes to the run directory: the cluster may go; return (trial, epoch)."""
    stages = RunDirectory(directory.resolve()).stages  # as workers know it
    store, came = StateStore(stages), []
    for record in records:
        for epoch, key in [*record.stored.items()][-1:]:
            node = _node_at(record.nodes[epoch]) if epoch in record.nodes else None
            content = None if node is None else _read_there(node, stages, key)
            if content is not None and store.receive(key, content):
                came.append((record.trial, epoch))
    return came


def _node_at(address: str) -> str | None:
    return next((node.id for node in alive_nodes() if node.address == address), None)


def _read_there(node: str, stages: Path, key: str) -> bytes | None:
    """Return a state's file from another node, None where it cannot be read."""
    content: bytes | None = _run_there(node, _make_read(), str(StateStore(stages).path(key)))
    return content


def _run_there(node: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns on another node, None where it raises or the node is lost meanwhile."""
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node(node))(function)
    try:
        return ray.get(task.remote(*arguments), timeout=FETCH_S)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
        return None


# Values, which a new process runs without the seconds that it takes to import PyTorch: a node may have no more left.


def _make_read() -> Callable[[str], bytes]:
    def read(path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    return read


def _make_write() -> Callable[[str, bytes], bool]:
    def write(path: str, content: bytes) -> bool:
        import os
        import secrets

        folder, name = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
        with open(temporary, "xb") as file:  # as write_whole() does, which that process may not have loaded
            file.write(content)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return True

    return write
