"""Ray Tune's side of a search: a Searcher and a Callback that both speak to one RunningSearch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from mixtune.training.metrics import TASK_PREFIXES, Metrics
from mixtune.tuning.state import RunningSearch


class _DrivenBySearch:
    """Ray pickles searchers and callbacks for a restore of its own, which a search never uses."""

    _search: RunningSearch

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SearchSearcher(_DrivenBySearch, Searcher):  # type: ignore[misc]
    """Hands the search's trials to Ray Tune; their ends are told by SearchCallback, which sees why."""

    def __init__(self, search: RunningSearch, base_recipe: dict[str, Any]) -> None:
        super().__init__()
        self._search = search
        self._base_recipe = base_recipe

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the config of the next trial; ``trial`` in it is our own id, which outlives Ray's."""
        asked = self._search.ask()
        if asked is None:
            return Searcher.FINISHED  # type: ignore[no-any-return]
        trial, params = asked
        return {"recipe": self._base_recipe, "trial": trial, **params}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: a result alone does not say whether a trial completed or was stopped."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the one truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save()."""


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
        self._search.report(trial.config["trial"], own_metrics(result))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial ran to its end, or the scheduler ended it."""
        self._search.end(trial.config["trial"], own_metrics(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial raised, or its worker died."""
        self._search.fail(trial.config["trial"], failure_reason(trial), own_metrics(trial.last_result or {}))


def own_metrics(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the trainable measured, without what Ray adds to each result."""
    names = {field.name for field in fields(Metrics)}
    return {name: value for name, value in result.items() if name in names or name.startswith(TASK_PREFIXES)}


def failure_reason(trial: Trial) -> str:
    """Return one line that says why Ray gave a trial up: the type and message of the error in the trial."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # noqa: BLE001  Ray pickles not every error, and not every exception unpickles; its text remains
        lines = Path(trial.error_file).read_text().strip().splitlines()
        return lines[-1].strip() if lines else "unknown"
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"
