"""A bill's price: steps times what is known of them, else FLOPs over speed."""

from __future__ import annotations

import math

import pytest

from mixtune.meter.times import StepTimes
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES, Phase

EPOCHS = (("ssl", "a", 8.0), ("ssl", "a", 8.0), ("ssl", "b", 4.0), ("mix", "c", 6.0), ("sl", "d", 2.0))


def times_of(**seconds: float) -> StepTimes:
    times = StepTimes()
    for signature, value in seconds.items():
        times.add(signature, value)
    return times


def test_known_steps_take_what_was_measured_and_others_what_their_flops_say() -> None:
    bill, times = Bill(dict.fromkeys(PHASES, 10), EPOCHS, "infer"), times_of(a=0.5, c=0.25)
    speeds = {"ssl": 2.0, "mix": 2.0, "sl": 4.0}

    def untimed(phase: Phase, flops: float) -> float:
        return flops / speeds[phase]

    assert bill.price(times, untimed) == {"ssl": 10 * (0.5 + 0.5 + 2.0), "mix": 2.5, "sl": 5.0}
    assert bill.price(StepTimes(), untimed) == {"ssl": 10 * (4.0 + 4.0 + 2.0), "mix": 30.0, "sl": 5.0}
    assert math.isnan(bill.price(times)["ssl"])
    assert bill.flops == 10 * 28.0


def test_a_price_is_of_a_stretch_of_the_plan() -> None:
    bill, times = Bill(dict.fromkeys(PHASES, 10), EPOCHS, "infer"), times_of(a=0.5, b=1.0, c=0.25, d=0.125, infer=0.002)
    assert bill.price(times, end=0) == {}
    assert bill.price(times, start=1, end=2) == {"ssl": 5.0}
    for cut in range(len(EPOCHS) + 1):
        parts = [*bill.price(times, end=cut).values(), *bill.price(times, start=cut).values()]
        assert sum(parts) == sum(bill.price(times).values()), cut
    assert bill.count_steps(4) == {"ssl": {"a": 20, "b": 10}, "mix": {"c": 10}}
    assert bill.signatures(3) == ["a", "b", "infer"]


def test_the_metrics_in_seconds_follow_from_bill_and_times_alone() -> None:
    bill, times = Bill(dict.fromkeys(PHASES, 10), EPOCHS, "infer"), times_of(a=0.5, b=1.0, infer=0.002)
    found = bill.seconds(times, trained=3, reused=1)
    assert (found["train_latency_s"], found["latency_ssl_s"], found["latency_mix_s"]) == (20.0, 20.0, 0.0)
    assert (found["latency_reused_s"], found["infer_latency_ms"]) == (5.0, 2.0)
    assert found["train_latency_se_s"] == pytest.approx(math.hypot(20 * times.error("a"), 10 * times.error("b")))
    assert found["infer_latency_ms_se"] == pytest.approx(1e3 * times.error("infer"))
    pace = (0.5 + 1.0) / (8.0 + 4.0)  # seconds a FLOP, of the steps that were timed
    assert found["forecast_latency_s"] == pytest.approx(20.0 + 10 * pace * (6.0 + 2.0))
    assert math.isnan(bill.seconds(StepTimes(), 1, 0)["forecast_latency_s"])


def test_the_share_of_seconds_that_no_quiet_window_stands_behind_is_told() -> None:
    bill, times = Bill(dict.fromkeys(PHASES, 10), EPOCHS, "infer"), times_of(a=0.5)
    times.add("b", 3.0, quiet=False)
    times.add("infer", 0.002, quiet=False)
    assert bill.seconds(times, 2, 0)["disturbed"] == 0.0
    assert bill.seconds(times, 3, 0)["disturbed"] == 30.0 / (5.0 + 5.0 + 30.0)
    assert bill.seconds(times, 3, 0)["infer_disturbed"] == 1.0
    times.add("b", 1.0)  # a quiet one counts alone
    times.add("infer", 0.001)
    found = bill.seconds(times, 3, 0)
    assert (found["disturbed"], found["infer_disturbed"], found["train_latency_s"]) == (0.0, 0.0, 20.0)
