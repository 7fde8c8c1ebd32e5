"""How many device-seconds does a search need until it has found what there is to find?

    python benchmarks/search_cost.py record          # 432 training runs on digits, once: the table
    python benchmarks/search_cost.py replay          # searches replayed against it, in simulated time
    python benchmarks/search_cost.py check           # a few of them for real

With `--data cifar10` the same on 10 % of CIFAR-10, 48 training runs; `record` and `check` find its images, a class a
folder, at `--root`.

`record` trains every recipe of a grid with `mixtune search` (grid sampler, stage tree) and keeps the learning curves
and the metered seconds of an epoch, compressed, in benchmarks/tables/. `replay` lets the same space be searched by

a. Ray Tune with OptunaSearch over both objectives, as its documentation shows it;
b. the same with ASHA on the accuracy alone, with its own grace period of one epoch, and b'. with one that ends after
   the longest SSL phase, in which there is no accuracy;
c. Syne Tune's MOASHA (where `pip install syne-tune` was run), and c'. likewise;
d. mixtune without the stage tree;  e. mixtune;  g. mixtune with TPE instead of cost_aware,

each over several seeds, and says after how many device-seconds 95 % of the best known hypervolume was reached: median
and quartiles. (f., with a scheduler that ended trials early, is gone: NOTES.md.) `check` lets a. and e. search for
real, and compares both with the replay, and the accuracies with the table's. Real schedulers and samplers are called;
training runs alone are looked up. Device-seconds are the wall clock's times the slots, so waiting counts. Results go to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from replay.policies import Mixtune, RayTune, SyneTune
from replay.real import device_seconds, search_plainly, search_with_mixtune
from replay.simulate import Outcome, Policy, simulate
from replay.table import Table, keep_table
from training_report import count_cores, cpu_model, format_table

import mixtune
from mixtune.space.recipe import with_values

HERE = Path(__file__).parent
TABLES, RESULTS = HERE / "tables", HERE / "results"
ENOUGH = 0.95  # of the best known hypervolume
GOAL = 1 / 3  # of plain Ray Tune's device-seconds
MAX_TRIALS = 400
REFERENCE_ACCURACY = 0.1  # chance

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
SPACES = {"digits": DIGITS, "cifar10": CIFAR10}
NAMES = {"digits": "digits", "cifar10": "10 % of CIFAR-10 (JPEG)"}


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


def record(values: dict[str, Any], out: Path, most: int | None) -> None:
    """Train every recipe of the grid, or the first few, and keep the table."""
    values = {**values, "search": {"sampler": "grid", **({"trials": most} if most else {})}}
    values["resources"] = {"cpus_per_trial": 1}
    with tempfile.TemporaryDirectory() as scratch:
        started, run = time.perf_counter(), Path(scratch) / "run"
        result = mixtune.search(values, out=run, gpus=0)
        about = {
            "machine": f"{cpu_model()}, {count_cores()} cores, a thread a training",
            "versions": {name: version(name) for name in ("torch", "timm", "ray", "optuna")},
            "mixtune": mixtune.__version__,
            "date": date.today().isoformat(),
            "took_s": round(time.perf_counter() - started),
            "account": str(result.account()),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        keep_table(run, out, about)
    print(f"written to {out}: {out.stat().st_size / 1e3:.0f} kB")


Make = Callable[[Table, int, Path, dict[str, float], int], Policy]
POLICIES: dict[str, Make] = {
    "a. Ray Tune, OptunaSearch": lambda table, seed, *_: RayTune(table, seed),
    "b. the same, ASHA on accuracy": lambda table, seed, *_: RayTune(table, seed, grace=1),
    "b'. the same, after any SSL phase": lambda t, seed, *_: RayTune(t, seed, grace=1 + t.most_ssl_epochs()),
    "c. Syne Tune, MOASHA": lambda table, seed, *_: SyneTune(table, seed, grace=1),
    "c'. the same, after any SSL phase": lambda t, seed, *_: SyneTune(t, seed, grace=1 + t.most_ssl_epochs()),
    "d. mixtune without the tree": lambda *given: Mixtune(*given, tree=False),
    "e. mixtune": lambda *given: Mixtune(*given),
    "g. mixtune with TPE": lambda *given: Mixtune(*given, sampler="tpe"),
}


def reference_point(table: Table) -> dict[str, float]:
    """Return chance, and the seconds of the most expensive recipe."""
    longest = max(table.curve(params).latency for params in table.recipes())
    return {"val_accuracy": REFERENCE_ACCURACY, "train_latency_s": longest}


def replay(table: Table, data: str, seeds: int, slots: int, out: Path) -> None:
    """Replay every policy, print what came of it and write it down."""
    reference = reference_point(table)
    best = table.best_hypervolume(reference)
    outcomes: dict[str, list[Outcome]] = {}
    for name, make in POLICIES.items():
        if name.startswith("c") and find_spec("syne_tune") is None:
            print(f"{name}: left out, syne-tune is not installed")
            continue
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as scratch:
                policy = make(table, seed, Path(scratch), reference, slots)
                outcome = simulate(policy, table, reference, slots, ENOUGH * best, MAX_TRIALS)
            outcomes.setdefault(name, []).append(outcome)
        seconds = [o.seconds_until(ENOUGH * best) for o in outcomes[name]]
        print(f"{name}: {statistics.median(seconds):.0f} device-seconds ({min(seconds):.0f} to {max(seconds):.0f})")
    text = report(table, data, outcomes, ENOUGH * best, slots)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"search_cost{suffix(data)}.md").write_text(text)
    with (out / f"search_cost{suffix(data)}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("policy", "seed", "device_seconds", "trained_s", "trials", "complete", "epochs_trained"))
        for name, each in outcomes.items():
            for seed, o in enumerate(each):
                reached = f"{o.seconds_until(ENOUGH * best):.1f}"
                writer.writerow((name, seed, reached, f"{o.trained_s:.1f}", o.trials, o.complete, o.epochs_trained))
    print(f"\n{text}\nwritten to {out}")


def check(table: Table, data: str, values: dict[str, Any], seeds: int, slots: int, out: Path) -> None:
    """Search for real with a. and e., and say how that compares with the table and the replay."""
    reference = reference_point(table)
    enough = ENOUGH * table.best_hypervolume(reference)
    lines, equal, all_of_them = [], 0, 0
    for name, search, trials in (
        ("a. Ray Tune, OptunaSearch", search_plainly, 20),
        ("e. mixtune", search_with_mixtune, 20),
    ):
        for seed in range(seeds):
            finished = search(table, values, seed, trials, slots)
            real = device_seconds(finished, table, reference, slots, enough)
            with tempfile.TemporaryDirectory() as scratch:
                policy = POLICIES[name](table, seed, Path(scratch), reference, slots)
                replayed = simulate(policy, table, reference, slots, enough, MAX_TRIALS).seconds_until(enough)
            own = [(trial.accuracy, table.curve(trial.params).accuracies[-1]) for trial in finished]
            equal, all_of_them = equal + sum(a == b for a, b in own), all_of_them + len(own)
            most = max(abs(a - (b or 0.0)) for a, b in own)
            lines.append([name, str(seed), f"{real:.0f}", f"{replayed:.0f}", f"{len(own)} of {trials}", f"{most:.3f}"])
            print(" | ".join(lines[-1]), flush=True)
    head = (
        "search | seed | device-seconds for real, by the wall clock | replayed | trials complete | "
        "accuracy: furthest from the table's"
    )
    text = (
        "# What a search costs: real runs\n\nPrinted by `python benchmarks/search_cost.py check`: device-seconds until "
        f"95 % of the best known hypervolume. {cpu_model()}, {slots} at once, {date.today().isoformat()}. Of "
        f"{all_of_them} complete trials {equal} have the very accuracy of the table.\n\n{format_table(head, lines)}\n"
    )
    (out / f"search_cost_real{suffix(data)}.md").write_text(text)
    print(text)


HEAD = (
    "search | device-seconds until 95 % of the best known hypervolume: median (quartiles) | to a | trials | "
    "of these ended early | of the device-seconds training"
)


def report(table: Table, data: str, outcomes: dict[str, list[Outcome]], enough: float, slots: int) -> str:
    """Return the results file."""
    plain = statistics.median(o.seconds_until(enough) for o in next(iter(outcomes.values())))
    lines = []
    for name, each in outcomes.items():
        seconds = sorted(o.seconds_until(enough) for o in each)
        low, high = (seconds[round(share * (len(seconds) - 1))] for share in (0.25, 0.75))  # some may be infinite
        middle = statistics.median(seconds)
        shares = [o.trained_s / (o.wall_s * slots) for o in each]
        trials = statistics.median(o.trials for o in each)
        ended = statistics.median(o.trials - o.complete for o in each)
        share = f"{statistics.median(shares):.0%}"
        lines.append(
            [
                name,
                f"{middle:.0f} ({low:.0f} to {high:.0f})",
                f"{middle / plain:.2f}",
                f"{trials:g}",
                f"{ended:g}",
                share,
            ]
        )
    whole = statistics.median(o.seconds_until(enough) for o in outcomes["e. mixtune"]) / plain
    verdict = "met" if whole <= GOAL else "missed"
    about = [
        f"the table: {sum(1 for _ in table.recipes())} recipes on {NAMES[data]}, {table.about['machine']}, "
        f"{table.about['date']}; {table.about['account']}",
        f"{slots} slots, {len(next(iter(outcomes.values())))} seeds",
        ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna") if find_spec(name)),
        f"Python {platform.python_version()}, {date.today().isoformat()}, {os.cpu_count()} cores",
        f"goal: mixtune needs at most a third of a's device-seconds: {verdict}, {whole:.2f}",
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
    parser.add_argument("do", choices=["record", "replay", "check"])
    parser.add_argument("--data", choices=SPACES, default="digits")
    parser.add_argument("--root", help="CIFAR-10 as a folder of images: record and check of cifar10")
    parser.add_argument("--table", type=Path, help="default: the one that is kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of replay")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--trials", type=int, help="record: the first few of the grid alone")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("mixtune").setLevel(logging.ERROR)
    data, file = options.data, options.table or table_file(options.data)
    values = space_values(data, options.root)
    if options.do == "record":
        record(values, file, options.trials)
    elif options.do == "check":
        check(Table(file), data, values, options.seeds, options.slots, options.out)
    else:
        replay(Table(file), data, options.seeds, options.slots, options.out)


if __name__ == "__main__":
    main()
