"""What does decoding a set of images cost, against a plain loop over Pillow and against torchvision?

    python benchmarks/decoding.py --cifar path/to/cifar10/train

--cifar names a folder of 50,000 JPEGs of 32x32, a folder a class; all other images are made in a temporary folder:
photos (smooth, of several frequencies, so that their JPEGs have natural sizes) of 1 and 12 megapixels, 16-bit grayscale
PNGs, a few huge images, and 20,000 and 200,000 tiny PNGs. Each is decoded in a new process

- by mixtune.datasets.load_dataset into an empty cache, with all that this includes: listing files, finding out size,
  channels and range, digests by which copies are found, mean and standard deviation, writing the cache;
- by a plain loop on one thread: list, open, convert to RGB, resize the shorter side, crop the centre, copy into one
  array (16 bits: shifted to 8);
- by torchvision: ImageFolder with torchvision.io.decode_image, v2.functional.resize and center_crop, into one array.

A round runs each once, so that a machine that drifts hits all alike; figures are medians of the rounds. CPU seconds are
user and system time of the process after its imports; memory is the highest resident set above that at the start,
without pages of the mapped cache, which the kernel drops at will. Then: an epoch of training on 20,000 and on 200,000
images, and load_dataset() in a new process with the cache there. Goals: at most 1.0 of the plain loop's CPU seconds on
small files, 0.3 on 12-megapixel photos; under 1 GB everywhere, and with ten times the images no more than their paths;
a warm start under 20 microseconds a file. Results go to benchmarks/results/decoding.md. --scale 0.01 tries the script
with fewer images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from training_report import count_cores, cpu_model, format_table

RESULTS = Path(__file__).parent / "results"
CPU_GOAL = {"small": 1.0, "12 megapixels": 0.3}
MEMORY_GOAL_MB, WARM_GOAL_US = 1000.0, 20.0
GROWTH_BYTES = 600  # an image more may take so much, for its path: the decoded images are on disk
RECIPE = {
    "model": {"embed_dim": 16, "depth": 1, "num_heads": 1, "patch_size": 8},
    "epochs": {"ssl": 0, "sl": 1},
    "optim": {"batch_size": 128},
}


@dataclass(frozen=True)
class Set:
    """A made set, or the one of --cifar: how it is called, and the function that writes image ``number``."""

    name: str
    count: int
    side: int  # after decoding
    kind: str  # of goal: small, 12 megapixels, or none
    contenders: tuple[str, ...]
    write: Callable[[Path, int], None] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="a folder of class folders of 32x32 JPEGs; left out without it")
    parser.add_argument("--made", type=Path, help="where made images are kept for another run")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of sets")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, folder, cache, side = options.child
        print(json.dumps(measure(what, Path(folder), Path(cache), int(side))))
        return
    options.load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="decoding-") as scratch:
        text = report(measure_all(options, Path(scratch)), options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "decoding.md").write_text(text)
    print(text)


# The images.


def smooth(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Return an image whose frequencies are as strong as a photo's: each octave half of the one below it."""
    total = np.full((height, width, 3), 128, np.float32)
    for cells in (3, 6, 12, 24, 48, 96, 192, 384, 768, 1536):
        if cells > max(width, height):
            break
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        octave = coarse.resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(octave, dtype=np.float32) - 128) * (2.5 / cells**0.5)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


class Photos:
    """Writes JPEGs of one size: one smooth image, shifted by another amount each time."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._tile: npt.NDArray[np.uint8] | None = None

    def __call__(self, path: Path, number: int, progressive: bool = False) -> None:
        if self._tile is None:
            tile = np.asarray(smooth(min(self.width, 4000), min(self.height, 3000), np.random.default_rng(0)))
            self._tile = np.concatenate([tile, tile[::-1]])
        photo = Image.new("RGB", (self.width, self.height))
        shifted = Image.fromarray(np.roll(self._tile, 97 * number, axis=0))
        for left in range(0, self.width, shifted.width):
            for top in range(0, self.height, shifted.height):
                photo.paste(shifted, (left, top))
        photo.save(path.with_suffix(".jpg"), quality=90, progressive=progressive)


def write_deep(width: int, height: int) -> Callable[[Path, int], None]:
    def write(path: Path, number: int) -> None:
        gray = np.asarray(smooth(width // 8, height // 8, np.random.default_rng(number)).convert("L"))
        values = np.repeat(np.repeat(gray.astype(np.uint16) * 257, 8, axis=0), 8, axis=1)
        Image.fromarray(values).save(path.with_suffix(".png"), compress_level=1)

    return write


def write_huge(path: Path, number: int) -> None:
    """Write 12 JPEGs of 80 megapixels, 4 of them progressive, and 4 16-bit PNGs of 48."""
    if number % 4:
        _HUGE_PHOTO(path, number, progressive=number % 4 == 1)
    else:
        write_deep(8000, 6000)(path, number)


_HUGE_PHOTO = Photos(10_000, 8_000)


def write_tiny(path: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC).save(path.with_suffix(".png"), compress_level=1)


def write_set(folder: Path, count: int, write: Callable[[Path, int], None]) -> None:
    """Write images into two class folders, in turn."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        write(folder / "ab"[number // 2 % 2] / f"{number:06}", number)


def sets(options: argparse.Namespace) -> list[Set]:
    """Return all sets, in the order of the results; a set that is written once is decoded at several sizes."""
    photos = {megapixels: Photos(*size) for megapixels, size in {1: (1200, 900), 12: (4000, 3000)}.items()}
    every = ("mixtune", "plain", "torchvision")

    def scaled(count: int) -> int:
        return max(8, round(count * options.scale))

    found = [
        Set("tiny PNGs", scaled(20_000), 16, "small", every, write_tiny),
        Set("1-megapixel photos", scaled(100), 64, "", every, photos[1]),
        Set("1-megapixel photos", scaled(100), 224, "", every, photos[1]),
        Set("12-megapixel photos", scaled(24), 64, "12 megapixels", every, photos[12]),
        Set("12-megapixel photos", scaled(24), 224, "12 megapixels", every, photos[12]),
        Set("16-bit PNGs, 512x512", scaled(200), 64, "", ("mixtune", "plain"), write_deep(512, 512)),
        Set("huge: 12 JPEGs of 80 megapixels, 4 16-bit PNGs of 48", scaled(16), 64, "", ("mixtune",), write_huge),
        Set("many tiny PNGs", scaled(200_000), 16, "", ("mixtune",), write_tiny),
    ]
    if options.cifar is not None:
        count = sum(1 for path in options.cifar.rglob("*") if path.is_file())
        found.insert(0, Set("CIFAR-10 JPEGs", count, 32, "small", every))
    return [each for each in found if not options.only or each.name in options.only]


# One measurement, in a process of its own.


class Peak:
    """The most anonymous memory of this process, above what it had: looked at every 5 ms."""

    def __enter__(self) -> Peak:
        self._done = threading.Event()
        self._start = self._most = self._now()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.megabytes = (max(self._most, self._now()) - self._start) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._most = max(self._most, self._now())

    @staticmethod
    def _now() -> int:
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def measure(what: str, folder: Path, cache: Path, side: int) -> dict[str, float]:
    """Return CPU seconds, seconds and megabytes above the start of one thing."""
    os.environ["MIXTUNE_DATA"] = str(cache)
    run = {"mixtune": by_mixtune, "plain": by_plain_loop, "torchvision": by_torchvision, "training": by_training}[what]
    work = run(folder, side)  # imports what it needs
    free = _free_cores()
    with Peak() as peak:
        cpu, begun = _cpu_seconds(), time.perf_counter()
        work()
        cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - begun
    return {"cpu": cpu, "wall": wall, "memory": peak.megabytes, "free": (free + _free_cores()) / 2}


def _free_cores() -> float:
    """Return how many cores as many threads as there are, which need no interpreter, get beside other programs."""
    threads = [threading.Thread(target=hashlib.sha256, args=(bytes(50_000_000),)) for _ in range(count_cores())]
    cpu, begun = time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - cpu) / (time.perf_counter() - begun)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def by_mixtune(folder: Path, side: int) -> Callable[[], Any]:
    from mixtune.datasets import known_datasets, load_dataset

    known_datasets()
    return lambda: load_dataset("image_folder", str(folder), image_size=side)


def by_plain_loop(folder: Path, side: int) -> Callable[[], Any]:
    Image.preinit()

    def work() -> npt.NDArray[np.uint8]:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        images = np.empty((len(paths), side, side, 3), np.uint8)
        for index, path in enumerate(paths):
            with Image.open(path) as opened:
                image = opened if opened.mode[0] != "I" else Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
                image = image.convert("RGB")
            scale = side / min(image.size)
            wide, high = round(image.width * scale), round(image.height * scale)
            image = image.resize((wide, high), Image.Resampling.BICUBIC)
            left, top = (wide - side) // 2, (high - side) // 2
            images[index] = np.asarray(image.crop((left, top, left + side, top + side)))
        return images

    return work


def by_torchvision(folder: Path, side: int) -> Callable[[], Any]:
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import InterpolationMode, functional

    def work() -> torch.Tensor:
        data = ImageFolder(str(folder), loader=lambda path: decode_image(path, ImageReadMode.RGB))
        images = torch.empty(len(data), 3, side, side, dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # another package is to decode one day
            for index, (image, _) in enumerate(data):
                image = functional.resize(image, [side], InterpolationMode.BICUBIC, antialias=True)
                images[index] = functional.center_crop(image, [side, side])
        return images

    return work


def by_training(folder: Path, side: int) -> Callable[[], Any]:
    from mixtune.space.recipe import parse_recipe
    from mixtune.training.data import load_training_data
    from mixtune.training.loop import train
    from mixtune.training.state import start_state

    data = {"dataset": "image_folder", "root": str(folder), "image_size": side}
    recipe = parse_recipe({"data": data, **RECIPE})
    return lambda: [*train(start_state(recipe, load_training_data(recipe)))]


# All measurements.


def in_new_process(what: str, folder: Path, cache: Path, side: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, str(folder), str(cache), str(side)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Measured:
    """Medians of one set: by contender, of a warm start, and of an epoch of training if there was one."""

    set: Set
    megabytes: float  # of its files
    by: dict[str, dict[str, float]]
    warm: dict[str, float]
    training: dict[str, float] | None


def measure_all(options: argparse.Namespace, scratch: Path) -> list[Measured]:
    measured = []
    for each in sets(options):
        made = options.made or scratch
        folder = made / f"{each.name.replace(' ', '-')}-{each.count}" if each.write else options.cifar
        if each.write and not folder.exists():
            print(f"writing {each.count:,} {each.name}", flush=True)
            write_set(folder, each.count, each.write)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        runs: dict[str, list[dict[str, float]]] = {}
        caches = [scratch / f"cache-{number}" for number in range(options.repeats)]
        for cache in caches:
            for contender in each.contenders:
                runs.setdefault(contender, []).append(in_new_process(contender, folder, cache, each.side))
        for cache in caches:
            runs.setdefault("warm", []).append(in_new_process("mixtune", folder, cache, each.side))
        tiny = "tiny" in each.name
        training = in_new_process("training", folder, caches[0], each.side) if tiny else None
        for cache in caches:
            shutil.rmtree(cache)
        by = {
            name: {key: statistics.median(run[key] for run in some) for key in some[0]} for name, some in runs.items()
        }
        measured.append(Measured(each, size, by, by.pop("warm"), training))
        print(f"{each.name}, {each.side} pixels: {by}", flush=True)
    return measured


def report(measured: list[Measured], options: argparse.Namespace) -> str:
    """Return the results file."""
    rows, memory, warm = [], [], []
    verdicts: list[tuple[bool, str]] = []
    for each in measured:
        name = f"{each.set.name}, {each.set.side} pixels"
        ours = each.by["mixtune"]
        ratios = {other: ours["cpu"] / each.by[other]["cpu"] for other in each.by if other != "mixtune"}
        seconds = [
            f"{each.by[who]['cpu']:.2f}" if who in each.by else "-" for who in ("mixtune", "plain", "torchvision")
        ]
        against = [f"{ratios[who]:.2f}" if who in ratios else "-" for who in ("plain", "torchvision")]
        rows.append(
            [
                name,
                f"{each.set.count:,}",
                f"{each.megabytes:,.0f}",
                *seconds,
                *against,
                f"{ours['cpu'] / ours['wall']:.2f}",
                f"{ours['free']:.2f}",
            ]
        )
        memory.append(
            [name, *(f"{each.by[who]['memory']:.0f}" if who in each.by else "-" for who in ("mixtune", "plain"))]
        )
        memory[-1].append(f"{each.training['memory']:.0f}" if each.training else "-")
        microseconds = 1e6 * each.warm["cpu"] / each.set.count
        if each.set.count >= 1000:
            warm.append([name, f"{each.set.count:,}", f"{each.warm['wall']:.2f}", f"{microseconds:.1f}"])
            verdicts.append(
                (microseconds < WARM_GOAL_US, f"{name}: a warm start takes {microseconds:.1f} us a file (goal: 20)")
            )
        if each.set.kind:
            goal, ratio = CPU_GOAL[each.set.kind], ratios["plain"]
            verdicts.append((ratio <= goal, f"{name}: {ratio:.2f} of the plain loop's CPU seconds (goal: {goal:g})"))
        most = max(ours["memory"], each.training["memory"] if each.training else 0)
        verdicts.append((most < MEMORY_GOAL_MB, f"{name}: {most:.0f} MB above the start (goal: under 1 GB)"))
    tiny = {each.set.name: each for each in measured if each.training}
    if len(tiny) == 2:
        few, many = (tiny[name] for name in ("tiny PNGs", "many tiny PNGs"))
        for what, less, more in (
            ("decoding", few.by["mixtune"]["memory"], many.by["mixtune"]["memory"]),
            ("training", few.training["memory"], many.training["memory"]),  # type: ignore[index]
        ):
            each_takes = 1e6 * (more - less) / (many.set.count - few.set.count)
            said = f"{what} {many.set.count:,} images takes {more - less:.0f} MB more than {few.set.count:,}, "
            said += f"{each_takes:.0f} bytes for each one's path (goal: under {GROWTH_BYTES})"
            verdicts.append((each_takes < GROWTH_BYTES, said))
    packages = ", ".join(f"{name} {version(name)}" for name in ("pillow", "torchvision"))
    head = "set | images | MB of files | mixtune | plain | torchvision | of plain | of torchvision | busy | free"
    return (
        "# What decoding costs\n\n"
        f"Printed by benchmarks/decoding.py, medians of {options.repeats}. {cpu_model()}, {count_cores()} cores, "
        f"Python {platform.python_version()}, {packages}, {date.today().isoformat()}. Load before it began: "
        f"{options.load:.1f}; where that is not 0, CPU seconds are fairer than seconds by the clock. Busy is the "
        "quotient of both, in cores; free are the cores that as many threads of hashing got just before and after.\n\n"
        + "\n".join(f"- {'met' if met else 'missed'}: {what}" for met, what in verdicts)
        + f"\n\n## CPU seconds\n\n{format_table(head, rows)}\n"
        + "\n## Memory above the start, in MB\n\n"
        + format_table("set | mixtune | plain | an epoch of training", memory)
        + "\n\n## With the cache there\n\n"
        + format_table("set | images | seconds | CPU microseconds a file", warm)
        + "\n"
    )


if __name__ == "__main__":
    main()
