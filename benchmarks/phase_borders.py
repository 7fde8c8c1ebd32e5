"""Which schedule, and which optimizer state, go over the phase borders? Measured, because the paper does not say.

    python benchmarks/phase_borders.py --root path/to/cifar10

trains every candidate for each seed on 10 % of CIFAR-10 (a folder of images, a class a folder) with a small ViT and
writes a row a run to benchmarks/results/phase_borders.csv. Runs that stand there already are not trained again.
`--table` prints the mean and the deviation over the seeds of what stands there. Accuracies are on 2,500 validation
images; the test images are not looked at. Accuracy alone counts here: the runs share the machine.
"""

from __future__ import annotations

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mixtune

RESULTS = Path(__file__).parent / "results" / "phase_borders.csv"
MODEL = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}
COLUMNS = ["seed", "method", "mix_schedule", "carry_state", "pool", "loss_on", "norm_pix", "val_accuracy"]

CANDIDATES: list[dict[str, Any]] = [
    *(
        {"optim.mix_schedule": schedule, "optim.carry_state": carry}
        for schedule, carry in product(["sl", "ssl", "blend"], [True, False])
    ),
    *({"rho": 0.0, "optim.carry_state": carry} for carry in [True, False]),
    {"epochs.ssl": 0},
]
SETTINGS: list[dict[str, Any]] = [{"model.pool": "avg"}, {"ssl.loss_on": "all"}, {"ssl.norm_pix": True}]


def train(root: str, seed: int, values: dict[str, Any]) -> dict[str, Any]:
    """Train one candidate on one thread; return its row."""
    torch.set_num_threads(1)
    recipe = {
        "data": {"dataset": "image_folder", "root": root, "fraction": 0.1, "val_fraction": 0.05},
        "model": MODEL,
        "epochs": {"ssl": 20, "sl": 20},
        "seed": seed,
    }
    trained = mixtune.train(recipe, values)
    optim, ssl = trained.recipe.optim, trained.recipe.ssl.model_dump()
    mixes = trained.metrics.method == "mixtraining"
    return {
        "seed": seed,
        "method": trained.metrics.method,
        "mix_schedule": optim.mix_schedule if mixes else "",
        "carry_state": optim.carry_state if trained.metrics.method != "sl" else "",
        "pool": trained.recipe.model.pool,
        "loss_on": ssl["loss_on"],
        "norm_pix": ssl["norm_pix"],
        "val_accuracy": round(trained.metrics.val_accuracy, 4),
    }


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what tells one run from another, as text."""
    return tuple(str(row[name]) for name in COLUMNS[:-1])


def expected_key(seed: int, values: dict[str, Any]) -> tuple[str, ...]:
    """Return the key that a candidate's row will have."""
    method = "sl" if values.get("epochs.ssl") == 0 else "ssl_sl" if values.get("rho") == 0 else "mixtraining"
    row = {
        "seed": seed,
        "method": method,
        "mix_schedule": values.get("optim.mix_schedule", "sl") if method == "mixtraining" else "",
        "carry_state": values.get("optim.carry_state", True) if method != "sl" else "",
        "pool": values.get("model.pool", "token"),
        "loss_on": values.get("ssl.loss_on", "masked"),
        "norm_pix": values.get("ssl.norm_pix", False),
    }
    return tuple(str(value) for value in row.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="CIFAR-10 as a folder of images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what was measured, train nothing")
    options = parser.parse_args()
    if not options.table:
        measure(options.root, options.seeds, options.processes)
    frame = pd.read_csv(RESULTS, keep_default_na=False)
    grouped = frame.groupby(COLUMNS[1:-1], sort=False).val_accuracy
    print((grouped.agg(["mean", "std"]) * 100).round(2).assign(seeds=grouped.count()).to_markdown())


def measure(root: str, seeds: int, processes: int) -> None:
    """Train what is not in the results yet."""
    done = {key(row) for row in csv.DictReader(RESULTS.open())} if RESULTS.exists() else set()
    wanted = [(seed, values) for seed in range(seeds) for values in CANDIDATES]
    wanted = [(seed, values) for seed, values in wanted if expected_key(seed, values) not in done]
    with ProcessPoolExecutor(processes) as pool, RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        for future in as_completed([pool.submit(train, root, seed, values) for seed, values in wanted]):
            writer.writerow(future.result())
            file.flush()
            print(future.result(), flush=True)


if __name__ == "__main__":
    main()
