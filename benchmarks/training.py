"""How fast the training loop is, and whether epochs cost what their operations say: ratios measured in one run.

    python benchmarks/training.py --root path/to/cifar10

takes a folder of images, a class a folder (train/<class>/ or <class>/), and answers for several sizes of model:

a. images a second of SL, SSL (both encodings) and mix epochs against the loop of plain_loop.py: at least 1.15x on a
   CPU with 2 cores, at least 5x on a data-centre GPU; and SSL with `visible` at most half of SSL with `full` at
   ViT-Tiny, elsewhere within 15 % of what the operations predict;
b. one mix epoch against one SSL plus one SL epoch: at most 0.60 with `full` at ViT-Tiny, elsewhere within 10 % of what
   the operations predict;
c. counted operations against PyTorch's counter and against the method's arithmetic: within 2 %.

Every round trains one epoch of each kind by each loop, so a machine that drifts hits all alike; the first round only
warms up. A ratio is one of median seconds; beside it stand the lowest and the highest ratio of a single round. Both
loops read the same images, copies in a temporary folder. Not timed is what comes once, before the first epoch: mixtune
decodes all images, the plain loop starts its workers. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import chain, islice, zip_longest
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from plain_loop import PlainLoop, make_loader
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mixtune
from mixtune.recipe import Recipe, parse_recipe, with_values
from mixtune.training.data import load_training_data
from mixtune.training.flops import phase_flops
from mixtune.training.loop import train
from mixtune.training.plan import Phase
from mixtune.training.state import TrainState, start_state

RESULTS = Path(__file__).parent / "results"


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


WIDTH96 = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
WIDTH64 = {"patch_size": 2, "embed_dim": 64, "depth": 2, "num_heads": 2}
SIZES = {
    "tiny": Size("ViT-Tiny, 64 tokens", {"patch_size": 4}, 32, Load(64, 256), Load(256, 25_600), vit_tiny=True),
    "tiny256": Size("ViT-Tiny, 256 tokens", {"patch_size": 2}, 32, Load(64, 128), Load(256, 12_800), vit_tiny=True),
    "width96": Size("width 96, depth 4, 64 tokens", WIDTH96, 32, Load(64, 768), Load(256, 49_920)),
    "width64": Size("width 64, depth 2, 16 tokens", WIDTH64, 8, Load(64, 2048), Load(256, 49_920)),
}

# A kind of epoch: its phase, and the values of a recipe that begins with n epochs of it.
KINDS: dict[str, tuple[Phase, Callable[[int], dict[str, Any]]]] = {
    "SL": ("sl", lambda n: {"epochs.ssl": 0, "epochs.sl": n}),
    "SSL visible": ("ssl", lambda n: {"epochs.ssl": n, "epochs.sl": 1, "rho": 0.0, "ssl.encode": "visible"}),
    "SSL full": ("ssl", lambda n: {"epochs.ssl": n, "epochs.sl": 1, "rho": 0.0, "ssl.encode": "full"}),
    "mix": ("mix", lambda n: {"epochs.ssl": n, "epochs.sl": n, "rho": 1.0}),
}

SPEED_GOAL = {"cpu": 1.15, "cuda": 5.0}  # mixtune's images a second to the plain loop's
VISIBLE_GOAL, MIX_GOAL = 0.50, 0.60  # at ViT-Tiny
VISIBLE_TOLERANCE, MIX_TOLERANCE, COUNT_TOLERANCE = 0.15, 0.10, 0.02
METHOD = {"SSL visible": 0.385, "SSL full": 1.167, "mix": 1.167}  # method.md, in SL epochs at 256 tokens
COUNTED_IMAGES = 4


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
    load: Load
    contenders: list[Contender]
    counted: dict[str, float]

    def find(self, kind: str, loop: str = "mixtune") -> list[Contender]:
        """Return the contenders of a kind by a loop, one for each precision; mixtune's is one."""
        return [c for c in self.contenders if (c.kind, c.loop) == (kind, loop)]


# The two loops.


Run = Callable[[], float]  # trains one epoch and returns its seconds


def make_contenders(size: Size, load: Load, folder: Path, options: argparse.Namespace) -> list[tuple[Contender, Run]]:
    """Return every kind of epoch by mixtune, by the plain loop, and by the plain loop in mixtune's precision."""
    loader = make_loader(folder / "train", size.side, load.batch, min(count_cores(), 16), options.device)
    data, contenders = None, []
    for kind, (phase, _) in KINDS.items():
        recipe = make_recipe(size, load.batch, folder, kind, options.repeats + 1)
        recipe = recipe.model_copy(update={"precision": options.precision, "compile": options.compile})
        data = data or load_training_data(recipe, options.device)
        state = start_state(recipe, data, options.device)
        classes = len(data.tasks[0].classes)
        flops = phase_flops(state.backbone, state.objective, [classes])[phase]
        own = str(state.autocast_dtype).removeprefix("torch.")
        contenders.append((Contender(kind, "mixtune", own, flops), time_ours(state, phase)))
        for precision in dict.fromkeys(["float32", own]):
            plain = make_plain_loop(start_state(recipe, data, options.device), classes)
            run = time_plain(plain, phase, loader, precision == "bfloat16")
            contenders.append((Contender(kind, "plain", precision, flops), run))
    return contenders


def make_recipe(size: Size, batch: int, folder: Path, kind: str, epochs: int) -> Recipe:
    """Return a recipe that begins with ``epochs`` epochs of one kind, each on every image of the folder."""
    base = {
        "data": {"dataset": "image_folder", "root": str(folder), "val_fraction": 0.0},
        "model": {**size.model, "pool": "token"},
        "optim": {"batch_size": batch},
    }
    return parse_recipe(with_values(base, KINDS[kind][1](epochs)))


def time_ours(state: TrainState, phase: Phase) -> Run:
    """Return a function that trains the state's next epoch; its seconds are those that mixtune reports."""
    epochs = train(state)

    def run() -> float:
        result = next(epochs)
        assert result.phase == phase
        return result.seconds

    return run


def make_plain_loop(state: TrainState, classes: int) -> PlainLoop:
    """Return the plain loop over a state's backbone and objective, with a head of its own."""
    head = nn.Linear(state.backbone.embed_dim, classes).to(state.device)
    return PlainLoop(state.backbone, state.objective, head, state.device)


def time_plain(loop: PlainLoop, phase: Phase, batches: Any, bfloat16: bool = False) -> Run:
    """Return a function that trains an epoch; the loop reads every loss, so a GPU has done it all at the end."""

    def run() -> float:
        started = time.perf_counter()
        loop.train_epoch(phase, batches, bfloat16)
        return time.perf_counter() - started

    return run


# The images.


def copy_images(root: Path, folder: Path, count: int, side: int) -> None:
    """Copy ``count`` images, classes in turn, to folder/train/<class>/, resized where their side is another.

    One image a class stands in folder/test/ too: without a test part, a share of train/ would be held out.
    """
    source = root / "train" if (root / "train").is_dir() else root
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    classes = [sorted(path for path in folder.iterdir() if path.is_file()) for folder in folders]
    chosen = list(islice((path for path in chain(*zip_longest(*classes)) if path is not None), count))
    if len(chosen) < count:
        raise SystemExit(f"{source} has {len(chosen)} images in class folders, {count} are needed: give fewer --images")
    for path in chosen:
        copy_image(path, folder / "train" / path.parent.name, side)
    for path in {path.parent: path for path in chosen}.values():
        copy_image(path, folder / "test" / path.parent.name, side)


def copy_image(path: Path, folder: Path, side: int) -> None:
    """Copy an image file as it is, or as PNG where it has to be resized."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(path) as image:
        if image.size == (side, side):
            shutil.copy(path, folder)
        else:
            ImageOps.fit(image.convert("RGB"), (side, side)).save(folder / f"{path.stem}.png")


# Measuring.


def choose_load(size: Size, options: argparse.Namespace) -> Load:
    """Return whole batches: those asked for, or the size's own."""
    own = size.cpu if options.device.type == "cpu" else size.gpu
    batch, images = options.batch or own.batch, options.images or own.images
    if images < batch:
        raise SystemExit(f"--images {images} is less than a batch of {batch}: give more, or a smaller --batch")
    return Load(batch, images // batch * batch)


def estimate_seconds(options: argparse.Namespace) -> float:
    """Return roughly what all rounds will take, from small SL steps of the plain loop and the method's arithmetic."""
    total = 0.0
    for size in (SIZES[name] for name in options.sizes):
        load = choose_load(size, options)
        few = min(load.batch, 16) if options.device.type == "cpu" else load.batch
        with tempfile.TemporaryDirectory() as scratch:
            copy_images(options.root, Path(scratch), few, size.side)
            recipe = make_recipe(size, few, Path(scratch), "SL", 1)
            state = start_state(recipe, load_training_data(recipe, options.device), options.device)
        batch = torch.rand(few, 3, size.side, size.side), torch.zeros(few, dtype=torch.int64)
        step = time_plain(make_plain_loop(state, 2), "sl", [batch])
        step()  # warms up
        total += (options.repeats + 1) * 2 * (1 + sum(METHOD.values())) * load.images * step() / few
    return total


def measure_size(name: str, options: argparse.Namespace, report: Callable[[str], None]) -> Measured:
    """Count one size's operations and train its rounds, the first of which only warms up."""
    torch.compiler.reset()  # an earlier size's compiled steps count towards PyTorch's limit
    size, load = SIZES[name], choose_load(SIZES[name], options)
    with tempfile.TemporaryDirectory() as scratch:
        few, all_images = Path(scratch, "few"), Path(scratch, "all")
        copy_images(options.root, few, COUNTED_IMAGES, size.side)
        copy_images(options.root, all_images, load.images, size.side)
        counted = {kind: count_operations(make_recipe(size, COUNTED_IMAGES, few, kind, 1)) for kind in KINDS}
        contenders = make_contenders(size, load, all_images, options)
        for number in range(options.repeats + 1):
            for contender, run in contenders:
                seconds = run()
                if number > 0:
                    contender.seconds.append(seconds)
            report(f"{name}: round {number} of {options.repeats}" if number else f"{name}: warmed up")
    return Measured(name, load, [contender for contender, _ in contenders], counted)


def count_operations(recipe: Recipe) -> float:
    """Return one image's operations, forward and backward, by PyTorch's counter over the recipe's first epoch.

    On the CPU with the MATH kernel: the counter takes CPU flash attention for nothing.
    """
    state = start_state(recipe, load_training_data(recipe))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next(train(state))
    return counter.get_total_flops() / COUNTED_IMAGES


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
    """Compare mixtune's epochs with each other. One that costs less than predicted is no shortfall, but it is said."""
    sl, visible, full, mix = (measured.find(kind) for kind in KINDS)
    tiny = SIZES[measured.name].vit_tiny
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
        about.append(f"{m.name}: {SIZES[m.name].title}; {m.load.images} images an epoch, batch {m.load.batch}")
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


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder of images, a class a folder")
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=list(SIZES), help=",".join(SIZES))
    parser.add_argument("--images", type=int, help="an epoch's; default: by size and device")
    parser.add_argument("--batch", type=int, help="default: 64 on a CPU, 256 on a GPU")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count; one more warms up")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="of mixtune's loop: auto, float32 or bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile in mixtune's loop, not in the plain one")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/training-cpu.md or training-gpu.md")
    options = parser.parse_args()
    if not set(options.sizes) <= set(SIZES):
        parser.error(f"--sizes {','.join(options.sizes)}: known are {', '.join(SIZES)}")
    if options.precision not in ("auto", "float32", "bfloat16") or options.repeats < 1:
        parser.error("--precision is auto, float32 or bfloat16, and --repeats at least 1")
    options.device = torch.device(options.device)
    options.out = options.out or RESULTS / f"training-{'cpu' if options.device.type == 'cpu' else 'gpu'}.md"
    return options


def main() -> None:
    options, load_before = parse_options(), os.getloadavg()[0]
    estimate, started = estimate_seconds(options), time.perf_counter()

    def report(line: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s of roughly {estimate:.0f} s] {line}", flush=True)

    report(", ".join(options.sizes))
    results = [measure_size(name, options, report) for name in options.sizes]
    text = write_report(results, options, load_before)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    write_medians(results, options.out.with_suffix(".csv"))
    print(f"\n{text}\nwritten to {options.out}")


if __name__ == "__main__":
    main()
