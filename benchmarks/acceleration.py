"""What do shortened token sequences save, and what do they cost? SimCLR, MoCo-v3 and DINO, compressed against not.

    python benchmarks/acceleration.py speed                            # training images/s at ViT-Tiny's width
    python benchmarks/acceleration.py profile --root path/to/cifar10   # errors of the gradient, and schedules
    python benchmarks/acceleration.py accuracy --root path/to/cifar10  # accuracies at equal budgets

`speed` takes training steps (views, forward, backward, optimizer) of ViT-Tiny with 256 tokens, all settings in turn, on
images of noise, and compares the ratio of the best times with the cost model's, as the paper counts it (a sequence
costs its length, a backward pass two forward passes) and in operations. Goal: 75 % of the paper's ratio.

`profile` runs `mixtune gradient-error` for each objective on 2,000 images of CIFAR-10 (a folder of images, a class a
folder) with a small ViT, at 0, 25, 50, 75 and 100 % of 10 epochs; `accuracy` trains 10 epochs of SSL without
compression, or as many as cost as much with `constant` (query token dropout 0.75) and with `auto`, whose stages the
profile found, then 10 epochs of SL, over seeds, each row kept in benchmarks/results/acceleration.csv. Alongside it: SL
alone, and MAE.
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from accuracy_runs import run
from training_report import count_cores, cpu_model, format_table

from mixtune import plugins
from mixtune.backbone import build_backbone
from mixtune.gradient_error import measure_gradient_errors
from mixtune.objectives._invariance import InvarianceObjective
from mixtune.space.compression import Compression
from mixtune.space.recipe import Model, flatten, parse_recipe
from mixtune.space.section import SslSettings
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy
from mixtune.training.augmentation import Augmentation
from mixtune.training.data import ImagePool, TaskData, TrainingData
from mixtune.training.loop import train_step
from mixtune.training.plan import Epoch
from mixtune.training.state import TrainState, start_state
from mixtune.training.streams import torch_generator

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ["simclr", "mocov3", "dino"]
GOAL = 0.75  # of the paper's ratio

TINY: dict[str, Any] = {"name": "vit_tiny_patch16_224", "patch_size": 2}
SMALL: dict[str, Any] = {
    "data": {"dataset": "image_folder", "fraction": 2000 / 47_500, "val_fraction": 0.05},
    "model": {"patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "epochs": {"ssl": 10, "sl": 10},
    "rho": 0.0,
    "optim": {
        "batch_size": 250,
        "ssl": {"base_lr": 1e-3, "warmup_epochs": 2, "schedule": "wsd"},
        "sl": {"base_lr": 3e-3, "warmup_epochs": 2},
    },
}
SETTING = (
    "2,000 images of CIFAR-10 (JPEG), width 32, depth 4, patch 4, the budget of 10 uncompressed epochs of SSL, then "
    "10 of SL, rho 0"
)
CONSTANT = {"token_dropout": 0.75}
SPEEDS = {
    "uncompressed": UNCOMPRESSED,
    "query dropout 0.75": Strategy(query=Shortening(0.75)),
    "dropout 0.75": Strategy(Shortening(0.75), Shortening(0.75)),
    "patch 4": Strategy(Shortening(0.0, 4), Shortening(0.0, 4)),
}


def noise_data(batch: int) -> TrainingData:
    """Return images of noise, as many as a batch has."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pool = ImagePool(
        images=images,
        labels=torch.arange(batch) % 10,
        indices=torch.arange(batch),
        mean=torch.full((3, 1, 1), 0.5),
        std=torch.full((3, 1, 1), 0.25),
        augmentation=Augmentation(pad=4, flip=0.5),
    )
    task = TaskData("noise", tuple(map(str, range(10))), pool, pool, pool)
    return TrainingData((task,), mixes_partners=False, batch_size=batch)


def step_seconds(state: TrainState, strategy: Strategy) -> float:
    """Return the seconds of one SSL step, its batch included."""
    epoch = Epoch(0, "ssl", 0, None, strategy)
    started = time.perf_counter()
    images, labels = next(state.data.batches(state.recipe, epoch))
    train_step(state, epoch, images, labels, torch_generator(0, "masks", 0, state.device))
    if state.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_speeds(batch: int, rounds: int, device: torch.device) -> str:
    """Return a table: each objective and strategy, its images/s and its gain, measured and by the cost model."""
    rows = []
    for name in OBJECTIVES:
        recipe = parse_recipe({"data": {"dataset": "digits"}, "model": TINY, "ssl": {"objective": name}})
        state = start_state(recipe, noise_data(batch), device)
        assert isinstance(state.objective, InvarianceObjective)
        times: dict[str, list[float]] = {label: [] for label in SPEEDS}
        for _ in range(rounds + 1):  # the first allocates
            for label, strategy in SPEEDS.items():
                times[label].append(step_seconds(state, strategy))
        best = {label: min(seconds[1:]) for label, seconds in times.items()}
        units = functools.partial(state.objective.forward_units, state.backbone)
        for label, strategy in SPEEDS.items():
            gain = best["uncompressed"] / best[label]
            linear, counted = (units(UNCOMPRESSED, linear=way) / units(strategy, linear=way) for way in (True, False))
            met = "" if strategy == UNCOMPRESSED else "met" if gain >= GOAL * linear else "missed"
            figures = (f"{batch / best[label]:.1f}", f"{units(strategy, linear=True):.2f}", f"{gain:.2f}x")
            rows.append((name, label, *figures, f"{linear:.2f}x", f"{counted:.2f}x", f"{gain / linear:.0%}", met))
            print(*rows[-1], flush=True)
    header = (
        "objective | strategy | images/s | forward passes an image | gain | gain by the paper's costs | "
        f"gain by operations | share of the paper's | goal: {GOAL:.0%}"
    )
    about = f"ViT-Tiny, 256 patch tokens, batch {batch}, {device.type}: {cpu_model()}, {count_cores()} cores"
    lines = [
        "# Shortened sequences: training speed\n",
        "Printed by `python benchmarks/acceleration.py speed`, which says what is compared and how.\n",
        f"- {about}; torch {torch.__version__}, Python {platform.python_version()}, {date.today().isoformat()}",
        f"- the best of {rounds} steps each, all settings in turn\n",
        format_table(header, rows),
    ]
    return "\n".join(lines)


def measure_profiles(root: str, batches: int) -> None:
    """Measure each objective's profile and keep it."""
    for name in OBJECTIVES:
        recipe = parse_recipe({**SMALL, "data": {**SMALL["data"], "root": root}, "ssl": {"objective": name}})
        made = measure_gradient_errors(recipe, points=5, batches=batches, on_line=lambda line: print(line, flush=True))
        table = made.frame.to_csv(index=False, lineterminator="\n", float_format="%.4g")
        (RESULTS / f"acceleration_profile_{name}.csv").write_text(table)
        (RESULTS / f"acceleration_stages_{name}.yaml").write_text(f"# {made.about}\n{made.to_yaml()}")
        print(f"{made.about}\n{made.to_yaml()}", flush=True)


def changes(objective: str, schedule: str) -> dict[str, Any]:
    """Return a candidate's dotted recipe values: its SSL epochs consume the budget of 10 uncompressed ones."""
    base = flatten(SMALL)
    if objective == "none":
        return base | {"epochs.ssl": 0}
    if objective == "mae":
        return base | {"ssl.objective": "mae"}
    given, epochs = {"schedule": schedule}, None
    if schedule == "constant":
        given |= CONSTANT
    elif schedule == "auto":
        found = yaml.safe_load((RESULTS / f"acceleration_stages_{objective}.yaml").read_text())
        given, epochs = found["ssl"]["compression"], found.get("epochs", {}).get("ssl")
    compression = {f"ssl.compression.{name}": value for name, value in given.items()}
    epochs = epochs or affordable_epochs(objective, given)
    return base | {"ssl.objective": objective, **compression, "epochs.ssl": epochs}


def affordable_epochs(objective: str, compression: dict[str, Any]) -> int:
    """Return how many epochs of SSL the budget of 10 uncompressed ones buys, in forward passes of the backbone."""
    backbone = build_backbone(Model(**SMALL["model"]), image_size=32, channels=3)
    plugin = plugins.find("objectives", objective, "objective")
    settings: SslSettings = plugin.Settings(objective=objective, compression=Compression.model_validate(compression))
    built = plugin.build(settings, backbone)
    left, epochs = 10 * built.forward_units(backbone, UNCOMPRESSED), 0
    while left > 0.5 * (units := built.forward_units(backbone, settings.strategy(epochs))):
        left, epochs = left - units, epochs + 1
    return epochs


CANDIDATES = [
    ("none", "none"),
    ("mae", "none"),
    *((objective, schedule) for objective in OBJECTIVES for schedule in ("none", "constant", "auto")),
]


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    speed = parts.add_parser("speed")
    speed.add_argument("--batch", type=int, default=32)
    speed.add_argument("--rounds", type=int, default=5)
    profile = parts.add_parser("profile")
    profile.add_argument("--root", required=True, help="CIFAR-10 as a folder of images")
    profile.add_argument("--batches", type=int, default=16)
    parts.add_parser("accuracy", add_help=False)
    options, rest = parser.parse_known_args()
    if options.part == "speed":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        table = measure_speeds(options.batch, options.rounds, device)
        (RESULTS / f"acceleration_speed_{device.type}.md").write_text(table + "\n")
        print(table)
    elif options.part == "profile":
        measure_profiles(options.root, options.batches)
    else:
        run(None, RESULTS / "acceleration.csv", ["objective", "schedule"], CANDIDATES, changes, SETTING, rest)


if __name__ == "__main__":
    main()
