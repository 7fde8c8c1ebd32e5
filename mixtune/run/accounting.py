"""What a search's trials requested, and what of it had to be trained: epochs and device-seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mixtune.metrics import counted, metric_value, significant
from mixtune.run.ledger import AT_REST, TrialRecord


@dataclass(frozen=True)
class Account:
    """Sums over the ended and paused trials and baselines of a search.

    epochs_asked: of their whole recipes; epochs_trained: by themselves; epochs_reused: from states that other trials
    had trained, or that a trial's own earlier attempt had; the rest was saved by ending trials early. asked_s,
    trained_s, reused_s: the same in metered seconds of training steps (``train_latency_s``), NaN where a trial was not
    timed; waited_s: seconds for which slots had nothing to do but wait for a stage that another trial was training.
    """

    epochs_asked: int
    epochs_trained: int
    epochs_reused: int
    asked_s: float
    trained_s: float
    reused_s: float
    waited_s: float

    def __str__(self) -> str:
        """Return one line for people."""
        sums = ((self.epochs_trained, self.epochs_asked), (self.trained_s, self.asked_s))
        epochs, seconds = (f"{100 * trained / asked:.0f} %" if asked > 0 else "-" for trained, asked in sums)
        return (
            f"epochs: {self.epochs_asked:,} requested, {self.epochs_trained:,} trained ({epochs}), "
            f"{self.epochs_reused:,} reused; seconds of training steps: {significant(self.asked_s)} requested, "
            f"{significant(self.trained_s)} trained ({seconds}); "
            f"slots waited {significant(self.waited_s)} s for a stage"
        )


def paused_note(counts: Mapping[str, int]) -> str:
    """Return what to say of the paused trials among counts by state; empty where there are none."""
    paused = counts.get("paused", 0)
    return f"{counted(paused, 'trial')} where a stage ended and another recipe promised more" if paused else ""


def account(records: Iterable[TrialRecord], waited_s: float = 0.0) -> Account:
    """Return the sums over the records that have ended, or are paused, with an epoch behind them."""
    over = [r for r in records if r.state in AT_REST and r.metrics.get("epochs_asked")]
    metrics = [record.metrics for record in over]
    # what a trial trained before it was paused it reuses later, as its own
    before = [(0, 0.0) if record.state == "paused" else record.left for record in over]
    epochs, seconds = sum(left[0] for left in before), sum(left[1] for left in before)
    return Account(
        epochs_asked=sum(m["epochs_asked"] for m in metrics),
        epochs_trained=sum(m.get("epochs_trained") or 0 for m in metrics) + epochs,
        epochs_reused=sum(m.get("epochs_reused") or 0 for m in metrics) - epochs,
        asked_s=sum(metric_value(m, "forecast_latency_s") for m in metrics),
        trained_s=sum(map(trained_seconds, metrics)) + seconds,
        reused_s=sum(metric_value(m, "latency_reused_s") for m in metrics) - seconds,
        waited_s=waited_s,
    )


def trained_seconds(metrics: Mapping[str, Any]) -> float:
    """Return the metered seconds of training steps that a trial took itself; NaN where it was not timed."""
    return metric_value(metrics, "train_latency_s") - metric_value(metrics, "latency_reused_s")
