"""How trials are packed."""

from __future__ import annotations

import pytest

from mixtune.errors import RequestError
from mixtune.space import Resources
from mixtune.tuning.cluster import Slots, plan_slots, ray_session, usable_cpus, usable_gpus


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
        (1.0, 2.0, 64, 8, Slots(1.0, 2.0, 4)),
        (1.0, 0.0, 4, 1, Slots(1.0, 0.0, 4)),
        (0.1, 0.1, 4, 1, Slots(0.1, 0.1, 10)),  # no float's floor of 1 / 0.1
    ],
)
def test_slots_follow_cpus_and_whole_devices(
    cpus_per_trial: float, gpus_per_trial: float, cpus: int, gpus: int, slots: Slots
) -> None:
    resources = Resources.model_validate({"cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial})
    assert plan_slots(resources, cpus, gpus) == slots


@pytest.mark.parametrize(
    ("given", "cpus", "gpus", "message"),
    [
        ({"cpus_per_trial": 8.0}, 2, 0, "8 CPUs a trial: there are 2; lower --cpus-per-trial"),
        ({"gpus_per_trial": 2.0}, 8, 1, "2 GPUs a trial: there are 1; lower --gpus-per-trial"),
        ({"gpus_per_trial": 1.5}, 8, 2, "1.5 GPUs a trial: above 1 it should be a whole number"),
    ],
)
def test_a_trial_that_cannot_fit_is_refused(given: dict[str, float], cpus: int, gpus: int, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace(".", r"\.")):
        plan_slots(Resources.model_validate(given), cpus, gpus)


def test_a_running_cluster_elsewhere_does_not_disturb_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process has a Ray session already")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with ray_session(None, cpus=1, gpus=0) as (cpus, gpus):
        assert (cpus, gpus) == (1, 0)
    assert not ray.is_initialized()


def test_the_machine_is_counted_and_missing_gpus_are_none() -> None:
    import torch

    assert usable_cpus() >= 1
    with pytest.raises(RequestError, match="-1 GPUs: should be 0 or more"):
        usable_gpus(-1)
    assert usable_gpus(None) == torch.cuda.device_count()
    if not torch.cuda.is_available():
        assert usable_gpus(1) == 0
