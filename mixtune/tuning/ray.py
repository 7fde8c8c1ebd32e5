"""Ray Tune's side of a search: a Searcher and a Callback that both speak to one RunningSearch."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, ProgressReporter, Stopper
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from mixtune import plugins
from mixtune.cost.machine import Machine
from mixtune.cost.memory import allowed_bytes, is_out_of_memory
from mixtune.errors import RequestError
from mixtune.stages.paths import RecipePaths
from mixtune.stages.store import MOST_BYTES
from mixtune.training.loop import DivergedError
from mixtune.tuning.loggers._forward import ForwardedCallback
from mixtune.tuning.search import Asked, Cause, RunningSearch
from mixtune.tuning.slots import Nodes, Slots
from mixtune.tuning.trainable import TO_LEDGER, MixTrainable, SearchContext, own_metrics


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


_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the old one is silent, the new one prints a table
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it ends the search and keeps what is done
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the ledger is the one truth; Ray's own state is never read
    "TUNE_WARN_THRESHOLD_S": "10",
}


def train_trials(
    search: RunningSearch,
    slots: Slots,
    directory: Path,
    machine: Machine,
    paths: RecipePaths,
    callbacks: Sequence[tune.Callback] = (),
) -> bool:
    """Let Ray Tune train the search's trials; return whether Ctrl-C or SIGTERM ended it. ``callbacks``: anyone's."""

    def context(asked: Asked) -> SearchContext:
        share = max(slots.gpus, asked.gpus or 0.0) if slots.gpus else 0.0
        memory = None
        if known := machine.gpu_bytes:
            memory = allowed_bytes(share, known["total"], known["context"])
        return SearchContext(
            directory=str(directory.resolve()),
            cpus=slots.cpus,
            gpus=share,
            threads=machine.threads,
            precision=machine.precision,
            step_times=search.step_times.copy(),
            memory_bytes=memory,
            deadline=search.deadline,
            states_bytes=MOST_BYTES,
            branches=tuple(paths(asked.params).stored_after),
        )

    def resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        share: SearchContext = config["search"]
        return tune.PlacementGroupFactory([{"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}])

    space = search.space
    scheduler = plugins.find("tuning.schedulers", space.search.scheduler, "scheduler").build(space)
    if hasattr(scheduler, "rebuild"):  # of ours: Ray's know nothing of a search that goes on
        scheduler.rebuild(search.records.values())
    others = [ForwardedCallback(callback, search, directory) for callback in callbacks]
    with tempfile.TemporaryDirectory(prefix="mixtune-ray-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(MixTrainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=SearchSearcher(search, context),
                scheduler=scheduler,
                num_samples=-1,  # until the searcher says that it is over
                max_concurrent_trials=slots.count,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                callbacks=[SearchCallback(search), *others],
                stop=Drain(search),
                progress_reporter=NoReport(),
                verbose=0,
            ),
        )
        interrupted = False
        try:
            tuner.fit()
        except KeyboardInterrupt:
            interrupted = True
        # outside of the except, which keeps the trials' actors: in a session that is not ours they live on
        if interrupted:
            del tuner
            gc.collect()
    return interrupted


@contextmanager
def ray_session(address: str | None, cpus: int, gpus: int) -> Iterator[Nodes]:
    """Run with Ray: the cluster at ``address``, the session that is there already, or one of our own.

    Yields the CPUs and GPUs of each of its machines. Only a session of our own is shut down. Raises RequestError for
    an address that does not answer.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    session = nullcontext() if ray.is_initialized() else _own_session(address, cpus, gpus)
    with _silenced("ray"), _silenced("ray.tune"), session:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive]


@contextmanager
def _own_session(address: str | None, cpus: int, gpus: int) -> Iterator[None]:
    own = {} if address else {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (ConnectionError, ValueError) as error:
        raise RequestError(f"--address {address}: no Ray cluster there: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Keep a logger off the terminal: a trial's failure is told once, by us, with its reason."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
