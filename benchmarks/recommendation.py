"""How good is the recipe that a search recommends?

    python benchmarks/recommendation.py record       # 4 seeds of every recipe of the digits table; goes on where it was
    python benchmarks/recommendation.py replay       # searches drawn from them

With `--data cifar10` the same of the 48 recipes on 10 % of CIFAR-10, whose images `record` finds at `--root`.

`record` trains the recipes of benchmarks/tables/ (see search_cost.py), and supervised training alone at each of its
budgets and twice the largest, on the table's split from 4 seeds, and notes which validation and which test images each
classifies rightly. What a step costs is the table's. Rows are appended to benchmarks/tables/seeds_DATA.jsonl.

`replay` draws searches: a seed, so many of its recipes at random besides supervised training alone and SSL then SL at a
middle budget, and as many validation images with replacement as there are. What the search recommends is compared with
its most accurate recipe and with its front's knee. What is true is known from the other seeds: of the recipes of the
search the best by its mean test accuracy on two of them, and the accuracies of all on the third, over every split into
two and one; the largest of many noisy means would be no truth. Results go to benchmarks/results/recommendation.md.
"""

from __future__ import annotations

import argparse
import base64
import statistics
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from replay.rows import Row, name_of, read_rows, record_rows
from replay.table import Params, Table
from search_cost import NAMES, RESULTS, SPACES, TABLES, space_values, suffix, table_file

from mixtune.render import markdown_table
from mixtune.run.directory import RunFacts
from mixtune.run.ledger import RunState, TrialRecord
from mixtune.run.predictions import HeldOut, encode_classes
from mixtune.run.result import Result
from mixtune.space.space import space_from_dict
from mixtune.training.data import ImagePool, load_test_pools
from mixtune.training.evaluation import tally_predictions
from mixtune.training.state import TrainState

SEEDS = range(4)
SEARCHES, DRAWN = 200, (8, 20, 50)  # of each seed and number of recipes
WITHIN = 0.01  # of the best, to count as found


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
    table = Table(table_file(data))
    base = space_from_dict(space_values(data, root)).recipe
    runs = [
        (params, table.space.recipe_at({**params, "data.root": root, "seed": seed}))
        for seed in SEEDS
        for params in recipes(table)
    ]

    def row_of(state: TrainState) -> tuple[Row, str]:
        pools = {"val": state.data.tasks[0].held_out, "test": load_test_pools(base, state.data)[0]}
        right = {name: _judge(state.backbone, state.classifiers[0], pool) for name, pool in pools.items()}
        packed = {name: pack(own) for name, own in right.items()}
        counted = {"images": len(right["val"]), **packed, "test_images": len(right["test"])}
        return counted, f"{right['val'].mean():.3f}"

    record_rows(rows_file(data), runs, base, row_of, stages)


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


class Seeds:
    """What is recorded: by recipe its seconds, and by seed which validation and which test images it gets right."""

    def __init__(self, data: str) -> None:
        table = Table(table_file(data))
        self.space = table.space
        self.params: dict[str, Params] = {}
        self.seconds: dict[str, float] = {}
        self.val: dict[str, dict[int, npt.NDArray[np.bool_]]] = defaultdict(dict)
        self.test: dict[str, dict[int, float]] = defaultdict(dict)
        supervised = next(curve for curve in map(table.curve, table.recipes()) if "sl" in curve.phases)
        an_epoch = supervised.seconds[supervised.phases.index("sl")]
        for row in read_rows(rows_file(data)):
            name, params = name_of(row["params"]), row["params"]
            self.params[name] = params
            alone = params["epochs.ssl"] == 0
            self.seconds[name] = params["epochs.sl"] * an_epoch if alone else table.curve(params).latency
            self.val[name][row["seed"]] = unpack(row["val"], row["images"])
            self.test[name][row["seed"]] = float(unpack(row["test"], row["test_images"]).mean())
        everywhere = [name for name in self.params if len(self.val[name]) == len(SEEDS)]
        self.recipes = [name for name in everywhere if self.params[name]["epochs.ssl"]]
        self.alone = [name for name in everywhere if not self.params[name]["epochs.ssl"]]

    def search(self, seed: int, drawn: int, rng: np.random.Generator) -> Result:
        """Return a search of so many recipes, judged by resampled validation images; trials are called as recipes."""
        trials = [str(name) for name in rng.choice(self.recipes, size=drawn, replace=False)]
        trials += [str(name) for name in rng.choice(self.alone, size=2, replace=False)]
        images = len(self.val[trials[0]][seed])
        chosen = rng.integers(images, size=images)
        held_out = HeldOut.of({"images": (2, np.zeros(images, dtype=np.int64), np.arange(images))})
        records = {}
        for name in trials:
            right = self.val[name][seed][chosen]
            accuracy = float(right.mean())
            metrics = {"val_accuracy": accuracy, "train_latency_s": self.seconds[name]}
            metrics["val_accuracy_se"] = (accuracy * (1.0 - accuracy) / images) ** 0.5
            predictions = {"images": encode_classes(~right)}
            own = TrialRecord(name, "complete", params=self.params[name], metrics=metrics)
            own.validation, own.predictions = held_out.digest, predictions
            records[name] = own
        state = RunState(records=records, held_out={held_out.digest: held_out})
        return Result(Path(), self.space, RunFacts(), state, self.space.objectives)


def replay(data: str) -> str:
    """Return a table of how good what is recommended is; see the module."""
    seeds, rng, rows = Seeds(data), np.random.default_rng(0), []
    for drawn in DRAWN:
        found: dict[str, list[tuple[bool, float, float]]] = defaultdict(list)  # within, of its cost, points below it
        if drawn > len(seeds.recipes):
            continue
        for seed, _ in product(SEEDS, range(SEARCHES)):
            result = seeds.search(seed, drawn, rng)
            names = list(result.records)
            others = [other for other in SEEDS if other != seed]
            for third in others:
                two = [other for other in others if other != third]
                best = max(names, key=lambda name: statistics.fmean(seeds.test[name][other] for other in two))
                choices = {
                    "recommended": str(result.recommendation().trial),
                    "most accurate on validation": str(result.best("val_accuracy")["trial"]),
                    "knee": str(result.knee()),
                    "oracle": best,
                }
                for policy, name in choices.items():
                    missed = seeds.test[best][third] - seeds.test[name][third]
                    found[policy].append((missed <= WITHIN + 1e-12, seeds.seconds[name] / seeds.seconds[best], missed))
        for policy, outcomes in found.items():
            within, cost, missed = zip(*outcomes, strict=True)
            figures = [f"{100 * statistics.fmean(within):.0f} %", f"{statistics.median(cost):.2f}"]
            rows.append([str(drawn), policy, *figures, f"{100 * statistics.fmean(missed):.2f}"])
    head = ["recipes", "chosen", "within a point of the best", "of its seconds (median)", "points below it (mean)"]
    return (
        f"# What a search recommends: {NAMES[data]}\n\n{len(seeds.recipes)} recipes with SSL and {len(seeds.alone)} "
        f"without, {len(SEEDS)} seeds; {SEARCHES} searches drawn for each seed (python benchmarks/recommendation.py "
        f"replay --data {data})\n\n{markdown_table(head, rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record", "replay"])
    parser.add_argument("--data", choices=sorted(SPACES), default="digits")
    parser.add_argument("--root", help="CIFAR-10 as a folder of images")
    parser.add_argument("--stages", type=Path, default=Path("stages"), help="record: a folder for training states")
    options = parser.parse_args()
    if options.do == "record":
        record(options.data, options.root, options.stages)
        return
    text = replay(options.data)
    (RESULTS / f"recommendation{suffix(options.data)}.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
