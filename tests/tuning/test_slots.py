"""How trials are packed."""

from __future__ import annotations

import pytest

from mixtune.errors import RequestError
from mixtune.space.settings import Resources
from mixtune.tuning.slots import Nodes, Slots, double_fraction, plan_slots, usable_gpus


@pytest.mark.parametrize(
    ("cpus_per_trial", "gpus_per_trial", "cpus", "gpus", "slots"),
    [
        (1.0, "auto", 2, 0, Slots(1.0, 0.0, 2)),
        (0.5, "auto", 2, 0, Slots(0.5, 0.0, 4)),
        (1.0, 0.25, 2, 0, Slots(1.0, 0.0, 2)),  # no GPU there: the CPU trains
        (1.0, 0.25, 16, 1, Slots(1.0, 0.25, 4)),
        (8.0, 0.25, 16, 1, Slots(8.0, 0.25, 2)),  # the CPUs bind
        (1.0, "auto", 16, 2, Slots(1.0, 1.0, 2)),
        (1.0, 0.15, 64, 8, Slots(1.0, 0.15, 48)),  # six on each of eight, not floor(8 / 0.15) = 53
        (1.0, 0.0, 4, 1, Slots(1.0, 0.0, 4)),
        (0.1, 0.1, 4, 1, Slots(0.1, 0.1, 10)),  # no float's floor of 1 / 0.1
    ],
)
def test_slots_follow_cpus_and_whole_devices(
    cpus_per_trial: float, gpus_per_trial: float, cpus: int, gpus: int, slots: Slots
) -> None:
    resources = Resources.model_validate({"cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial})
    assert plan_slots(resources, [(cpus, gpus)]) == slots


@pytest.mark.parametrize(
    ("given", "cpus", "gpus", "message"),
    [
        ({"cpus_per_trial": 8.0}, 2, 0, "8 CPUs a trial: there are 2; lower --cpus-per-trial"),
        ({"gpus_per_trial": 2.0}, 8, 2, "2 GPUs a trial: a trial trains on one GPU; give at most 1"),
    ],
)
def test_a_trial_that_cannot_fit_is_refused(given: dict[str, float], cpus: int, gpus: int, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace(".", r"\.")):
        plan_slots(Resources.model_validate(given), [(cpus, gpus)])


@pytest.mark.parametrize("trials", range(1, 17))
def test_auto_packs_exactly_as_many_as_its_share_says_and_ray_counts_the_same(trials: int) -> None:
    slots = plan_slots(Resources(), [(64, 2)], auto_fraction=1 / trials)
    assert slots.count == 2 * trials
    grains = slots.gpus * 10_000
    assert grains == pytest.approx(round(grains), abs=1e-9)
    assert round(grains) * trials <= 10_000


def test_a_given_share_is_not_autos() -> None:
    assert plan_slots(Resources(gpus_per_trial=0.5), [(8, 1)], auto_fraction=0.25) == Slots(1.0, 0.5, 2)
    assert plan_slots(Resources(), [(8, 0)], auto_fraction=0.25) == Slots(1.0, 0.0, 8)


@pytest.mark.parametrize(
    ("cpus_per_trial", "gpus_per_trial", "nodes", "slots"),
    [
        (3.0, 0.0, [(4, 0), (4, 0)], Slots(3.0, 0.0, 2)),  # one on each; a third would span both
        (1.0, "auto", [(4, 0), (2, 0)], Slots(1.0, 0.0, 6)),
        (1.0, 0.25, [(2, 1), (16, 1)], Slots(1.0, 0.25, 6)),  # the CPUs bind on the first alone
        (1.0, 0.5, [(64, 0), (8, 2)], Slots(1.0, 0.5, 4)),  # only machines with GPUs train
    ],
)
def test_no_trial_spans_machines(cpus_per_trial: float, gpus_per_trial: float, nodes: Nodes, slots: Slots) -> None:
    resources = Resources.model_validate({"cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial})
    assert plan_slots(resources, nodes) == slots


@pytest.mark.parametrize(
    ("given", "nodes", "message"),
    [
        ({"cpus_per_trial": 6.0}, [(4, 0), (4, 0)], "6 CPUs a trial: no node has more than 4; lower --cpus-per-trial"),
        (
            {"cpus_per_trial": 8.0, "gpus_per_trial": 1.0},
            [(16, 0), (4, 1)],
            "8 CPUs and 1 GPUs a trial: no node has both; lower --cpus-per-trial or --gpus-per-trial",
        ),
    ],
)
def test_a_trial_that_no_machine_holds_is_refused(given: dict[str, float], nodes: Nodes, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace(".", r"\.")):
        plan_slots(Resources.model_validate(given), nodes)


def test_out_of_memory_a_trial_gets_twice_the_share_up_to_a_whole_gpu() -> None:
    assert [double_fraction(share) for share in (0.125, 0.3, 0.5, 0.6)] == [0.25, 0.6, 1.0, 1.0]
    assert [double_fraction(share) for share in (1.0, 2.0, 0.0)] == [None, None, None]


def test_the_machine_is_counted_and_missing_gpus_are_none() -> None:
    import torch

    with pytest.raises(RequestError, match="-1 GPUs: should be 0 or more"):
        usable_gpus(-1)
    assert usable_gpus(None) == torch.cuda.device_count()
    if not torch.cuda.is_available():
        assert usable_gpus(1) == 0
