"""mixtune: find the MixTraining recipe that buys the most accuracy for the least training time.

Importing this starts nothing: the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixtune.analysis.front import hypervolume, knee, pareto_front
    from mixtune.analysis.result import Result, load
    from mixtune.comparison import Comparison, compare
    from mixtune.confirmation import confirm
    from mixtune.errors import DataError, RequestError
    from mixtune.exporting import export
    from mixtune.recipe import Recipe, parse_recipe
    from mixtune.space import SearchSpace, load_space
    from mixtune.training.single import Trained
    from mixtune.training.single import train_recipe as train
    from mixtune.tuning.run import resume, search
    from mixtune.tuning.schedulers.pareto_asha import ParetoASHA
    from mixtune.tuning.trainable import MixTrainable

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "mixtune.comparison",
    "DataError": "mixtune.errors",
    "MixTrainable": "mixtune.tuning.trainable",
    "ParetoASHA": "mixtune.tuning.schedulers.pareto_asha",
    "Recipe": "mixtune.recipe",
    "RequestError": "mixtune.errors",
    "Result": "mixtune.analysis.result",
    "SearchSpace": "mixtune.space",
    "Trained": "mixtune.training.single",
    "compare": "mixtune.comparison",
    "confirm": "mixtune.confirmation",
    "export": "mixtune.exporting",
    "hypervolume": "mixtune.analysis.front",
    "knee": "mixtune.analysis.front",
    "load": "mixtune.analysis.result",
    "load_space": "mixtune.space",
    "pareto_front": "mixtune.analysis.front",
    "parse_recipe": "mixtune.recipe",
    "resume": "mixtune.tuning.run",
    "search": "mixtune.tuning.run",
    "train": "mixtune.training.single:train_recipe",
}

__all__ = [
    "Comparison",
    "DataError",
    "MixTrainable",
    "ParetoASHA",
    "Recipe",
    "RequestError",
    "Result",
    "SearchSpace",
    "Trained",
    "compare",
    "confirm",
    "export",
    "hypervolume",
    "knee",
    "load",
    "load_space",
    "pareto_front",
    "parse_recipe",
    "resume",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixtune' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
