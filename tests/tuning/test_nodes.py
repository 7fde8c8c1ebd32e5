"""Which nodes of a cluster belong together."""

from __future__ import annotations

import pytest

from mixtune.cost.machine import Machine
from mixtune.space.space import space_from_dict
from mixtune.tuning.nodes import group_machines, needs_seconds


def machine(device: str, speed: float, threads: int = 1) -> Machine:
    return Machine(device, threads, "float32", {"ssl": speed, "mix": speed, "sl": speed})


def test_nodes_of_one_name_are_cut_where_they_differ_by_more_than_a_quarter() -> None:
    machines = {
        "a": machine("A", 100.0),
        "b": machine("A", 85.0),  # equal machines drift so far
        "c": machine("A", 70.0),  # from its neighbour, no more
        "slow": machine("A", 30.0),
        "other": machine("B", 99.0),
        "threads": machine("A", 100.0, threads=2),
    }
    assert sorted(group_machines(machines)) == [["a", "b", "c"], ["other"], ["slow"], ["threads"]]
    assert group_machines({}) == []


@pytest.mark.parametrize(
    ("sections", "needed"),
    [
        ({}, True),
        ({"objectives": {"val_accuracy": "max", "train_flops": "min"}}, False),
        (
            {
                "objectives": {"val_accuracy": "max", "train_flops": "min"},
                "constraints": {"infer_latency_ms": "<= 5"},
            },
            True,
        ),
    ],
)
def test_seconds_matter_where_a_goal_is_in_seconds(sections: dict[str, object], needed: bool) -> None:
    space = space_from_dict(
        {"recipe": {"data": {"dataset": "digits"}}, "space": {"alpha": {"uniform": [0, 1]}}, **sections}, {}
    )
    assert needs_seconds(space) is needed
