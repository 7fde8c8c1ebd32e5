"""Anyone's Ray callbacks beside a search, such as loggers: what they are told of it, in their own terms."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray.air.constants import TRAINING_ITERATION
from ray.tune import Callback
from ray.tune.experiment import Trial

from mixtune import plugins
from mixtune.errors import RequestError, one_line
from mixtune.files import make_folder
from mixtune.space.recipe import flatten
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trainable import RESERVED, TO_LEDGER, own_metrics, recipe_from_config

LOGS = "logs"  # in the run directory

# of a recipe, the same after each of its epochs
_FIXED = ("method", "epochs_asked", "train_flops", "train_images", "lr_ssl", "lr_sl", "precision", "device", "protocol")

_log = logging.getLogger("mixtune.tuning")


def find_loggers(names: Sequence[str]) -> list[Callback]:
    """Return the callbacks that ``--log-to`` names. Raises RequestError for an unknown one, or a missing package."""
    return [plugins.find("tuning.loggers", name, "logger").build() for name in dict.fromkeys(names)]


class LoggedTrial:
    """A Ray trial as a callback should see it.

    Its name is the search's own (t0007); its ``trial_id`` is Ray's, another one for each attempt and search. ``config``
    is the recipe by dotted path, ``evaluated_params`` what of it the search varies, and ``local_path`` a folder in the
    run directory.
    """

    def __init__(self, trial: Trial, varied: Sequence[str], directory: Path) -> None:
        self._trial = trial
        self._name: str = trial.config["trial"]
        self.config = _recipe_values(trial.config)
        self.evaluated_params = {path: _scalar(self.config[path]) for path in varied if path in self.config}
        self._folder = directory.resolve() / LOGS / self._name
        self.experiment_dir_name = directory.resolve().name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def __str__(self) -> str:
        return self._name

    @property
    def local_path(self) -> str:
        """The folder, which is there from now on: loggers that run elsewhere change into it."""
        make_folder(self._folder)
        return str(self._folder)

    def init_local_path(self) -> None:
        """Nothing: see local_path."""


class ForwardedCallback(Callback):  # type: ignore[misc]
    """Tells someone's callback of a search's trials, epoch by epoch.

    Seconds are from the step times known by then; the ledger's are from those at the trial's end, which comes later. A
    trial that goes on from a stored state tells of the epochs before it, too, so its curves begin at epoch 1. A
    callback that raises is told no more, and one warning says so: a search does not end for it.

    search: it has been told of what the callback is told of; directory: the run's.
    """

    def __init__(self, callback: Callback, search: RunningSearch, directory: Path) -> None:
        self._callback, self._search, self._directory = callback, search, directory
        fixed = [path for params in search.baselines.values() for path in params]
        self._varied = list(dict.fromkeys([*search.space.space, *fixed]))
        self._trials: dict[str, LoggedTrial] = {}
        self._is_broken = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks for a restore of its own, which a search never uses."""
        return {}

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        """Ray Tune begins; what is raised here ends the search."""
        self._callback.setup(stop=stop, num_samples=num_samples, total_num_samples=total_num_samples, **info)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray's loop goes round."""
        self._tell("on_step_begin", trials, iteration=iteration, **info)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray's loop has gone round."""
        self._tell("on_step_end", trials, iteration=iteration, **info)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A worker has taken the trial."""
        self._tell("on_trial_start", trials, trial=self._logged(trial), iteration=iteration, **info)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done, or several of a stored state."""
        logged = self._logged(trial)
        about = {"trial": str(logged), "trial_id": trial.trial_id}
        for epoch in epoch_results(result | self._search.latencies(result[TO_LEDGER])):
            told = {"trial": logged, "result": {**epoch, **about}, "iteration": iteration}
            self._tell("on_trial_result", trials, **told, **info)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial ran to its end, or was ended."""
        self._tell("on_trial_complete", trials, trial=self._logged(trial), iteration=iteration, **info)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial raised, or its worker died; another attempt is a trial of its own to Ray."""
        self._tell("on_trial_error", trials, trial=self._logged(trial), iteration=iteration, **info)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Ray Tune ends."""
        self._tell("on_experiment_end", trials, **info)

    def _tell(self, hook: str, trials: list[Trial], **told: Any) -> None:
        if self._is_broken:
            return
        try:
            getattr(self._callback, hook)(trials=[self._logged(trial) for trial in trials], **told)
        except Exception as error:  # noqa: BLE001  anyone's code
            self._is_broken = True
            _log.warning("%s is told no more of this search: %s", type(self._callback).__name__, one_line(error))

    def _logged(self, trial: Trial) -> LoggedTrial:
        if trial.trial_id not in self._trials:
            self._trials[trial.trial_id] = LoggedTrial(trial, self._varied, self._directory)
        return self._trials[trial.trial_id]


def epoch_results(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the metrics of each epoch that a trial's result tells of, under the names of trials.csv.

    Their step (``training_iteration``) is the epoch, and every one has the same names: what is not known of an epoch
    before the latest, or not measured in its phase, is NaN.
    """
    latest = own_metrics(result)
    unknown = {name: value if name in _FIXED else math.nan for name, value in latest.items()}
    for epoch in result[TO_LEDGER]["epochs"]:
        known = {name: value for name, value in epoch.items() if name in latest}
        metrics = latest if epoch["epoch"] == latest["epoch"] else {**unknown, **known}
        yield {**metrics, TRAINING_ITERATION: epoch["epoch"]}


def _recipe_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's recipe by dotted path, also where it is none and the trial fails."""
    try:
        return flatten(recipe_from_config(config).to_dict())
    except RequestError:
        return flatten(config["recipe"]) | {path: value for path, value in config.items() if path not in RESERVED}


def _scalar(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
