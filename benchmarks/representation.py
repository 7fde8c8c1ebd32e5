"""What is a backbone worth along its SSL phase? Nearest neighbours and a linear probe on frozen features of digits.

    python benchmarks/representation.py

trains MAE and SimCLR on scikit-learn's digits, with each of a few seeds, judges the features of the validation images
on the way (mixtune.training.representation), and writes the table to benchmarks/results/representation.md. Epoch 0 is
the untrained backbone. Cosine schedules span the whole budget, so the last row alone is a finished SSL phase.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import date
from pathlib import Path
from typing import Any

import torch
from training_report import format_table

import mixtune
from mixtune.space.recipe import parse_recipe
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.representation import measure_representation
from mixtune.training.state import start_state

RESULTS = Path(__file__).parent / "results"
RECIPE: dict[str, Any] = {
    "data": {"dataset": "digits"},
    "model": {"patch_size": 2, "embed_dim": 64, "depth": 2, "num_heads": 2, "pool": "avg"},
    "optim": {"batch_size": 128, "ssl": {"base_lr": 0.004}},
    "rho": 0.0,
    "representation": ["knn", "probe"],
}
OBJECTIVES = {"MAE": "mae", "SimCLR": "simclr"}


def judge(objective: str, seed: int, epochs: int, every: int) -> dict[int, dict[str, float]]:
    """Return by SSL epoch what the features of the validation images are worth, shares of 1."""
    budgets = {"ssl": epochs, "sl": 1}
    recipe = parse_recipe({**RECIPE, "ssl": {"objective": objective}, "epochs": budgets, "seed": seed})
    state = start_state(recipe, load_training_data(recipe))
    found = {0: {name: value for name, (value,) in measure_representation(state).items()}}
    for result in train(state):
        if result.epoch % every == 0 or result.epoch == epochs:
            found[result.epoch] = {name: value for name, (value,) in measure_representation(state).items()}
        if result.epoch == epochs:
            break
    return found


def main() -> None:
    """Train, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        name: [judge(objective, seed, options.epochs, options.every) for seed in range(options.seeds)]
        for name, objective in OBJECTIVES.items()
    }
    columns = [(name, kind) for name in found for kind in ("knn", "probe")]
    lines = []
    for epoch in found["MAE"][0]:
        of_seeds = [[run[epoch][kind] for run in found[name]] for name, kind in columns]
        cells = [f"{100 * statistics.fmean(each):.1f} ({100 * (max(each) - min(each)):.1f})" for each in of_seeds]
        lines.append([str(epoch), *cells])
    head = " | ".join(["SSL epoch", *(f"{name}, {'20 neighbours' if k == 'knn' else k}" for name, k in columns)])
    flags = f"--epochs {options.epochs} --every {options.every} --seeds {options.seeds}"
    text = (
        "# Frozen features along the SSL phase\n\n"
        f"`python benchmarks/representation.py {flags}`, mixtune {mixtune.__version__}, {date.today().isoformat()}.\n\n"
        "Validation accuracy on digits in percent, the mean over seeds (how far apart they are). 144 images: a "
        f"standard error of about four points at 60 %, three at 85 %.\n\n{format_table(head, lines)}\n"
    )
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "representation.md").write_text(text)


if __name__ == "__main__":
    main()
