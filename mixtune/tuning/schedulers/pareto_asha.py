"""Asynchronous successive halving that understands a front (Schmucker et al. 2021, "Multi-objective Asynchronous
Successive Halving"): trials that peers beat in accuracy and in cost alike are ended early."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mixtune.errors import RequestError
from mixtune.metrics import METRICS, learned_scores
from mixtune.run.rungs import KEEP, LEVELS, Rungs
from mixtune.space.space import SearchSpace


class ParetoHalving:
    """Rungs at shares of a trial's training; see mixtune.ParetoASHA for the arguments."""

    def __init__(
        self,
        objectives: Mapping[str, str],
        progress: str = "sl_progress",
        levels: Collection[float] = LEVELS,
        keep: float = KEEP,
    ) -> None:
        if not levels or not all(0.0 < level < 1.0 for level in levels):
            raise RequestError(f"pareto_asha: levels should be shares between 0 and 1, got {list(levels)}")
        if not 0.0 < keep < 1.0:
            raise RequestError(f"pareto_asha: keep should be between 0 and 1, got {keep}")
        self._rungs, self._progress = Rungs(list(levels), keep, objectives), progress

    def continues(self, trial: str, metrics: Mapping[str, Any]) -> bool:
        """Take a trial's epoch, and return whether it is worth continuing."""
        progress = metrics.get(self._progress)
        return progress is None or self._rungs.continues(trial, progress, metrics)

    def reached(self) -> str:
        """Return how many trials have reached each rung."""
        return ", ".join(f"{level:.3g}: {len(trials)}" for level, trials in self._rungs.reached.items())


def build(space: SearchSpace) -> ParetoHalving:
    """Return the scheduler of a search: its accuracies on the validation split against its costs that are known early.

    Raises RequestError where no objective is such an accuracy.
    """
    # what grows with training; a calibration error does not: a classifier that has learned nothing has next to none
    accuracies = [name for name in learned_scores() if METRICS[name].direction == "max"]
    known: dict[str, str] = {}
    for name, mode in space.objectives.items():
        forecast = METRICS[name].forecast if name in METRICS else None
        if name in accuracies or forecast:
            known[forecast or name] = mode
    if not known.keys() & set(accuracies):
        named = ", ".join(accuracies)
        raise RequestError(f"search.scheduler pareto_asha compares accuracies: name one of {named} as an objective")
    return ParetoHalving(known)
