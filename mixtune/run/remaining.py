"""How long a search will still take, from its ledger alone: forecasts of training steps, and the pace kept so far."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from mixtune.metrics import metric_value
from mixtune.run.accounting import trained_seconds
from mixtune.run.ledger import COUNTED, ENDED, RunState, TrialRecord
from mixtune.space.space import SearchSpace

RECENT = 8  # trials; what is learned follows a machine whose load changes, and a sampler that finds what is cheap
DRAWN = 4  # trials, for which the mean forecast of recipes drawn at random stands at first
OVERDUE = 0.1  # of the time that an epoch has taken, left at least: a forecast that is over says nothing any more


@dataclass(frozen=True)
class TimeLeft:
    """Wall seconds that are left. search: None where there is no forecast at all; trials: of those that run."""

    search: float | None
    trials: dict[str, float]


def ended_early(state: RunState, space: SearchSpace) -> str | None:
    """Return why no more trials are requested, whatever the budget is; None where they are.

    A search that has converged continues where it is extended, or its ``search.stop`` is another one by now.
    """
    stop = space.search.stop
    if stop is not None and state.converged is not None and state.converged["stop"] == stop.model_dump():
        return str(state.converged["reason"])
    return state.exhausted


def wanted_trials(state: RunState, space: SearchSpace) -> int:
    """Return how many trials should end: the budget, or all of a grid that is possible and not a repeat.

    Of a search that ended early, as many as have ended.
    """
    if ended_early(state, space) is not None:
        return sum(r.baseline is None and r.state in COUNTED for r in [*state.records.values()])
    budget, most = state.budget or space.budget, most_trials(state, space)
    return budget if most is None else min(budget, most)


def most_trials(state: RunState, space: SearchSpace) -> int | None:
    """Return how many trials may end at all; None where the sampler lists no grid."""
    size = space.grid_size() if space.search.sampler == "grid" else None
    if size is None:
        return None
    records = [*state.records.values()]
    earlier, records = records[: state.before_edit], records[state.before_edit :]
    kept = sum(r.baseline is None and r.state not in ("rejected", "known") for r in earlier)  # of another grid
    # a recipe that was given comes in the grid's turn as well
    return kept + size + sum(r.given for r in records) - sum(r.state in ("rejected", "known") for r in records)


def time_left(state: RunState, space: SearchSpace, now: float, slots: int | None = None) -> TimeLeft:
    """Return how long a search that runs will still take.

    The seconds of training steps that are left to each trial are known: by its latest epoch, by its forecast when it
    was asked, or, of one still to be suggested, by the mean of those suggested last, at first of recipes drawn at
    random. What was seen of the latest trials makes wall seconds of them: the pace, wall seconds per second of training
    steps (validation, starts, neighbours on the device); the share of a recipe that its trial trains, which falls as
    stages are reused and trials are ended early; the time for which a slot is free between two trials. Then trials
    follow each other in the slots.

    now: unix seconds; slots: trials at once, by default as many as the search began with.
    """
    opened = state.opened[-1] if state.opened else {}
    drawn = opened.get("forecast_s") or {}
    records = [record for record in [*state.records.values()] if record.state not in ("rejected", "known")]
    running = [record for record in records if record.state == "running"]
    slots = max(1, slots or opened.get("slots") or len(running))

    timed = [record for record in records if record.epochs and record.forecast_s]
    asked_s = sum(record.forecast_s or 0.0 for record in timed)
    revision = sum(_forecast(record) for record in timed) / asked_s if asked_s else 1.0
    costs = [revision * drawn["trial"]] * DRAWN if "trial" in drawn else []
    costs += [seconds for r in records if r.baseline is None and not math.isnan(seconds := _forecast(r))]
    if not any(costs):
        return TimeLeft(None, {})
    typical = sum(costs[-RECENT:]) / len(costs[-RECENT:])

    ended = [record for record in records if record.ended_time is not None]
    seen = [*heapq.nlargest(RECENT, ended, key=lambda record: record.ended_time or 0.0), *running]
    # until enough is seen, a trial at the pace of its steps, and without reuse, stands in for it
    wall = trained = kept = requested = typical if len(ended) < RECENT else 0.0
    for record in seen:
        seconds = _trained_seconds(record)
        until = record.epoch_time if record.ended_time is None else record.ended_time
        if math.isnan(seconds) or until is None or record.started_time is None:
            continue
        wall, trained = wall + until - record.started_time, trained + seconds
        if record.state in ENDED and not math.isnan(forecast := _forecast(record)):
            kept, requested = kept + seconds, requested + forecast
    pace = wall / trained if trained else 1.0
    share = kept / requested if requested else 1.0
    pause = _pause(records, opened.get("time", 0.0), now, slots)

    def rest(record: TrialRecord) -> float:
        forecast = _forecast(record)
        if math.isnan(forecast):
            forecast = typical
        if record.epochs:
            return float(pace * max(0.0, forecast - metric_value(record.epochs[-1], "train_latency_s")))
        return float(pace * forecast * (share if record.state == "asked" or record.follows else 1.0))

    trials = {}
    for record in running:
        last = record.started_time if record.epoch_time is None else record.epoch_time
        since = 0.0 if last is None else now - last
        trials[record.trial] = max(rest(record) - since, OVERDUE * since)
    waiting = [pause + rest(record) for record in records if record.state == "asked"]
    waiting += [
        pause + pace * share * (revision * drawn[name] if name in drawn else typical)
        for name in space.baselines
        if name not in state.records
    ]
    known = sum(r.baseline is None and (r.state in ("asked", "running") or r.state in COUNTED) for r in records)
    waiting += [pause + pace * share * typical] * max(0, wanted_trials(state, space) - known)
    ends = [*trials.values(), *[0.0] * (slots - len(trials))]
    heapq.heapify(ends)
    for seconds in waiting:
        heapq.heapreplace(ends, ends[0] + seconds)
    return TimeLeft(max(ends), trials)


def _forecast(record: TrialRecord) -> float:
    """Return the seconds of training steps of a trial's whole recipe, as known now; NaN where nothing is."""
    known = metric_value(record.metrics, "forecast_latency_s")
    return metric_value({"asked": record.forecast_s}, "asked") if math.isnan(known) else known


def _trained_seconds(record: TrialRecord) -> float:
    """Return the seconds of training steps that the latest attempt took itself; NaN where none was timed."""
    if record.state in ENDED:
        return trained_seconds(record.metrics)
    latest = next(iter(record.epochs[-1:]), {})
    begun = next((epoch for epoch in record.epochs if epoch.get("epoch") == record.reused), {"train_latency_s": 0.0})
    return metric_value(latest, "train_latency_s") - metric_value(begun, "train_latency_s")


def _pause(records: list[TrialRecord], opened: float, now: float, slots: int) -> float:
    """Return for how many seconds a slot was free for each trial that this start of the search has begun."""
    starts = {r.trial: r.started_time for r in records if r.started_time is not None and r.started_time >= opened}
    if not starts:
        return 0.0
    taken = sum(
        (now if r.ended_time is None else r.ended_time) - starts[r.trial]
        for r in records
        if r.trial in starts and r.state != "asked"
    )
    return max(0.0, slots * (now - min(starts.values())) - taken) / len(starts)
