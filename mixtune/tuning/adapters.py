"""Ray Tune's side of a search: a Searcher and a Callback that both speak to one RunningSearch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback, ProgressReporter, Stopper
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from mixtune.errors import RequestError
from mixtune.training.loop import DivergedError
from mixtune.training.memory import is_out_of_memory
from mixtune.training.metrics import TASK_PREFIXES, Metrics
from mixtune.tuning.state import Asked, Cause, RunningSearch
from mixtune.tuning.trainable import TO_LEDGER, SearchContext


class _DrivenBySearch:
    """Ray pickles searchers and callbacks for a restore of its own, which a search never uses."""

    _search: RunningSearch

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SearchSearcher(_DrivenBySearch, Searcher):  # type: ignore[misc]
    """Hands the search's trials to Ray Tune; their ends are told by SearchCallback, which sees why.

    ``context`` gives what a trial is told of its search.
    """

    def __init__(self, search: RunningSearch, context: Callable[[Asked], SearchContext]) -> None:
        super().__init__()
        self._search, self._context = search, context
        self._base_recipe = search.space.recipe.to_dict()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of the next trial; ``trial`` in it is our own id, which outlives Ray's."""
        asked = self._search.ask()
        if asked is None:
            return Searcher.FINISHED if self._search.is_over else None  # what fails yet may have to be tried again
        return {"recipe": self._base_recipe, "trial": asked.trial, "search": self._context(asked), **asked.params}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: a result alone does not say whether a trial completed or was stopped."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the one truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save()."""


class Drain(_DrivenBySearch, Stopper):  # type: ignore[misc]
    """Stops trials at their next epoch once the search drains."""

    def __init__(self, search: RunningSearch) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether a trial should stop now: after a deadline once its worker has stored this epoch's state."""
        return bool(self._search.stop_reason) or (self._search.is_draining and result[TO_LEDGER]["after_deadline"])

    def stop_all(self) -> bool:
        """Return False: it would end trials in the middle of an epoch."""
        return False


class SearchCallback(_DrivenBySearch, Callback):  # type: ignore[misc]
    """Tells the search what happened to its trials."""

    def __init__(self, search: RunningSearch) -> None:
        self._search = search

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A worker has taken the trial."""
        self._search.start(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done."""
        self._search.report(trial.config["trial"], result[TO_LEDGER])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial ran to its end, or the scheduler ended it."""
        result = trial.last_result
        self._search.end(trial.config["trial"], own_metrics(result), result[TO_LEDGER])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial raised, or its worker died."""
        error = read_error(trial)
        metrics = own_metrics(trial.last_result or {})
        self._search.fail(trial.config["trial"], failure_reason(trial, error), failure_cause(error), metrics)


class NoReport(ProgressReporter):  # type: ignore[misc]
    """Stands in for Ray's own report, which clears a notebook cell's output however quiet Ray is asked to be."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Return False."""
        return False


def own_metrics(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the trainable measured, without what Ray adds to each result."""
    names = {field.name for field in fields(Metrics)}
    return {name: value for name, value in result.items() if name in names or name.startswith(TASK_PREFIXES)}


def read_error(trial: Trial) -> BaseException | None:
    """Return what a trial raised, or Ray's word on its worker; None where Ray could not keep it."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # noqa: BLE001  Ray pickles not every error, and not every exception unpickles; its text remains
        return None
    return getattr(error, "cause", None) or error  # type: ignore[no-any-return]


def failure_reason(trial: Trial, error: BaseException | None) -> str:
    """Return one line that says why Ray gave a trial up: the type and message of the error in the trial."""
    if error is None:
        lines = Path(trial.error_file).read_text().strip().splitlines()
        return lines[-1].strip() if lines else "unknown"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "the machine's memory is full: Ray ended the worker process"
    if isinstance(error, ray.exceptions.RayActorError):
        return "the worker process died"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def failure_cause(error: BaseException | None) -> Cause:
    """Return what a failed trial needs: nothing helps where the recipe itself is to blame."""
    if error is not None and is_out_of_memory(error):
        return "out of memory"
    return "permanent" if isinstance(error, RequestError | DivergedError) else "crash"
