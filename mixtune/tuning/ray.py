"""All that is Ray Tune's: a search's core driven by it.

Ray is one way to run the core of tuning/search.py: its Searcher asks, its Stopper reports, its Callback tells starts
and ends. Ray's own state is never read.
"""

from __future__ import annotations

import gc
import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partialmethod
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, ProgressReporter, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mixtune.cost.memory import allowed_bytes
from mixtune.errors import DataError, RequestError, TrainingError, one_line
from mixtune.meter import lock
from mixtune.stages.paths import RecipePaths
from mixtune.stages.store import MAX_BYTES
from mixtune.tuning import nodes
from mixtune.tuning.limits import killed_for_memory
from mixtune.tuning.nodes import Cluster
from mixtune.tuning.search import Asked, RunningSearch
from mixtune.tuning.session import Session, head_watched, lost_process, ray_words
from mixtune.tuning.states import digest_space
from mixtune.tuning.trainable import REPORT, MixTrainable
from mixtune.tuning.trial import SearchContext, failure_cause

_log = logging.getLogger("mixtune.tuning")


class LostRound(BaseException):  # as KeyboardInterrupt is: of an Exception Tune would make a dead Ray clean up
    """Ray broke down under the trials; in words. Whoever called may go round again, from the ledger."""


class _DrivenBySearch:
    """Ray pickles searchers and callbacks for a restore of its own, which a search never uses."""

    _search: RunningSearch

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SearchSearcher(_DrivenBySearch, Searcher):  # type: ignore[misc]
    """Hands the search's trials to Ray Tune, as many as there are slots.

    context: gives what a trial knows of its search; watch: looks at the nodes.
    """

    def __init__(self, search: RunningSearch, context: Callable[[Asked], SearchContext], watch: Watch) -> None:
        super().__init__()
        self._search, self._context, self._watch = search, context, watch
        self._base_recipe = search.space.recipe.to_dict()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of the next trial; ``trial`` in it is our own id, which outlives Ray's."""
        self._watch.look()  # Ray's loop does nothing else while no trial lives
        is_full = len(self._search.active) >= self._search.slots
        asked = None if is_full or self._watch.has_given_up else self._search.ask()
        if asked is None:  # what fails yet may have to be tried again
            finished = self._search.is_over or self._watch.has_given_up
            return str(Searcher.FINISHED) if finished else None
        told = {"recipe": self._base_recipe, "trial": asked.trial, "search": self._context(asked)}
        return {**told, **asked.params, **self._search.space.tied(asked.params)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: a result alone does not say whether a trial completed or was stopped."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the one truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save()."""


class SearchStopper(_DrivenBySearch, Stopper):  # type: ignore[misc]
    """Reports each result to the search, before anyone else sees it, and stops whom the search stops."""

    def __init__(self, search: RunningSearch, watch: Watch) -> None:
        self._search, self._watch = search, watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether a trial should stop now."""
        return not self._search.report(result["config"]["trial"], result[REPORT])

    def stop_all(self) -> bool:
        """Return whether trials that no node takes should be taken back; others are not ended in mid-epoch."""
        return self._watch.has_given_up


class SearchCallback(_DrivenBySearch, Callback):  # type: ignore[misc]
    """Tells the search what happened to its trials, and callbacks after it the metrics of trials.csv."""

    def __init__(self, search: RunningSearch, watch: Watch) -> None:
        self._search, self._watch = search, watch

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray's loop turns."""
        self._watch.note_stranded(trials)
        self._watch.look()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A worker has taken the trial."""
        self._search.start(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done; what was reported of it gives way to its metrics."""
        result.pop(REPORT)
        result.update(self._search.figures(trial.config["trial"]))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial ran to its end, or was ended."""
        self._search.end(trial.config["trial"])

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ray starts the trial again by itself: its node was taken away."""
        self._search.move(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial raised, or its worker died."""
        error = read_error(trial)
        reason, cause = failure_reason(trial, error), failure_cause(error)
        reason = self._watch.note_memory(error) or reason
        if isinstance(error, ray.exceptions.RayActorError) and self._watch.is_lost(
            (trial.last_result or {}).get("node_ip")
        ):
            reason, cause = "its node was lost", "node lost"
        self._watch.look(now=True)
        self._search.fail(trial.config["trial"], reason, cause)


class Watch:
    """Looks at a search's nodes, as often as it is called or less: slots follow them, and who waits for one is told.

    wait_s: for how long no trial may run for want of a node, None for ever; say: receives lines for the terminal.
    """

    def __init__(
        self, search: RunningSearch, cluster: Cluster, wait_s: float | None, say: Callable[[str], None]
    ) -> None:
        self._search, self._cluster, self._wait_s, self._say = search, cluster, wait_s, say
        self._trained, self._told = time.monotonic(), 0.0
        self._killed = killed_for_memory()
        self._looked, self._stopped = time.monotonic(), set[int]()
        self.has_given_up = False
        self._has_stranded = False  # ClusterScheduler takes such trials back, anyone else's does not

    def is_lost(self, address: str | None) -> bool:
        """Return whether the node at an address is gone, None for any node; what lost nodes held is forgotten."""
        if lost := self._cluster.lose():
            self._follow()
        return bool(lost) if address is None else not self._cluster.is_there(address)

    def _follow(self) -> None:
        self._search.slots = self._cluster.slots.count
        self._search.stages.forget(self._cluster.holds)

    def is_stranded(self, trial: Trial) -> bool:
        """Return whether a trial waits for nodes that are gone."""
        return trial.status == Trial.PENDING and self._cluster.strands(trial.config["search"].selector)

    def note_stranded(self, trials: Sequence[Trial]) -> None:
        """Note whether one of these trials waits for nodes that are gone."""
        self._has_stranded = not self._cluster.is_one and any(map(self.is_stranded, trials))

    def note_memory(self, error: BaseException | None = None) -> str | None:
        """Let fewer trials run at once where the machine's memory was full; return so in words, None where it was not.

        error: what Ray says of a process that has ended, None for one of its own.
        """
        killed, before = killed_for_memory(), self._killed
        self._killed = killed
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            words = ray_words(error)
        elif killed > before and (error is None or isinstance(error, ray.exceptions.RayActorError)):
            words = "the machine's memory is full: the system ended the worker process"
        else:
            return None
        if (fewer := self._cluster.take_fewer(len(self._search.active))) is not None:
            self._search.slots = fewer
            self._say(f"the machine's memory is full: {fewer} trial{'s' * (fewer != 1)} at once from now on")
        return words

    def look(self, now: bool = False) -> None:
        """Take in what has changed. Raises LostRound, and KeyboardInterrupt once a search that ends has to."""
        if self._search.ends_by is not None and time.monotonic() > self._search.ends_by:
            raise KeyboardInterrupt
        if (words := lost_process()) is not None:
            self.note_memory()
            raise LostRound(words)
        if self._cluster.poll(now):
            self._follow()
        if time.monotonic() - self._looked > lock.STOPPED_S:  # trials cannot say so while they wait
            self._looked = time.monotonic()
            for process, line in lock.stopped_holders().items():
                if process not in self._stopped:
                    self._stopped.add(process)
                    self._say(line)
        if self._search.is_training or self._search.is_over:
            self._trained, self._told = time.monotonic(), 0.0
            return
        waited = time.monotonic() - self._trained
        if waited > max(nodes.PENDING_S, 2 * self._told):
            self._told = waited
            self._cluster.tell_waiting(waited)
        is_stranded = self._has_stranded and waited > nodes.PENDING_S
        if (self._wait_s is not None and waited > self._wait_s) or is_stranded:
            self._search.stop_reason = self._cluster.describe_waiting(waited)
            self.has_given_up = True
        self.has_given_up |= not self._cluster.is_one and self._search.is_draining


class ClusterScheduler(FIFOScheduler):  # type: ignore[misc]
    """Takes back trials that wait for nodes that are gone: Ray's request for a place cannot be changed."""

    def __init__(self, search: RunningSearch, watch: Watch) -> None:
        super().__init__()
        self._search, self._watch = search, watch

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the next trial that waits."""
        for trial in filter(self._watch.is_stranded, [*tune_controller.get_live_trials()]):
            self._search.fail(trial.config["trial"], "the nodes that it waited for are gone", "node lost")
            tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)


class GuardedCallback(Callback):  # type: ignore[misc]
    """Anyone's callback: one that raises hears no more of the search, and a warning says so; the search continues."""

    def __init__(self, callback: Callback) -> None:
        self._callback, self._is_broken = callback, False
        self.setup = callback.setup  # what is raised there ends the search

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _tell(self, hook: str, *given: Any, **info: Any) -> None:
        if self._is_broken:
            return
        try:
            getattr(self._callback, hook)(*given, **info)
        except Exception as error:  # noqa: BLE001  anyone's code
            self._is_broken = True
            name = type(self._callback).__name__
            _log.warning("%s raised and hears no more of this search: %s", name, one_line(error))

    on_step_begin = partialmethod(_tell, "on_step_begin")
    on_step_end = partialmethod(_tell, "on_step_end")
    on_trial_start = partialmethod(_tell, "on_trial_start")
    on_trial_result = partialmethod(_tell, "on_trial_result")
    on_trial_complete = partialmethod(_tell, "on_trial_complete")
    on_trial_error = partialmethod(_tell, "on_trial_error")
    on_experiment_end = partialmethod(_tell, "on_experiment_end")


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
    if (words := ray_words(error)) is not None:
        return words
    name, said = type(error).__name__, one_line(error)
    return name if said == name else f"{name}: {said}"


def train_trials(
    search: RunningSearch,
    session: Session,
    cluster: Cluster,
    directory: Path,
    paths: RecipePaths,
    say: Callable[[str], None],
    wait_s: float | None = None,
    callbacks: Sequence[tune.Callback] = (),
    scheduler: TrialScheduler | None = None,
) -> bool:
    """Let Ray Tune train the search's trials; return whether a signal ended it.

    wait_s, say: see Watch; callbacks, scheduler: anyone's, for Ray as they are. Raises LostRound where Ray breaks
    down; what it raises of ours, such as a ledger that cannot be written, comes as it is.
    """
    slots, machine = cluster.slots, cluster.machine
    watch = Watch(search, cluster, wait_s, say)
    on_cluster = {} if cluster.is_one else {"home": cluster.home, "space_digest": digest_space(directory)}

    def context(asked: Asked) -> SearchContext:
        fraction = max(slots.gpus, asked.gpus or 0.0) if slots.gpus else 0.0
        known = machine.gpu_bytes
        return SearchContext(
            directory=str(directory.resolve()),
            cpus=slots.cpus,
            gpus=fraction,
            threads=machine.threads,
            precision=machine.precision,
            step_times=search.step_times.copy(time.time()),
            memory_bytes=allowed_bytes(fraction, known["total"], known["context"]) if known else None,
            deadline=search.deadline,
            states_bytes=MAX_BYTES,
            branches=tuple(paths(asked.params).stored_after),
            selector=cluster.selector,
            states={} if cluster.is_one else search.places(asked.trial),
            **on_cluster,
        )

    def resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        context: SearchContext = config["search"]
        bundle = {"CPU": context.cpus, **({"GPU": context.gpus} if context.gpus else {})}
        pinned = {"bundle_label_selector": [dict(context.selector)]} if context.selector else {}
        return tune.PlacementGroupFactory([bundle], **pinned)

    with tempfile.TemporaryDirectory(prefix="mixtune-ray-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(MixTrainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=SearchSearcher(search, context, watch),
                scheduler=scheduler or (None if cluster.is_one else ClusterScheduler(search, watch)),
                num_samples=-1,  # until the searcher says that it is over
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.config["trial"]),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                callbacks=[SearchCallback(search, watch), *map(GuardedCallback, callbacks)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials store theirs themselves
                stop=SearchStopper(search, watch),
                progress_reporter=NoReport(),
                verbose=0,
            ),
        )
        interrupted, lost = False, None
        head, where = (
            ("Ray's head process has ended", "") if cluster.is_one else ("the cluster's head is gone", " on another")
        )
        kept = f"{head}: what is done is kept: mixtune resume {shlex.quote(str(directory))} continues{where}"

        def interrupted_words() -> str | None:
            resume = f"mixtune resume {shlex.quote(str(directory))}"
            return None if search.ends_by is None else f"interrupted; to continue: {resume}"

        is_foreign = cluster.is_one and session.start is None  # a notebook's own, say, which is not ours to end
        try:
            with nullcontext() if is_foreign else head_watched(kept, interrupted_words):
                tuner.fit()
            # Ray takes SIGUSR1 for a request to end
            interrupted = search.ends_by is not None or not (search.is_over or watch.has_given_up)
        except KeyboardInterrupt:
            interrupted = True
        except LostRound as error:
            lost = str(error)
        except Exception as error:
            lost = why_lost(error)
            if lost is None or search.error is not None:
                raise
            watch.note_memory()
            _log.debug("Ray broke down", exc_info=True)
        # outside of the except, which keeps the trials' actors: in a session that is not ours they live on
        if interrupted or lost is not None:
            if session.start is not None:
                ray.shutdown()  # a head that is gone, as where a signal went to a whole job, would be waited for
            del tuner
            gc.collect()
    if lost is not None:
        raise LostRound(lost)
    return interrupted


def why_lost(error: BaseException | None) -> str | None:
    """Return in our words how Ray broke down; None where what it raised is not Ray's. Tune wraps what others raise."""
    while error is not None:
        if (words := ray_words(error)) is not None:
            return lost_process() or words
        error = error.__cause__ or error.__context__
    return None


def run_here(
    function: Callable[..., Any], *arguments: Any, on_gpu: bool, cpus: float, on_wait: Callable[[float], None]
) -> Any:
    """Call ``function(*arguments, on_gpu)``, on a GPU in a process of its own: none of its memory stays taken.

    on_wait: receives the seconds for which it has been waited for, every nodes.PENDING_S.
    """
    if not on_gpu:
        return function(*arguments, False)
    task = ray.remote(num_gpus=1, num_cpus=cpus, max_calls=1)(function).remote(*arguments, True)
    began = time.monotonic()
    try:
        while not ray.wait([task], timeout=nodes.PENDING_S)[0]:
            on_wait(time.monotonic() - began)
        return ray.get(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RequestError | DataError | TrainingError):
            raise cause from None
        raise TrainingError(f"the GPU could not be measured: {one_line(cause or error)}") from error
