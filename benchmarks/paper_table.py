"""Rows of the paper's tables, trained here and set alongside the paper's figures (MixTraining, arXiv 2502.19513).

    python benchmarks/paper_table.py --root path/to/cifar10 --rows 1:10 1:25 4 5 --seeds 4
    python benchmarks/paper_table.py --root path/to/cifar10 --rows 1:10 --seeds 2 --small

A row is a table's number and, for Table 1, the percent of the data: ``1:10`` are SL, SSL+SL and MixTraining at 10 %,
``4`` and ``5`` the sweeps of alpha and rho. Data: CIFAR-10 as a folder of images, ``train/<class>`` and
``test/<class>`` (re-encoded as JPEG, accuracies are close to, not equal to, those on the original files). The protocol
is the paper's: no validation split, accuracy on the test images after the last epoch; ViT-Tiny at patch 2, batch 256,
100+100 epochs, ``encode: full``, the MAE loss on unmasked patches, as its Appendix A.2 has it (``--loss-on masked`` is
He et al.'s, and mixtune's default). ``--small`` is a row for a CPU: width 64, depth 4, patch 4, 20+20 epochs; its
figures are not comparable with the paper's, only the order of the methods is. Needs no Ray.

Every training run is written to the results file as it ends and not trained again, so the script can be stopped and
started. Seeds are trained in turn, all methods of one seed before the next.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch

import mixtune
from mixtune.single import train_recipe
from mixtune.space.recipe import baseline_values
from mixtune.training.device import choose_device, describe_device

HERE = Path(__file__).parent
PAPER = Path(mixtune.__file__).parent / "report" / "paper_results.csv"
METHODS = {"sl": baseline_values("sl"), "ssl_sl": baseline_values("ssl_sl"), "mixtraining": {}}
SMALL = {
    "model": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
    "epochs": {"ssl": 20, "sl": 20},
}
KEYS = ("scale", "device", "table", "percent", "epochs", "loss_on", "method", "alpha", "rho", "seed")
FIGURES = ("test_accuracy", "best_accuracy", "train_latency_s", "train_flops")

Row = dict[str, str]


def paper_rows(wanted: list[str], losses: list[str]) -> Iterator[Row]:
    """Yield the paper's rows on CIFAR-10 alone that ``--rows`` asks for, where there is SSL with each ``loss_on``."""
    with PAPER.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == row["ssl_dataset"] == "CIFAR-10"]
    for asked in wanted:
        table, _, percent = asked.partition(":")
        found = [r for r in rows if r["table"] == table and percent in ("", r["data_percent"])]
        if not found:
            raise SystemExit(f"--rows {asked}: the paper has no such row on CIFAR-10")
        for row in found:
            yield from ({**row, "loss_on": loss} for loss in (losses if row["method"] != "sl" else [""]))


def recipe_of(row: Row, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of one of the paper's rows."""
    epochs = int(row["epochs"])
    recipe: dict[str, Any] = {
        "data": {"dataset": "image_folder", "root": options.root, "fraction": float(row["data_percent"]) / 100},
        "epochs": {"ssl": epochs, "sl": epochs},
        "alpha": float(row["alpha"]),
        "rho": float(row["rho"]),
        "ssl": {"encode": "full", "loss_on": row["loss_on"] or "masked"},
        "protocol": "paper",
        "seed": seed,
    }
    return recipe | (SMALL if options.small else {})


def train(row: Row, seed: int, options: argparse.Namespace) -> Row:
    """Train one row on one seed; return its line of the results file."""
    metrics = train_recipe(recipe_of(row, seed, options), METHODS[row["method"]]).metrics
    values = key_of(row, seed, options) | {name: f"{metrics[name]:.6g}" for name in FIGURES}
    return values | {"precision": metrics.precision}


def key_of(row: Row, seed: int, options: argparse.Namespace) -> Row:
    """Return what tells one training from another."""
    scale = "small" if options.small else "paper"
    epochs = str(SMALL["epochs"]["ssl"]) if options.small else row["epochs"]
    setting = (row[name] for name in ("method", "alpha", "rho"))
    where = scale, describe_device(choose_device()), row["table"], row["data_percent"], epochs
    values = *where, row["loss_on"], *setting, str(seed)
    return dict(zip(KEYS, values, strict=True))


def measure(rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """Train what the results file lacks; return all its lines."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done: list[Row] = list(csv.DictReader(options.out.open(encoding="utf-8"))) if options.out.exists() else []
    for seed in range(options.seeds):
        for row in rows:
            key = key_of(row, seed, options)
            if any(key.items() <= line.items() for line in done):
                continue
            line = train(row, seed, options)
            with options.out.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, line, lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(line)
            done.append(line)
            print(", ".join(line.values()), flush=True)
    return done


def table(rows: list[Row], lines: list[Row], options: argparse.Namespace) -> str:
    """Return Markdown: our mean and standard deviation, seconds and speed-up over SSL+SL, and the paper's."""
    header = (
        "| table | data | method | loss on | alpha | rho | seeds | test accuracy | training | speed-up | by FLOPs |"
    )
    if not options.small:
        header += " paper: accuracy | training | speed-up |"
    texts = [header, "|" + " --- |" * (header.count("|") - 1)]
    for row in rows:
        found = select(lines, row, options)
        base = select(lines, {**row, "method": "ssl_sl"}, options, any_alpha_and_rho=True)
        if not found:
            continue
        accuracies = [100 * float(line["test_accuracy"]) for line in found]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(found) > 1 else ""
        seconds, flops = mean(found, "train_latency_s"), mean(found, "train_flops")
        mixed = row["method"] == "mixtraining" and bool(base)
        cells = [
            *(row[name] for name in ("table", "data_percent", "method", "loss_on", "alpha", "rho")),
            str(len(found)),
            f"{statistics.fmean(accuracies):.2f}{spread} %",
            f"{seconds:.0f} s",
            f"{mean(base, 'train_latency_s') / seconds:.2f}x" if mixed else "",
            f"{mean(base, 'train_flops') / flops:.2f}x" if mixed else "",
        ]
        if not options.small:
            cells += paper_cells(row, rows)
        texts.append("| " + " | ".join(cells) + " |")
    return "\n".join(texts)


def paper_cells(row: Row, rows: list[Row]) -> list[str]:
    """Return the paper's accuracy, seconds and speed-up over its SSL+SL."""
    base = [
        r for r in rows if r["method"] == "ssl_sl" and all(r[k] == row[k] for k in ("table", "data_percent", "epochs"))
    ]
    own = float(row["train_latency_s"] or "nan")
    mixed = row["method"] == "mixtraining" and base and own == own
    speed_up = f"{float(base[0]['train_latency_s']) / own:.2f}x" if mixed else ""
    return [f"{row['accuracy_percent']} %", f"{own:.0f} s" if own == own else "", speed_up]


def select(lines: list[Row], row: Row, options: argparse.Namespace, any_alpha_and_rho: bool = False) -> list[Row]:
    """Return the training runs of a row, one a seed."""
    key = key_of(row, 0, options)
    del key["seed"]
    if any_alpha_and_rho:  # they are idle in SSL+SL
        del key["alpha"], key["rho"], key["table"]
    return [line for line in lines if key.items() <= line.items()]


def mean(lines: list[Row], name: str) -> float:
    return statistics.fmean(float(line[name]) for line in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10 as a folder of images")
    parser.add_argument("--rows", nargs="+", default=["1:10"], help="such as 1:10 1:25 4 5")
    parser.add_argument("--loss-on", nargs="+", default=["unmasked"], choices=["unmasked", "masked"], help="of SSL")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="a small model and few epochs, for a CPU")
    parser.add_argument("--out", type=Path, help="the results file")
    options = parser.parse_args()
    folder = "gpu/" if choose_device().type == "cuda" else ""
    options.out = options.out or HERE / "results" / f"{folder}paper_table.csv"
    rows = list(paper_rows(options.rows, options.loss_on))
    lines = measure(rows, options)
    text = table(rows, lines, options)
    versions = f"torch {torch.__version__}, timm {timm.__version__}, {describe_device(choose_device())}"
    note = "width 64, depth 4, patch 4, 20+20 epochs: not the paper's scale\n\n" if options.small else ""
    options.out.with_suffix(".md").write_text(f"{note}{text}\n\n{versions}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
