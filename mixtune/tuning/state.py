"""What a search knows while it runs: every trial's state, written to the ledger before anything depends on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixtune.ledger import Ledger, TrialRecord, apply_event, finite_or_none
from mixtune.space import SearchSpace
from mixtune.tuning.suggestions import Suggester


class RunningSearch:
    """Baselines first, then trials t0001, t0002, ... until the budget is asked for.

    ``on_change`` is called with this object after every event.
    """

    def __init__(self, space: SearchSpace, ledger: Path, on_change: Callable[[RunningSearch], None]) -> None:
        self.space = space
        self.baselines = space.baseline_params()
        self.budget = space.budget
        self._ledger = Ledger(ledger)
        self.suggester = Suggester(space)
        self._on_change = on_change
        self._waiting_baselines = list(self.baselines)
        self._asked = 0
        self.records: dict[str, TrialRecord] = {}

    def ask(self) -> tuple[str, dict[str, Any]] | None:
        """Return the next trial's id and dotted parameters, or None once the budget has been asked for."""
        if self._waiting_baselines:
            trial = self._waiting_baselines.pop(0)
            params = self.baselines[trial]
            self._write("asked", trial, baseline=trial, params=params)
            return trial, params
        if self._asked == self.budget:
            return None
        self._asked += 1
        trial = f"t{self._asked:04d}"
        params = self.suggester.ask(trial, self._asked)
        self._write("asked", trial, params=params)
        return trial, params

    def start(self, trial: str) -> None:
        """Note that a trial has begun to train."""
        self._write("started", trial)

    def report(self, trial: str, metrics: Mapping[str, Any]) -> None:
        """Note an epoch's metrics."""
        self._write("epoch", trial, metrics=finite_or_none(metrics))

    def end(self, trial: str, metrics: Mapping[str, Any]) -> None:
        """Note a trial's end: complete if it ran its whole recipe to finite objectives, else stopped or failed."""
        kept = finite_or_none(metrics)
        bad = [name for name in self.space.objectives if not math.isfinite(metrics.get(name, math.nan))]
        if metrics["epochs_trained"] < metrics["epochs_asked"]:
            self._write("stopped", trial, reason="ended early by the scheduler", metrics=kept)
            if trial not in self.baselines:
                self.suggester.tell_stopped(trial)
        elif bad:
            self.fail(trial, f"{bad[0]} is {metrics.get(bad[0], 'missing')}", metrics)
        elif trial in self.baselines:
            self._write("baseline", trial, method=trial, metrics=kept)
        else:
            self._write("complete", trial, metrics=kept)
            self.suggester.tell_complete(trial, metrics)

    def fail(self, trial: str, reason: str, metrics: Mapping[str, Any] | None = None) -> None:
        """Note that a trial has no result, and why."""
        self._write("failed", trial, reason=reason, metrics=finite_or_none(metrics or {}))
        if trial not in self.baselines:
            self.suggester.tell_failed(trial)

    def _write(self, event: str, trial: str, **fields: Any) -> None:
        apply_event(self.records, self._ledger.append(event, trial=trial, **fields))
        self._on_change(self)
