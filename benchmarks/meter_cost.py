"""Part c of latency_meter.py: what the meter costs a search, a step boundary and a loop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd
import yaml
from meter_bench import FREE, ONE_SIZE, PACKED_GOAL, SEARCHES, Bench, Ratio, Section, met, note
from meter_processes import ALONE, Job, Training, compare_job, offer_job, run_alone, train_in_turns
from rich.console import Console
from training_report import count_cores, format_table

import mixtune
from mixtune.run.ledger import fold, read_ledger
from mixtune.space.recipe import with_values
from mixtune.training.plan import PHASES

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
COST_GOAL = 0.03

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
        alone = [median(training.metered(phase) for training in training_runs) for training_runs in (before, after)]
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
