"""mixtune.Study: a search from a loop of one's own, which asks for trials, trains them and tells what came of them."""

from __future__ import annotations

import functools
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mixtune import plugins
from mixtune.cost.machine import Machine
from mixtune.cost.model import CostModel
from mixtune.errors import RequestError, one_line, show, suggest
from mixtune.files import make_folder, write_whole
from mixtune.metrics import METRICS
from mixtune.report.page import write_report
from mixtune.run.directory import RunDirectory, free_directory, space_document, space_text
from mixtune.run.ledger import ENDED, TrialRecord
from mixtune.run.lock import hold_run
from mixtune.run.reference import derive_reference
from mixtune.run.remaining import ended_early
from mixtune.run.result import Result, result_of
from mixtune.space.foreign import foreign_in_space, refuse_foreign_code
from mixtune.space.recipe import Recipe, flatten
from mixtune.space.space import space_on_arrays
from mixtune.stages.opened import Opened
from mixtune.stages.paths import RecipePaths
from mixtune.stages.store import MAX_BYTES
from mixtune.training.device import choose_device
from mixtune.training.plan import make_plan, method_of, peak_rate
from mixtune.tuning.editing import current_run, edit_run, with_settled_sampler
from mixtune.tuning.forecast import forecast_trials, look_at_machine_for
from mixtune.tuning.learning import Source, learn, read_sources, trial_keys
from mixtune.tuning.opening import kept_data, machine_to_continue_on, saying_that_the_ledger_is_full
from mixtune.tuning.prepare import (
    AnySpace,
    Prepared,
    facts_of,
    known_machine,
    prepare,
    resolve_space,
    with_known_plugins,
)
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.study_file import StudyFile
from mixtune.tuning.trial import EpochReport, SearchContext, failure_cause, train_trial

MAY_CHANGE = ("resources.", "search.stop", "search.trials")  # of a run's space, when it continues

_log = logging.getLogger("mixtune.study")


@dataclass(frozen=True, eq=False)
class Trial:
    """A recipe that a study asks to be trained: by :meth:`train`, or by yourself, and then by :meth:`Study.tell`.

    name: in the ledger and in all tables, "t0003" or a baseline's, "ssl_sl"; params: the dotted recipe values that the
    study chose; recipe: the whole recipe.
    """

    study: Study = field(repr=False)
    name: str
    params: dict[str, Any]
    recipe: Recipe = field(repr=False)
    begun: float = field(repr=False)  # unix seconds

    @property
    def number(self) -> int | None:
        """The trial's number, from 1; None for a baseline."""
        return None if self.baseline else int(self.name[1:])

    @property
    def baseline(self) -> str | None:
        """The method whose baseline this is, "ssl_sl"; None for a trial of the budget."""
        return self.study._record(self.name).baseline

    @property
    def state(self) -> str:
        """What has become of it: asked or running, then complete, stopped or failed, as in ``Result.trials``."""
        return self.study._record(self.name).state

    def train(self) -> dict[str, Any]:
        """Train the recipe in this process, as a search would, note its end, and return its metrics.

        They have the names and units of ``Result.trials``: seconds, shares of 1; None for what is not finite. What an
        earlier trial has stored is not trained again, and after Ctrl-C another call continues from the last
        checkpoint. A training run that diverges or raises is noted as failed, with a warning: see ``state``. Raises
        RequestError for a trial that has ended, DataError where the ledger cannot be written.
        """
        return self.study._train(self)


class Study:
    """A search whose loop is yours: ``ask`` for a trial, ``train`` it here or anywhere, ``tell`` what came of it.

    ::

        with mixtune.Study("space.yaml", out="runs/mine") as study:
            while (trial := study.ask()) is not None:
                trial.train()  # or study.tell(trial, {"val_accuracy": 0.93, "train_latency_s": 12.0})
        study.result().pareto_front()

    space: a file, plain values in its form, or a SearchSpace; None for that of the run in ``out``. out: the run
    directory (default: a new one below ``runs/``); one that holds a run continues, after a crash too: unfinished trials
    are asked first. Its space has to be the same but for ``resources``, ``search.stop`` and ``search.trials``, and more
    trials extend it. data: the images, in place of those that the space names, as for :func:`mixtune.search`; a run
    that continues has kept its own. trials: how many may end; overrides: dotted values put over the space.

    Baselines are asked first, as in a search; ``baselines: []`` has none. Trains on this machine's GPU, or with
    ``gpus_per_trial: 0`` on its CPU. The run directory is a search's: ``mixtune status``, ``report``, ``confirm``,
    ``resume`` and all others take it. One process at a time may have it.

    ``stop_reason`` is why the latest ``ask`` returned None. Raises RequestError or DataError before anything is asked.
    """

    def __init__(
        self,
        space: AnySpace | None = None,
        *,
        out: str | PathLike[str] | None = None,
        data: Any = None,
        trials: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        trust: bool = False,
    ) -> None:
        if space is None and out is None:
            raise RequestError("a study needs a space, or the directory of a run that it continues: out=")
        name = Path(space).stem if isinstance(space, str | PathLike) else "study"
        run = RunDirectory(Path(out) if out is not None else free_directory(name))
        self.directory = run.path
        self.stop_reason: str | None = None
        hold = functools.partial(hold_run, run.path, "study", on_wait=_log.warning)
        with ExitStack() as stack:
            if run.holds_run or space is None:
                stack.enter_context(hold())
                run = current_run(run.path)
                if space is None:  # of one that is given it has to be the same
                    refuse_foreign_code(run.path, foreign_in_space(run.space, searches=True), trust)
                prepared, machine = _continue(run, space, data, trials, overrides or {})
                sources = read_sources(prepared.space, run.state.sources)
            else:
                run.refuse_occupied()
                space, overrides = stack.enter_context(kept_data(space, data, run, overrides))
                prepared = prepare(space, trials=trials, overrides=overrides)
                sources = read_sources(prepared.space)
                make_folder(run.path)
                stack.enter_context(hold())
                run.refuse_occupied()  # by another that began meanwhile
                machine = look_at_machine_for(prepared)
                write_whole(run.space_file, space_text(space_document(prepared.space, facts_of(prepared, machine))))
            self._open(prepared, machine, sources, trials or prepared.space.budget)
            self._is_closed, self._held = False, stack.pop_all()

    def _open(self, prepared: Prepared, machine: Machine, sources: Sequence[Source], trials: int) -> None:
        """Make the core of the search, as its directory says by now."""
        self._run, space = RunDirectory(self.directory), prepared.space
        costs, self._paths = CostModel(space, prepared.data, machine), RecipePaths(space)
        scheduler = plugins.find("tuning.schedulers", space.search.scheduler, "scheduler").build(space)
        if scheduler is not None and not hasattr(scheduler, "continues"):
            raise RequestError(f"search.scheduler: {space.search.scheduler} is Ray Tune's: mixtune.search takes it")
        self._machine = machine
        self._device = choose_device() if machine.gpu_bytes is not None else torch.device("cpu")
        opened = Opened.of(space, machine.device, machine.threads)
        for line in opened.compare(self._run.state, space):
            _log.warning(line)
        self._search = RunningSearch(
            space,
            self._run.ledger_file,
            state=self._run.state,
            paths=self._paths,
            costs=costs.cost,
            fault=costs.fault,
            reference=functools.partial(derive_reference, space, self._run.facts),
            scheduler=scheduler,
            waits=False,
        )
        keys_of = functools.partial(trial_keys, machine, on_gpu=self._device.type == "cuda")
        with saying_that_the_ledger_is_full(self._search, self._run):
            for source in sources:
                _log.info(learn(self._search, source, machine, self._run.stages, keys_of))
            if trials > (self._run.state.budget or self._run.space.budget):  # as every later start will read it
                self._search.extend(trials)
            if not self._search.is_done:
                forecast = forecast_trials(space, prepared.data, costs, self._search.step_times)
                self._search.open({**opened.to_dict(), **self._run.new_document, "slots": 1, "forecast_s": forecast})

    def ask(self) -> Trial | None:
        """Return the next trial; None where there is none, and ``stop_reason`` says why.

        Several may be asked before the first is trained or told. Trials that an earlier process left unfinished come
        first, then baselines. Raises RequestError where the study is closed.
        """
        self._require_open()
        search = self._search
        with saying_that_the_ledger_is_full(search, self._run):
            asked = search.ask()
        if asked is not None:
            self.stop_reason = None
            return Trial(self, asked.trial, asked.params, search.space.recipe_at(asked.params), time.time())
        waiting = ", ".join(record.trial for record in search.active)
        spent = f"{search.done} of {search.budget} trials are done; a study with more trials continues"
        early = search.stop_reason or ended_early(search.state, search.space)
        self.stop_reason = f"these were asked and have not ended: {waiting}" if waiting else early or spent
        return None

    def tell(self, trial: Trial, metrics: Mapping[str, float] | None = None, *, failed: str | None = None) -> None:
        """Note what came of a trial that you trained yourself: its metrics, or why it ``failed``.

        metrics: every objective and constraint of the space, but for ``train_flops``, which is known; others of
        :data:`mixtune.metrics.METRICS` that are measured at the end may be among them, such as ``test_accuracy`` or
        ``val_accuracy_se``. Shares are of 1, ``_s`` are seconds and taken as they are, ``_ms`` milliseconds, ``_mb``
        10**6 bytes. A failed trial counts in the budget and is not tried again.

        Raises RequestError, and notes nothing, for a trial that has ended already or is another study's, for an unknown
        metric, one that is missing, and a value that is not finite or cannot be; DataError where the ledger cannot be
        written.
        """
        self._require_open(trial)
        if (metrics is None) == (failed is None):
            raise RequestError(f"{trial.name}: tell its metrics, or failed='why', and not both")
        search = self._search
        with saying_that_the_ledger_is_full(search, self._run):
            if metrics is None:
                search.fail(trial.name, str(failed))
            else:
                search.take(trial.name, self._completed(trial, metrics), trial.begun)

    def result(self) -> Result:
        """Return what was found so far; see :class:`mixtune.Result`."""
        return result_of(RunDirectory(self.directory))

    def close(self) -> None:
        """Write the run's tables, its report and study.db, and let others have the directory; once is enough.

        Without it nothing is lost: ``mixtune report DIR`` writes the report, and another study continues.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with self._held:
            StudyFile(self._run.study_file).copy(self._search.suggester.study, self._search.records)
            result = self.result()
            result.write_tables()
            write_report(result, driver=None)

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _record(self, trial: str) -> TrialRecord:
        return self._search.records[trial]

    def _require_open(self, trial: Trial | None = None) -> None:
        """Raise RequestError where the study is closed, or a trial is not one that was asked and has not ended."""
        if self._is_closed:
            raise RequestError(f"this study is closed: mixtune.Study(out={str(self.directory)!r}) continues it")
        if trial is None:
            return
        if not isinstance(trial, Trial) or trial.study is not self:
            raise RequestError(f"{show(trial)} is not a trial of this study: give what its ask() returned")
        if all(record.trial != trial.name for record in self._search.active):
            happened = f"has ended already: {trial.state}" if trial.state in ENDED else "has to be asked again"
            raise RequestError(f"{trial.name} {happened}")

    def _train(self, trial: Trial) -> dict[str, Any]:
        self._require_open(trial)
        search, threads = self._search, torch.get_num_threads()
        with saying_that_the_ledger_is_full(search, self._run):
            try:
                search.start(trial.name)
                with closing(self._reports(trial)) as reports:
                    for report in reports:
                        if not search.report(trial.name, report):
                            break
                search.end(trial.name)
            except Exception as error:
                if search.error is not None:
                    raise
                reason = f"{type(error).__name__}: {one_line(error)}"
                _log.warning("%s failed: %s", trial.name, reason)
                search.fail(trial.name, reason, failure_cause(error))
            finally:
                torch.set_num_threads(threads)
        return dict(self._record(trial.name).metrics)

    def _reports(self, trial: Trial) -> Generator[EpochReport, None, None]:
        """Train a trial as a search's worker would, yielding a report after each epoch."""
        search, machine = self._search, self._machine
        context = SearchContext(
            directory=str(self.directory.resolve()),
            gpus=float(self._device.type == "cuda"),
            threads=machine.threads,
            precision=machine.precision,
            step_times=search.step_times.copy(time.time()),
            states_bytes=MAX_BYTES,
            branches=tuple(self._paths(trial.params).stored_after),
        )
        told = {"recipe": search.space.recipe.to_dict(), "trial": trial.name, "search": context}
        return train_trial({**told, **trial.params, **search.space.tied(trial.params)}, self._device)

    def _completed(self, trial: Trial, given: Mapping[str, float]) -> dict[str, Any]:
        """Return what was told of a trial with what is known of it besides. Raises RequestError."""
        space = self._search.space
        told = {name: _number(trial.name, name, value) for name, value in given.items()}
        cost = self._search.cost(trial.params)
        if cost is not None:
            told = {"train_flops": cost.objectives["train_flops"], **told}
        for names, kind in ((space.objectives, "an objective"), (space.constraints, "a constraint")):
            for name in names:
                if name not in told:
                    raise RequestError(f"{trial.name}: {name} is {kind} of the space, and it is missing")
        epochs = len(make_plan(trial.recipe))
        optim = trial.recipe.optim
        rates = {f"lr_{loss}": peak_rate(getattr(optim, loss), optim.batch_size) for loss in ("ssl", "sl")}
        known: dict[str, Any] = {"epoch": epochs, "epochs_asked": epochs, "epochs_trained": epochs, "epochs_reused": 0}
        known |= {"method": method_of(trial.recipe), **rates}
        if "train_latency_s" in told:
            seconds = told["train_latency_s"]
            known |= {"forecast_latency_s": seconds, "training_s": seconds, "latency_reused_s": 0.0}
        return {**known, **told}


def _number(trial: str, name: str, value: Any) -> float:
    """Return a metric that was told. Raises RequestError for one that is unknown or cannot be."""
    allowed = [n for n, row in METRICS.items() if row.direction or n.startswith("test_") or n.endswith("_se")]
    if name not in allowed:
        known = ", ".join(allowed)
        raise RequestError(f"{trial}: unknown metric {name!r}; known are {known}{suggest(str(name), allowed)}")
    if not isinstance(value, Real) or isinstance(value, bool):
        raise RequestError(f"{trial}: {name} should be a number, got {show(value)}")
    number = float(value)
    if not math.isfinite(number):
        raise RequestError(f"{trial}: {name} is {number}: tell a finite number, or failed='why'")
    most = METRICS[name].bounds[1]
    if not 0 <= number <= most:
        kind = "a share" if METRICS[name].is_share else "a number"
        raise RequestError(f"{trial}: {name} should be {kind} from 0 to {most:g}, got {number:g}")
    return number


def _continue(
    run: RunDirectory, space: AnySpace | None, data: Any, trials: int | None, overrides: Mapping[str, Any]
) -> tuple[Prepared, Machine]:
    """Return a run's space and machine, to continue it. Raises RequestError where another space is given."""
    own, lines = with_known_plugins(run.space)
    for line in lines:
        _log.warning(line)
    own = resolve_space(own, {})
    given: AnySpace = own if space is None else space
    if data is not None and space is not None:
        given, overrides = space_on_arrays(given, os.path.abspath(run.data), overrides), {}
    given = resolve_space(given, overrides)
    prepared = prepare(with_settled_sampler(given, own), trials=trials)
    before, now = flatten(own.to_dict()), flatten(prepared.space.to_dict())
    for path in {**before, **now}:
        if before.get(path) != now.get(path) and not path.startswith(MAY_CHANGE):
            raise RequestError(
                f"{run.path} holds a run of another space: {path} is {show(before.get(path))} there, and given is "
                f"{show(now.get(path))}: give another out"
            )
    if (stop := prepared.space.search.stop) != own.search.stop:
        changed = run.space.with_search(stop=None if stop is None else stop.model_dump())
        edit_run(run, changed, run.facts.most_expensive)
    machine = known_machine(run)
    on_gpu = machine.gpu_bytes is not None

    def here(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments, on_gpu)

    return prepared, machine_to_continue_on(prepared.space, machine, here)
