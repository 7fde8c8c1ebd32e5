"""Threads: those that are fastest, measured once; a folder's own after that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import mixtune
from mixtune.space.recipe import Recipe
from mixtune.training import threads
from mixtune.training.data import load_training_data
from mixtune.training.threads import fastest_threads, known_threads, set_threads

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def eight_threads() -> Iterator[None]:
    with set_threads(8):
        yield
        assert torch.get_num_threads() == 8


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({8: 1.0, 4: 1.05, 2: 1.09, 1: 1.4}, 2, [8, 4, 2, 1]),  # as good as the fastest, and the fewest of these
        ({8: 9.0, 4: 4.0, 2: 2.0, 1: 1.0}, 1, [8, 4, 2, 1]),  # a machine that others use
        ({8: 1.0, 4: 1.9}, 8, [8, 4]),  # a large model: one thread would take long
        ({8: 1.0, 4: 1.2, 2: 1.6}, 8, [8, 4, 2]),
    ],
)
def test_of_the_fastest_numbers_the_smallest_is_taken(
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    seconds: Mapping[int, float],
    chosen: int,
    tried: list[int],
) -> None:
    asked: list[int] = []

    def step_seconds(*_: Any) -> float:
        asked.append(torch.get_num_threads())
        return seconds[asked[-1]]

    recipe = make_recipe()
    monkeypatch.setattr(threads, "step_seconds", step_seconds)
    monkeypatch.setattr(threads, "SMALL_FLOPS", 0.0)
    assert fastest_threads(recipe, load_training_data(recipe, CPU)) == chosen
    assert asked == tried


def test_real_steps_are_timed_but_not_for_a_training_run_that_is_as_short(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    data = load_training_data(recipe, CPU)
    assert fastest_threads(recipe, data) == 8
    monkeypatch.setattr(threads, "SMALL_FLOPS", 0.0)
    assert fastest_threads(recipe, data) in (1, 2, 4, 8)
    assert fastest_threads(make_recipe({"compile": True}), data) == 8


def test_a_folder_keeps_its_threads_and_so_its_bits(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = make_recipe()
    first = mixtune.train(recipe, out=tmp_path / "one", threads=3).metrics
    assert (first.threads, first.device.endswith(", 3 threads")) == (3, True)
    monkeypatch.setattr(threads, "SMALL_FLOPS", 0.0)  # a new training run would measure
    again = mixtune.train(recipe, out=tmp_path / "one").metrics
    assert (again.threads, again.sl_loss, again.val_accuracy) == (3, first.sl_loss, first.val_accuracy)
    assert json.loads((tmp_path / "one" / "metrics.json").read_text())["threads"] == 3
    assert mixtune.train(recipe, out=tmp_path / "one", threads=2).metrics.threads == 2
    with pytest.raises(mixtune.RequestError, match="threads: should be at least 1, got 0"):
        mixtune.train(recipe, threads=0)


def test_a_comparison_has_one_number_and_continues_with_it(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe({"rho": 0.5, "epochs.sl": 2})
    mixtune.compare(recipe, seeds=1, out=tmp_path / "out", threads=1)
    lines: list[str] = []
    mixtune.compare(recipe, seeds=2, out=tmp_path / "out", on_line=lines.append)
    assert sum("(already trained)" in line for line in lines) == 5
    found = {json.loads(path.read_text())["threads"] for path in (tmp_path / "out").glob("*/metrics.json")}
    assert found == {1}
    with pytest.raises(mixtune.RequestError, match=r"1 thread, not on .* 2 threads: give another --out"):
        mixtune.compare(recipe, seeds=2, out=tmp_path / "out", threads=2)


def test_threads_are_read_from_what_was_saved() -> None:
    assert known_threads({"device": "AMD EPYC, 1 thread"}) == 1
    assert known_threads({"device": "A CPU, 16 threads"}) == 16
    assert known_threads({"device": "NVIDIA H100"}) is None
    assert known_threads(None) is None
