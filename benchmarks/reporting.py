"""How long do a run's table and its report take when it has thousands of trials?

    python benchmarks/reporting.py --trials 5000

writes a run directory as a search would that ends trials early (made-up recipes, accuracies and seconds; nothing is
trained)
and then three times, each in a new process: loads it, writes its report, and draws each figure of it, loaded again. Of
each time the least counts, because nothing but other processes makes one longer. The report's has in it what is
imported for it alone, as scikit-learn. Goals at 5,000 trials: load under 3 s, report, loading not included, under 15 s.
Results go to benchmarks/results/reporting.md.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from training_report import cpu_model, format_table

import mixtune
from mixtune import plugins
from mixtune.report.page import write_report

RESULTS = Path(__file__).parent / "results"
LOAD_GOAL_S, REPORT_GOAL_S = 3.0, 15.0
REPEATS = 3
EPOCH_S = {"ssl": 0.4, "mix": 0.6, "sl": 0.45}
SPACE = {
    "alpha": {"uniform": [0.05, 0.95]},
    "rho": {"quniform": [0.0, 1.0, 0.25]},
    "epochs.ssl": {"qrandint": [5, 15, 5]},
    "epochs.sl": {"qrandint": [5, 20, 5]},
}
BASE = {"alpha": 0.5, "rho": 0.5, "epochs.ssl": 10, "epochs.sl": 20}
BASELINES = {"sl": {"epochs.ssl": 0}, "ssl_sl": {"rho": 0.0}}


def write_run(directory: Path, trials: int, running: bool = False, seed: int = 0) -> Path:
    """Write space.yaml and ledger.jsonl of a made-up search; a fifth of its trials are ended early, a few fail.

    running: the last trial is half way. Returns the directory.
    """
    rng = random.Random(seed)
    directory.mkdir(parents=True)
    recipe = {
        "data": {"dataset": "digits", "fraction": 1.0, "ssl_fraction": None, "ssl_dataset": None},
        "epochs": {"ssl": BASE["epochs.ssl"], "sl": BASE["epochs.sl"]},
        **{"alpha": BASE["alpha"], "rho": BASE["rho"], "lambda": 0.5},
    }
    space = {
        **{"recipe": recipe, "space": SPACE, "objectives": {"val_accuracy": "max", "train_latency_s": "min"}},
        "search": {"sampler": "tpe", "scheduler": "plugin:halving", "trials": trials, "seed": 0},
        "run": {
            "reference_point": {"val_accuracy": 0.1, "train_latency_s": 25.0},
            "tasks": {"digits": {"classes": 10, "train_images": 1293, "val_images": 144}},
        },
    }
    (directory / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    ledger = _Lines()
    first: dict[int, str] = {}  # the trial that trained each SSL epoch
    for name, params in BASELINES.items():
        _add_trial(ledger, rng, first, name, params, name, False)
    for number in range(1, trials + 1):
        params = {
            "alpha": rng.uniform(0.05, 0.95),
            "rho": rng.choice([0.0, 0.25, 0.5, 0.75, 1.0]),
            "epochs.ssl": rng.choice([5, 10, 15]),
            "epochs.sl": rng.choice([5, 10, 15, 20]),
        }
        _add_trial(ledger, rng, first, f"t{number:04d}", params, None, running and number == trials)
    (directory / "ledger.jsonl").write_text("\n".join(ledger.lines) + "\n")
    return directory


class _Lines:
    """A ledger in memory: one in a file would wait for the disk at each line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 1_000.0

    def append(self, event: str, **fields: Any) -> None:
        self.lines.append(json.dumps({"event": event, "time": self.now, **fields}))


def _add_trial(
    ledger: _Lines,
    rng: random.Random,
    first: dict[int, str],
    trial: str,
    params: dict[str, Any],
    baseline: str | None,
    is_half_way: bool,
) -> None:
    full = {**BASE, **params}
    ssl, sl = full["epochs.ssl"], full["epochs.sl"]
    mix = round(full["rho"] * min(ssl, sl))
    phases = ["ssl"] * (ssl - mix) + ["mix"] * mix + ["sl"] * (sl - mix)
    vanilla = ssl - mix
    final = 0.9 - 0.2 * math.exp(-sl / 8) - 0.04 * math.exp(-ssl / 8) - 0.15 * (full["alpha"] - 0.4) ** 2
    final += rng.gauss(0, 0.01)
    stops = baseline is None and rng.random() < 0.2
    last = len(phases)
    if stops:
        last = vanilla + math.ceil(sl / 9)
    elif is_half_way:
        last //= 2
    parent = next(((first[epoch], epoch) for epoch in range(vanilla, 0, -1) if epoch in first), None)
    for epoch in range(1, vanilla + 1):
        first.setdefault(epoch, trial)
    ledger.append("asked", trial=trial, params=params, **({"baseline": baseline} if baseline else {}))
    ledger.append("started", trial=trial, **({"follows": parent} if parent else {}))
    spent = {phase: 0.0 for phase in EPOCH_S}
    whole = sum(EPOCH_S[phase] for phase in phases)
    accuracy = 0.0
    for epoch, phase in enumerate(phases[:last], start=1):
        spent[phase] += EPOCH_S[phase]
        ledger.now += EPOCH_S[phase]
        progress = max(0, epoch - vanilla) / sl
        accuracy = final * (1 - math.exp(-3 * progress)) + 0.05 * final * progress
        metrics = {
            **{"epoch": epoch, "phase": phase, "sl_progress": progress},
            "val_accuracy": accuracy if progress else None,
            "ssl_loss": None if phase == "sl" else 0.3 + 1 / epoch,
            **{"train_latency_s": sum(spent.values()), "forecast_latency_s": whole, "train_flops": 1e9 * whole},
        }
        ledger.append("epoch", trial=trial, metrics=metrics)
    reused = parent[1] if parent else 0
    metrics = {
        **{"val_accuracy": accuracy, "val_accuracy_se": 0.02, "train_latency_s": sum(spent.values())},
        **{f"latency_{phase}_s": seconds for phase, seconds in spent.items()},
        **{"latency_reused_s": EPOCH_S["ssl"] * reused, "forecast_latency_s": whole, "train_flops": 1e9 * whole},
        **{"epoch": last, "epochs_asked": len(phases), "epochs_trained": last - reused, "epochs_reused": reused},
    }
    if is_half_way:
        return
    if baseline:
        ledger.append("baseline", trial=trial, method=baseline, metrics=metrics)
    elif stops:
        ledger.append("stopped", trial=trial, reason="ended early by the scheduler", metrics=metrics)
    elif rng.random() < 0.02:
        ledger.append("failed", trial=trial, reason=f"sl_loss is nan in epoch {last}", metrics={})
    else:
        ledger.append("complete", trial=trial, metrics=metrics)


def measure(directory: Path) -> dict[str, tuple[float, str]]:
    """Return the seconds of each thing timed, and how large it is."""
    times = {}
    started = time.perf_counter()
    result = mixtune.load(directory)
    size = f"{(directory / 'ledger.jsonl').stat().st_size / 1e6:.0f} MB of ledger"
    times["load"] = time.perf_counter() - started, size
    started = time.perf_counter()
    report = write_report(result, None)
    times["report, all of it"] = time.perf_counter() - started, f"{report.stat().st_size / 1e6:.1f} MB"
    result = mixtune.load(directory)
    for name in plugins.names("report.figures"):
        started = time.perf_counter()
        text = result.plot(name).to_json()
        times[f"figure {name}"] = time.perf_counter() - started, f"{len(text) / 1e6:.1f} MB"
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes,
    ):
        directory = write_run(Path(scratch) / "run", options.trials)
        measured = list(processes.map(measure, [directory] * REPEATS))
    least = {name: min(times[name] for times in measured) for name in measured[0]}
    rows = [[name, f"{seconds:.2f}", size] for name, (seconds, size) in least.items()]
    load_s, report_s = least["load"][0], least["report, all of it"][0]
    goals = [
        (f"load under {LOAD_GOAL_S:g} s: {load_s:.2f} s", load_s < LOAD_GOAL_S),
        (f"report under {REPORT_GOAL_S:g} s: {report_s:.2f} s", report_s < REPORT_GOAL_S),
    ]
    verdicts = "\n".join(f"- {'met' if met else 'missed'}: {what}" for what, met in goals)
    about = f"{cpu_model()}, Python {platform.python_version()}, plotly {version('plotly')}, pandas {version('pandas')}"
    text = (
        f"# A run of {options.trials:,} made-up trials: loading and reporting\n\n"
        f"Printed by benchmarks/reporting.py, the least of {REPEATS} runs. {about}, {date.today().isoformat()}.\n\n"
        f"{verdicts}\n\n"
        f"{format_table('what | seconds | size', rows)}\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "reporting.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
