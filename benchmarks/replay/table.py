"""A table of training runs: the learning curve of every recipe of a grid, and what its steps cost."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mixtune.run.front import hypervolume
from mixtune.space.effective import effective
from mixtune.space.points import points
from mixtune.space.recipe import with_values
from mixtune.space.space import SearchSpace, space_from_dict
from mixtune.training.plan import make_plan
from replay.rows import Row

Params = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """One recipe's training: for each epoch its phase, its seconds and the validation accuracy, None in SSL.

    clock: the seconds of each epoch by the wall clock, where a real search was listened to; its metered ones else.
    """

    phases: tuple[str, ...]
    seconds: tuple[float, ...]
    accuracies: tuple[float | None, ...]
    sl_epochs: int
    clock: tuple[float, ...]

    @property
    def latency(self) -> float:
        return sum(self.seconds)

    def sl_progress(self, epoch: int) -> float:
        """Return the share of the SL budget that is done after so many epochs."""
        return sum(phase != "ssl" for phase in self.phases[:epoch]) / self.sl_epochs


class Table:
    """The curves of a space's recipes, by their parameters."""

    def __init__(self, path: Path) -> None:
        with gzip.open(path, "rt") as file:
            kept = json.load(file)
        self.about: dict[str, Any] = kept["about"]
        self.space: SearchSpace = space_from_dict(kept["space"])
        self._curves: dict[str, Curve] = {}
        for params, accuracies, epoch_seconds in kept["recipes"]:
            recipe = self.space.recipe_at(params)
            phases = tuple(str(epoch.phase) for epoch in make_plan(recipe))
            seconds = tuple(epoch_seconds[phase] for phase in phases)
            self._curves[_name(params)] = Curve(phases, seconds, tuple(accuracies), recipe.epochs.sl, clock=seconds)

    def curve(self, params: Mapping[str, Any]) -> Curve:
        """Return a recipe's curve; params may have a baseline's values alone."""
        return self._curves[_name(params)]

    def recipes(self) -> Iterator[Params]:
        """Yield every recipe of the grid."""
        grids = {path: distribution.grid() or () for path, distribution in self.space.space.items()}
        for values in product(*grids.values()):
            params = dict(zip(grids, values, strict=True))
            if self.has(params):
                yield params

    def has(self, params: Mapping[str, Any]) -> bool:
        """Return whether a recipe is in the table."""
        return _name(params) in self._curves

    def part(self, share: float, seed: int) -> Table:
        """Return a random part of the table's different recipes."""
        names: dict[str, list[str]] = {}
        for params in self.recipes():
            names.setdefault(recipe_name(self.space, params), []).append(_name(params))
        kept = random.Random(seed).sample(sorted(names), round(share * len(names)))
        table = copy.copy(self)
        table._curves = {name: self._curves[name] for each in kept for name in names[each]}
        return table

    def by_clock(self, clock: Mapping[str, float]) -> Table:
        """Return the table with these seconds of an epoch by the wall clock, by phase; what is judged stays."""
        table = copy.copy(self)
        table._curves = {
            name: replace(curve, clock=tuple(map(clock.get, curve.phases, curve.seconds)))
            for name, curve in self._curves.items()
        }
        return table

    def most_epochs(self) -> int:
        """Return how many epochs the longest recipe has."""
        return max(len(self.curve(params).phases) for params in self.recipes())

    def most_ssl_epochs(self) -> int:
        """Return how many epochs the longest SSL phase has, in which no accuracy is known."""
        return max(self.curve(params).phases.count("ssl") for params in self.recipes())

    def best_hypervolume(self, reference: Mapping[str, float]) -> float:
        """Return the hypervolume of all recipes together."""
        return front_volume([self.curve(params) for params in self.recipes()], reference)


def front_volume(curves: list[Curve], reference: Mapping[str, float]) -> float:
    """Return the hypervolume of whole training runs: validation accuracy against seconds."""
    rows = [(curve.accuracies[-1], curve.latency) for curve in curves]
    frame = pd.DataFrame(rows, columns=["val_accuracy", "train_latency_s"])
    return hypervolume(frame, {"val_accuracy": "max", "train_latency_s": "min"}, reference)


def keep_table(path: Path, space: SearchSpace, rows: Iterable[Row], about: Mapping[str, Any]) -> None:
    """Write the table of a grid's rows, which have ``params`` and ``accuracies``; ``about``: where it came from.

    Equal recipes have equal rows, one of which is enough. Seconds are missing until change_seconds(). Raises KeyError
    where a recipe's row is missing.
    """
    curves = {recipe_name(space, row["params"]): row["accuracies"] for row in rows}
    recipes = [[params, curves[recipe_name(space, params)], {}] for params in points(space)]
    with gzip.open(path, "wt", compresslevel=9) as file:
        json.dump(
            {"about": dict(about), "space": _plain(space.to_dict()), "recipes": recipes}, file, separators=(",", ":")
        )


def change_seconds(path: Path, seconds: Mapping[str, float], about: str) -> None:
    """Give every recipe of a table these seconds of an epoch by phase, and say so in it."""
    with gzip.open(path, "rt") as file:
        kept = json.load(file)
    kept["about"]["seconds"] = about
    kept["recipes"] = [[*recipe[:2], dict(seconds)] for recipe in kept["recipes"]]
    with gzip.open(path, "wt", compresslevel=9) as file:
        json.dump(kept, file, separators=(",", ":"))


def _plain(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's space in the form of its file, without the folder of its images."""
    kept = {key: value for key, value in space.items() if key not in ("run", "constraints")}
    return {**kept, "recipe": with_values(kept["recipe"], {"data.root": None})}


def recipe_name(space: SearchSpace, params: Mapping[str, Any]) -> str:
    """Return what is equal for parameters whose recipes train the same."""
    return json.dumps(effective(space.values_at(params)), sort_keys=True, default=str)


def _name(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
