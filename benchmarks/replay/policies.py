"""What is compared: plain Ray Tune as its documentation shows it, Syne Tune's MOASHA, and mixtune with and without."""

from __future__ import annotations

import contextlib
import functools
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from mixtune.cost.model import Cost
from mixtune.meter.times import StepTimes
from mixtune.run.directory import RunFacts
from mixtune.run.reference import derive_reference
from mixtune.space.recipe import change_recipe
from mixtune.space.space import SearchSpace
from mixtune.stages.paths import RecipePaths
from mixtune.stages.table import TrialPath
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.suggestions import to_optuna
from mixtune.tuning.trial import EpochReport
from replay.simulate import Asked, curve_metrics
from replay.table import Curve, Params, Table

OBJECTIVES = ["val_accuracy", "train_latency_s"]
CLASSES = 10  # of digits and of CIFAR-10


class RayTune:
    """Ray Tune with OptunaSearch over both objectives; grace: and ASHA on the accuracy alone, after so many epochs."""

    def __init__(self, table: Table, seed: int, grace: int | None = None) -> None:
        space = {path: to_optuna(d) for path, d in table.space.space.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._searcher = OptunaSearch(space=space, metric=OBJECTIVES, mode=["max", "min"], seed=seed)
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="training_iteration",
            metric="val_accuracy",
            mode="max",
            max_t=table.most_epochs(),
            grace_period=grace or 1,
            reduction_factor=3,
        )
        self._asha, self._asked = grace is not None, 0
        self._table, self._random = table, random.Random(seed)

    def ask(self) -> Asked | None:
        params = self._suggest()
        trial = f"t{self._asked:04d}"
        if self._asha:
            self._scheduler.on_trial_add(None, _fake(trial))
        return Asked(trial, params)

    def _suggest(self) -> Params:
        """Return what is suggested; in a part of a table what is missing is asked again, and at last drawn."""
        for _ in range(20):
            self._asked += 1
            params: Params = self._searcher.suggest(f"t{self._asked:04d}")
            if self._table.has(params):
                return params
            self._searcher.on_trial_complete(f"t{self._asked:04d}", error=True)
        self._asked += 1
        return self._random.choice(list(self._table.recipes()))

    def report(self, trial: str, epoch: int, curve: Curve) -> bool:
        result = _plain_result(curve, epoch)
        with contextlib.suppress(KeyError):
            self._searcher.on_trial_result(trial, result)
        if not self._asha or epoch == len(curve.phases):
            return True
        return bool(self._scheduler.on_trial_result(None, _fake(trial), result) == TrialScheduler.CONTINUE)

    def end(self, trial: str, epoch: int, curve: Curve) -> None:
        result = _plain_result(curve, epoch)
        if self._asha:
            self._scheduler.on_trial_complete(None, _fake(trial), result)
        with contextlib.suppress(KeyError):  # one that was drawn
            self._searcher.on_trial_complete(trial, result)


class SyneTune:
    """Syne Tune's MOASHA, which draws at random, over (1 - accuracy, seconds so far), after ``grace`` epochs."""

    def __init__(self, table: Table, seed: int, grace: int) -> None:
        import random

        import numpy as np
        from syne_tune.config_space import choice
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        random.seed(seed)
        np.random.seed(seed)
        space = {path: choice(list(d.grid() or ())) for path, d in table.space.space.items()}
        self._scheduler = MOASHA(
            space,
            metrics=["error", "train_latency_s"],
            time_attr="training_iteration",
            max_t=table.most_epochs(),
            grace_period=grace,
            random_seed=seed,
        )
        self._asked = 0

    def ask(self) -> Asked | None:
        self._asked += 1
        trial = f"t{self._asked:04d}"
        params = dict(self._scheduler.suggest().config)
        self._scheduler.on_trial_add(_fake(trial))
        return Asked(trial, params)

    def report(self, trial: str, epoch: int, curve: Curve) -> bool:
        if epoch == len(curve.phases):
            return True
        decision = self._scheduler.on_trial_result(_fake(trial), _with_error(_plain_result(curve, epoch)))
        return str(decision) == "CONTINUE"

    def end(self, trial: str, epoch: int, curve: Curve) -> None:
        with contextlib.suppress(KeyError):  # what it has stopped it knows no more
            self._scheduler.on_trial_complete(_fake(trial), _with_error(_plain_result(curve, epoch)))


class Mixtune:
    """mixtune's own search, its ledger in a scratch folder; without the tree or with another sampler, too.

    Its sampler derives the hypervolume's reference as any search does, from what it has and from forecasts. off: by
    which share forecasts of phases that were not timed yet are wrong.
    """

    def __init__(
        self,
        table: Table,
        seed: int,
        scratch: Path,
        slots: int,
        *,
        tree: bool = True,
        sampler: str = "cost_aware",
        trials: int = 1000,
        by_stage: bool = False,
        off: float = 0.0,
    ) -> None:
        self._table = table
        draw = random.Random(seed)
        self._off = {phase: 1.0 + draw.uniform(-off, off) for phase in PHASES}
        chosen = {"name": sampler, "by_stage": by_stage} if sampler == "cost_aware" else sampler
        self.space: SearchSpace = table.space.with_search(sampler=chosen, seed=seed, trials=trials)
        self._paths = RecipePaths(with_images(self.space)) if tree else lambda params: TrialPath(())
        longest = max(self._cost(params, StepTimes(), 0, 0.0).seconds for params in table.recipes())
        facts = RunFacts(tasks={"task": {"classes": CLASSES}}, most_expensive={"train_latency_s": longest})
        self._search = RunningSearch(
            self.space,
            scratch / "ledger.jsonl",
            paths=self._paths,
            slots=slots,
            costs=self._cost,
            fault=lambda params: None if table.has(params) else "it is not in the table",
            reference=functools.partial(derive_reference, self.space, facts),
        )

    def ask(self) -> Asked | None:
        asked = self._search.ask()
        if asked is None:
            return None
        path = self._paths(asked.params)
        stored = self._search.stages.stored(asked.params)
        return Asked(asked.trial, asked.params, stored if path.keys else 0)

    def report(self, trial: str, epoch: int, curve: Curve) -> bool:
        metrics = {name: value for name, value in curve_metrics(curve, epoch).items() if not name.endswith("_s")}
        phase, is_stored = curve.phases[epoch - 1], epoch in self._paths(self._params(trial)).stored_after
        report = EpochReport(
            epochs=[metrics],
            metrics=metrics,
            windows=[(phase, curve.seconds[epoch - 1], True, {"device": "a table"})],  # a step stands for an epoch
            bill=Bill(dict.fromkeys(PHASES, 1), tuple((each, each, 0.0) for each in curve.phases), "none"),
            stored="0" * 40 if is_stored else None,
        )
        return self._search.report(trial, report)

    def end(self, trial: str, epoch: int, curve: Curve) -> None:
        self._search.end(trial)

    def _params(self, trial: str) -> Params:
        return self._search.records[trial].params

    def _cost(self, params: Mapping[str, Any], times: StepTimes, reused: int, untimed: float) -> Cost:
        curve = self._table.curve(params)
        wrong = {phase: 1.0 if times.is_known(phase) else factor for phase, factor in self._off.items()}
        seconds = [s * wrong[phase] for phase, s in zip(curve.phases, curve.seconds, strict=True)]
        return Cost({"train_latency_s": sum(seconds)}, sum(seconds), sum(seconds[reused:]))


def with_images(space: SearchSpace) -> SearchSpace:
    """Return a space on images that need no folder; which recipes' epochs agree is the same whatever they train on."""
    return space.with_recipe(change_recipe(space.recipe, {"data.dataset": "digits", "data.fraction": 1.0}))


def _fake(trial: str) -> Any:
    """Return as much of a trial as the schedulers look at."""
    return SimpleNamespace(trial_id=trial)


def _plain_result(curve: Curve, epoch: int) -> dict[str, Any]:
    """Return what a plain trainable reports; before there is a classifier its accuracy is 0."""
    metrics = curve_metrics(curve, epoch)
    return {**metrics, "val_accuracy": metrics["val_accuracy"] or 0.0, "training_iteration": epoch}


def _with_error(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "error": 1.0 - result["val_accuracy"]}
