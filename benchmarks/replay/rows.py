"""Training runs kept row by row: what was trained is not trained again, whatever ended the process before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mixtune.single import Planned, Shared, train_each
from mixtune.space.recipe import Recipe
from mixtune.stages.resume import train_shared
from mixtune.training.data import load_training_data
from mixtune.training.state import TrainState, start_state

Row = dict[str, Any]
DEVICE = torch.device("cpu")


def record_rows(
    file: Path,
    runs: Sequence[tuple[Mapping[str, Any], Recipe]],
    split: Recipe,
    row_of: Callable[[TrainState], tuple[Row, str]],
    stages: Path,
) -> None:
    """Train on one thread what a file of rows lacks, and append a row for each before the next one starts.

    runs: dotted parameters, by which a row is known, and their recipes; split: whose images all take; row_of: returns
    the fields of a trained state's row, and what to print; stages: the folder of training states that they share.
    """
    torch.set_num_threads(1)
    if file.exists():  # a line that an interruption has cut goes, so that the next one begins a line
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
    known = {(name_of(row["params"]), row["seed"]) for row in read_rows(file)}
    planned = [Planned(name_of(params), recipe, 1.0, split) for params, recipe in runs]

    def train_one(each: Planned, shared: Shared) -> str:
        state = start_state(each.recipe, load_training_data(split, DEVICE), DEVICE)
        for _ in train_shared(state, *shared):
            pass
        fields, said = row_of(state)
        row = {"params": json.loads(each.name), "seed": each.recipe.seed, **fields}
        with file.open("a") as lines:
            lines.write(f"{json.dumps(row)}\n")
        known.add((each.name, each.recipe.seed))
        return said

    def held(each: Planned) -> str | None:
        return "recorded" if (each.name, each.recipe.seed) in known else None

    for _ in train_each(planned, train_one, held, str, stages, DEVICE, lambda line: print(line, flush=True)):
        pass


def read_rows(path: Path) -> list[Row]:
    """Return what is recorded, without a line that an interruption has cut."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def name_of(params: Mapping[str, Any]) -> str:
    """Return a recipe's name: its dotted values."""
    return json.dumps(dict(params), sort_keys=True)
