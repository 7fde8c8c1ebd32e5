"""How far off are the seconds of a training step that a search forecasts before its first trial?

    python benchmarks/forecast.py

searches digits for real with batch sizes of 8, 32 and 128, and then with these and two models; nothing else is varied.
Of each kind of step: what was forecast when the search began, over what its trials' quiet windows measured later in
the same run; and what FLOPs alone, at the base recipe's speed, would have said. Goal: all within a factor of 1.5.
Results go to benchmarks/results/forecast.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from training_report import cpu_model, format_table

import mixtune
from mixtune.cost.machine import look_at_machine
from mixtune.cost.model import CostModel
from mixtune.run.directory import RunDirectory
from mixtune.training.data import load_training_data
from mixtune.tuning.prepare import known_machine

RESULTS = Path(__file__).parent / "results"
GOAL = 1.5
HEAD = "space | width x depth | batch | phase | forecast | metered | forecast / metered | by FLOPs alone / metered"
RECIPE: dict[str, Any] = {
    "data": {"dataset": "digits"},
    "model": {"patch_size": 2, "embed_dim": 64, "depth": 2, "num_heads": 2},
    "epochs": {"ssl": 3, "sl": 3},
    "rho": 0.5,
    "optim": {"batch_size": 32},
    "augment": {"pad": 0},
}
BATCHES = {"optim.batch_size": {"choice": [8, 32, 128]}}
MODELS = {"model.embed_dim": {"choice": [64, 192]}}
SPACES = {"batches": BATCHES, "batches and widths": {**BATCHES, **MODELS}}


def search(drawn: dict[str, Any], out: Path) -> Iterator[tuple[str, int, str, float, float, float]]:
    """Yield of each kind of step its model, batch and phase, and its seconds: forecast, metered, by FLOPs alone."""
    values = {"recipe": RECIPE, "space": drawn, "baselines": [], "search": {"sampler": "grid"}}
    result = mixtune.search(values, out=out, gpus=0, cpus_per_trial=1, console=Console(quiet=True))
    machine = known_machine(RunDirectory(out))
    costs = CostModel(result.space, load_training_data(result.space.recipe), machine)
    for trial in result.complete()["trial"]:
        recipe = result.space.recipe_at(result.records[trial].params)
        model = f"{recipe.model.embed_dim} x {recipe.model.depth}"
        for phase, signature, flops in dict.fromkeys(costs.bill(recipe).epochs):
            metered = result.state.step_times.step_time(signature)
            forecast, plain = machine.step_seconds(phase, flops), flops / machine.speeds[phase]
            yield model, recipe.optim.batch_size, phase, forecast, metered, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    lines, ratios, looks = [], [], []
    for name, drawn in SPACES.items():
        with tempfile.TemporaryDirectory() as scratch:
            for model, batch, phase, forecast, metered, plain in search(drawn, Path(scratch, "run")):
                ratios.append(forecast / metered)
                seconds = [f"{1e3 * each:.2f} ms" for each in (forecast, metered)]
                lines.append([name, model, str(batch), phase, *seconds, f"{ratios[-1]:.2f}", f"{plain / metered:.2f}"])
                print(" | ".join(lines[-1]), flush=True)
            space = RunDirectory(Path(scratch, "run")).space
            started = time.perf_counter()
            look_at_machine(space, 1, on_gpu=False)
            looks.append(f"{name} {time.perf_counter() - started:.1f} s")
    furthest = max(max(ratio, 1 / ratio) for ratio in ratios)
    text = (
        "# Forecasts of a step\n\nPrinted by benchmarks/forecast.py, which says what is compared and how.\n\n"
        f"- {cpu_model()}, {os.cpu_count()} cores, a thread a training run, {date.today().isoformat()}\n"
        f"- timing steps before a search: {', '.join(looks)}\n"
        f"- goal: within a factor of {GOAL}: {'met' if furthest <= GOAL else 'missed'}, {furthest:.2f}\n\n"
        f"{format_table(HEAD, lines)}\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "forecast.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
