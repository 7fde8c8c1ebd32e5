"""How good is the recipe that a search recommends?

    python benchmarks/recommendation.py record       # 4 seeds of every recipe of the digits table; goes on where it was
    python benchmarks/recommendation.py replay       # searches drawn from them

With `--data cifar10` the same of the 48 recipes on 10 % of CIFAR-10, whose images `record` finds at `--root`.

`record` trains the recipes of benchmarks/tables/ (see search_cost.py), and supervised training alone at each of its
budgets and twice the largest, on the table's split from 4 seeds, and notes which validation and which test images each
classifies rightly. What a step costs is the table's. Rows are appended to benchmarks/tables/seeds_DATA.jsonl.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from replay.table import Params, Table
from search_cost import SPACES, TABLES, space_values, table_file

from mixtune.single import Planned, Shared, train_each
from mixtune.space.space import space_from_dict
from mixtune.stages.resume import train_shared
from mixtune.training.data import ImagePool, load_test_pools, load_training_data
from mixtune.training.evaluation import tally_predictions
from mixtune.training.state import start_state

SEEDS = range(4)
DEVICE = torch.device("cpu")


def rows_file(data: str) -> Path:
    """Return where a data set's rows are kept."""
    return TABLES / f"seeds_{data}.jsonl"


def recipes(table: Table) -> Iterator[Params]:
    """Yield a table's recipes, each once, and supervised training alone at each budget and twice the largest."""
    for params in table.recipes():
        if params["rho"] or params["alpha"] == table.space.space["alpha"].extremes()[0]:  # alpha is idle at rho 0
            yield params
    grids = {path: distribution.grid() or () for path, distribution in table.space.space.items()}
    budgets = grids["epochs.sl"]
    rates = grids["optim.sl.base_lr"]
    for budget, rate in product([*budgets, 2 * max(budgets)], rates):
        yield {"epochs.ssl": 0, "epochs.sl": budget, "optim.sl.base_lr": rate}


def record(data: str, root: str | None, stages: Path) -> None:
    """Train what the rows lack, each appended before the next one starts."""
    torch.set_num_threads(1)
    table, rows = Table(table_file(data)), rows_file(data)
    base = space_from_dict(space_values(data, root)).recipe
    known = {(name_of(row["params"]), row["seed"]) for row in read_rows(rows)}
    planned = [
        Planned(name_of(params), recipe, 1.0, base)
        for seed in SEEDS
        for params in recipes(table)
        for recipe in [table.space.recipe_at({**params, "data.root": root, "seed": seed})]
    ]

    def train_one(each: Planned, shared: Shared) -> str:
        split = load_training_data(each.split, DEVICE)
        pools = load_test_pools(each.split, split)
        state = start_state(each.recipe, split, DEVICE)
        for _ in train_shared(state, *shared):
            pass
        right = {
            "val": _judge(state.backbone, state.classifiers[0], split.tasks[0].held_out),
            "test": _judge(state.backbone, state.classifiers[0], pools[0]),
        }
        packed = {name: pack(own) for name, own in right.items()}
        row = {"params": json.loads(each.name), "seed": each.recipe.seed, "images": len(right["val"]), **packed}
        row["test_images"] = len(right["test"])
        with rows.open("a") as file:
            file.write(f"{json.dumps(row)}\n")
        return f"{right['val'].mean():.3f}"

    def held(each: Planned) -> str | None:
        return "recorded" if (each.name, each.recipe.seed) in known else None

    for each, _ in train_each(planned, train_one, held, str, stages, DEVICE, lambda line: print(line, flush=True)):
        known.add((each.name, each.recipe.seed))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return what is recorded, without a line that an interruption has cut."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def name_of(params: Mapping[str, Any]) -> str:
    """Return a recipe's name: its dotted values."""
    return json.dumps(dict(params), sort_keys=True)


def pack(right: npt.NDArray[np.bool_]) -> str:
    """Return whether each image was classified rightly, (images,), as text; unpack() reads it."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, images: int) -> npt.NDArray[np.bool_]:
    """Return what pack() wrote, (images,)."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=images).astype(bool)


def _judge(backbone: Any, classifier: Any, pool: ImagePool) -> npt.NDArray[np.bool_]:
    assert pool.labels is not None
    predicted = tally_predictions(backbone, classifier, pool, "float32").predictions()
    right: npt.NDArray[np.bool_] = (predicted == pool.labels[pool.indices]).numpy()
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record"])
    parser.add_argument("--data", choices=sorted(SPACES), default="digits")
    parser.add_argument("--root", help="CIFAR-10 as a folder of images")
    parser.add_argument("--stages", type=Path, default=Path("stages"), help="record: a folder for training states")
    options = parser.parse_args()
    record(options.data, options.root, options.stages)


if __name__ == "__main__":
    main()
