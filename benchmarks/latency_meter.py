"""Does the latency meter read the step time that a recipe has alone, while neighbours train on the same device?

    python benchmarks/latency_meter.py

trains on scikit-learn's digits, each training run in a process of its own with a table of step times of its own, as a
trial does, and answers alongside the naive clock, which is an epoch's wall clock over its steps:

a. four recipes of different cost, each alone and all four packed on one device: step times within 5 % of those alone;
b. four copies of one recipe, packed in fresh processes: from a shared table equal latencies, and what each process
   would have had by itself; and the recipe while other processes start, which know nothing of the lock;
c. searches of 20 trials, four at once: waiting for quiet windows takes under 3 % of the trials' seconds, and the step
   times that came of it are within 5 % of those alone; what a step boundary costs, and the loop with the meter against
   the loop without;
d. fresh processes, alone: the meter within 3 % of the clock of later epochs, by the number of steps of an epoch, and
   the fewest WARM_UP_STEPS that bring it there.

Processes have one thread each. Alone and packed take turns in the same processes, seconds apart, so a machine that
drifts hits both: a ratio is of one turn and the next. Who has measured trains on until all have. The naive clock is of
epochs in which the process itself measured nothing, and leaves out waiting, as `train_clock_s` does. It needs an idle
machine. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import pandas as pd
import torch
import yaml
from meter_processes import (
    ALONE,
    PACKED_TURN,
    Job,
    Trace,
    Training,
    compare_job,
    offer_job,
    run_alone,
    run_together,
    share_windows,
    trace_job,
    train_in_turns,
)
from rich.console import Console
from training_report import count_cores, cpu_model, format_table

import mixtune
from mixtune.meter import windows as meter
from mixtune.meter.times import WINDOWS
from mixtune.run.ledger import fold, read_ledger
from mixtune.space.recipe import with_values
from mixtune.training.plan import PHASES, Phase

RESULTS = Path(__file__).parent / "results"
SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"

PACKED_GOAL, COST_GOAL, FRESH_GOAL = 0.05, 0.03, 0.03

BASE: dict[str, Any] = {
    "data": {"dataset": "digits"},
    "model": {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 2},
    "optim": {"batch_size": 32},
    "augment": {"pad": 0},
}

# Two epochs of each phase: the meter's windows lie in the first, the clock is the second's.
RECIPES: dict[str, dict[str, Any]] = {
    "SL, depth 2": {"epochs.ssl": 0, "epochs.sl": 2, "model.depth": 2},
    "SSL+SL, visible": {"epochs.ssl": 2, "epochs.sl": 2, "rho": 0.0, "ssl.encode": "visible"},
    "SSL+SL, full": {"epochs.ssl": 2, "epochs.sl": 2, "rho": 0.0, "ssl.encode": "full"},
    "MixTraining, depth 6": {"epochs.ssl": 4, "epochs.sl": 4, "rho": 0.5, "model.depth": 6},
}
COPIED = "SSL+SL, visible"

# Searches: the shipped one's recipe with fewer epochs. FREE changes no step's cost; by the rate no trial continues from
# a state of another, whose seconds would count twice.
FREE: dict[str, Any] = {"alpha": {"uniform": [0.05, 0.95]}, "optim.ssl.base_lr": {"loguniform": [0.01, 0.05]}}
ONE_SIZE = "one size of model and batch"
SEARCHES: dict[str, dict[str, Any]] = {
    ONE_SIZE: {"rho": {"choice": [0.0, 0.5, 1.0]}},
    "four depths, two batch sizes": {
        "rho": {"choice": [0.0, 0.5, 1.0]},
        "model.depth": {"choice": [1, 2, 3, 4]},
        "optim.batch_size": {"choice": [32, 64]},
    },
}

FRESH_BATCH = 16
FRESH_FRACTIONS = {8: 0.1, 20: 0.25, 40: 0.5, 80: 1.0}  # steps of an epoch by share of the images; same cost a step
MAX_WARM_UP = 20
SHOWN_WARM_UPS = (0, 1, 2, 3, 4, 5, 8, 12, 20)
SHOWN_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 80)

Rows = list[tuple[Any, ...]]  # of the CSV file
CSV_HEAD = ("part", "what", "phase", "round", "process", "quantity", "value")


class Scale(NamedTuple):
    """How much is done."""

    rounds: int = 6  # of alone and packed, in the same processes
    repeats: int = 2  # of new processes, and of training runs that only one figure comes of
    fresh: int = 3  # processes, for each number of steps of an epoch
    traces: int = 4  # processes whose every step is timed
    trials: int = 20
    offers: int = 20_000
    loops: int = 8  # epochs with the meter and without
    settled_steps: int = 80  # of a phase after its first epoch
    fractions: Mapping[int, float] = FRESH_FRACTIONS
    changes: Mapping[str, Any] = MappingProxyType({})  # to every recipe
    searches: tuple[str, ...] = tuple(SEARCHES)
    packed: int = 4  # training runs at once


SMALL = Scale(
    *(1, 1, 1, 1, 2, 500, 2, 8),
    packed=2,
    fractions={8: 0.1},
    changes={"data.fraction": 0.2, "model.embed_dim": 16, "model.depth": 1},
    searches=(ONE_SIZE,),
)


class Bench(NamedTuple):
    """One run of this benchmark: where, how much, and what was measured, for the CSV file."""

    device: str
    scale: Scale
    rows: Rows
    say: Callable[[str], None]

    def job(self, changes: dict[str, Any], **options: Any) -> Job:
        return Job(with_values(BASE, {**self.scale.changes, **changes}), self.device, **options)


class Ratio(NamedTuple):
    """A median ratio and the lowest and highest single one."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], to: float = 1.0) -> Ratio:
        ratios = [value / to for value in values]
        return cls(median(ratios), min(ratios), max(ratios))

    @property
    def off(self) -> float:
        """How far the median is from 1."""
        return abs(self.middle - 1)

    @property
    def most_off(self) -> float:
        return max(abs(self.low - 1), abs(self.high - 1))

    def __str__(self) -> str:
        return f"{self.middle:.3f} ({self.low:.3f} to {self.high:.3f})"


class Section(NamedTuple):
    """A part of the results file; ``goals`` are (what, whether it is met)."""

    title: str
    text: str
    goals: list[tuple[str, bool]]


def met(is_met: bool) -> str:
    return "met" if is_met else "missed"


# a. Alone and packed.

Measured = dict[str, list[Training]]  # by recipe

ALONE_HEAD = (
    "recipe | phase | alone: clock, ms | alone: meter, ms | alone: each turn to their median, by the meter | "
    "packed to alone, by the meter | packed to alone, by the clock | meter within 5 %"
)


def measure_packed(bench: Bench) -> tuple[Measured, Measured]:
    """Train the four recipes, each alone and all packed, in turns."""
    turns = (ALONE, PACKED_TURN) * bench.scale.rounds
    jobs = [bench.job(changes, turns=turns, warms_up=True) for changes in RECIPES.values()]
    found = dict(zip(RECIPES, run_together(train_in_turns, jobs), strict=True))
    bench.say(f"a. {bench.scale.rounds} rounds alone and packed")
    alone = {name: trainings[0::2] for name, trainings in found.items()}
    packed = {name: trainings[1::2] for name, trainings in found.items()}
    for how, measured in (("alone", alone), ("packed", packed)):
        for process, (name, trainings) in enumerate(measured.items()):
            for round_, training in enumerate(trainings, start=1):
                note(bench.rows, f"a {how}", name, round_, process, [training])
    return alone, packed


def report_packed(alone: Measured, packed: Measured) -> Section:
    """Compare step times packed with those alone, round by round."""
    lines, by_meter, by_clock, drift = [], [], [], []
    for name, phase in [(recipe, phase) for recipe in alone for phase in alone[recipe][0].phases]:
        rounds = list(zip(packed[name], alone[name], strict=True))
        by_meter.append(Ratio.of(p.metered(phase) / a.metered(phase) for p, a in rounds))
        by_clock.append(Ratio.of(p.clocked(phase) / a.clocked(phase) for p, a in rounds))
        clock = median(t.clocked(phase) for t in alone[name])
        step = median(t.metered(phase) for t in alone[name])
        drift.append(Ratio.of((t.metered(phase) for t in alone[name]), step))
        times = [f"{1e3 * clock:.2f}", f"{1e3 * step:.2f}", f"{drift[-1].low:.3f} to {drift[-1].high:.3f}"]
        verdict = met(by_meter[-1].off <= PACKED_GOAL)
        lines.append([name, phase, *times, str(by_meter[-1]), str(by_clock[-1]), verdict])
    most, naive, alone_most = (
        max(ratio.off for ratio in by_meter),
        max(ratio.off for ratio in by_clock),
        max(ratio.most_off for ratio in drift),
    )
    text = [
        f"Furthest from alone: the meter by {most:.1%}, the naive clock by {naive:.1%}; training runs alone are up to "
        f"{alone_most:.1%} from their own median. Ratios are of a round's two turns: the median over "
        f"{len(rounds)} rounds, in brackets the lowest and the highest.",
        format_table(ALONE_HEAD, lines),
        describe_idleness(alone),
    ]
    goal = f"packed, each phase's step time is within {PACKED_GOAL:.0%} of alone: off by at most {most:.1%}"
    return Section("Four recipes, alone and packed", "\n\n".join(text), [(goal, most <= PACKED_GOAL)])


def describe_idleness(alone: Measured) -> str:
    """Return how idle the machine was, by the processes that trained alone."""
    shares = [training.core_share for trainings in alone.values() for training in trainings]
    return (
        f"Alone, a process had a core {median(shares):.0%} of its time, at least {min(shares):.0%}: much less than "
        "100 % on a CPU is a machine that was not idle, whose figures say little."
    )


def note(rows: Rows, part: str, what: str, round_: int, process: int, trainings: Iterable[Training]) -> None:
    """Keep what training runs measured for the CSV file; seconds are of a step."""
    for training in trainings:
        for phase in training.phases:
            rows.append((part, what, phase, round_, process, "clock_s", training.clocked(phase)))
            rows.append((part, what, phase, round_, process, "meter_s", training.metered(phase)))
        rows += [(part, what, w.phase, round_, process, "window_s", w.seconds) for w in training.windows]
        rows.append((part, what, "", round_, process, "latency_to_clock", training.latency_to_clock))


# b. Copies.

COPIES_HEAD = (
    "round | phase | shared table, ms | to alone | own windows by process, ms | highest / lowest | "
    "clock by process, ms | highest / lowest"
)


def compare_copies(bench: Bench) -> Section:
    """Train copies of a recipe at once, in fresh processes; the first three windows of a phase are everyone's."""
    job, lines, errors, apart = bench.job(RECIPES[COPIED], turns=(PACKED_TURN, ALONE)), [], [], []
    for round_ in range(1, bench.scale.repeats + 1):
        found = run_together(train_in_turns, [job] * bench.scale.packed)
        copies, alone = [trainings[0] for trainings in found], [trainings[1] for trainings in found]
        for process, trainings in enumerate(found):
            note(bench.rows, "b copies", COPIED, round_, process, trainings[:1])
            note(bench.rows, "b alone", COPIED, round_, process, trainings[1:])
        table = share_windows(copies)
        for phase in copies[0].phases:
            shared, reference = table.step_time(phase), median(t.metered(phase) for t in alone)
            ranges = [sorted(c.metered(phase) for c in copies), sorted(c.clocked(phase) for c in copies)]
            errors.append(shared / reference)
            apart.append([values[-1] / values[0] for values in ranges])
            cells = [f"{1e3 * shared:.2f}", f"{shared / reference:.3f}"]
            for values, ratio in zip(ranges, apart[-1], strict=True):
                cells += [", ".join(f"{1e3 * value:.2f}" for value in values), f"{ratio:.3f}"]
            lines.append([str(round_), phase, *cells])
        bench.say(f"b. copies: round {round_} of {bench.scale.repeats}")
    own, clocked = (max(ratios) for ratios in zip(*apart, strict=True))
    most = max(abs(error - 1) for error in errors)
    text = (
        f"{COPIED}, {bench.scale.packed} copies, whose processes are new; alone is the median of each one's turn "
        "alone, right after. A search has one table, so their step times are equal by "
        f"construction. With tables of their own they would be up to {own - 1:.1%} apart by the meter; by the naive "
        f"clock they are up to {clocked - 1:.1%} apart.\n\n{format_table(COPIES_HEAD, lines)}"
    )
    goal = f"copies: the shared step time is within {PACKED_GOAL:.0%} of alone: off by at most {most:.1%}"
    return Section("Copies of one recipe", text, [(goal, most <= PACKED_GOAL)])


STARTS = "import ray.tune, mixtune.training.loop"  # what a trial's new process does before its first lock
START_EPOCHS = 12
START_HEAD = "phase | meter to alone | clock to alone | within 5 %"


def train_beside_starters(bench: Bench) -> Section:
    """Train a recipe while other processes start, which know nothing of the lock, as at the beginning of a search."""
    job = bench.job(RECIPES[COPIED] | {"epochs.ssl": START_EPOCHS, "epochs.sl": START_EPOCHS})
    alone, beside = list[Training](), list[Training]()
    for round_ in range(1, bench.scale.repeats + 1):
        alone += run_alone(train_in_turns, job)
        starters = [subprocess.Popen([sys.executable, "-c", STARTS]) for _ in range(bench.scale.packed - 1)]
        beside += run_alone(train_in_turns, job)
        for starter in starters:
            starter.wait()
        bench.say(f"b. alongside processes that start: round {round_} of {bench.scale.repeats}")
    alone += run_alone(train_in_turns, job)
    note(bench.rows, "b no starters", COPIED, 1, 0, alone)
    note(bench.rows, "b starters", COPIED, 1, 0, beside)
    lines, ratios = [], []
    for phase in alone[0].phases:
        ratios.append(Ratio.of((t.metered(phase) for t in beside), median(t.metered(phase) for t in alone)))
        clocked = Ratio.of((t.clocked(phase) for t in beside), median(t.clocked(phase) for t in alone))
        lines.append([phase, str(ratios[-1]), str(clocked), met(ratios[-1].off <= PACKED_GOAL)])
    most = max(ratio.off for ratio in ratios)
    text = (
        f"{COPIED}, {START_EPOCHS} epochs of each phase, while {len(starters)} processes import what a trial needs; "
        "alone before, between and after. The starts last as long as the SSL phase, or longer.\n\n"
        f"{format_table(START_HEAD, lines)}"
    )
    goal = (
        f"alongside processes that start, step times are within {PACKED_GOAL:.0%} of alone: off by at most {most:.1%}"
    )
    return Section("Alongside processes that start", text, [(goal, most <= PACKED_GOAL)])


# c. Cost.

Events = list[dict[str, Any]]

SPENT = ("waiting_s", "train_clock_s", "validation_s", "compile_s", "checkpoint_s")  # of trials.csv
COST_HEAD = "search | trials | cost signatures | wall, s | trials' seconds | of these waiting | share | under 3 %"
EQUAL_HEAD = "search | groups of equals | largest | train_latency_s: most / least | train_clock_s: most / least"
CHECK_HEAD = "phase | the search's table, ms | alone before, ms | alone after, ms | to their mean | within 5 %"
LOOP_HEAD = "an epoch with | its seconds to those without the meter"


def measure_cost(bench: Bench) -> Section:
    """Run searches, and time boundaries, and epochs with and without the meter."""
    costs, equals, goals, each = [], [], [], list[str]()
    for name in bench.scale.searches:
        before = train_search_recipe(bench, "before") if name == ONE_SIZE else []
        trials, all_trained, events, wall = run_search(bench, SEARCHES[name])
        spent = {column: float(all_trained[column].sum()) for column in SPENT}
        bench.rows.extend(("c search", name, "", "", "", column, seconds) for column, seconds in spent.items())
        total, waiting = sum(spent.values()), spent["waiting_s"]
        share, signatures = waiting / total, sum("factors" in event for event in events)
        figures = [
            len(all_trained),
            signatures,
            f"{wall:.1f}",
            f"{total:.1f}",
            f"{waiting:.2f}",
            f"{share:.2%}",
        ]
        each.append(f"{waiting / signatures:.1f}")
        costs.append([name, *map(str, figures), met(share < COST_GOAL)])
        goals.append((f"search, {name}: waiting takes under {COST_GOAL:.0%}: {share:.2%}", share < COST_GOAL))
        equals.append([name, *compare_equals(trials, list(SEARCHES[name]))])
        if name == ONE_SIZE:
            checks, goal = check_search(bench, events, before, train_search_recipe(bench, "after"))
            goals.append(goal)
        bench.say(f"c. search: {name}")
    offers = [run_alone(offer_job, bench.job({}), bench.scale.offers) for _ in range(bench.scale.fresh)]
    bench.rows.extend(("c boundary", "", "", "", i, "offer_s", seconds) for i, seconds in enumerate(offers))
    text = [
        f"{bench.scale.packed} trials at once. Their seconds are of steps, waiting, held-out images and storing; "
        "baselines are in.",
        format_table(COST_HEAD, costs),
        f"A search waits for its signatures, whatever it trains: {', '.join(each)} s for each. Waiting is under "
        f"{COST_GOAL:.0%} where a signature has more than {max(map(float, each)) / COST_GOAL:.0f} s of training.",
        "Trials that differ only in what changes no step's cost have equal latencies, and clocks that differ:",
        format_table(EQUAL_HEAD, equals),
        f"Search, {ONE_SIZE}: the step times that its trials measured, new processes and packed, and the same alone:",
        format_table(CHECK_HEAD, checks),
        f"A step boundary at which nobody waits takes {1e6 * median(offers):.2f} microseconds "
        f"({1e6 * min(offers):.2f} to {1e6 * max(offers):.2f}). Alone, epochs that take turns in one process:",
        format_table(LOOP_HEAD, compare_loops(bench)),
    ]
    return Section("What it costs", "\n\n".join(text), goals)


def search_recipe(bench: Bench) -> dict[str, Any]:
    """Return the base recipe of a search."""
    shipped = yaml.safe_load(SPACE.read_text())["recipe"]
    return with_values(shipped, {"epochs.ssl": 5, "epochs.sl": 10, **bench.scale.changes})


def run_search(bench: Bench, space: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame, Events, float]:
    """Search; return the trials, these and the baselines, what the ledger has, and the wall seconds."""
    values: dict[str, Any] = {
        "recipe": search_recipe(bench),
        "space": {**FREE, **space},
        "objectives": {"val_accuracy": "max", "train_latency_s": "min"},
        "baselines": ["sl", "ssl_sl"],
        "search": {"sampler": "random", "trials": bench.scale.trials, "seed": 0},
    }
    shares: dict[str, Any] = {"cpus_per_trial": count_cores() / bench.scale.packed, "gpus": 0}
    if bench.device == "cuda":
        shares |= {"gpus": 1, "gpus_per_trial": 1 / bench.scale.packed}
    with tempfile.TemporaryDirectory() as scratch:
        run, started = Path(scratch, "run"), time.perf_counter()
        result = mixtune.search(values, out=run, console=Console(quiet=True), **shares)
        wall = time.perf_counter() - started
        events = read_ledger(run / "ledger.jsonl")
    return result.trials, pd.concat([result.trials, result.baselines]), events, wall


def train_search_recipe(bench: Bench, when: str) -> list[Training]:
    """Train the base recipe of a search of one size, alone."""
    recipe = with_values(search_recipe(bench), {"epochs.ssl": 4, "epochs.sl": 4, "rho": 0.5})
    alone = run_alone(train_in_turns, Job(recipe, bench.device, (ALONE,) * bench.scale.repeats, warms_up=True))
    note(bench.rows, f"c alone {when}", ONE_SIZE, 1, 0, alone)
    return alone


def check_search(
    bench: Bench, events: Events, before: list[Training], after: list[Training]
) -> tuple[list[list[str]], tuple[str, bool]]:
    """Compare the step times of a search of one size with those that its recipe has alone, before it and after it."""
    table, lines, off = fold(events).step_times, [], []
    for event in (event for event in events if event.get("factors", {}).get("phase") in PHASES):
        searched, phase = table.step_time(event["signature"]), event["factors"]["phase"]
        alone = [median(training.metered(phase) for training in trainings) for trainings in (before, after)]
        expected = mean(alone)
        bench.rows.append(("c search", ONE_SIZE, phase, "", "", "table_s", searched))
        off.append(abs(searched / expected - 1))
        times = [f"{1e3 * seconds:.2f}" for seconds in (searched, *alone)]
        lines.append([phase, *times, f"{searched / expected:.3f}", met(off[-1] <= PACKED_GOAL)])
    goal = f"search, {ONE_SIZE}: step times are within {PACKED_GOAL:.0%} of alone: off by at most {max(off):.1%}"
    return lines, (goal, max(off) <= PACKED_GOAL)


def compare_equals(trials: pd.DataFrame, varied: list[str]) -> list[str]:
    """Return, of trials that differ in FREE alone, how many groups there are, and the largest ratio within one."""
    groups = [group for _, group in trials.groupby(varied) if len(group) > 1]
    apart = [
        max((group[name].max() / group[name].min() for group in groups), default=1.0)
        for name in ("train_latency_s", "train_clock_s")
    ]
    return [str(len(groups)), str(max(map(len, groups), default=0)), *(f"{ratio:.3f}" for ratio in apart)]


def compare_loops(bench: Bench) -> list[list[str]]:
    """Compare epochs with the meter's boundaries, and with its windows, with epochs without."""
    epochs = run_alone(compare_job, bench.job({"epochs.ssl": 0, "epochs.sl": 3 * (1 + bench.scale.loops)}))
    lines = []
    for kind, what in {"boundaries": "boundaries", "windows": "boundaries and up to three windows"}.items():
        ratios = [with_it / without for with_it, without in zip(epochs[kind], epochs["none"], strict=True)]
        bench.rows.extend(("c loop", kind, "sl", i, 0, "to_without", ratio) for i, ratio in enumerate(ratios))
        lines.append([what, str(Ratio.of(ratios))])
    bench.say("c. boundaries and loops")
    return lines


# d. Fresh processes.

FRESH_HEAD = (
    "steps of an epoch | WARM_UP_STEPS | phase | meter to the clock of later epochs | "
    "train_latency_s / train_clock_s of the whole training | within 3 %"
)


def measure_fresh(bench: Bench) -> Section:
    """Trace the first steps of fresh processes, find how many to leave out, and see what the meter reads then."""
    job = fresh_job(bench, max(bench.scale.fractions.values()), later=0)
    traces = [run_alone(trace_job, job) for _ in range(bench.scale.traces)]
    bench.say(f"d. traces of {len(traces)} processes")
    clocks = {"wall": "wall clock"} | ({} if bench.device == "cuda" else {"cpu": "CPU time"})
    starts, fewest, found = [], [], []
    for name, said in clocks.items():
        of_phase = {phase: relative_steps(traces, phase, name) for phase in PHASES}
        note_steps(bench.rows, of_phase, name)
        starts += [[said, phase, *start_cells(of_phase[phase])] for phase in PHASES]
        for steps in bench.scale.fractions:
            cells, enough = try_warm_ups(of_phase, steps)
            fewest.append([said, str(steps), *cells, "none" if enough is None else str(enough)])
            found += [] if enough is None else [enough]
    lines, goals = check_fresh(bench, sorted({meter.WARM_UP_STEPS, max([meter.WARM_UP_STEPS, *found])}))
    text = [
        f"Batch {FRESH_BATCH}, one process after another, each new. The steps of a "
        "phase's first epoch to the median of that epoch's second half, medians over processes; SSL comes first. CPU "
        "time is what a busy machine disturbs least:",
        format_table("by | phase | " + " | ".join(f"step {n}" for n in SHOWN_STEPS), starts),
        "What three windows of the first epoch would read to that median: the phase that is furthest off, by "
        f"WARM_UP_STEPS (now {meter.WARM_UP_STEPS}; at most half an epoch's steps are left out), and the fewest with "
        f"all phases within {FRESH_GOAL:.0%}:",
        format_table("by | steps of an epoch | " + " | ".join(map(str, SHOWN_WARM_UPS)) + " | fewest", fewest),
        "What the meter did read:",
        format_table(FRESH_HEAD, lines),
    ]
    return Section("Fresh processes, alone", "\n\n".join(text), goals)


def fresh_job(bench: Bench, fraction: float, later: int, warm_up_steps: int | None = None) -> Job:
    """Return a training run of all three phases, each of one epoch and ``later`` more."""
    count = 2 * (1 + later)
    changes = {"data.fraction": fraction, "optim.batch_size": FRESH_BATCH, "rho": 0.5}
    return bench.job({**changes, "epochs.ssl": count, "epochs.sl": count}, warm_up_steps=warm_up_steps)


def relative_steps(traces: Iterable[list[Trace]], phase: Phase, clock: str) -> list[list[float]]:
    """Return, for each process, the steps of a phase's first epoch to the median of that epoch's second half."""
    epochs = [getattr(trace, clock)[0] for process in traces for trace in process if trace.phase == phase]
    return [[seconds / median(steps[len(steps) // 2 :]) for seconds in steps] for steps in epochs]


def note_steps(rows: Rows, of_phase: dict[Phase, list[list[float]]], clock: str) -> None:
    """Keep the steps of traces for the CSV file; the column of rounds has the step."""
    for phase, processes in of_phase.items():
        for process, steps in enumerate(processes):
            quantity = f"step_to_settled_{clock}"
            rows += [
                ("d trace", "", phase, step, process, quantity, ratio) for step, ratio in enumerate(steps, start=1)
            ]


def start_cells(processes: list[list[float]]) -> list[str]:
    by_step = [f"{median(ratios):.2f}" for ratios in zip(*processes, strict=True)]
    return [by_step[n - 1] if n <= len(by_step) else "" for n in SHOWN_STEPS]


def try_warm_ups(of_phase: dict[Phase, list[list[float]]], steps: int) -> tuple[list[str], int | None]:
    """Return what windows would read at SHOWN_WARM_UPS, and the fewest steps to leave out; None: none is enough."""
    worst = {}
    for warm_up in range(MAX_WARM_UP + 1):
        with patch.object(meter, "WARM_UP_STEPS", warm_up):
            windows = [timed_steps(window) for window in meter.place_windows(steps, WINDOWS)]
        reads = [
            (median(median(mean(trace[step] for step in window) for window in windows) for trace in processes), phase)
            for phase, processes in of_phase.items()
        ]
        worst[warm_up] = max(reads, key=lambda read: abs(read[0] - 1))
    cells = ["{:.3f} ({})".format(*worst[warm_up]) for warm_up in SHOWN_WARM_UPS]
    return cells, next((w for w, (read, _) in worst.items() if abs(read - 1) <= FRESH_GOAL), None)


def timed_steps(window: range) -> range:
    """Return the steps of a window that the meter times, which are those after it has settled."""
    return window[min(meter.SETTLE_STEPS, len(window) - 1) :]


def check_fresh(bench: Bench, warm_ups: list[int]) -> tuple[list[list[str]], list[tuple[str, bool]]]:
    """Train in fresh processes with the real meter; the goals are of its own WARM_UP_STEPS."""
    lines, goals = [], []
    for steps, fraction in bench.scale.fractions.items():
        later = -(-bench.scale.settled_steps // steps)
        for warm_up in warm_ups:
            job = fresh_job(bench, fraction, later, warm_up)
            trainings = [run_alone(train_in_turns, job)[0] for _ in range(bench.scale.fresh)]
            whole = Ratio.of(training.latency_to_clock for training in trainings)
            for process, training in enumerate(trainings):
                note(bench.rows, f"d fresh, {warm_up} left out", f"{steps} steps", 1, process, [training])
            for phase in trainings[0].phases:
                read = Ratio.of(training.metered(phase) / training.clocked(phase) for training in trainings)
                lines.append([str(steps), str(warm_up), phase, str(read), str(whole), met(read.off <= FRESH_GOAL)])
                if warm_up == meter.WARM_UP_STEPS:
                    goal = f"fresh, {steps} steps an epoch, {phase}: within {FRESH_GOAL:.0%}: {read.middle - 1:+.1%}"
                    goals.append((goal, read.off <= FRESH_GOAL))
        bench.say(f"d. the meter in fresh processes, {steps} steps an epoch")
    return lines, goals


# The results file.


def write_report(sections: Sequence[Section], about: Sequence[str]) -> str:
    """Return the results file."""
    goals = [goal for section in sections for goal in section.goals]
    verdicts = [f"- {met(is_met)}: {what}" for what, is_met in goals]
    parts = [
        "# The latency meter",
        "Printed by benchmarks/latency_meter.py, which says what is measured and how.",
        "\n".join(f"- {line}" for line in about),
        f"{sum(is_met for _, is_met in goals)} of {len(goals)} goals are met:",
        "\n".join(verdicts),
        *(f"## {section.title}\n\n{section.text}" for section in sections),
    ]
    return "\n\n".join(parts) + "\n"


def describe_run(options: argparse.Namespace, load_before: float) -> list[str]:
    """Return machine, versions, date, command and the models, a line each."""
    machine = f"{cpu_model()}, {count_cores()} cores; load before: {load_before:.1f}"
    if options.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {machine}"
    packages = [f"{name} {version(name)}" for name in ("torch", "timm", "ray", "numpy")]
    model = BASE["model"]
    return [
        f"{machine}; a thread a process",
        ", ".join([f"mixtune {mixtune.__version__}", f"Python {platform.python_version()}", *packages]),
        date.today().isoformat(),
        f"`python benchmarks/latency_meter.py --device {options.device}{' --small' * options.small}`",
        f"digits, 8 x 8 pixels; width {model['embed_dim']}, depth {model['depth']} where no other is named, patch "
        f"{model['patch_size']}, batch {BASE['optim']['batch_size']}{'; smaller, with --small' * options.small}",
    ]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="a folder; latency_meter.md and .csv are written there"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="only see that it runs: its figures say nothing")
    return parser.parse_args()


def main() -> None:
    """Measure all parts, print the results and write them."""
    options, load_before, started = parse_options(), os.getloadavg()[0], time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {line}", flush=True)

    bench = Bench(options.device, SMALL if options.small else Scale(), [], say)
    alone, packed = measure_packed(bench)
    sections = [
        report_packed(alone, packed),
        compare_copies(bench),
        train_beside_starters(bench),
        measure_cost(bench),
        measure_fresh(bench),
    ]
    about = [*describe_run(options, load_before), f"it took {time.perf_counter() - started:.0f} s"]
    text = write_report(sections, about)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "latency_meter.md").write_text(text)
    with (options.out / "latency_meter.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEAD)
        writer.writerows((*row[:-1], f"{row[-1]:.6g}") for row in bench.rows)
    print(f"\n{text}\nwritten to {options.out}")


if __name__ == "__main__":
    main()
