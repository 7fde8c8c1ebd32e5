"""What was requested, trained and reused, summed by hand."""

from __future__ import annotations

import math

from mixtune.run.accounting import account
from mixtune.run.ledger import TrialRecord


def record(state: str, asked: int, trained: int, reused: int, seconds: float, reused_s: float) -> TrialRecord:
    """A trial whose epochs take a second each."""
    metrics = {"epochs_asked": asked, "epochs_trained": trained, "epochs_reused": reused}
    seconds_of = {"train_latency_s": seconds, "latency_reused_s": reused_s, "forecast_latency_s": float(asked)}
    return TrialRecord("t", state=state, metrics=metrics | seconds_of)


RECORDS = [
    record("complete", 30, 30, 0, 30.0, 0.0),
    record("complete", 30, 10, 20, 30.0, 20.0),
    record("stopped", 30, 5, 5, 10.0, 5.0),
    record("running", 30, 9, 0, 9.0, 0.0),  # not yet
    TrialRecord("rejected", state="rejected", metrics={"train_latency_s": 99.0}),  # never trained
    TrialRecord("failed", state="failed"),  # before its first epoch
]


def test_sums_are_of_what_has_ended() -> None:
    found = account(RECORDS, waited_s=1.5)
    assert (found.epochs_asked, found.epochs_trained, found.epochs_reused) == (90, 45, 25)
    assert (found.asked_s, found.trained_s, found.reused_s, found.waited_s) == (90.0, 45.0, 25.0, 1.5)
    assert str(found) == (
        "epochs: 90 requested, 45 trained (50 %), 25 reused; seconds of training steps: 90.0 requested, 45.0 trained "
        "(50 %); slots waited 1.50 s for a stage"
    )


def test_a_trial_that_was_not_timed_leaves_no_sum_of_seconds_and_none_leave_nothing() -> None:
    untimed = TrialRecord("t", state="complete", metrics={"epochs_asked": 2, "epochs_trained": 2, "epochs_reused": 0})
    found = account([*RECORDS, untimed])
    assert math.isnan(found.asked_s)
    assert found.epochs_asked == 92
    assert "epochs: 92 requested" in str(found)
    assert "0 trained (-)" in str(account([]))
    assert account([]).asked_s == 0
