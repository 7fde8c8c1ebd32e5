"""Asynchronous successive halving that understands a front (Schmucker et al. 2021, "Multi-objective Asynchronous
Successive Halving"): trials that peers beat in accuracy and in cost alike are ended early."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mixtune.errors import RequestError
from mixtune.run.ledger import TrialRecord
from mixtune.run.rungs import KEEP, LEVELS, Rungs
from mixtune.space.space import OBJECTIVES, VALIDATION_SCORES, SearchSpace
from mixtune.tuning.trainable import TO_LEDGER

FORECASTS = {"train_latency_s": "forecast_latency_s", "train_flops": "train_flops"}  # known long before the end
# what grows with training; a calibration error does not: a classifier that has learned nothing has next to none
ACCURACIES = tuple(name for name in VALIDATION_SCORES if OBJECTIVES[name] == "max")


class ParetoASHA(FIFOScheduler):  # type: ignore[misc]
    """A Ray Tune scheduler for several objectives, for our search and for anyone's own Tuner.

    objectives: result key -> "max" or "min"; what is known at the end alone, such as a training time, should be given
    by its forecast. progress: the result key of the share of its training that a trial has behind it, in [0, 1]; with
    MixTrainable that of its supervised epochs, so nothing ends in vanilla SSL, where accuracy means nothing. levels:
    the rungs, as such shares; keep: the share of a rung's trials that go on. exempt: ids of trials that are neither
    ended nor compared with. A trial that no peer dominates is never ended, and NaN never beats anyone. ::

        tune.TuneConfig(scheduler=ParetoASHA(), ...)
    """

    def __init__(
        self,
        objectives: Mapping[str, str] | None = None,
        progress: str = "sl_progress",
        levels: Collection[float] = LEVELS,
        keep: float = KEEP,
        exempt: Collection[str] = (),
    ) -> None:
        super().__init__()
        if not levels or not all(0.0 < level < 1.0 for level in levels):
            raise RequestError(f"pareto_asha: levels should be shares between 0 and 1, got {list(levels)}")
        if not 0.0 < keep < 1.0:
            raise RequestError(f"pareto_asha: keep should be between 0 and 1, got {keep}")
        self._rungs = Rungs(list(levels), keep, objectives or {"val_accuracy": "max", "forecast_latency_s": "min"})
        self._progress, self._exempt = progress, frozenset(exempt)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return whether a trial goes on; a trial that began with a stored state reports its epochs before, too."""
        name = str(trial.config.get("trial", trial.trial_id))
        epochs = result.get(TO_LEDGER, {}).get("epochs") or [result]
        goes_on = all([self._goes_on(name, epoch) for epoch in epochs])
        return str(TrialScheduler.CONTINUE if goes_on or result.get("done") else TrialScheduler.STOP)

    def rebuild(self, records: Iterable[TrialRecord]) -> None:
        """Take over what a search's ledger says of its trials, in the order in which they ended or began."""
        for record in sorted(records, key=lambda r: r.ended_time or float("inf")):
            for epoch in record.epochs:
                self._goes_on(record.trial, epoch)

    def debug_string(self) -> str:
        """Return how many trials have reached each rung."""
        reached = ", ".join(f"{level:.3g}: {len(trials)}" for level, trials in self._rungs.reached.items())
        return f"ParetoASHA: trials at each rung {{{reached}}}"

    def _goes_on(self, trial: str, metrics: Mapping[str, Any]) -> bool:
        progress = metrics.get(self._progress)
        if trial in self._exempt or progress is None:
            return True
        return self._rungs.goes_on(trial, progress, metrics)


def build(space: SearchSpace) -> TrialScheduler:
    """Return the scheduler of a search: its accuracies on the validation split against its costs that are known early.

    Raises RequestError where no objective is such an accuracy.
    """
    objectives = {FORECASTS.get(name, name): mode for name, mode in space.objectives.items()}
    known = {name: mode for name, mode in objectives.items() if name in (*ACCURACIES, *FORECASTS.values())}
    if not known.keys() & set(ACCURACIES):
        named = ", ".join(ACCURACIES)
        raise RequestError(f"search.scheduler pareto_asha compares accuracies: name one of {named} as an objective")
    return ParetoASHA(known, exempt=space.baselines)
