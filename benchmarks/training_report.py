"""What benchmarks/training.py measured, as tables: ratios, what the operations predict, and which goals are met."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

import mixtune

KINDS = ("SL", "SSL visible", "SSL full", "mix")  # of epochs
SPEED_GOAL = {"cpu": 1.15, "cuda": 5.0}  # mixtune's images a second to the plain loop's
VISIBLE_GOAL, MIX_GOAL = 0.50, 0.60  # at ViT-Tiny
VISIBLE_TOLERANCE, MIX_TOLERANCE, COUNT_TOLERANCE = 0.15, 0.10, 0.02
METHOD = {"SSL visible": 0.385, "SSL full": 1.167, "mix": 1.167}  # method.md, in SL epochs at 256 tokens


class Load(NamedTuple):
    """How much one epoch trains on."""

    batch: int
    images: int


@dataclass(frozen=True)
class Size:
    """A model, the side of its images in pixels, and epochs of seconds on a CPU and on a GPU."""

    title: str
    model: dict[str, int]
    side: int
    cpu: Load
    gpu: Load
    vit_tiny: bool = False


@dataclass
class Contender:
    """One kind of epoch by one loop: the operations of one image, and the seconds of each round."""

    kind: str
    loop: str
    precision: str
    flops: float
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """One size's rounds; ``counted`` are one image's operations by PyTorch's counter, by kind of epoch."""

    name: str
    size: Size
    load: Load
    contenders: list[Contender]
    counted: dict[str, float]

    def find(self, kind: str, loop: str = "mixtune") -> list[Contender]:
        """Return the contenders of a kind by a loop, one for each precision; mixtune's is one."""
        return [c for c in self.contenders if (c.kind, c.loop) == (kind, loop)]


def compare(over: Sequence[Contender], under: Sequence[Contender]) -> tuple[float, str]:
    """Return the ratio of the summed median seconds, and as text the lowest and highest ratio of a single round."""

    def rounds(contenders: Sequence[Contender]) -> Iterator[float]:
        return map(sum, zip(*(c.seconds for c in contenders), strict=True))

    ratio = sum(median(c.seconds) for c in over) / sum(median(c.seconds) for c in under)
    single = [a / b for a, b in zip(rounds(over), rounds(under), strict=True)]
    return ratio, f"{min(single):.2f} to {max(single):.2f}"


# Tables: rows of text, the last cell says whether the goal is met.

SPEED_HEAD = "size | epoch | images/s | plain loop's | ratio | single rounds | by FLOPs | goal |"
COST_HEAD = "size | epochs | ratio of seconds | single rounds | by FLOPs | goal |"
COUNT_HEAD = "size | epoch | phase_flops | in | reference | its figure | off by | goal |"


def at_least(value: float, goal: float) -> str:
    return "met" if value >= goal else f"short by {1 - value / goal:.1%}"


def at_most(value: float, goal: float) -> str:
    return "met" if value <= goal else f"short by {value / goal - 1:.1%}"


def speed_rows(measured: Measured, goal: float) -> Iterator[list[str]]:
    """Compare mixtune's images a second with the plain loop's."""
    for kind in KINDS:
        (ours,) = measured.find(kind)
        for plain in measured.find(kind, "plain"):
            what = kind if plain.precision == ours.precision else f"{kind}, plain loop in {plain.precision}"
            ratio, spread = compare([plain], [ours])
            speeds = [f"{measured.load.images / median(c.seconds):,.1f}" for c in (ours, plain)]
            predicted = f"{plain.flops / ours.flops:.2f}"
            verdict = at_least(ratio, goal)
            yield [measured.name, what, *speeds, f"{ratio:.2f}", spread, predicted, f"at least {goal}", verdict]


def cost_rows(measured: Measured) -> Iterator[list[str]]:
    """Compare epochs of ours with each other. One that costs less than predicted is no shortfall, but it is said."""
    sl, visible, full, mix = (measured.find(kind) for kind in KINDS)
    tiny = measured.size.vit_tiny
    for over, under, most, tolerance in [
        (visible, full, VISIBLE_GOAL if tiny else None, VISIBLE_TOLERANCE),
        (mix, full + sl, MIX_GOAL if tiny else None, MIX_TOLERANCE),
        (mix, visible + sl, None, MIX_TOLERANCE),
    ]:
        ratio, spread = compare(over, under)
        predicted = sum(c.flops for c in over) / sum(c.flops for c in under)
        goal = f"within {tolerance:.0%} of FLOPs" if most is None else f"at most {most:.2f}"
        verdict = at_most(ratio, most or predicted * (1 + tolerance))
        if most is None and ratio < predicted * (1 - tolerance):
            verdict = f"met: costs {1 - ratio / predicted:.1%} less"
        name = " / ".join(" + ".join(c.kind for c in side) for side in (over, under))
        yield [measured.name, name, f"{ratio:.3f}", spread, f"{predicted:.3f}", goal, verdict]


def count_rows(measured: Measured) -> Iterator[list[str]]:
    """Compare phase_flops with PyTorch's counter and, at 256 tokens of ViT-Tiny, with the method's arithmetic."""
    flops = {kind: measured.find(kind)[0].flops for kind in KINDS}
    for kind, counted in measured.counted.items():
        pairs = [("GFLOPs an image", flops[kind] / 1e9, "PyTorch's counter", counted / 1e9)]
        if measured.name == "tiny256" and kind in METHOD:
            pairs.append(("SL epochs", flops[kind] / flops["SL"], "method.md", METHOD[kind]))
        for unit, value, reference, expected in pairs:
            off = value / expected - 1
            verdict = "met" if abs(off) <= COUNT_TOLERANCE else f"short by {abs(off) - COUNT_TOLERANCE:.1%}"
            figures = [f"{value:.4g}", unit, reference, f"{expected:.4g}", f"{off:+.2%}"]
            yield [measured.name, kind, *figures, f"within {COUNT_TOLERANCE:.0%}", verdict]


def format_table(head: str, rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, " | ".join("---" for _ in head.split("|")), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def write_report(results: list[Measured], options: argparse.Namespace, load_before: float) -> str:
    """Return the results file."""
    speeds = [row for m in results for row in speed_rows(m, SPEED_GOAL[options.device.type])]
    costs = [row for m in results for row in cost_rows(m)]
    counts = [row for m in results for row in count_rows(m)]
    rows = [*speeds, *costs, *counts]
    short = [f"- {row[0]}, {row[1]}: {row[-2]}, {row[-1]}" for row in rows if row[-1].startswith("short")]
    about = [*describe_run(options, load_before), f"mixtune's loop in {results[0].contenders[0].precision}"]
    for m in results:
        about.append(f"{m.name}: {m.size.title}; {m.load.images} images an epoch, batch {m.load.batch}")
    sections = [
        f"# Training speed on a {'CPU' if options.device.type == 'cpu' else 'GPU'}",
        "Printed by benchmarks/training.py, which says what is measured and how.",
        "\n".join(f"- {line}" for line in about),
        f"{len(rows) - len(short)} of {len(rows)} goals are met{', and these are not:' if short else '.'}",
        "\n".join(short),
        "## Images a second against the plain loop",
        format_table(SPEED_HEAD, speeds),
        "## Seconds of one epoch against another",
        format_table(COST_HEAD, costs),
        "## Counted operations",
        format_table(COUNT_HEAD, counts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def describe_run(options: argparse.Namespace, load_before: float) -> list[str]:
    """Return machine, versions, date and command, a line each."""
    machine = f"{cpu_model()}, {count_cores()} cores, {torch.get_num_threads()} threads; load before: {load_before:.1f}"
    if options.device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(options.device)}, CUDA {torch.version.cuda}; {machine}"
    packages = [f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "numpy", "pillow")]
    versions = [f"mixtune {mixtune.__version__}", f"Python {platform.python_version()}", *packages]
    given = {name: getattr(options, name) for name in ("images", "batch", "repeats", "device", "precision")}
    asked = [f"--{name} {value}" for name, value in given.items() if value is not None]
    asked += ["--compile"] if options.compile else []
    root, sizes = f"path/to/{options.root.resolve().name}", ",".join(options.sizes)
    command = " ".join([f"python benchmarks/training.py --root {root} --sizes {sizes}", *asked])
    return [machine, ", ".join(versions), date.today().isoformat(), f"`{command}`"]


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_medians(results: list[Measured], path: Path) -> None:
    """Write a CSV row for each contender: the median, least and most seconds of an epoch."""
    lines = ["size,epoch,loop,precision,batch,images,gflops_per_image,rounds,median_s,least_s,most_s"]
    for m in results:
        for c in m.contenders:
            figures = c.flops / 1e9, len(c.seconds), median(c.seconds), min(c.seconds), max(c.seconds)
            row = m.name, c.kind, c.loop, c.precision, *m.load, *(f"{figure:.6g}" for figure in figures)
            lines.append(",".join(map(str, row)))
    path.write_text("\n".join(lines) + "\n")
