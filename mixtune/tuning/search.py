"""What a search knows while it runs: every trial's state, written to the ledger before anything depends on it.

A search that goes on starts from the ledger alone, so a suggestion depends on nothing else.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixtune.cost.model import Cost
from mixtune.meter.times import StepTimes
from mixtune.run.ledger import (
    COUNTED,
    ENDED,
    Ledger,
    TrialRecord,
    apply_event,
    extended_budget,
    finite_or_none,
    read_ledger,
    trial_states,
)
from mixtune.space.space import SearchSpace
from mixtune.stages.table import Paths, StageTable, TrialPath
from mixtune.tuning.suggestions import Advice, Suggester

Cause = Literal["crash", "out of memory", "permanent"]
Forecast = Callable[[Mapping[str, Any], StepTimes], Mapping[str, float]]
Costs = Callable[[Mapping[str, Any], StepTimes, int], Cost | None]

MOST_REJECTED = 200  # suggestions in a row; then the constraints are taken for ones that cannot be met
FEWEST_ALIKE = 4  # failures of one kind, and more than half of the trials that ended: then the search stops
LEAST_WAITED_S = 0.1  # of slots, to be noted
TIMED = "train_latency_s"

_log = logging.getLogger("mixtune.tuning")


@dataclass(frozen=True)
class Asked:
    """A trial to train: its id, its dotted parameters, and its share of a GPU where that is not the search's."""

    trial: str
    params: dict[str, Any]
    gpus: float | None = None


class RunningSearch:
    """Baselines first, then trials t0001, t0002, ... until the budget has ended; unfinished ones before new ones.

    ledger: its file, read where it exists; deadline: unix seconds, after which the search drains; forecast: what is
    known of dotted parameters before training, for the constraints; larger_share: a share of a GPU that is larger than
    one which was too small (None: the search's), or None where there is no larger one; paths: of dotted parameters
    through the stage tree, by which a trial waits for a stage that another one trains; slots: how many run at once;
    costs: what is known of dotted parameters, of whose recipe so many epochs are reused, for the samplers; reference:
    the hypervolume's, for them too;
    ``on_change`` is called with this object and a trial's record after each event.
    """

    def __init__(
        self,
        space: SearchSpace,
        ledger: Path,
        on_change: Callable[[RunningSearch, TrialRecord], None] = lambda *_: None,
        *,
        deadline: float | None = None,
        forecast: Forecast = lambda params, times: {},
        larger_share: Callable[[float | None], float | None] = lambda share: None,
        paths: Paths = lambda params: TrialPath(()),
        slots: int = 1,
        costs: Costs = lambda params, times, reused: None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        self.space = space
        self.baselines = space.baseline_params()
        self.stop_reason: str | None = None
        self.error: Exception | None = None
        self.deadline = deadline
        self._forecast, self._larger_share, self._on_change = forecast, larger_share, on_change
        self._ledger = Ledger(ledger)
        events = read_ledger(ledger) if ledger.exists() else []
        self.records: dict[str, TrialRecord] = trial_states(events)
        self.step_times = StepTimes.from_ledger(events)
        self.device: str | None = next((e["factors"]["device"] for e in events if "factors" in e), None)
        self.budget = extended_budget(events, space.budget)
        self.stages = StageTable(paths)
        self._advice = _Advice(self, costs, reference)
        self.suggester = Suggester(space, self._advice)
        self._replay()
        self._slots, self._idle_since, self._idle_s = slots, math.nan, 0.0
        for event in events:
            if event["event"] == "started":
                self.stages.follows(event["trial"], self.records[event["trial"]].params)
            if event["event"] == "epoch" and "state" in event:
                self.stages.note_stored(self.records[event["trial"]].params, event["metrics"]["epoch"])
        unfinished = [r.trial for r in self.records.values() if r.state not in ENDED]
        self._waiting = [*unfinished, *(name for name in self.baselines if name not in self.records)]
        self._active: set[str] = set()
        self._ended_here: list[TrialRecord] = []
        self._warned: set[str] = set()

    def ask(self) -> Asked | None:
        """Return the next trial; None where there is none, for now, or at all (``is_over``).

        A trial whose beginning another one is training waits for it, and one that needs no waiting goes first.
        """
        self._count_idle()
        while not self.is_draining:
            for trial in self._waiting:
                if self.stages.awaited(self._params(trial)) is None:
                    self._waiting.remove(trial)
                    return self._start(trial)
            if len(self._waiting) >= self._slots or not self._wants_more:
                break
            if (asked := self._ask_new()) is not None:
                self._waiting.append(asked)
        if self._waiting:
            self._idle_since = time.monotonic()
        return None

    @property
    def _wants_more(self) -> bool:
        """Whether a new trial has to be asked for, to meet the budget."""
        records = (r for r in self.records.values() if r.trial not in self.baselines)
        return sum(r.state not in ENDED or r.state in COUNTED for r in records) < self._wanted

    def _params(self, trial: str) -> dict[str, Any]:
        return self.records[trial].params if trial in self.records else self.baselines[trial]

    def _count_idle(self) -> None:
        """Count the seconds of slots that had nothing to do but to wait for a stage."""
        if not math.isnan(self._idle_since):
            slots = max(0, self._slots - len(self._active))
            self._idle_s, self._idle_since = self._idle_s + slots * (time.monotonic() - self._idle_since), math.nan

    @property
    def active(self) -> list[TrialRecord]:
        """The records of the trials that were handed out and have not ended."""
        return [self.records[trial] for trial in self._active]

    @property
    def is_over(self) -> bool:
        """Whether nothing trains any more and nothing is left to be asked."""
        return not self._active and (self.is_draining or self.is_done)

    @property
    def is_done(self) -> bool:
        """Whether the baselines have ended and the budget is met."""
        all_asked = set(self.baselines) <= self.records.keys() and self.done >= self._wanted
        return all_asked and all(record.state in ENDED for record in self.records.values())

    @property
    def done(self) -> int:
        """How many trials of the budget have ended."""
        return sum(r.state in COUNTED for r in self.records.values() if r.trial not in self.baselines)

    @property
    def _wanted(self) -> int:
        """How many trials should end: the budget, or all of a grid that no constraint forbids."""
        size = self.space.grid_size() if self.space.search.sampler == "grid" else None
        if size is None:
            return self.budget
        return min(self.budget, size - sum(record.state == "rejected" for record in self.records.values()))

    @property
    def is_draining(self) -> bool:
        """Whether no more trials are asked for, and running ones should stop at their next epoch, unfinished."""
        return bool(self.stop_reason) or (self.deadline is not None and time.time() > self.deadline)

    def extend(self, trials: int) -> None:
        """Let ``trials`` trials end in all."""
        self._append("extended", trials=trials)
        self.budget = trials

    def retry_failed(self) -> int:
        """Open the failed trials again; return how many there are."""
        failed = [record.trial for record in self.records.values() if record.state == "failed"]
        for trial in failed:
            self._write("retried", trial, reason="asked for", cause="asked for")
        self._waiting = [*failed, *self._waiting]
        self.suggester = Suggester(self.space, self._advice)  # which has been told that they failed
        self._replay()
        return len(failed)

    def start(self, trial: str) -> None:
        """Note that a trial has begun to train, and whose path through the stage tree it follows how far."""
        follows = self.stages.follows(trial, self.records[trial].params)
        self._write("started", trial, **({} if follows is None else {"follows": follows}))

    def report(self, trial: str, to_ledger: Mapping[str, Any]) -> None:
        """Note epochs, and the windows that were measured meanwhile; see MixTrainable. Its warnings are logged once."""
        for warning in to_ledger.get("warnings", ()):
            if _kind(warning) not in self._warned:
                self._warned.add(_kind(warning))
                _log.warning(warning)
        for signature, seconds, quiet, factors in to_ledger["windows"]:
            self._keep_window(trial, signature, seconds, quiet, factors)
        known = {epoch.get("epoch") for epoch in self.records[trial].epochs}
        for epoch in to_ledger["epochs"]:
            if epoch["epoch"] not in known or "state" in epoch:
                stored = {"state": epoch["state"]} if "state" in epoch else {}
                metrics = {name: value for name, value in epoch.items() if name != "state"}
                self._write("epoch", trial, metrics=finite_or_none(metrics), **stored)
            if "state" in epoch:
                self.stages.note_stored(self.records[trial].params, epoch["epoch"])
        self.stages.advance(trial, max((epoch["epoch"] for epoch in to_ledger["epochs"]), default=0))

    def end(self, trial: str, metrics: Mapping[str, Any], to_ledger: Mapping[str, Any]) -> None:
        """Note a trial's end: complete if it ran its whole recipe to finite objectives, else stopped or failed.

        to_ledger: with steps by phase and cost signature; seconds are taken from the ledger's windows, so that equal
        recipes have equal ones. A trial that was ended by draining stays unfinished.
        """
        is_whole = metrics["epoch"] == metrics["epochs_asked"]
        if not is_whole and self.is_draining:
            self._leave(trial)
            return
        steps = to_ledger["steps"]
        signatures = [signature for counts in steps.values() for signature in counts]
        self._fix_step_times(trial, [*signatures, to_ledger["infer"]])
        metrics = {**metrics, **self.latencies(to_ledger)}
        if is_whole:
            metrics["forecast_latency_s"] = metrics[TIMED]
        needed = {**self.space.objectives, **self.space.constraints}
        bad = [name for name in needed if not math.isfinite(metrics.get(name, math.nan))]
        if not is_whole:
            self._end("stopped", trial, reason="ended early by the scheduler", metrics=metrics)
        elif bad:
            self.fail(trial, f"{bad[0]} is {metrics.get(bad[0], 'missing')}", metrics=metrics)
        elif self._is_timed and self.device not in (None, metrics.get("device", self.device)):
            self.fail(trial, f"trained on {metrics['device']}, where seconds are not those of {self.device}")
        else:
            self._end("baseline" if trial in self.baselines else "complete", trial, metrics=metrics, steps=steps)

    def fail(
        self, trial: str, reason: str, cause: Cause = "permanent", metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Note that a trial has no result, and why; it is tried again where that can help.

        A crash is retried up to ``search.max_failures`` times, out of memory as long as there is a larger share of a
        GPU to be had; both go on from the last stored state.
        """
        record = self.records[trial]
        if record.state in ENDED:  # what failed is not the trial, but something that heard of its end
            self._leave(trial)
            return
        share = self._larger_share(record.gpus) if cause == "out of memory" else None
        if share is not None or (cause == "crash" and record.crashes < self.space.search.max_failures):
            self._leave(trial)
            larger = {} if share is None else {"gpus_per_trial": share}
            self._write("retried", trial, reason=reason, cause=cause, **larger)
            self._waiting.insert(0, trial)
        else:
            self._end("failed", trial, reason=reason, metrics=metrics or {})

    def latencies(self, to_ledger: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics in seconds that follow from what is known of step times now; ``to_ledger``: see end()."""

        def seconds_of(steps: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
            return {
                phase: self.step_times.latency((count, signature) for signature, count in counts.items())
                for phase, counts in steps.items()
            }

        seconds = seconds_of(to_ledger["steps"])
        by_phase = {f"latency_{phase}_s": s for phase, s in seconds.items()}
        by_phase["latency_reused_s"] = sum(seconds_of(to_ledger["reused_steps"]).values(), 0.0)
        infer = 1e3 * self.step_times.step_time(to_ledger["infer"])
        return {TIMED: sum(seconds.values()), **by_phase, "infer_latency_ms": infer}

    def _start(self, trial: str) -> Asked:
        """Hand out a trial, which is asked for in the ledger already, unless it is a baseline's first time."""
        if trial not in self.records:
            self._write("asked", trial, baseline=trial, params=self.baselines[trial])
        if self._idle_s > LEAST_WAITED_S:
            self._append("waited", trial=trial, seconds=self._idle_s)
            self._idle_s = 0.0
        self._active.add(trial)
        record = self.records[trial]
        self.stages.begin(trial, record.params)
        return Asked(trial, record.params, record.gpus)

    def _leave(self, trial: str) -> None:
        """Take a trial that trains no more from those that do."""
        self._count_idle()
        self._active.discard(trial)
        self.stages.leave(trial)

    def _ask_new(self) -> str | None:
        """Ask the sampler until a trial keeps the constraints; None where there is none, or too many break them."""
        for _ in range(MOST_REJECTED):
            trial = self._ask_once()
            if trial is not None or not self._wants_more:
                return trial
        kept = " and ".join(str(constraint) for constraint in self.space.constraints.values())
        self.stop_reason = f"{MOST_REJECTED} suggestions in a row break {kept}: the constraint cannot be met here"
        return None

    def _ask_once(self) -> str | None:
        """Ask the sampler for a trial; return None where it breaks a constraint."""
        number = 1 + sum(name not in self.baselines for name in self.records)
        trial = f"t{number:04d}"
        params = self.suggester.ask(trial, number)
        fields = {"params": params, "sampler": self.suggester.notes(trial)}
        if self.space.constraints:
            forecast = self._forecast(params, self.step_times)
            limits = self.space.constraints.items()
            broken = next((c for name, c in limits if name in forecast and not c.holds(forecast[name])), None)
            if broken is not None:
                reason = f"{broken.metric} would be {forecast[broken.metric]:.4g}, not {broken.to_yaml()}"
                self._write("rejected", trial, reason=reason, metrics=finite_or_none(forecast), **fields)
                self.suggester.tell_rejected(trial, forecast)
                return None
        self._write("asked", trial, **fields)
        return trial

    def _end(self, event: str, trial: str, **fields: Any) -> None:
        metrics = fields.pop("metrics")
        self._leave(trial)
        self._write(event, trial, metrics=finite_or_none(metrics), **fields)
        self._tell(self.records[trial])
        self._ended_here.append(self.records[trial])
        if event == "failed":
            self._stop_if_most_fail_alike()

    def _tell(self, record: TrialRecord) -> None:
        """Tell Optuna how a trial ended."""
        if record.trial in self.baselines:
            return
        if record.state == "complete":
            self.suggester.tell_complete(record.trial, record.metrics)
        elif record.state == "stopped":
            self.suggester.tell_stopped(record.trial)
        elif record.state == "rejected":
            self.suggester.tell_rejected(record.trial, record.metrics)
        elif record.state == "failed":
            self.suggester.tell_failed(record.trial)

    def _replay(self) -> None:
        for record in self.records.values():
            if record.trial not in self.baselines:
                self.suggester.ask_again(record.trial, record.params, record.sampler)
                self._tell(record)

    def _stop_if_most_fail_alike(self) -> None:
        reasons = Counter(_kind(r.reason) for r in self._ended_here if r.state == "failed")
        kind, count = reasons.most_common(1)[0]
        if count >= FEWEST_ALIKE and 2 * count > len(self._ended_here):
            reason = next(r.reason for r in self._ended_here if r.state == "failed" and _kind(r.reason) == kind)
            self.stop_reason = f"{count} of {len(self._ended_here)} trials failed for one reason: {reason}"

    @property
    def _is_timed(self) -> bool:
        return TIMED in self.space.objectives or TIMED in self.space.constraints

    def _keep_window(self, trial: str, signature: str, seconds: float, quiet: bool, factors: Mapping[str, Any]) -> None:
        known = {} if self.step_times.is_known(signature) else {"factors": factors}
        if self.step_times.add(signature, seconds, quiet):
            self.device = self.device or factors["device"]
            self._append("step_time", trial=trial, signature=signature, seconds=seconds, quiet=quiet, **known)

    def _fix_step_times(self, trial: str, signatures: Iterable[str]) -> None:
        for signature in self.step_times.fix(signatures):
            self._append("step_time_fixed", trial=trial, signature=signature)

    def _write(self, event: str, trial: str, **fields: Any) -> None:
        apply_event(self.records, self._append(event, trial=trial, **fields))
        self._on_change(self, self.records[trial])

    def _append(self, event: str, **fields: Any) -> dict[str, Any]:
        try:
            return self._ledger.append(event, **fields)
        except OSError as error:
            self.error = self.error or error
            raise


class _Advice(Advice):
    """What a search tells its sampler: costs with the step times and the stages of now."""

    def __init__(self, search: RunningSearch, costs: Costs, reference: Mapping[str, float] | None) -> None:
        self._search, self._costs, self._reference = search, costs, reference

    def costs(self, params: Mapping[str, Any]) -> Cost | None:
        return self._costs(params, self._search.step_times, self._search.stages.reusable(params))

    def reference(self) -> Mapping[str, float] | None:
        return self._reference


def _kind(reason: str | None) -> str:
    """Return a failure's reason, or a warning, without what differs from trial to trial."""
    return re.sub(r"\d+", "#", reason or "")
