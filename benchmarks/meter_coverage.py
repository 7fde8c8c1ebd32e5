"""Part f of latency_meter.py: does the stated error of a training latency hold what the same recipe takes hours later?

    python benchmarks/latency_meter.py --only coverage

is one sitting: two small searches of the same recipes, two trials at once, first alone and then with a stranger, a
process that computes in bursts of 25 ms and knows nothing of the lock. Their seconds and standard errors are appended
to benchmarks/tables/latency_sittings.csv, with the drift that the errors hold; once it has two sittings an hour or more
apart with the latest one's, all such pairs are compared.

Two runs of a recipe differ by an error of sqrt(e1^2 + e2^2); its 90 % interval should hold the difference 9 times in
10, and so should that of a difference between two recipes, which cancels the steps that both take. Recipes of one run
share step times, so the pairs of one sitting are few independent cases: shares are also told by pair of sittings.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from meter_bench import FREE, SEARCHES, Bench, Section
from rich.console import Console
from training_report import count_cores, format_table

import mixtune
from mixtune.run.latency import latency_difference
from mixtune.space.recipe import with_values

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
TABLE = Path(__file__).parent / "tables" / "latency_sittings.csv"
HEAD = ("time", "strangers", "recipe", "seconds", "error", "next", "difference", "difference_error", "drift")
APART_S = 3600.0
CONSTANT = 0.06  # the drift that every run had before it was measured in the run
Z_90 = 1.6449
TRIALS = 10
STRANGER = """
import time
import numpy as np
square = np.ones((192, 192), dtype=np.float32)
while True:
    ends = time.monotonic() + 0.025
    while time.monotonic() < ends:
        square @ square
    time.sleep(0.25)
"""


class Reading(NamedTuple):
    """A recipe's seconds in a sitting, their error, its difference from the recipe after it with that's error, and the
    drift from moment to moment, as a share, that the errors hold."""

    time: float
    strangers: int
    recipe: str
    seconds: float
    error: float
    next: str
    difference: float
    difference_error: float
    drift: float


def measure_coverage(bench: Bench) -> Section:
    """Record a sitting, and compare all that are on file."""
    readings = read_sittings()
    for strangers in (0, 1):
        readings += record_sitting(bench, strangers)
        bench.say(f"f. {TRIALS} recipes with {strangers} strangers")
    write_sittings(readings)
    return report_coverage(readings)


def record_sitting(bench: Bench, strangers: int) -> list[Reading]:
    """Search the same recipes as any other sitting, with so many strangers on the machine."""
    values = yaml.safe_load(SPACE.read_text())
    values["recipe"] = with_values(values["recipe"], {"epochs.ssl": 3, "epochs.sl": 4, **bench.scale.changes})
    values["space"] = {**FREE, **SEARCHES["four depths, two batch sizes"]}
    values |= {"baselines": [], "search": {"trials": TRIALS, "sampler": "random", "seed": 0}}
    burning = [subprocess.Popen([sys.executable, "-c", STRANGER]) for _ in range(strangers)]
    started = time.time()
    try:
        with tempfile.TemporaryDirectory() as folder:
            shares: dict[str, Any] = {"cpus_per_trial": count_cores() / 2, "gpus": 0}
            if bench.device == "cuda":
                shares |= {"gpus": 1, "gpus_per_trial": 0.5}
            result = mixtune.search(values, out=Path(folder) / "run", console=Console(quiet=True), **shares)
    finally:
        for process in burning:
            process.kill()
            process.wait()
    state = result.state
    records = sorted(state.records.values(), key=lambda record: record.trial)
    readings = []
    for record, after in zip(records, [*records[1:], records[0]], strict=True):
        apart = latency_difference(state.step_times, record, after)
        readings.append(
            Reading(
                started,
                strangers,
                record.trial,
                float(record.metrics["train_latency_s"]),
                state.step_times.error_of(record.steps),
                after.trial,
                apart.mean if apart else float("nan"),
                apart.error if apart else float("nan"),
                state.step_times.drift,
            )
        )
    return readings


def read_sittings() -> list[Reading]:
    """Return what is on file."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [
        Reading(float(when), int(strangers), recipe, float(s), float(e), after, float(d), float(de), float(drift))
        for when, strangers, recipe, s, e, after, d, de, drift in rows
    ]


def write_sittings(readings: list[Reading]) -> None:
    """Put all readings on file."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEAD)
        writer.writerows(
            [f"{value:.6g}" if i in (3, 4, 6, 7, 8) else value for i, value in enumerate(r)] for r in readings
        )


def report_coverage(readings: list[Reading]) -> Section:
    """Compare the sittings that are an hour or more apart, of those whose drift comes about as the latest one's."""
    is_constant = readings[-1].drift == CONSTANT
    readings = [reading for reading in readings if (reading.drift == CONSTANT) == is_constant]
    sittings: dict[tuple[float, int], dict[str, Reading]] = defaultdict(dict)
    for reading in readings:
        sittings[reading.time, reading.strangers][reading.recipe] = reading
    lines, totals = [], dict.fromkeys((0, 1, 2), (0, 0, 0, 0))
    for one, two in combinations(sorted(sittings), 2):
        hours = (two[0] - one[0]) / 3600.0
        if hours * 3600.0 < APART_S:
            continue
        seconds, differences = compare_sittings(sittings[one], sittings[two])
        moved = sorted(b.seconds / sittings[one][r].seconds for r, b in sittings[two].items() if r in sittings[one])
        kind = one[1] + two[1]
        totals[kind] = tuple(a + b for a, b in zip(totals[kind], (*seconds, *differences), strict=True))
        cells = [f"{held} of {count}" for held, count in (seconds, differences)]
        lines.append([KINDS[kind], f"{hours:.1f}", f"{moved[0]:.2f} to {moved[-1]:.2f}", *cells])
    for kind, (held, count, held_apart, count_apart) in totals.items():
        if count:
            shares = [f"{held / count:.0%}", f"{held_apart / count_apart:.0%}"]
            lines.append([f"{KINDS[kind]}: all", "", "", *shares])
    text = (
        f"{TRIALS} recipes a sitting, the same in each; pairs of sittings an hour or more apart. Held: the 90 % "
        "interval of the stated errors holds how far the two sittings are apart, for each recipe's seconds and for "
        "the difference between a recipe and the next.\n\n"
        + (format_table(HEAD_OF_PAIRS, lines) if lines else "No two sittings are an hour apart yet.")
    )
    held, count = (sum(total[i] for total in totals.values()) for i in (0, 1))
    goal = f"stated intervals of 90 % hold {held} of {count} seconds"
    goals = [(goal, held >= 0.9 * count)] if count else []
    return Section("Hours apart", text, goals)


KINDS = {0: "both alone", 1: "one with a stranger", 2: "both with a stranger"}
HEAD_OF_PAIRS = "sittings | hours apart | seconds, later to earlier | seconds held | differences held"


def compare_sittings(one: Mapping[str, Reading], two: Mapping[str, Reading]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how many of how many recipes' seconds, and differences, two sittings' stated errors hold."""
    held = {"seconds": [0, 0], "differences": [0, 0]}
    for recipe in one.keys() & two.keys():
        a, b = one[recipe], two[recipe]
        for name, apart, error in (
            ("seconds", b.seconds - a.seconds, (a.error**2 + b.error**2) ** 0.5),
            ("differences", b.difference - a.difference, (a.difference_error**2 + b.difference_error**2) ** 0.5),
        ):
            if error == error and error > 0.0:
                held[name][0] += abs(apart) <= Z_90 * error
                held[name][1] += 1
    return tuple(held["seconds"]), tuple(held["differences"])  # type: ignore[return-value]
