"""The training benchmark runs end to end, compares loops that do the same operations, and says where it falls short."""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixtune.datasets import Dataset

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KINDS = ["SL", "SSL visible", "SSL full", "mix"]


@pytest.fixture(scope="module")
def training() -> Iterator[ModuleType]:
    """benchmarks/training.py as a module: scripts there import each other by bare name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("training")
        for name in ("training", "training_report", "plain_loop"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 8 noisy images, 32 x 32 pixels, as train/<class>/<number>.png."""
    root = tmp_path_factory.mktemp("data") / "noise"
    for name in "abc":
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for number in range(8):
            Image.effect_noise((32, 32), 60).convert("RGB").save(folder / f"{number}.png")
    return root


def table_rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of a Markdown table under a heading, without its head."""
    section = text.partition(f"## {heading}\n\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]


def test_it_runs_end_to_end_and_its_file_has_the_promised_rows(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "training.md"
    small = ["--sizes", "width64", "--images", "17", "--batch", "8", "--repeats", "1", "--device", "cpu"]
    command = [sys.executable, BENCHMARKS / "training.py", "--root", images, "--out", out, *small]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "width64: round 1 of 1" in done.stdout
    text = out.read_text()
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "python benchmarks/training.py --root path/to/noise --sizes width64 --images 17 --batch 8" in text
    assert str(images) not in text
    assert "16 images an epoch, batch 8" in text

    speeds = table_rows(text, "Images a second against the plain loop")
    assert [row[:2] for row in speeds] == [["width64", kind] for kind in KINDS]
    assert all(row[6] == "1.00" and row[7] == "at least 1.15" for row in speeds)
    costs = table_rows(text, "Seconds of one epoch against another")
    assert [row[1] for row in costs] == ["SSL visible / SSL full", "mix / SSL full + SL", "mix / SSL visible + SL"]
    counts = table_rows(text, "Counted operations")
    assert [(row[1], row[4], row[-1]) for row in counts] == [(kind, "PyTorch's counter", "met") for kind in KINDS]
    goals_met = sum(row[-1].startswith("met") for row in speeds + costs + counts)
    assert f"{goals_met} of {len(speeds + costs + counts)} goals are met" in text

    with out.with_suffix(".csv").open(newline="") as file:
        medians = list(csv.DictReader(file))
    expected = [(kind, loop) for kind in KINDS for loop in ("mixtune", "plain")]
    assert [(row["epoch"], row["loop"]) for row in medians] == expected
    assert all(0 < float(row["least_s"]) <= float(row["median_s"]) <= float(row["most_s"]) for row in medians)


def test_the_plain_loop_does_the_same_operations(training: ModuleType, images: Path, tmp_path: Path) -> None:
    size, batch = training.SIZES["width64"], training.COUNTED_IMAGES
    training.copy_images(images, tmp_path, batch, size.side)
    loader = training.make_loader(tmp_path / "train", size.side, batch, 0, torch.device("cpu"))
    for kind in KINDS:
        recipe = training.make_recipe(size, batch, tmp_path, kind, 1)
        data = training.load_training_data(recipe)
        plain = training.make_plain_loop(training.start_state(recipe, data), classes=3)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            plain.train_epoch(training.EPOCHS[kind][0], loader)
        assert counter.get_total_flops() / batch == training.count_operations(recipe), kind


def test_a_shortfall_is_said(training: ModuleType) -> None:
    """Seconds by hand: SSL visible takes 0.6 of full, and mix 0.6 of SSL full plus SL."""
    report = sys.modules["training_report"]  # imported by the script
    seconds = {"SL": 1.0, "SSL visible": 0.6, "SSL full": 1.0, "mix": 1.2}
    flops = {"SL": 1.0} | training.METHOD
    contenders = [
        training.Contender(kind, loop, "float32", flops[kind], [factor * value] * 3)
        for kind, value in seconds.items()
        for loop, factor in (("mixtune", 1.0), ("plain", 1.0 if kind == "mix" else 1.2))
    ]
    size, load = training.SIZES["tiny256"], training.Load(1, 3)
    measured = training.Measured("tiny256", size, load, contenders, counted=flops | {"mix": 1.0})

    speeds = list(report.speed_rows(measured, 1.15))
    assert [row[2:5] for row in speeds][:2] == [["3.0", "2.5", "1.20"], ["5.0", "4.2", "1.20"]]
    assert [row[-1] for row in speeds] == ["met", "met", "met", "short by 13.0%"]
    costs = [(row[2], row[4], row[-1]) for row in report.cost_rows(measured)]
    assert costs[:2] == [("0.600", "0.330", "short by 20.0%"), ("0.600", "0.539", "met")]
    assert costs[2] == ("0.750", "0.843", "met: costs 11.0% less")
    by_pytorch, by_method = (row[-3:] for row in report.count_rows(measured) if row[1] == "mix")
    assert by_pytorch == ["+16.70%", "within 2%", "short by 14.7%"]
    assert by_method == ["+0.00%", "within 2%", "met"]


def test_too_few_images_are_named(training: ModuleType, images: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has 24 images in class folders, 25 are needed"):
        training.copy_images(images, tmp_path, 25, 32)


def test_what_decoding_costs_is_measured_on_equal_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("MIXTUNE_DATA", str(tmp_path / "cache"))
    decoding = importlib.import_module("decoding")
    decoding.write_set(tmp_path / "tiny", 40, decoding.write_tiny)
    ours = decoding.by_mixtune(tmp_path / "tiny", 16)()
    plain, other = (loop(tmp_path / "tiny", 16)() for loop in (decoding.by_plain_loop, decoding.by_torchvision))
    assert torch.equal(torch.from_numpy(plain).permute(0, 3, 1, 2), other)
    by_bytes = [sorted(image.tobytes() for image in images) for images in (plain.transpose(0, 3, 1, 2), _both(ours))]
    assert by_bytes[0] == by_bytes[1]

    costs = {"cpu": 1.2, "wall": 0.8, "memory": 30.0, "free": 1.6}
    tiny = decoding.Set("tiny PNGs", 20_000, 16, "small", ("mixtune", "plain"), decoding.write_tiny)
    by = {"mixtune": costs, "plain": costs | {"cpu": 1.0}}
    measured = decoding.Measured(tiny, 1.0, by, warm=costs, training=costs | {"memory": 1200.0})
    text = decoding.report([measured], argparse.Namespace(repeats=1, load=0.0))
    assert "missed: tiny PNGs, 16 pixels: 1.20 of the plain loop's CPU seconds (goal: 1)" in text
    assert "missed: tiny PNGs, 16 pixels: 1200 MB above the start" in text
    assert "missed: tiny PNGs, 16 pixels: a warm start takes 60.0 us a file" in text
    assert table_rows(text, "CPU seconds")[0][3:] == ["1.20", "1.00", "-", "1.20", "-", "1.50", "1.60"]


def _both(dataset: Dataset) -> npt.NDArray[np.uint8]:
    assert dataset.test is not None
    return np.concatenate([dataset.train.images, dataset.test.images])
