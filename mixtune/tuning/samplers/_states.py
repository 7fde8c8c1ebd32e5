"""What a training state's scores depend on, as numbers in [0, 1]: recipes with one path to it have one row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.space.distributions import Distribution
from mixtune.space.effective import idle_settings, mix_epochs
from mixtune.space.recipe import Recipe
from mixtune.space.space import SearchSpace
from mixtune.training.plan import decay_start, rate_factor, warmup_length

Floats = npt.NDArray[np.float64]

BUDGETS = ("epochs.ssl", "epochs.sl", "rho")
WORD = 0.7  # of a word's column: two words are as far apart as the ends of a number's range
UNDECIDED = 0.5  # what a setting without an effect counts as
DECADE = 9.99  # the ends of numbers to choose from, from which on their logarithms count


class States:
    """The features of states of a space's recipes, scaled by the space, so that none depends on what was trained."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        ends = space.ends()
        self._most = {path: max(ends[path]) for path in BUDGETS[:2]}
        self._columns = {path: _Column(d) for path, d in space.space.items() if path not in BUDGETS}
        self.width = 4 + sum(column.width for column in self._columns.values())

    def row(self, params: Mapping[str, Any], recipe: Recipe, epochs: int) -> Floats:
        """Return the features (width,) of a recipe's state after so many epochs, at least 1.

        They are its SSL, mixed and SL epochs so far, how far the SL rate has come down, and all else that is searched;
        a setting that the recipe has not, or that has no effect in it, or not yet, is undecided.
        """
        ssl, sl = recipe.epochs.ssl, recipe.epochs.sl
        mix = mix_epochs(recipe.rho, ssl, sl)
        done_ssl, mixed, done_sl = (
            min(epochs, ssl),
            max(0, min(epochs, ssl) - (ssl - mix)),
            max(0, epochs - (ssl - mix)),
        )
        annealed = 0.0
        if done_sl == sl:
            annealed = 1.0
        elif done_sl > warmup_length(recipe.optim.sl, sl):
            annealed = 1.0 - rate_factor(recipe.optim.sl, sl, float(done_sl), decay_start(sl))
        idle = idle_settings(self._space.values_at(params))
        if not mixed:
            idle |= {"alpha", "lambda"}
        own = [c.of(params.get(path), path in params, path in idle) for path, c in self._columns.items()]
        amounts = [
            _logarithmic(done_ssl, self._most["epochs.ssl"]),
            _logarithmic(mixed, self._most["epochs.ssl"]),
            _logarithmic(done_sl, self._most["epochs.sl"]),
            annealed,
        ]
        return np.array([*amounts, *(number for numbers in own for number in numbers)])

    def untrained(self) -> Floats:
        """Return the features (4, width) of states without a supervised epoch, whose classifiers guess."""
        rest = [UNDECIDED] * (self.width - 4)
        return np.array([[ssl, 0.0, 0.0, annealed, *rest] for ssl in (0.5, 1.0) for annealed in (0.0, 1.0)])


class _Column:
    """A parameter's columns: one for a number, one for each word, and one that says where a recipe has it not."""

    def __init__(self, distribution: Distribution) -> None:
        choices = distribution.values
        self._words = [] if _are_numbers(choices) else [repr(choice) for choice in choices]
        ends = [float(value) for value in (choices or (distribution.low, distribution.high))] if not self._words else []
        spans = bool(choices and min(ends) > 0 and max(ends) / min(ends) >= DECADE) if ends else False
        self._log = distribution.log or spans
        scaled = [math.log(end) if self._log else end for end in ends]
        self._low, self._span = (min(scaled), max(scaled) - min(scaled)) if ends else (0.0, 0.0)
        self._is_conditional = bool(distribution.when)
        self.width = (len(self._words) or 1) + self._is_conditional

    def of(self, value: Any, is_there: bool, is_idle: bool) -> Sequence[float]:
        """Return the numbers of a value, undecided where it is not there or has no effect."""
        missing = [WORD * (not is_there)] if self._is_conditional else []
        if is_idle or not is_there:
            return [*[UNDECIDED] * (len(self._words) or 1), *missing]
        if self._words:
            return [*(WORD * (repr(value) == word) for word in self._words), *missing]
        # of another space it may be 0, which is as far below the range as the range is wide
        number = float(value) if not self._log else math.log(value) if value > 0 else self._low - self._span
        return [(number - self._low) / self._span if self._span else UNDECIDED, *missing]


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _logarithmic(amount: float, most: float) -> float:
    return math.log1p(amount) / math.log1p(most) if most else 0.0
