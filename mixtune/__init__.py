"""mixtune: find the MixTraining recipe that buys the most accuracy for the least training time.

Importing this starts nothing: the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mixtune._version import __version__

if TYPE_CHECKING:
    from mixtune.comparison import Comparison, compare
    from mixtune.confirmation import confirm
    from mixtune.errors import DataError, RequestError
    from mixtune.exporting import export
    from mixtune.run.front import hypervolume, knee, pareto_front
    from mixtune.run.result import Result, load
    from mixtune.single import Trained
    from mixtune.single import train_recipe as train
    from mixtune.space.recipe import Recipe, parse_recipe
    from mixtune.space.space import SearchSpace, load_space
    from mixtune.study import Study
    from mixtune.tuning.own import latencies, param_space
    from mixtune.tuning.run import resume, search
    from mixtune.tuning.trainable import MixTrainable


_HOMES = {
    "Comparison": "mixtune.comparison",
    "DataError": "mixtune.errors",
    "MixTrainable": "mixtune.tuning.trainable",
    "Recipe": "mixtune.space.recipe",
    "RequestError": "mixtune.errors",
    "Result": "mixtune.run.result",
    "SearchSpace": "mixtune.space.space",
    "Study": "mixtune.study",
    "Trained": "mixtune.single",
    "compare": "mixtune.comparison",
    "confirm": "mixtune.confirmation",
    "export": "mixtune.exporting",
    "hypervolume": "mixtune.run.front",
    "knee": "mixtune.run.front",
    "latencies": "mixtune.tuning.own",
    "load": "mixtune.run.result",
    "load_space": "mixtune.space.space",
    "param_space": "mixtune.tuning.own",
    "pareto_front": "mixtune.run.front",
    "parse_recipe": "mixtune.space.recipe",
    "resume": "mixtune.tuning.run",
    "search": "mixtune.tuning.run",
    "train": "mixtune.single:train_recipe",
}

__all__ = [
    "Comparison",
    "DataError",
    "MixTrainable",
    "Recipe",
    "RequestError",
    "Result",
    "SearchSpace",
    "Study",
    "Trained",
    "__version__",
    "compare",
    "confirm",
    "export",
    "hypervolume",
    "knee",
    "latencies",
    "load",
    "load_space",
    "param_space",
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
    return list(__all__)
