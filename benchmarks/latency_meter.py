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
   the fewest WARM_UP_STEPS that bring it there;
e. a reference step alongside each kind of step: whether scaling by it lowers the error of a step time read again
   later (`--only reference` measures that alone and writes latency_reference.md);
f. only with `--only coverage`: whether stated errors hold what the same recipes take hours later (latency_coverage.md).

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
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from meter_bench import BASE, CSV_HEAD, PACKED_GOAL, SMALL, Bench, Ratio, Scale, Section, met, note
from meter_cost import measure_cost
from meter_coverage import measure_coverage
from meter_fresh import measure_fresh
from meter_processes import ALONE, PACKED_TURN, Training, run_alone, run_together, share_windows, train_in_turns
from meter_reference import measure_reference
from training_report import count_cores, cpu_model, format_table

import mixtune

RESULTS = Path(__file__).parent / "results"
PARTS = {"reference": measure_reference, "coverage": measure_coverage}  # that can be measured alone

# Two epochs of each phase: the meter's windows lie in the first, the clock is the second's.
RECIPES: dict[str, dict[str, Any]] = {
    "SL, depth 2": {"epochs.ssl": 0, "epochs.sl": 2, "model.depth": 2},
    "SSL+SL, visible": {"epochs.ssl": 2, "epochs.sl": 2, "rho": 0.0, "ssl.encode": "visible"},
    "SSL+SL, full": {"epochs.ssl": 2, "epochs.sl": 2, "rho": 0.0, "ssl.encode": "full"},
    "MixTraining, depth 6": {"epochs.ssl": 4, "epochs.sl": 4, "rho": 0.5, "model.depth": 6},
}
COPIED = "SSL+SL, visible"


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


# The results file.


def write_report(sections: Sequence[Section], about: Sequence[str]) -> str:
    """Return the results file."""
    goals = [goal for section in sections for goal in section.goals]
    verdicts = [f"- {met(is_met)}: {what}" for what, is_met in goals]
    parts = [
        "# The latency meter",
        "Printed by benchmarks/latency_meter.py, which says what is measured and how.",
        "\n".join(f"- {line}" for line in about),
        *([f"{sum(is_met for _, is_met in goals)} of {len(goals)} goals are met:", "\n".join(verdicts)] * bool(goals)),
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
        f"`python benchmarks/latency_meter.py --device {options.device}{' --small' * options.small}"
        f"{f' --only {options.only}' if options.only else ''}`",
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
    parser.add_argument("--only", choices=list(PARTS), help="measure one part alone")
    return parser.parse_args()


def main() -> None:
    """Measure all parts, print the results and write them."""
    options, load_before, started = parse_options(), os.getloadavg()[0], time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {line}", flush=True)

    bench = Bench(options.device, SMALL if options.small else Scale(), [], say)
    name = f"latency_{options.only or 'meter'}"
    if options.only:
        sections = [PARTS[options.only](bench)]
    else:
        alone, packed = measure_packed(bench)
        sections = [
            report_packed(alone, packed),
            compare_copies(bench),
            train_beside_starters(bench),
            measure_cost(bench),
            measure_fresh(bench),
            measure_reference(bench),
        ]
    about = [*describe_run(options, load_before), f"it took {time.perf_counter() - started:.0f} s"]
    text = write_report(sections, about)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.md").write_text(text)
    with (options.out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEAD)
        writer.writerows((*row[:-1], f"{row[-1]:.6g}") for row in bench.rows)
    print(f"\n{text}\nwritten to {options.out}")


if __name__ == "__main__":
    main()
