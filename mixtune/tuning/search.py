"""The core of a search: asked for a trial, told what became of it; every event is in the ledger before it counts.

It knows nothing of Ray: tuning/ray.py drives it by Ray Tune, and a plain loop does as well::

    while (asked := search.ask()) is not None:
        search.start(asked.trial)
        for report in train_trial(config_of(asked), device):
            if not search.report(asked.trial, report):
                break
        search.end(asked.trial)

A search that continues starts from the ledger alone, so a suggestion depends on nothing else.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mixtune.cost.model import Cost
from mixtune.meter.times import StepTimes
from mixtune.metrics import METRICS, epoch_metrics, significant
from mixtune.run.convergence import latest_gain
from mixtune.run.ledger import AT_REST, COUNTED, ENDED, Ledger, RunState, TrialRecord, finite_or_none, read_state
from mixtune.run.remaining import wanted_trials
from mixtune.space.recipe import SAME_TIME
from mixtune.space.space import SearchSpace
from mixtune.stages.table import Paths, StageTable, Stored, TrialPath
from mixtune.tuning.asking import Asking, Fault, forecast_fields
from mixtune.tuning.earlier import EarlierRecords
from mixtune.tuning.suggestions import Advice, Suggester
from mixtune.tuning.trial import Cause, EpochReport

Costs = Callable[[Mapping[str, Any], StepTimes, int, float], Cost | None]
Reference = Callable[[Iterable[Mapping[str, Any]]], Mapping[str, float]]
OnChange = Callable[["RunningSearch", TrialRecord], None]

MIN_ALIKE = 4  # failures of one kind, and more than half of the trials that ended: then the search stops
MAX_LOSSES = 20  # of a trial's nodes, in a row; then it is the trial that takes them down
MIN_WAITED_S = 0.1  # of slots, to be noted
TIMED = "train_latency_s"
ONE_SL_EPOCH = {"epochs.ssl": 0, "epochs.sl": 1}

_log = logging.getLogger("mixtune.tuning")


class Scheduler(Protocol):
    """Ends trials early; see mixtune.tuning.schedulers."""

    def continues(self, trial: str, metrics: Mapping[str, Any]) -> bool:
        """Take an epoch of a trial, and return whether the trial is worth continuing."""


@dataclass(frozen=True)
class Asked:
    """A trial to train: its id, its dotted parameters, and its fraction of a GPU where that is not the search's."""

    trial: str
    params: dict[str, Any]
    gpus: float | None = None


class RunningSearch:
    """Baselines first, then trials t0001, t0002, ... until the budget has ended; unfinished ones before new ones.

    ledger: its file; state: what it says, read from it by default; deadline: by time.monotonic(), after which the
    search drains; larger_fraction: of a GPU, larger than one which was too small (None: the search's), or None
    where there is no larger one; paths: of dotted parameters through the stage tree, by which a trial waits for a stage
    that another one trains; slots: how many run at once, which may change; holds: whether a node, by its address, is
    there with its states (None: the run directory); costs: what is known of dotted parameters, of whose recipe so
    many epochs are reused and whose untimed steps take such a share of their forecast; fault: why dotted parameters
    make no recipe that can be trained, None where they do; reference: the hypervolume's, of complete trials' metrics;
    scheduler: ends trials early, None for nobody; waits: whether trials train side by side, and so wait for stages and
    slots, and make way for one another; ``unheard`` counts the complete trials that the sampler does not hear of,
    because the space was edited since; ``on_change`` is called with this object and a trial's record after each event.
    """

    def __init__(
        self,
        space: SearchSpace,
        ledger: Path,
        on_change: OnChange = lambda *_: None,
        *,
        state: RunState | None = None,
        deadline: float | None = None,
        larger_fraction: Callable[[float | None], float | None] = lambda fraction: None,
        paths: Paths = lambda params: TrialPath(()),
        slots: int = 1,
        holds: Callable[[str | None], bool] = lambda node: node is None,
        costs: Costs = lambda params, times, reused, untimed: None,
        fault: Fault = lambda params: None,
        reference: Reference = lambda complete: {},
        scheduler: Scheduler | None = None,
        waits: bool = True,
    ) -> None:
        self.space = space
        self.baselines = space.baseline_params()
        self.stop_reason: str | None = None
        self.error: Exception | None = None
        self.deadline = deadline
        self.ends_by: float | None = None  # by time.monotonic(), whatever trains then: see end_within()
        self._larger_fraction, self._on_change, self._costs = larger_fraction, on_change, costs
        self._scheduler = scheduler
        self._ledger = Ledger(ledger)
        if state is None:
            state = read_state(ledger) if ledger.exists() else RunState()
        self.state = state
        self.stages = StageTable(paths)
        self._advice, self.asking = _Advice(self, costs, reference), Asking(self, fault)
        self.slots, self._idle_since, self._idle_s = slots, math.nan, 0.0
        self._waits = waits
        self._holds = holds
        self._active: dict[str, EpochReport | None] = {}  # with the latest report
        self._ended_here: list[TrialRecord] = []
        self._left = set[str]()  # trials that make way for others
        self._warned: set[str] = set()
        self._replay()
        unfinished = [r.trial for r in self.records.values() if r.state in ("asked", "running")]
        self._waiting = [*unfinished, *(name for name in self.baselines if name not in self.records)]

    @property
    def records(self) -> dict[str, TrialRecord]:
        """The ledger's word on each trial and baseline."""
        return self.state.records

    @property
    def step_times(self) -> StepTimes:
        """What is known of step times."""
        return self.state.step_times

    @property
    def budget(self) -> int:
        """How many trials should end."""
        return self.state.budget or self.space.budget

    def ask(self) -> Asked | None:
        """Return the next trial; None where there is none, for now, or at all (``is_over``).

        A trial whose beginning another one is training waits for it, and one that needs no waiting goes first.
        """
        self._count_idle()
        while not self.is_draining:
            for trial in list(self._waiting):
                if trial == SAME_TIME and not self._is_priced():
                    continue
                if not self._waits or self.stages.awaited(self._params(trial)) is None:
                    self._waiting.remove(trial)
                    return self._start(trial)
            is_full = self._waits and len(self._waiting) >= self.slots
            if is_full or not self._wants_more:
                break
            if (asked := self._ask_new()) is not None:
                self._waiting.append(asked)
        if self._waiting and self._waits:
            self._idle_since = time.monotonic()
        return None

    def places(self, trial: str) -> dict[str, str | None]:
        """Return the keys of the states that a trial may continue from, each with the node that has it.

        Of its own the latest one, too, which stays for it alone; None stands for the run directory.
        """
        record = self.records[trial]
        found = self.stages.places(record.params)
        for epoch, key in [*record.stored.items()][-1:]:
            if self._holds(node := record.nodes.get(epoch)):
                found[key] = node
        return found

    def _is_priced(self) -> bool:
        """Return whether it is known how many SL epochs cost what the base recipe does, which is found out once.

        The other baselines time its steps; where they do not, those are forecast by their FLOPs.
        """
        if SAME_TIME in self.records:
            return True
        base, one = (self._costs(params, self.step_times, 0, 1.0) for params in ({}, ONE_SL_EPOCH))
        others = [self.records.get(name) for name in self.baselines if name != SAME_TIME]
        if base is None or one is None:
            del self.baselines[SAME_TIME]
            self._waiting.remove(SAME_TIME)
            return False
        unit = "train_flops" if "train_flops" in self._goals and TIMED not in self._goals else TIMED
        self.baselines[SAME_TIME] |= {"epochs.sl": max(1, round(base.objectives[unit] / one.objectives[unit]))}
        return base.is_timed or all(record is not None and record.state in ENDED for record in others)

    @property
    def _wants_more(self) -> bool:
        """Whether a new trial has to be requested, to meet the budget."""
        records = (r for r in self.records.values() if r.trial not in self.baselines)
        return sum(r.state in ("asked", "running") or r.state in COUNTED for r in records) < self._wanted

    def _params(self, trial: str) -> dict[str, Any]:
        return self.records[trial].params if trial in self.records else self.baselines[trial]

    def _count_idle(self) -> None:
        """Count the seconds of slots that had nothing to do but to wait for a stage."""
        if not math.isnan(self._idle_since):
            slots = max(0, self.slots - len(self._active))
            self._idle_s, self._idle_since = self._idle_s + slots * (time.monotonic() - self._idle_since), math.nan

    @property
    def active(self) -> list[TrialRecord]:
        """The records of the trials that were handed out and have not ended."""
        return [self.records[trial] for trial in [*self._active]]  # a view asks from a thread of its own

    @property
    def is_training(self) -> bool:
        """Whether a trial runs; those that were handed out may be waiting for a node."""
        return any(record.state == "running" for record in self.active)

    @property
    def is_over(self) -> bool:
        """Whether nothing trains any more and nothing is left to be asked."""
        return not self._active and (self.is_draining or self.is_done)

    @property
    def is_done(self) -> bool:
        """Whether the baselines have ended, and the budget is met or nothing is left to try."""
        all_asked = set(self.baselines) <= self.records.keys() and self.done >= self._wanted
        return all_asked and all(r.state in AT_REST for r in self.records.values())

    @property
    def done(self) -> int:
        """How many trials of the budget have ended."""
        return sum(r.state in COUNTED for r in self.records.values() if r.trial not in self.baselines)

    @property
    def _wanted(self) -> int:
        return wanted_trials(self.state, self.space)

    @property
    def is_draining(self) -> bool:
        """Whether no more trials are requested, and running ones should stop at their next epoch, unfinished."""
        return bool(self.stop_reason) or (self.deadline is not None and time.monotonic() > self.deadline)

    def end_within(self, seconds: float) -> None:
        """Drain from now on: running trials stop once they are stored, after their epoch, or are left in it."""
        self.deadline = time.monotonic()
        self.ends_by = self.deadline + seconds

    def open(self, facts: Mapping[str, Any]) -> None:
        """Note what the stage keys of this start rest on; see mixtune.stages.opened."""
        self._append("opened", **facts)

    def note_home(self, trial: str, epoch: int) -> None:
        """Note that a trial's state after so many epochs is in the run directory now."""
        self._append("brought", trial=trial, epoch=epoch)

    def move(self, trial: str) -> None:
        """Note that Ray has taken a trial back from a node that goes, and waits for another one for it."""
        if self.records[trial].state == "running":
            self._write("retried", trial, reason="its node was taken away", cause="node lost")

    def extend(self, trials: int) -> None:
        """Let ``trials`` trials end in all."""
        self._append("extended", trials=trials)

    def give(self, recipes: Sequence[Mapping[str, Any]]) -> None:
        """Try recipes, by their dotted parameters, before what the sampler suggests; see complete_params()."""
        self._append("given", recipes=recipes)

    def learn(self, source: str, records: Sequence[TrialRecord], left_out: Mapping[str, int]) -> None:
        """Let the sampler know what was found elsewhere; see mixtune.tuning.learning.

        source: as the space names it; records: of recipes of this space; left_out: how many were, by reason.
        """
        for record in records:
            copied = {name: getattr(record, name) for name in ("params", "metrics", "epochs", "stored")}
            self._append("learned", durable=False, **{"from": [source, record.trial]}, **finite_or_none(copied))
        self._append("learned", source=source, count=len(records), left_out=left_out)
        self._replay()

    def retry_failed(self) -> int:
        """Open the failed trials again; return how many there are."""
        failed = [record.trial for record in self.records.values() if record.state == "failed"]
        for trial in failed:
            self._write("retried", trial, reason="asked for", cause="asked for")
        self._waiting = [*failed, *self._waiting]
        self._replay()  # Optuna has been told that they failed
        return len(failed)

    def start(self, trial: str) -> None:
        """Note that a trial has begun to train, and whose path through the stage tree it follows how far."""
        follows = self.stages.follows(trial, self.records[trial].params)
        self._write("started", trial, **({} if follows is None else {"follows": follows}))

    def report(self, trial: str, report: EpochReport) -> bool:
        """Note epochs, and the windows that were measured meanwhile; return whether the trial should continue."""
        self._active[trial] = report
        for warning in report.warnings:
            if _kind(warning) not in self._warned:
                self._warned.add(_kind(warning))
                _log.warning(warning)
        for window in report.windows:
            self._keep_window(trial, *window)
        record, continues = self.records[trial], True
        known = {epoch.get("epoch") for epoch in record.epochs}
        for epoch in report.epochs:
            number = epoch["epoch"]
            metrics = finite_or_none({**epoch, **self._price_epoch(record, report, number)})
            is_stored = report.stored is not None and number == report.metrics["epoch"]
            if number not in known or is_stored:
                stored: dict[str, Any] = {"state": report.stored} if is_stored else {}
                stored |= {"reused": report.reused} if report.reused else {}
                if is_stored and report.node is not None:
                    stored["node"] = report.node
                # what is decided by an epoch is a line of its own, which puts this one on the disk too
                self._write("epoch", trial, durable=False, metrics=metrics, **stored)
            if is_stored:
                self.stages.note_stored(record.params, number, Stored(str(report.stored), report.node))
            if self._scheduler is not None and trial not in self.baselines:
                continues &= self._scheduler.continues(trial, metrics)
        self.stages.advance(trial, report.metrics["epoch"])
        if self.stop_reason or (self.is_draining and (report.after_deadline or report.stored is not None)):
            return False
        if report.is_whole or not continues:
            return report.is_whole
        if report.stored is not None and self._is_better_left(record, report.metrics["epoch"]):
            self._left.add(trial)
            return False
        return True

    def _is_better_left(self, record: TrialRecord, epoch: int) -> bool:
        """Return whether a trial whose stage has ended should make way for another recipe, which trains at once."""
        by_stage = self.suggester.by_stage and record.baseline is None and self._wanted > self.done
        if not (by_stage and self._waits) or self.is_draining or epoch not in self.stages.ends(record.params):
            return False
        best = self.suggester.propose(self.next_number, staying=record.trial)
        if fitted := self.suggester.notes():
            self._append("fitted", sampler=fitted)
        if best is None or self.asking.known.name(best) == self.asking.known.name(record.params):
            return False
        return self.stages.awaited(best) is None

    def figures(self, trial: str) -> dict[str, Any]:
        """Return every metric of a running trial's latest epoch, its seconds from the step times of now."""
        report, record = self._active[trial], self.records[trial]
        if report is None:
            return {}
        done = report.metrics["epoch"]
        latest = record.epochs[-1] if record.epochs else {}
        seconds = report.bill.seconds(self.step_times, done, min(report.reused, done))
        return {**report.metrics, **seconds, "training_s": latest.get("training_s") or math.nan}

    def end(self, trial: str) -> None:
        """Note a trial's end: complete if it ran its whole recipe to finite objectives, else stopped or failed.

        Seconds are from the ledger's windows, so that equal recipes have equal ones. A trial that was ended by
        draining stays unfinished, and one that makes way for another is paused.
        """
        if trial not in self._active:  # it failed, and waits again
            return
        report = self._active[trial]
        if report is None or (not report.is_whole and self.is_draining):
            self._leave(trial)
            return
        if trial in self._left:
            self._left.remove(trial)
            metrics = self.figures(trial)
            self._leave(trial)
            self._write("paused", trial, metrics=finite_or_none(metrics))
            return
        done = report.metrics["epoch"]
        for signature in self.step_times.unfixed(report.bill.signatures(done)):
            self._append("step_time_fixed", trial=trial, signature=signature)
        metrics = self.figures(trial)
        if report.is_whole:
            metrics["forecast_latency_s"] = metrics[TIMED]
        bad = [name for name in self._goals if not math.isfinite(metrics.get(name, math.nan))]
        if not report.is_whole:
            self._end("stopped", trial, reason="ended early by the scheduler", metrics=metrics)
        elif bad:
            self.fail(trial, f"{bad[0]} is {metrics.get(bad[0], 'missing')}")
        elif self._is_of_device and self.state.device not in (None, metrics.get("device", self.state.device)):
            self.fail(trial, f"trained on {metrics['device']}, where seconds are not those of {self.state.device}")
        else:
            event, steps = "baseline" if trial in self.baselines else "complete", report.bill.count_steps(done)
            self._end(event, trial, metrics=metrics, steps=steps, **self._note_predictions(report))

    def take(self, trial: str, metrics: Mapping[str, Any], begun: float) -> None:
        """Note the metrics of a trial that was trained to its end elsewhere, since ``begun`` (unix seconds)."""
        self._append("started", trial=trial, time=begun)
        latest = {name: metrics[name] for name in epoch_metrics() if name in metrics}
        self._write("epoch", trial, durable=False, metrics=latest)
        self._end("baseline" if trial in self.baselines else "complete", trial, metrics=metrics)

    def fail(self, trial: str, reason: str, cause: Cause = "permanent") -> None:
        """Note that a trial has no result, and why; it is tried again where that can help.

        A crash is retried up to ``search.max_failures`` times, a lost node up to MAX_LOSSES times, out of memory as
        long as a larger fraction of a GPU is available; all continue from the last checkpoint.
        """
        record = self.records[trial]
        is_ending = self.ends_by is not None and cause == "crash"  # a batch system's signal goes to workers, too
        if record.state in ENDED or is_ending:  # what failed is not the trial, or something that heard of its end
            self._leave(trial)
            return
        fraction = self._larger_fraction(record.gpus) if cause == "out of memory" else None
        again = fraction is not None
        again |= cause == "crash" and record.crashes < self.space.search.max_failures
        again |= cause == "node lost" and record.losses < MAX_LOSSES
        if again:
            self._leave(trial)
            larger = {} if fraction is None else {"gpus_per_trial": fraction}
            self._write("retried", trial, reason=reason, cause=cause, **larger)
            self._waiting.insert(0, trial)
        else:
            metrics = self.figures(trial) if trial in self._active else {}
            self._end("failed", trial, reason=reason, cause=cause, metrics=metrics)

    def lose(self, reason: str) -> bool:
        """Note that what ran the trials broke down: each that was handed out has crashed, and is to be tried again.

        False where one has crashed ``search.max_failures`` times before; it stays unfinished.
        """
        again = True
        for record in reversed(self.active):
            if record.crashes < self.space.search.max_failures:
                self.fail(record.trial, reason, "crash")
            else:
                self._leave(record.trial)
                again = False
        return again

    def _note_predictions(self, report: EpochReport) -> dict[str, Any]:
        """Return an ending's fields on what was predicted; the true classes are noted once."""
        held_out = report.held_out
        if held_out is None or not report.predictions:
            return {}
        if held_out.digest not in self.state.held_out:
            self._append("validation", **vars(held_out))
        return {"validation": held_out.digest, "predictions": dict(report.predictions)}

    def _price_epoch(self, record: TrialRecord, report: EpochReport, number: int) -> dict[str, float]:
        """Return the seconds that an epoch's event holds."""
        times, bill = self.step_times, report.bill
        earlier = (epoch for epoch in record.epochs if epoch.get("epoch") == number - 1)
        before = next(earlier, {}).get("training_s") or sum(bill.price(times, end=number - 1).values())
        seconds = bill.seconds(times, number, 0)
        names = ("train_latency_s", "forecast_latency_s")
        spent = before + sum(bill.price(times, start=number - 1, end=number).values())
        return {**{name: seconds[name] for name in names}, "training_s": spent}

    def _start(self, trial: str) -> Asked:
        """Hand out a trial, which is requested in the ledger already, unless it is a baseline's first time."""
        if trial not in self.records:
            params = self.baselines[trial]
            self._write("asked", trial, baseline=trial, params=params, **forecast_fields(self.cost(params)))
            self.asking.known.add(self.records[trial])
        if self._idle_s > MIN_WAITED_S:
            self._append("waited", trial=trial, seconds=self._idle_s)
            self._idle_s = 0.0
        self._active[trial] = None
        record = self.records[trial]
        self.stages.begin(trial, record.params)
        return Asked(trial, record.params, record.gpus)

    def _leave(self, trial: str) -> None:
        """Take a trial that trains no more from those that do."""
        self._count_idle()
        self._active.pop(trial, None)
        self.stages.leave(trial)

    @property
    def next_number(self) -> int:
        """The number of the next suggestion, from 1: never one that a damaged line may have given."""
        lost = sum(int(event["count"]) for event in self.state.damaged) + len(self.state.unasked)
        return 1 + lost + sum(name not in self.baselines for name in self.records)

    def cost(self, params: Mapping[str, Any], untimed: float = 1.0) -> Cost | None:
        """Return what is known of dotted parameters' costs, trained from their start."""
        return self._costs(params, self.step_times, 0, untimed)

    def _ask_new(self) -> str | None:
        """Note what the sampler suggests until it is a new trial, which is returned; None where there is none."""
        for event, fields in self.asking.events():
            if event == "hopeless":
                self.stop_reason = fields["reason"]
            elif event == "exhausted":
                self._append(event, **fields)
            elif event == "continued":
                self._write(event, **fields)
                return str(fields["trial"])
            else:
                trial = f"t{self.next_number:04d}"
                self._write(event, trial, **fields)
                if event == "asked":
                    self.asking.known.add(self.records[trial])
                    return trial
            if not self._wants_more:
                break
        return None

    def _end(self, event: str, trial: str, metrics: Mapping[str, Any], **fields: Any) -> None:
        report = self._active.get(trial)
        stage = {"stage": report.stage} if report is not None and report.stage is not None else {}
        self._leave(trial)
        self._write(event, trial, metrics=finite_or_none(metrics), **fields, **stage)
        self._ended_here.append(self.records[trial])
        if event == "failed":
            self._stop_if_most_fail_alike()
        if trial not in self.baselines:
            self._note_convergence()

    def _replay(self) -> None:
        """Tell a fresh sampler, the scheduler and the stage table what the ledger says."""
        self.suggester = Suggester(self.space, self._advice)
        self.suggester.remember(self.state.memory)
        self.earlier, self.unheard = EarlierRecords(self.space), 0
        for record in self.state.learned.values():
            if (params := self.earlier.place(record)) is not None:
                self.suggester.learn(replace(record, params=dict(params)))
            for epoch, key in record.stored.items():
                self.stages.note_stored(record.params, epoch, Stored(key))
        for record in self.records.values():
            if record.state not in ("known", "rejected"):
                self.asking.known.add(record)
            if record.trial not in self.baselines:
                params = self.earlier.place(record)
                heard = params is not None and self.suggester.ask_again(record.trial, params, record.sampler)
                heard = self.earlier.can_measure(record) if self.suggester.has_proposer else heard
                self.unheard += record.state == "complete" and not heard
                if record.state in ENDED:
                    self.suggester.tell(record)
        for record in sorted(self.records.values(), key=lambda r: r.begun_time or math.inf):
            if record.begun_time is not None:
                self.stages.follows(record.trial, record.params)
            for epoch, key in record.stored.items():
                self.stages.note_stored(record.params, epoch, Stored(key, record.nodes.get(epoch)))
        self.stages.forget(self._holds)
        if self._scheduler is not None:
            for record in sorted(self.records.values(), key=lambda r: r.ended_time or math.inf):
                for metrics in record.epochs if record.trial not in self.baselines else ():
                    self._scheduler.continues(record.trial, metrics)

    def _stop_if_most_fail_alike(self) -> None:
        reasons = Counter(_kind(r.reason) for r in self._ended_here if r.state == "failed")
        kind, count = reasons.most_common(1)[0]
        if count >= MIN_ALIKE and 2 * count > len(self._ended_here):
            reason = next(r.reason for r in self._ended_here if r.state == "failed" and _kind(r.reason) == kind)
            self.stop_reason = f"{count} of {len(self._ended_here)} trials failed for one reason: {reason}"

    def _note_convergence(self) -> None:
        """Note where ``search.stop`` ends the search; what is requested already is trained."""
        stop = self.space.search.stop
        if stop is None or self.done >= self._wanted:
            return
        gain = latest_gain(self.state, self.space, self._advice.reference(), stop.after)
        if gain is not None and gain < stop.gain:
            found, least = (f"{significant(100 * share, 2)} %" for share in (gain, stop.gain))
            reason = (
                f"search.stop: the latest {stop.after} trials enlarged the front's hypervolume by {found}, "
                f"less than {least}"
            )
            self._append("converged", trials=self.done, stop=stop.model_dump(), reason=reason)

    @property
    def _goals(self) -> list[str]:
        return [*self.space.objectives, *self.space.constraints]

    @property
    def _is_of_device(self) -> bool:
        """Whether it matters which device trained."""
        return any(METRICS[name].of_device for name in self._goals if name in METRICS)

    def _keep_window(self, trial: str, signature: str, seconds: float, quiet: bool, factors: Mapping[str, Any]) -> None:
        if self.step_times.takes(signature, seconds, quiet):
            known = {} if self.step_times.is_known(signature) else {"factors": factors}
            self._append("step_time", trial=trial, signature=signature, seconds=seconds, quiet=quiet, **known)
        elif quiet and self.step_times.is_due(signature, time.time()):
            self._append("step_time", trial=trial, signature=signature, seconds=seconds, quiet=quiet, later=True)

    def _write(self, event: str, trial: str, **fields: Any) -> None:
        self._append(event, trial=trial, **fields)
        record = self.records[trial]
        if record.state in ENDED and trial not in self.baselines:
            self.suggester.tell(record)
        self._on_change(self, record)

    def _append(self, event: str, **fields: Any) -> None:
        try:
            self.state.apply(self._ledger.append(event, **fields))
        except OSError as error:
            self.error = self.error or error
            raise


class _Advice(Advice):
    """What a search tells its sampler: costs with the step times and the stages of now."""

    def __init__(self, search: RunningSearch, costs: Costs, reference: Reference) -> None:
        self._search, self._costs, self._reference = search, costs, reference

    @property
    def records(self) -> Mapping[str, TrialRecord]:  # type: ignore[override]
        # what was learned is not on this search's front: what it dominates has still to be trained to be there
        found = (*self._search.records.values(), *self._search.state.learned.values())
        return dict(view for record in found for view in self._search.earlier.views(record))

    def fault(self, params: Mapping[str, Any]) -> str | None:
        return self._search.asking.fault(params)

    def name(self, params: Mapping[str, Any]) -> str:
        return self._search.asking.known.name(params)

    def is_known(self, name: str) -> bool:
        return self._search.asking.known.same_named(name, self._search.records) is not None

    def stage_ends(self, params: Mapping[str, Any]) -> Collection[int]:
        return self._search.stages.ends(params)

    def costs(self, params: Mapping[str, Any]) -> Cost | None:
        return self._costs(params, self._search.step_times, self._search.stages.reusable(params), 1.0)

    def reference(self) -> Mapping[str, float]:
        return self._reference(r.metrics for r in self._search.records.values() if r.state == "complete")


def _kind(reason: str | None) -> str:
    """Return a failure's reason, or a warning, without what differs from trial to trial."""
    return re.sub(r"\d+", "#", reason or "")
