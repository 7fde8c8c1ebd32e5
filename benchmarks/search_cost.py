"""How many device-seconds does a search need until it has found what there is to find?

    python benchmarks/search_cost.py record    # every recipe of a grid, once: the table; again: goes on
    python benchmarks/search_cost.py time      # the table's seconds again, from one training run alone
    python benchmarks/search_cost.py replay    # searches replayed against it, in simulated time
    python benchmarks/search_cost.py parts     # the same on random parts of it, and with wrong forecasts
    python benchmarks/search_cost.py budget    # mixtune's two modes at equal device-seconds, and with 20 trials
    python benchmarks/search_cost.py check     # a few of them for real

`--data` says which table: digits (432 recipes), cifar10 (48, of 10 % of CIFAR-10), cosine (72, digits with cosine
schedules), large (216, of 10 % of CIFAR-10); `record`, `time` and `check` find CIFAR-10's images, a class a folder, at
`--root`.

`record` trains every recipe of a grid on one thread, each stage once, and appends its learning curve to
benchmarks/tables/curves_DATA.jsonl; of large 40 from a second seed, too. Once all are there it keeps them, compressed,
with the metered seconds of an epoch, in benchmarks/tables/DATA.json.gz. `replay` lets the same space be searched by

a. Ray Tune with OptunaSearch over both objectives, as its documentation shows it;
b. the same with ASHA on the accuracy alone, with its own grace period of one epoch, and b'. with one that ends after
   the longest SSL phase, in which there is no accuracy;
c. Syne Tune's MOASHA (where `pip install syne-tune` was run), and c'. likewise;
d. mixtune's tree with random draws;  e. with TPE;  f. cost_aware without the tree;  g. mixtune, a trial at a time
   whole;  h. mixtune, which decides again at each stage

each over several seeds, and says after how many device-seconds 95 % and 99 % of the best known hypervolume were
reached: median and quartiles, how many different outcomes the seeds have, and how many need more than a third of a's
median; besides, what a search would need that knew every outcome. `budget` says which share of it g. and h. have found
after so many device-seconds, and what they find in 20 trials and take for them. `check` lets a., g. and h. search for
real, and compares the accuracies with the table's and the seconds with a replay whose epochs take as long as those of
the real search did, since a machine that trains two at once, or a year later, is not the table's. Real schedulers and
samplers are called; training runs alone are looked up. Device-seconds are the wall clock's times the slots, so waiting
counts. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import csv
import functools
import logging
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from replay.clairvoyant import clairvoyant
from replay.policies import CLASSES, Mixtune, RayTune, SyneTune, with_images
from replay.real import Searched, device_seconds, search_plainly, search_with_mixtune
from replay.rows import Row, name_of, read_rows, record_rows
from replay.simulate import Outcome, Policy, simulate
from replay.table import Table, change_seconds, keep_table, recipe_name
from training_report import count_cores, cpu_model, format_table

import mixtune
from mixtune.space.points import points
from mixtune.space.recipe import with_values
from mixtune.space.space import space_from_dict
from mixtune.stages.paths import RecipePaths
from mixtune.training.plan import PHASES
from mixtune.training.state import TrainState

HERE = Path(__file__).parent
TABLES, RESULTS = HERE / "tables", HERE / "results"
ENOUGH, ALMOST_ALL = 0.95, 0.99  # of the best known hypervolume
GOAL = 0.26  # of plain Ray Tune's device-seconds
THIRD = 1 / 3
FEW = 20  # trials of a small budget
PART, OFF = 2 / 3, 0.4  # of a table's recipes; by which forecasts are wrong
MAX_TRIALS = 400
LONGER = 4  # trials of a real search more than of the replayed one: it may take another way
CLOSE = 0.2  # of the replay's device-seconds

DIGITS: dict[str, Any] = {
    "recipe": {
        "data": {"dataset": "digits", "val_fraction": 0.3},
        "model": {"patch_size": 2, "embed_dim": 64, "depth": 2, "num_heads": 2},
        "optim": {
            "batch_size": 32,
            "ssl": {"base_lr": 0.024, "schedule": "wsd", "warmup_epochs": 2},
            "sl": {"base_lr": 0.05, "schedule": "wsd", "warmup_epochs": 2},
        },
        "augment": {"pad": 0},
    },
    "space": {
        "alpha": {"choice": [0.25, 0.5, 0.75]},
        "rho": {"choice": [0.0, 0.25, 0.5, 1.0]},
        "epochs.ssl": {"choice": [5, 10, 20]},
        "epochs.sl": {"choice": [5, 10, 20, 40]},
        "optim.sl.base_lr": {"choice": [0.006, 0.02, 0.06]},
    },
    "objectives": {"val_accuracy": "max", "train_latency_s": "min"},
    "baselines": [],
}
CIFAR10: dict[str, Any] = {
    "recipe": {
        "data": {"dataset": "image_folder", "fraction": 0.1, "val_fraction": 0.05},
        "model": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
        "optim": {
            "ssl": {"schedule": "wsd", "warmup_epochs": 2},
            "sl": {"schedule": "wsd", "warmup_epochs": 2},
        },
    },
    "space": {
        "alpha": {"choice": [0.25, 0.5]},
        "rho": {"choice": [0.0, 0.5, 1.0]},
        "epochs.ssl": {"choice": [4, 8]},
        "epochs.sl": {"choice": [4, 8]},
        "optim.sl.base_lr": {"choice": [0.001, 0.003]},
    },
    "objectives": {"val_accuracy": "max", "train_latency_s": "min"},
    "baselines": [],
}
COSINE = with_values(
    DIGITS,
    {
        "recipe.optim.ssl.schedule": "cosine",
        "recipe.optim.sl.schedule": "cosine",
        "space": {
            "alpha": {"choice": [0.25, 0.75]},
            "rho": {"choice": [0.0, 0.5, 1.0]},
            "epochs.ssl": {"choice": [5, 20]},
            "epochs.sl": {"choice": [10, 40]},
            "optim.sl.base_lr": {"choice": [0.006, 0.02, 0.06]},
        },
    },
)
LARGE = with_values(
    CIFAR10,
    {
        "space": {
            "alpha": {"choice": [0.25, 0.5]},
            "rho": {"choice": [0.0, 0.5, 1.0]},
            "epochs.ssl": {"choice": [8, 24, 72]},
            "epochs.sl": {"choice": [4, 8, 16, 32]},
            "optim.sl.base_lr": {"choice": [0.0005, 0.0015, 0.0045]},
        }
    },
)
SECOND_SEED = {"large": 40}  # recipes, for the noise
SPACES = {"digits": DIGITS, "cifar10": CIFAR10, "cosine": COSINE, "large": LARGE}
NAMES = {
    "digits": "digits",
    "cifar10": "10 % of CIFAR-10 (JPEG)",
    "cosine": "digits, cosine schedules",
    "large": "10 % of CIFAR-10 (JPEG), the larger grid",
}


def table_file(data: str) -> Path:
    """Return where a data set's table is kept."""
    return TABLES / f"{data}.json.gz"


def suffix(data: str) -> str:
    """Return what the names of a data set's results end with."""
    return "" if data == "digits" else f"_{data}"


def space_values(data: str, root: str | None) -> dict[str, Any]:
    """Return a space in the form of its file, its images at ``root``."""
    space = SPACES[data]
    return {**space, "recipe": with_values(space["recipe"], {"data.root": root})}


def rows_file(data: str) -> Path:
    """Return where the recipes of a table are kept one by one until it is whole."""
    return TABLES / f"curves_{data}.jsonl"


def record(data: str, values: dict[str, Any], stages: Path, rows: Path, out: Path) -> None:
    """Train each different recipe of the grid, and some from a second seed; then keep the table and its seconds."""
    space = space_from_dict(values)
    once: dict[str, dict[str, Any]] = {}
    for params in points(space):
        once.setdefault(recipe_name(space, params), params)
    most = SECOND_SEED.get(data, 0)
    again = [*once.values()][:: len(once) // most][:most] if most else []
    seeded = [(params, 0) for params in once.values()] + [(params, 1) for params in again]
    runs = [(params, space.recipe_at({**params, "seed": seed})) for params, seed in seeded]
    record_rows(rows, runs, space.recipe, curve_of, stages)
    kept, paths = read_rows(rows), RecipePaths(with_images(space))
    asked = [key for params in points(space) for key in paths(params).keys[1:]]
    share = len(set(asked)) / len(asked)
    about = {
        "machine": f"{cpu_model()}, {count_cores()} cores, a thread a training",
        "versions": {name: version(name) for name in ("torch", "timm", "ray", "optuna")},
        "mixtune": mixtune.__version__,
        "date": date.today().isoformat(),
        "account": f"epochs: {len(asked):,} asked for, {len(set(asked)):,} different ({share:.0%})",
        **noise_of(kept),
    }
    keep_table(out, space, [row for row in kept if row["seed"] == 0], about)
    retime(values, out)
    print(f"written to {out}: {out.stat().st_size / 1e3:.0f} kB; {rows} is not needed any more")


def curve_of(state: TrainState) -> tuple[Row, str]:
    """Return a row's learning curve: the validation accuracy after each epoch, None in SSL."""
    accuracies = [None if epoch.accuracies is None else epoch.accuracies[0] for epoch in state.history]
    return {"accuracies": accuracies}, f"{accuracies[-1]:.3f}"


def noise_of(rows: list[Row]) -> dict[str, float]:
    """Return by how much a recipe's accuracy differs between two seeds, where a second one was recorded."""
    last = {(name_of(row["params"]), row["seed"]): row["accuracies"][-1] for row in rows}
    gaps = [last[name, 1] - last[name, 0] for name, seed in last if seed == 1]
    return {"seeds_differ": statistics.fmean(gap**2 for gap in gaps) ** 0.5, "of_recipes": len(gaps)} if gaps else {}


def retime(values: dict[str, Any], file: Path) -> None:
    """Give a table the seconds of a training run on an idle machine: for one recorded while others trained."""
    metrics = mixtune.train(values["recipe"], {"rho": 0.5, "epochs.ssl": 4, "epochs.sl": 4}, threads=1).metrics
    seconds = {phase: getattr(metrics, f"latency_{phase}_s") / 2 for phase in PHASES}  # of which each has two epochs
    change_seconds(file, seconds, f"an epoch's seconds were metered alone on {date.today().isoformat()}")
    print(f"{file}: an epoch takes {seconds}")


Make = Callable[[Table, int, Path, int], Policy]
POLICIES: dict[str, Make] = {
    "a. Ray Tune, OptunaSearch": lambda table, seed, *_: RayTune(table, seed),
    "b. the same, ASHA on accuracy": lambda table, seed, *_: RayTune(table, seed, grace=1),
    "b'. the same, after any SSL phase": lambda t, seed, *_: RayTune(t, seed, grace=1 + t.most_ssl_epochs()),
    "c. Syne Tune, MOASHA": lambda table, seed, *_: SyneTune(table, seed, grace=1),
    "c'. the same, after any SSL phase": lambda t, seed, *_: SyneTune(t, seed, grace=1 + t.most_ssl_epochs()),
    "d. random, the tree": lambda *given: Mixtune(*given, sampler="random"),
    "e. TPE, the tree": lambda *given: Mixtune(*given, sampler="tpe"),
    "f. cost_aware without the tree": lambda *given: Mixtune(*given, tree=False),
    "g. mixtune, whole recipes": lambda *given: Mixtune(*given),
    "h. mixtune, by stage": lambda *given: Mixtune(*given, by_stage=True),
}
PLAIN, OWN = "a. Ray Tune, OptunaSearch", ("g. mixtune, whole recipes", "h. mixtune, by stage")


SEARCHES: dict[str, Callable[..., Searched]] = {
    PLAIN: search_plainly,
    OWN[0]: search_with_mixtune,
    OWN[1]: functools.partial(search_with_mixtune, by_stage=True),
}


def reference_point(table: Table) -> dict[str, float]:
    """Return what the searches are judged by: chance, and the seconds of the most expensive recipe."""
    longest = max(table.curve(params).latency for params in table.recipes())
    return {"val_accuracy": 1.0 / CLASSES, "train_latency_s": longest}


def replay_one(make: Make, table: Table, seed: int, slots: int, share: float) -> Outcome:
    """Replay a policy until it has found a share of the best known hypervolume."""
    reference = reference_point(table)
    with tempfile.TemporaryDirectory() as scratch:
        policy = make(table, seed, Path(scratch), slots)
        return simulate(policy, table, reference, slots, share * table.best_hypervolume(reference), MAX_TRIALS)


def replay(table: Table, data: str, seeds: int, slots: int, out: Path) -> None:
    """Replay every policy, print what came of it and write it down."""
    reference = reference_point(table)
    best = table.best_hypervolume(reference)
    outcomes: dict[str, list[Outcome]] = {}
    for name, make in POLICIES.items():
        if name.startswith("c") and find_spec("syne_tune") is None:
            print(f"{name}: left out, syne-tune is not installed")
            continue
        outcomes[name] = [replay_one(make, table, seed, slots, ALMOST_ALL) for seed in range(seeds)]
        seconds = [o.seconds_until(ENOUGH * best) for o in outcomes[name]]
        print(f"{name}: {statistics.median(seconds):.0f} device-seconds ({min(seconds):.0f} to {max(seconds):.0f})")
    bounds = {share: clairvoyant(table, reference, share * best, slots) for share in (ENOUGH, ALMOST_ALL)}
    text = report(table, data, outcomes, best, bounds, slots)
    out.mkdir(parents=True, exist_ok=True)
    at = "" if slots == 2 else f"_{slots}_slots"
    (out / f"search_cost{suffix(data)}{at}.md").write_text(text)
    with (out / f"search_cost{suffix(data)}{at}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ("policy", "seed", "to_95_s", "to_99_s", "trained_s", "trials", "complete", "epochs_trained")
        writer.writerow(head)
        for name, each in outcomes.items():
            for seed, o in enumerate(each):
                reached = [f"{o.seconds_until(share * best):.1f}" for share in (ENOUGH, ALMOST_ALL)]
                writer.writerow((name, seed, *reached, f"{o.trained_s:.1f}", o.trials, o.complete, o.epochs_trained))
    print(f"\n{text}\nwritten to {out}")


def parts(table: Table, data: str, seeds: int, slots: int, out: Path) -> None:
    """Replay a. and our own on random parts of a table, and our own with forecasts that are wrong."""
    rows = []
    for number in range(10):
        part = table.part(PART, number)
        enough = ENOUGH * part.best_hypervolume(reference_point(part))
        plain = median_of(PLAIN, part, slots, enough, 10)
        own = {name: median_of(name, part, slots, enough, 3) / plain for name in OWN}
        rows.append([f"part {number}", f"{plain:.0f}", *(f"{own[name]:.2f}" for name in OWN)])
        print(" | ".join(rows[-1]), flush=True)
    enough = ENOUGH * table.best_hypervolume(reference_point(table))
    plain = median_of(PLAIN, table, slots, enough, seeds)
    lines = []
    for name, by_stage in zip(OWN, (False, True), strict=True):
        make = functools.partial(Mixtune, by_stage=by_stage, off=OFF)
        ratios = [replay_one(make, table, seed, slots, ENOUGH).seconds_until(enough) / plain for seed in range(seeds)]
        within = sum(ratio <= THIRD for ratio in ratios)
        lines.append(
            f"- {name}, forecasts up to 40 % off: {statistics.median(ratios):.2f}; {within} of {seeds} within a third"
        )
    met = [sum(float(row[2 + k]) <= THIRD for row in rows) for k in range(2)]
    lines += [f"- {name}: within a third in {met[k]} of 10 parts" for k, name in enumerate(OWN)]
    head = f"part of {NAMES[data]} | a., device-seconds to 95 % | {OWN[0]}, to a. | {OWN[1]}, to a."
    text = (
        "# Parts of a table, and wrong forecasts\n\nPrinted by `python benchmarks/search_cost.py parts`: two thirds of "
    )
    text += f"the different recipes at random, {slots} slots, {date.today().isoformat()}.\n\n"
    text += "\n".join(lines) + f"\n\n{format_table(head, rows)}\n"
    (out / f"search_cost_parts{suffix(data)}.md").write_text(text)
    print(text)


def budget(table: Table, data: str, seeds: int, slots: int, out: Path) -> None:
    """Replay our own searches: what each has found after so many device-seconds, and with so many trials."""
    reference = reference_point(table)
    best = table.best_hypervolume(reference)
    known = clairvoyant(table, reference, ENOUGH * best, slots)
    after = [float(f"{times * known:.2g}") for times in (0.5, 1, 1.5, 2, 3, 4)]
    rows = []
    for name, by_stage in zip(OWN, (False, True), strict=True):
        make = functools.partial(Mixtune, by_stage=by_stage)
        free = [replay_one(make, table, seed, slots, ALMOST_ALL) for seed in range(seeds)]
        found = [[outcome.volume_after(seconds) / best for outcome in free] for seconds in after]
        limited = functools.partial(make, trials=FEW)
        ended = [replay_one(limited, table, seed, slots, math.inf) for seed in range(seeds)]
        spent = statistics.median(outcome.wall_s * slots for outcome in ended)
        rows.append(
            [name, *map(_mean_and_worst, found), f"{spent:.0f}", _mean_and_worst([o.found / best for o in ended])]
        )
        print(" | ".join(rows[-1]), flush=True)
    head = [
        "search",
        *(f"after {seconds:g} s" for seconds in after),
        f"{FEW} trials: device-seconds",
        "and their share",
    ]
    text = (
        "# By stage or whole recipes, with little to spend\n\nPrinted by `python benchmarks/search_cost.py budget`: "
        f"the share of the best known hypervolume of {NAMES[data]} that is found after so many device-seconds, and "
        f"with {FEW} trials (trials that are paused do not count): the mean of {seeds} seeds, and the worst of them; "
        f"{slots} slots, {date.today().isoformat()}. A search that knew every outcome has 95 % after {known:.0f} s.\n\n"
        f"{format_table(' | '.join(head), rows)}\n"
    )
    (out / f"search_cost_budget{suffix(data)}.md").write_text(text)
    print(text)


def _mean_and_worst(shares: list[float]) -> str:
    return f"{statistics.fmean(shares):.3f} ({min(shares):.3f})"


def median_of(name: str, table: Table, slots: int, enough: float, seeds: int) -> float:
    """Return a policy's median device-seconds until a hypervolume."""
    outcomes = [replay_one(POLICIES[name], table, seed, slots, ENOUGH) for seed in range(seeds)]
    return statistics.median(outcome.seconds_until(enough) for outcome in outcomes)


def check(table: Table, data: str, values: dict[str, Any], names: list[str], seeds: int, slots: int, out: Path) -> None:
    """Search for real, a few trials longer than the replay says, and compare it with the table and the replay."""
    reference = reference_point(table)
    enough = ENOUGH * table.best_hypervolume(reference)
    lines, equal, all_of_them = [], 0, 0
    for name in names:
        for seed in range(seeds):
            outcome = replay_one(POLICIES[name], table, seed, slots, ENOUGH)
            replayed = outcome.seconds_until(enough)
            finished, clock, start_s = SEARCHES[name](table, values, seed, outcome.trials + LONGER, slots)
            real = device_seconds(finished, table, reference, slots, enough)
            as_fast = replay_one(POLICIES[name], table.by_clock(clock), seed, slots, ENOUGH).seconds_until(enough)
            as_fast += slots * start_s
            own = [(trial.accuracy, table.curve(trial.params).accuracies[-1]) for trial in finished]
            equal, all_of_them = equal + sum(a == b for a, b in own), all_of_them + len(own)
            most = max(abs(a - (b or 0.0)) for a, b in own)
            seconds = [f"{real:.0f}", f"{replayed:.0f}", f"{as_fast:.0f}", f"{real / as_fast:.2f}"]
            figures = [*seconds, str(len(own)), f"{most:.3f}"]
            lines.append([name, str(seed), *figures])
            print(" | ".join(lines[-1]), flush=True)
            text = check_report(data, slots, lines, equal, all_of_them)
            (out / f"search_cost_real{suffix(data)}.md").write_text(text)
    print(text)


def check_report(data: str, slots: int, lines: list[list[str]], equal: int, trials: int) -> str:
    """Return the results file of real searches; equal: how many of the trials have the table's accuracy."""
    head = (
        "search | seed | device-seconds for real, by the wall clock | replayed, the table's seconds an epoch | "
        "replayed, the search's own, and its start | real to the latter | trials complete | "
        "accuracy: furthest from the table's"
    )
    within = sum(abs(float(line[5]) - 1.0) <= CLOSE for line in lines)
    return (
        f"# What a search costs: real runs on {NAMES[data]}\n\nPrinted by `python benchmarks/search_cost.py check`: "
        "device-seconds until 95 % of the best known hypervolume. An epoch of the replay takes as many seconds as the "
        "table says, metered without validation, or as it took in the real search, with validation, alongside the "
        "other slots (the median of its phase by the wall clock); the latter has the seconds until the first epoch "
        f"began, too, in which a worker starts. {cpu_model()}, {slots} at once, "
        f"{date.today().isoformat()}. Of {trials} complete trials {equal} have the very accuracy of the table; of "
        f"{len(lines)} searches {within} are within {CLOSE:.0%} of the replay.\n\n{format_table(head, lines)}\n"
    )


HEAD = (
    "search | to 95 %: median (quartiles) | to a | different outcomes | above a third | to 99 % | to a | "
    "trials | of the device-seconds training"
)


def report(
    table: Table,
    data: str,
    outcomes: dict[str, list[Outcome]],
    best: float,
    bounds: Mapping[float, float],
    slots: int,
) -> str:
    """Return the results file."""
    plain = {share: statistics.median(o.seconds_until(share * best) for o in outcomes[PLAIN]) for share in bounds}
    lines = []
    for name, each in outcomes.items():
        row = [name]
        for share in bounds:
            seconds = sorted(o.seconds_until(share * best) for o in each)
            low, high = (seconds[round(part * (len(seconds) - 1))] for part in (0.25, 0.75))  # some may be infinite
            middle = statistics.median(seconds)
            row += [f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{middle / plain[share]:.2f}"]
            if share == ENOUGH:
                above = sum(second > THIRD * plain[share] for second in seconds)
                row += [str(len({round(second, 3) for second in seconds})), f"{above} of {len(seconds)}"]
        shares = [o.trained_s / (o.wall_s * slots) for o in each]
        row += [f"{statistics.median(o.trials for o in each):g}", f"{statistics.median(shares):.0%}"]
        lines.append(row)
    known = [f"{seconds:.0f} ({seconds / plain[share]:.2f})" for share, seconds in bounds.items()]
    ratios = {
        name: statistics.median(o.seconds_until(ENOUGH * best) for o in outcomes[name]) / plain[ENOUGH] for name in OWN
    }
    verdicts = ", ".join(
        f"{name} {'met' if ratio <= GOAL else 'missed'}, {ratio:.2f}" for name, ratio in ratios.items()
    )
    differ = ""
    if "seeds_differ" in table.about:
        differ = "; accuracies of {of_recipes} recipes from two seeds differ by {seeds_differ:.3f} (root mean square)"
    about = [
        f"the table: {sum(1 for _ in table.recipes())} recipes on {NAMES[data]}, {table.about['machine']}, "
        f"{table.about['date']}; {table.about['account']}{differ.format(**table.about)}",
        f"{slots} slots, {len(outcomes[PLAIN])} seeds; device-seconds to 95 % and 99 % of the best known hypervolume",
        f"a search that knew every outcome: {known[0]} to 95 %, {known[1]} to 99 %",
        ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna", "scikit-learn") if find_spec("ray")),
        f"Python {platform.python_version()}, {date.today().isoformat()}, {os.cpu_count()} cores",
        f"goal: a median of at most {GOAL:g} of a's device-seconds: {verdicts}",
    ]
    return (
        "\n\n".join(
            [
                "# What a search costs",
                "Printed by benchmarks/search_cost.py, which says what is compared and how.",
                "\n".join(f"- {line}" for line in about),
                format_table(HEAD, lines),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record", "time", "replay", "parts", "budget", "check"])
    parser.add_argument("--data", choices=SPACES, default="digits")
    parser.add_argument("--root", help="CIFAR-10 as a folder of images: of cifar10 and large")
    parser.add_argument("--table", type=Path, help="default: the one that is kept")
    parser.add_argument("--stages", type=Path, default=Path("stages"), help="record: a folder for training states")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of replay")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--searches", default="agh", help="of check: some of a, g and h; of cifar10 a takes 20 minutes")
    parser.add_argument("--slots", type=int, default=2)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("mixtune").setLevel(logging.ERROR)
    data, file = options.data, options.table or table_file(options.data)
    values = space_values(data, options.root)
    if options.do == "record":
        record(data, values, options.stages, rows_file(data), file)
    elif options.do == "time":
        retime(values, file)
    elif options.do == "parts":
        parts(Table(file), data, options.seeds, options.slots, options.out)
    elif options.do == "budget":
        budget(Table(file), data, options.seeds, options.slots, options.out)
    elif options.do == "check":
        names = [name for name in SEARCHES if name[0] in options.searches]
        check(Table(file), data, values, names, options.seeds, options.slots, options.out)
    else:
        replay(Table(file), data, options.seeds, options.slots, options.out)


if __name__ == "__main__":
    main()
