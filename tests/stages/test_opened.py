"""What a start rests on is told apart: other images are refused, other code is said, another device where it counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixtune.datasets import _load
from mixtune.errors import RequestError
from mixtune.run.ledger import RunState, fold
from mixtune.space.space import SearchSpace, space_from_dict
from mixtune.stages.opened import Opened, refuse_other_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of twelve images."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(
                tmp_path / "images" / label / f"{number}.png"
            )
    return tmp_path / "images"


@pytest.fixture
def space(small_space: Callable[..., dict[str, Any]], folder: Path) -> SearchSpace:
    values = small_space()
    values["recipe"]["data"] = {"dataset": "image_folder", "root": str(folder)}
    return space_from_dict(values)


def opened(space: SearchSpace) -> Opened:
    _load._load.cache_clear()
    return Opened.of(space, "a CPU", 1)


def state_after(start: Opened) -> RunState:
    return fold([{"event": "opened", **start.to_dict()}, {"event": "asked", "trial": "t0001"}])


def test_the_same_images_elsewhere_under_other_times_are_the_same(space: SearchSpace, folder: Path) -> None:
    state = state_after(opened(space))
    assert opened(space).compare(state, space) == []
    elsewhere = folder.with_name("elsewhere")
    shutil.copytree(folder, elsewhere, copy_function=shutil.copyfile)
    values = space.to_dict()
    values["recipe"]["data"]["root"] = str(elsewhere)
    moved = space_from_dict(values)
    assert opened(moved).compare(state, moved) == []


def test_other_images_and_other_labels_are_refused_in_a_line(space: SearchSpace, folder: Path) -> None:
    state = state_after(opened(space))
    (folder / "cat" / "3.png").write_bytes((folder / "cat" / "4.png").read_bytes())
    with pytest.raises(RequestError, match=r"the images of image_folder/t.* are not those that this run was begun"):
        opened(space).compare(state, space)
    other = replace(opened(space), source=state.opened[-1]["source"], labels={"image_folder/train": "other"})
    with pytest.raises(RequestError, match="the labels of image_folder/test, image_folder/train are not those"):
        other.compare(state, space)


def test_other_pixels_code_and_versions_are_lines(space: SearchSpace) -> None:
    start = opened(space)
    changed = replace(start, pixels={"image_folder/train": "0"}, code={"mae": "0"}, versions={"torch": "0"})
    lines = changed.compare(state_after(start), space)
    assert [line.partition(" (")[0] for line in lines] == [
        "the decoded images",
        "the code of the training",
        "the versions",
    ]
    assert all(line.endswith("changed since this run was begun: checkpoints are trained again") for line in lines)


def test_another_device_is_refused_where_its_figures_count(space: SearchSpace) -> None:
    start = opened(space)
    elsewhere = replace(start, device="a GPU")
    with pytest.raises(RequestError, match="train_latency_s of this run is of a CPU, and here is a GPU"):
        elsewhere.compare(state_after(start), space)
    untimed = replace(space, objectives={"val_accuracy": "max", "train_flops": "min"})
    assert elsewhere.compare(state_after(start), untimed) == []
    memory = replace(
        untimed, constraints=space_from_dict({**space.to_dict(), "constraints": {"peak_memory_mb": "<= 9"}}).constraints
    )
    with pytest.raises(RequestError, match="peak_memory_mb of this run is of a CPU"):
        elsewhere.compare(state_after(start), memory)


def test_a_run_that_recorded_nothing_says_that_it_cannot_be_checked(space: SearchSpace) -> None:
    start = opened(space)
    (line,) = start.compare(fold([{"event": "asked", "trial": "t0001"}]), space)
    assert line.endswith("that they are the same cannot be checked")
    assert start.compare(RunState(), space) == []  # a new run


def test_other_images_or_class_names_are_refused_and_an_older_run_is_told(space: SearchSpace, tmp_path: Path) -> None:
    """For `export`, which compares nothing but the data."""
    state = state_after(opened(space))
    assert refuse_other_data(state, space.recipe) == []
    (line,) = refuse_other_data(RunState(), space.recipe)
    assert "did not record its data" in line
    other = replace(opened(space), classes={"image_folder/train": "other"})
    with pytest.raises(
        RequestError, match=r"the classes of image_folder/.* are not those that this run was begun with"
    ):
        refuse_other_data(state_after(other), space.recipe)
    former = {kind: value for kind, value in opened(space).to_dict().items() if kind != "classes"}
    assert refuse_other_data(fold([{"event": "opened", **former}]), space.recipe) == []
