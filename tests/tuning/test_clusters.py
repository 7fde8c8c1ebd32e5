"""A search on a Ray cluster whose nodes share nothing finds what a plain loop finds, whoever is killed meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plain_search import search_here

from mixtune.stages.store import StateStore


@pytest.fixture(scope="module")
def cluster(disturbances: SimpleNamespace) -> Iterator[Any]:
    """A head without CPUs and two workers of one."""
    if reason := disturbances.nodes.why_impossible():
        pytest.skip(reason)
    with disturbances.nodes.Cluster() as cluster:
        disturbances.clusters.start_nodes(cluster, "n2", "n3")
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(disturbances: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished search of eight trials and two baselines, by a plain loop in this process."""
    space = disturbances.clusters.cluster_space(trials=8, ssl=4, sl=5)
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    search_here(space, run)
    return disturbances.checks.Undisturbed(space, run, disturbances.checks.read_figures(run), startup=0.0, seconds=0.0)


def test_nodes_need_no_shared_disk(disturbances: SimpleNamespace, cluster: Any, undisturbed: Any) -> None:
    assert disturbances.clusters.share_nothing(cluster, undisturbed) == []


def test_a_killed_driver_and_a_killed_node_change_no_bit(
    disturbances: SimpleNamespace, cluster: Any, undisturbed: Any
) -> None:
    """The driver first; its search is resumed at once, on the same cluster."""
    assert disturbances.clusters.kill_driver(cluster, undisturbed, epochs=9, also_a_worker=True) == []


def test_other_and_lost_weights_are_reported(disturbances: SimpleNamespace, undisturbed: Any, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed.directory, tmp_path / "nodes" / "n2" / "work" / "run")
    cluster = SimpleNamespace(folder=tmp_path)
    assert disturbances.clusters.compare_weights(cluster, run, undisturbed) == []
    endings = disturbances.checks.read_endings(disturbances.checks.read_events(run))
    store = StateStore(run / "stages")
    state = store.load(endings["t0001"]["stage"])
    store.remove(endings["t0001"]["stage"])
    next(tensor for _, tensor in disturbances.clusters.find_tensors(state)).view(-1)[0] += 1
    store.save(endings["t0001"]["stage"], state)
    store.remove(endings["t0002"]["stage"])
    first, second = disturbances.clusters.compare_weights(cluster, run, undisturbed)
    assert first.startswith("t0001: 1 of ")
    assert second.startswith("t0002: ")
