"""Simulated time: slots train what a policy asks, epoch after epoch, as a table says."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from replay.table import Curve, Params, Table, front_volume


@dataclass(frozen=True)
class Asked:
    """A trial to train: its parameters, and how many of its epochs a checkpoint has."""

    trial: str
    params: Params
    reused: int = 0


class Policy(Protocol):
    """A search algorithm: what to train, and whether to continue it."""

    def ask(self) -> Asked | None:
        """Return the next trial; None: nothing now."""

    def report(self, trial: str, epoch: int, curve: Curve) -> bool:
        """Hear of an epoch; return whether the trial continues."""

    def end(self, trial: str, epoch: int, curve: Curve) -> None:
        """Hear of a trial's end after so many epochs: complete after all of them, else stopped."""


@dataclass
class Outcome:
    """What a policy spent and found: (device-seconds, hypervolume) after each complete trial.

    Device-seconds are the wall clock's times the slots, so waiting counts; trained_s: without waiting.
    """

    progress: list[tuple[float, float]] = field(default_factory=list)
    wall_s: float = 0.0
    trained_s: float = 0.0
    epochs_asked: int = 0
    epochs_trained: int = 0
    trials: int = 0
    complete: int = 0

    def seconds_until(self, volume: float) -> float:
        """Return the device-seconds after which a hypervolume was reached; infinite where it was not."""
        return next((seconds for seconds, found in self.progress if found >= volume), float("inf"))

    def volume_after(self, seconds: float) -> float:
        """Return the hypervolume that was found within so many device-seconds."""
        return max((found for ended, found in self.progress if ended <= seconds), default=0.0)

    @property
    def found(self) -> float:
        """The hypervolume that was found in all."""
        return self.volume_after(float("inf"))


def simulate(
    policy: Policy, table: Table, reference: Mapping[str, float], slots: int, enough: float, most_trials: int
) -> Outcome:
    """Run a policy until its hypervolume is ``enough`` or ``most_trials`` have been asked and have ended.

    Baselines of a policy are trained and do not count as found.
    """
    outcome, found = Outcome(), list[Curve]()
    running: list[tuple[float, int, Asked, int]] = []  # when the epoch ends, order, trial, epoch
    now, order = 0.0, 0

    def begin() -> None:
        nonlocal order
        while len(running) < slots and outcome.trials < most_trials:
            asked = policy.ask()
            if asked is None:
                return
            outcome.trials += 1
            curve = table.curve(asked.params)
            outcome.epochs_asked += len(curve.phases)
            first = asked.reused + 1
            if first > len(curve.phases) or not _report_reused(policy, asked, curve):
                finish(asked, min(asked.reused, len(curve.phases)))
                continue
            heapq.heappush(running, (now + curve.clock[first - 1], order, asked, first))
            order += 1

    def finish(asked: Asked, epoch: int) -> None:
        curve = table.curve(asked.params)
        policy.end(asked.trial, epoch, curve)
        if epoch == len(curve.phases):
            outcome.complete += 1
            if asked.trial.startswith("t"):
                found.append(curve)
                outcome.progress.append((now * slots, front_volume(found, reference)))

    begin()
    while running:
        now, _, asked, epoch = heapq.heappop(running)
        curve = table.curve(asked.params)
        outcome.trained_s += curve.clock[epoch - 1]
        outcome.epochs_trained += 1
        continues = policy.report(asked.trial, epoch, curve)
        if epoch == len(curve.phases) or not continues:
            finish(asked, epoch)
            if outcome.progress and outcome.progress[-1][1] >= enough:
                break
        else:
            heapq.heappush(running, (now + curve.clock[epoch], order, asked, epoch + 1))
            order += 1
        begin()
    outcome.wall_s = now
    return outcome


def _report_reused(policy: Policy, asked: Asked, curve: Curve) -> bool:
    return all([policy.report(asked.trial, epoch, curve) for epoch in range(1, asked.reused + 1)])


def curve_metrics(curve: Curve, epoch: int) -> dict[str, Any]:
    """Return what a trainable would report after an epoch."""
    return {
        "val_accuracy": curve.accuracies[epoch - 1],
        "train_latency_s": sum(curve.seconds[:epoch]),
        "forecast_latency_s": curve.latency,
        "sl_progress": curve.sl_progress(epoch),
        "epoch": epoch,
        "epochs_asked": len(curve.phases),
        "phase": curve.phases[epoch - 1],
    }
