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
warms up. A ratio is one of median seconds; alongside it stand the lowest and the highest ratio of a single round. Both
loops read the same images, copies in a temporary folder. Not timed is what comes once, before the first epoch: mixtune
decodes all images, the plain loop starts its workers. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from plain_loop import PlainLoop, make_loader
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_report import METHOD, Contender, Load, Measured, Size, count_cores, write_medians, write_report

from mixtune.meter.times import WINDOWS, StepTimes
from mixtune.space.recipe import Recipe, parse_recipe, with_values
from mixtune.training.bill import phase_flops
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.plan import Phase
from mixtune.training.state import TrainState, start_state

RESULTS = Path(__file__).parent / "results"


WIDTH96 = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
WIDTH64 = {"patch_size": 2, "embed_dim": 64, "depth": 2, "num_heads": 2}
SIZES = {
    "tiny": Size("ViT-Tiny, 64 tokens", {"patch_size": 4}, 32, Load(64, 256), Load(256, 25_600), vit_tiny=True),
    "tiny256": Size("ViT-Tiny, 256 tokens", {"patch_size": 2}, 32, Load(64, 128), Load(256, 12_800), vit_tiny=True),
    "width96": Size("width 96, depth 4, 64 tokens", WIDTH96, 32, Load(64, 768), Load(256, 49_920)),
    "width64": Size("width 64, depth 2, 16 tokens", WIDTH64, 8, Load(64, 2048), Load(256, 49_920)),
}

# A kind of epoch: its phase, and the values of a recipe that begins with n epochs of it.
EPOCHS: dict[str, tuple[Phase, Callable[[int], dict[str, Any]]]] = {
    "SL": ("sl", lambda n: {"epochs.ssl": 0, "epochs.sl": n}),
    "SSL visible": ("ssl", lambda n: {"epochs.ssl": n, "epochs.sl": 1, "rho": 0.0, "ssl.encode": "visible"}),
    "SSL full": ("ssl", lambda n: {"epochs.ssl": n, "epochs.sl": 1, "rho": 0.0, "ssl.encode": "full"}),
    "mix": ("mix", lambda n: {"epochs.ssl": n, "epochs.sl": n, "rho": 1.0}),
}

COUNTED_IMAGES = 4


# The two loops.


Run = Callable[[], float]  # trains one epoch and returns its seconds


def make_contenders(size: Size, load: Load, folder: Path, options: argparse.Namespace) -> list[tuple[Contender, Run]]:
    """Return every kind of epoch by mixtune, by the plain loop, and by the plain loop in mixtune's precision."""
    loader = make_loader(folder / "train", size.side, load.batch, min(count_cores(), 16), options.device)
    data, contenders = None, []
    for kind, (phase, _) in EPOCHS.items():
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
    return parse_recipe(with_values(base, EPOCHS[kind][1](epochs)))


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
    """Return whole batches: those requested, or the size's own."""
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
        counted = {kind: count_operations(make_recipe(size, COUNTED_IMAGES, few, kind, 1)) for kind in EPOCHS}
        contenders = make_contenders(size, load, all_images, options)
        for number in range(options.repeats + 1):
            for contender, run in contenders:
                seconds = run()
                if number > 0:
                    contender.seconds.append(seconds)
            report(f"{name}: round {number} of {options.repeats}" if number else f"{name}: warmed up")
    return Measured(name, size, load, [contender for contender, _ in contenders], counted)


def count_operations(recipe: Recipe) -> float:
    """Return one image's operations, forward and backward, by PyTorch's counter over the recipe's first epoch.

    On the CPU with the MATH kernel: the counter takes CPU flash attention for nothing.
    """
    state = start_state(recipe, load_training_data(recipe))
    state.step_times = StepTimes({state.signature("infer"): [0.0] * WINDOWS})  # known: it is not measured after it
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next(train(state))
    return counter.get_total_flops() / COUNTED_IMAGES


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
