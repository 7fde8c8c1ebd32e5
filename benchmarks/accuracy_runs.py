"""Accuracies of candidates over seeds on 10 % of CIFAR-10, kept row by row: what was trained is not trained again."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mixtune

RECIPE: dict[str, Any] = {
    "data": {"dataset": "image_folder", "fraction": 0.1, "val_fraction": 0.05},
    "model": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
    "epochs": {"ssl": 20, "sl": 20},
}
SETTING = "10 % of CIFAR-10 (JPEG), width 64, depth 4, patch 4, 20+20 epochs, rho 0.5, alpha 0.5, encode: visible"

Candidate = tuple[str, ...]


def train(root: str, seed: int, changes: dict[str, Any]) -> float:
    """Train a candidate on one thread; return its accuracy on the validation images."""
    torch.set_num_threads(1)
    return mixtune.train(RECIPE, {"seed": seed, "data.root": root, **changes}).metrics.val_accuracy


def measure(
    results: Path,
    names: Sequence[str],
    candidates: Sequence[Candidate],
    changes_of: Callable[..., dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Train what is not in the results yet, a row a run; ``changes_of`` gives a candidate's dotted recipe values."""
    with results.open(newline="") as file:
        done = {tuple(row[name] for name in ["seed", *names]) for row in csv.DictReader(file)}
    wanted = [(seed, *candidate) for seed in range(options.seeds) for candidate in candidates]
    wanted = [run for run in wanted if tuple(map(str, run)) not in done]
    with ProcessPoolExecutor(options.processes) as pool, results.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        futures = {pool.submit(train, options.root, run[0], changes_of(*run[1:])): run for run in wanted}
        for future in as_completed(futures):
            writer.writerow([*futures[future], f"{future.result():.4f}"])
            file.flush()
            print(*futures[future], f"{future.result():.4f}", flush=True)


def run(
    description: str | None,
    results: Path,
    names: Sequence[str],
    candidates: Sequence[Candidate],
    changes_of: Callable[..., dict[str, Any]],
    setting: str = SETTING,
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure, as the command line asks, and print and write the table; setting: what all candidates share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--root", help="CIFAR-10 as a folder of images")
    what.add_argument("--table", action="store_true", help="print what was measured, train nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    if not results.exists():
        results.write_text(",".join(["seed", *names, "val_accuracy"]) + "\n")
    if options.root:
        measure(results, names, candidates, changes_of, options)
    percent = 100 * pd.read_csv(results, keep_default_na=False).set_index(list(names)).val_accuracy
    table = percent.groupby(level=list(names), sort=False).agg(["count", "mean", "std"]).round(2)
    ranked = table.sort_values("mean", ascending=False).to_string()
    text = f"validation accuracy in percent over seeds; {setting}\n\n{ranked}"
    print(text)
    results.with_suffix(".txt").write_text(f"{text}\n")
