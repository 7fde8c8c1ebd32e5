"""Which schedule, and which optimizer state, go over the phase borders? Measured, because the paper does not say.

    python benchmarks/phase_borders.py --root path/to/cifar10

trains every candidate for each seed on 10 % of CIFAR-10 (a folder of images, a class a folder) with a small ViT, 20+20
epochs, and adds a row a run to benchmarks/results/phase_borders.csv; runs that stand there already are not trained
again. Then, or at once with `--table`, it prints the mean and the deviation over the seeds. The heads follow their own
loss's schedule in all candidates. Accuracies are on 2,500 validation images; the test images are not looked at.
Accuracy alone counts here: a process trains on one thread, and they share the machine.
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
RECIPE: dict[str, Any] = {
    "data": {"dataset": "image_folder", "fraction": 0.1, "val_fraction": 0.05},
    "model": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
    "epochs": {"ssl": 20, "sl": 20},
}
SETTING = "10 % of CIFAR-10 (JPEG), width 64, depth 4, patch 4, 20+20 epochs, rho 0.5, alpha 0.5, encode: visible"
NAMES = ["method", "mix_schedule", "carry_state"]
CANDIDATES = [
    *(("mixtraining", schedule, carry) for schedule, carry in product(["sl", "blend", "ssl"], ["yes", "no"])),
    *(("ssl_sl", "", carry) for carry in ["yes", "no"]),
    ("sl", "", ""),
]


def train(root: str, seed: int, method: str, mix_schedule: str, carry_state: str) -> float:
    """Train one candidate on one thread; return its accuracy on the validation images."""
    torch.set_num_threads(1)
    changes = {"seed": seed, "data.root": root, "optim.carry_state": carry_state != "no"}
    changes |= {"sl": {"epochs.ssl": 0}, "ssl_sl": {"rho": 0.0}}.get(method, {"optim.mix_schedule": mix_schedule})
    return mixtune.train(RECIPE, changes).metrics.val_accuracy


def measure(root: str, seeds: int, processes: int) -> None:
    """Train what is not in the results yet."""
    with RESULTS.open(newline="") as file:
        done = {tuple(row[name] for name in ["seed", *NAMES]) for row in csv.DictReader(file)}
    wanted = [(seed, *candidate) for seed in range(seeds) for candidate in CANDIDATES]
    wanted = [run for run in wanted if tuple(map(str, run)) not in done]
    with ProcessPoolExecutor(processes) as pool, RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        futures = {pool.submit(train, root, *run): run for run in wanted}
        for future in as_completed(futures):
            writer.writerow([*futures[future], f"{future.result():.4f}"])
            file.flush()
            print(*futures[future], f"{future.result():.4f}", flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--root", help="CIFAR-10 as a folder of images")
    what.add_argument("--table", action="store_true", help="print what was measured, train nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if not RESULTS.exists():
        RESULTS.write_text(",".join(["seed", *NAMES, "val_accuracy"]) + "\n")
    if options.root:
        measure(options.root, options.seeds, options.processes)
    percent = 100 * pd.read_csv(RESULTS, keep_default_na=False).set_index(NAMES).val_accuracy
    table = percent.groupby(level=NAMES, sort=False).agg(["count", "mean", "std"]).round(2)
    ranked = table.sort_values("mean", ascending=False).to_string()
    text = f"validation accuracy in percent over seeds; {SETTING}\n\n{ranked}"
    print(text)
    RESULTS.with_suffix(".txt").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
