"""Run a search or continue one: Ray Tune trains what Optuna suggests, the run directory keeps what came of it."""

from __future__ import annotations

import functools
import logging
import shlex
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from mixtune import plugins
from mixtune.cost.machine import look_at_machine
from mixtune.cost.model import CostModel, forecast_most_expensive
from mixtune.errors import DataError, RequestError, TrainingError, show
from mixtune.files import make_folder, write_whole
from mixtune.report.page import write_report
from mixtune.run.accounting import paused_note
from mixtune.run.directory import RunDirectory, free_directory, space_document, space_text
from mixtune.run.ledger import AT_REST, ENDED, TrialRecord
from mixtune.run.lock import ask_to_end, hold_run
from mixtune.run.reference import derive_reference
from mixtune.run.remaining import ended_early, most_trials
from mixtune.run.result import Result, result_of
from mixtune.signals import ENDING, catch_signals
from mixtune.space.foreign import foreign_in_space, refuse_foreign_code
from mixtune.space.placing import complete_params
from mixtune.space.space import SearchSpace
from mixtune.stages.opened import Opened
from mixtune.stages.paths import RecipePaths
from mixtune.tuning.editing import current_run, edit_run, read_edited, refuse_other_recipe
from mixtune.tuning.forecast import forecast_trials
from mixtune.tuning.learning import Source, learn, read_sources, trial_keys
from mixtune.tuning.live import Progress, print_line
from mixtune.tuning.loggers import Logger
from mixtune.tuning.nodes import Cluster, describe_session
from mixtune.tuning.opening import kept_data, machine_to_continue_on, quoted, saying_that_the_ledger_is_full
from mixtune.tuning.prepare import (
    AnySpace,
    Prepared,
    facts_of,
    find_loggers,
    known_machine,
    parse_duration,
    prepare,
    with_known_plugins,
)
from mixtune.tuning.ray import LostRound, run_here, train_trials
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.session import Session, is_in_job_folder, lost_process, ray_session, session_address
from mixtune.tuning.slots import Slots, double_fraction
from mixtune.tuning.states import collect_states
from mixtune.tuning.study_file import StudyFile

if TYPE_CHECKING:
    from ray import tune

_log = logging.getLogger("mixtune.tuning")


class SearchError(TrainingError):
    """A search ran, and not one of its trials completed, or it made no sense to continue."""


def search(
    space: AnySpace,
    *,
    data: Any = None,
    gpus: int | None = None,
    gpus_per_trial: float | Literal["auto"] | None = None,
    cpus_per_trial: float | None = None,
    trials: int | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
    slots: int | None = None,
    wait: float | str | None = None,
    time_budget: float | str | None = None,
    grace: float | str | None = None,
    out: str | PathLike[str] | None = None,
    log_to: Sequence[str] = (),
    callbacks: Sequence[tune.Callback] = (),
    console: Console | None = None,
) -> Result:
    """Search a space and return what was found; the same as ``mixtune search``.

    space: a file, plain values in the form of the file, or a SearchSpace; data: the images, in place of those that
    the space names: ``(images, labels)``, a torch ``Dataset`` of such pairs, a Hugging Face ``Dataset`` or
    ``DatasetDict``, a ``pandas.DataFrame`` of paths and labels, a dict of one of these for each of train, val and
    test (see :func:`mixtune.datasets.to_parts`); they are kept in ``data/`` in the run directory, so that all
    commands continue without the object; gpus: how many of this machine's (default all); gpus_per_trial,
    cpus_per_trial: for each trial, fractions too; overrides: dotted recipe values; address: a Ray cluster's, inside a
    Ray job the job's by default; slots: trials at once there at most, for which an autoscaler may bring nodes; wait:
    seconds, or text such as "30m", for which no node may take a trial before the search ends (default: for ever);
    time_budget: the same, after which no trial is begun and running ones stop at their next epoch, to be continued by
    ``resume``; grace: seconds, or text, that a SIGTERM leaves before it is all over, as of a batch system: running
    trials end and store their epoch, and the tables are written (default: they are left in their epoch); out: the
    run directory (default: a new one below ``runs/``); log_to: loggers by name, such as "tensorboard", with files
    below ``logs/`` in the run directory; callbacks: Ray Tune's or your own, such as
    ``ray.air.integrations.mlflow.MLflowLoggerCallback(tracking_uri, experiment_name="digits")`` or
    ``ray.air.integrations.wandb.WandbLoggerCallback(project="digits")``. An option that is None leaves the space's
    own value.

    A callback receives each trial under the search's id, and after each epoch the metrics of trials.csv. Its
    config holds the base recipe, the dotted parameters over it and what the search tells the worker. The folders that
    Ray gives to trials are temporary: files of a callback belong in one of your own. Epochs that came from a checkpoint
    are not reported; ``log_to`` draws them too.

    Raises RequestError or DataError before anything is trained, DataError when the ledger cannot be written,
    SearchError when not one trial completed or most failed for one reason, and KeyboardInterrupt on Ctrl-C or SIGTERM,
    with the run directory's tables written.
    """
    console = console or Console()
    seconds, wait_s, grace_s = parse_duration(time_budget), parse_duration(wait, "wait"), parse_duration(grace, "grace")
    address = session_address(address)
    name = Path(space).stem if isinstance(space, str | PathLike) else "search"
    run = RunDirectory(Path(out) if out is not None else free_directory(name))
    loggers = find_loggers(log_to, run)
    run.refuse_occupied()
    with kept_data(space, data, run, overrides) as (space, overrides):
        prepared = prepare(
            space,
            gpus=gpus,
            gpus_per_trial=gpus_per_trial,
            cpus_per_trial=cpus_per_trial,
            trials=trials,
            seed=seed,
            overrides=overrides,
            address=address,
        )
        sources = read_sources(prepared.space)
        print_line(console, f"{prepared.describe()}\nrun directory: {run.path}")
        if is_in_job_folder(run.path):
            _log.warning("%s is in the Ray job's own folder and goes with it: give --out a folder that stays", run.path)
        make_folder(run.path)
        with (
            Signals(run, grace_s) as signals,
            hold_run(run.path, "search", on_wait=lambda line: print_line(console, line)),
        ):
            run.refuse_occupied()  # by another that began meanwhile
            with ray_session(address, prepared.cpus, prepared.gpus) as session:
                signals.catch()  # again: Ray's start puts a handler of its own in place
                if address is not None:
                    print_line(console, describe_session())
                threads = max(1, int(prepared.space.resources.cpus_per_trial))
                grows = address is not None or slots is not None
                with closing(Cluster(prepared.space, threads, say_to(console), most=slots, grows=grows)) as cluster:
                    if cluster.is_one:
                        cluster.take(_measure_here(look_at_machine, prepared.space, threads, cluster=cluster))
                    cluster.settle(wait_s)
                    document = space_document(prepared.space, facts_of(prepared, cluster.machine))
                    write_whole(run.space_file, space_text(document))
                    return _run(
                        prepared, run, signals, session, cluster, seconds, wait_s, console, loggers, callbacks, sources
                    )


def resume(
    directory: str | PathLike[str],
    *,
    trials: int | None = None,
    first: Sequence[Mapping[str, Any]] = (),
    space: AnySpace | None = None,
    retry_failed: bool = False,
    gpus: int | None = None,
    gpus_per_trial: float | Literal["auto"] | None = None,
    cpus_per_trial: float | None = None,
    address: str | None = None,
    slots: int | None = None,
    wait: float | str | None = None,
    time_budget: float | str | None = None,
    grace: float | str | None = None,
    log_to: Sequence[str] = (),
    callbacks: Sequence[tune.Callback] = (),
    trust: bool = False,
    console: Console | None = None,
) -> Result:
    """Continue a search after a crash, an interruption or a spent budget; the same as ``mixtune resume``.

    trials: how many may end in all, from now on: more than before extends a finished search; first: recipes to try
    before what the sampler suggests, ``[{"alpha": 0.3}]``, as ``search.first`` of a space; space: the run's with other
    ``space``, ``constraints``, ``search`` or ``resources``, for the trials to come; retry_failed: train the failed
    trials once more; trust: import what the run names of other code; the other options as for :func:`search`, but each
    trial keeps the threads that the search began with, because its bits and its seconds depend on them. Raises as
    ``search`` does.
    """
    console = console or Console()
    seconds, wait_s, grace_s = parse_duration(time_budget), parse_duration(wait, "wait"), parse_duration(grace, "grace")
    address = session_address(address)
    run = current_run(Path(directory), space)
    if space is None:  # one that is given is the user's word
        refuse_foreign_code(run.path, foreign_in_space(run.space, searches=True), trust)
    machine = known_machine(run)
    loggers = find_loggers(log_to, run)
    if gpus is None and address is None and machine.gpu_bytes is None:
        gpus = 0  # as the search began
    searched, lines = with_known_plugins(run.space) if space is None else (read_edited(space, run), [])
    prepared = prepare(
        searched, gpus=gpus, gpus_per_trial=gpus_per_trial, cpus_per_trial=cpus_per_trial, address=address
    )
    if space is not None:
        refuse_other_recipe(f"--space {space}" if isinstance(space, str | PathLike) else "space", run, prepared.space)
    first = [_to_try(prepared.space, given) for given in first]
    sources = read_sources(prepared.space, RunDirectory(run.path).state.sources)
    print_line(console, "\n".join([*lines, prepared.describe(), f"run directory: {run.path}"]))
    with (
        Signals(run, grace_s) as signals,
        hold_run(run.path, "resume", on_wait=lambda line: print_line(console, line)),
        ray_session(address, prepared.cpus, prepared.gpus) as session,
    ):
        signals.catch()  # again: Ray's start puts a handler of its own in place
        if address is not None:
            print_line(console, describe_session())
        say, grows = say_to(console), address is not None or slots is not None
        with closing(Cluster(prepared.space, machine.threads, say, run=machine, most=slots, grows=grows)) as cluster:
            if cluster.is_one:
                here = functools.partial(_measure_here, cluster=cluster)
                cluster.take(machine_to_continue_on(prepared.space, machine, here))
            cluster.settle(wait_s)
            if space is not None:
                most_expensive = forecast_most_expensive(prepared.space, prepared.data, machine)
                print_line(
                    console, edit_run(run, replace(prepared.space, resources=searched.resources), most_expensive)
                )
                run = RunDirectory(run.path)
            return _run(
                prepared,
                run,
                signals,
                session,
                cluster,
                seconds,
                wait_s,
                console,
                loggers,
                callbacks,
                sources,
                trials,
                retry_failed,
                first,
            )


def _to_try(space: SearchSpace, given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return complete_params(space, given)
    except RequestError as error:
        said = ",".join(f"{path}={show(value)}" for path, value in given.items())
        raise RequestError(f"--try {said}: {error}") from error


def _run(
    prepared: Prepared,
    run: RunDirectory,
    signals: Signals,
    session: Session,
    cluster: Cluster,
    seconds: float | None,
    wait_s: float | None,
    console: Console,
    loggers: Sequence[Logger],
    callbacks: Sequence[tune.Callback],
    sources: Sequence[Source],
    trials: int | None = None,
    retry_failed: bool = False,
    first: Sequence[Mapping[str, Any]] = (),
) -> Result:
    """Train what is left of the budget in the present Ray session, and write the run directory's tables."""
    space, machine, slots = prepared.space, cluster.machine, cluster.slots
    costs, paths = CostModel(space, prepared.data, machine), RecipePaths(space)
    study = StudyFile(run.study_file)
    scheduler = plugins.find("tuning.schedulers", space.search.scheduler, "scheduler").build(space)
    is_ours = hasattr(scheduler, "continues")
    opened = Opened.of(space, machine.device, machine.threads)
    for line in opened.compare(run.state, space):
        print_line(console, line)
    with Progress(console) as progress:

        def on_change(search: RunningSearch, record: TrialRecord) -> None:
            progress.update(search, record)
            for log in loggers:
                log(record)
            if record.state == "running":  # a trial trains: no free slot waits for a file
                study.add(search.suggester.study, search.records)

        search = RunningSearch(
            space,
            run.ledger_file,
            on_change,
            state=run.state,
            deadline=None if seconds is None else time.monotonic() + seconds,
            larger_fraction=lambda fraction: double_fraction(slots.gpus if fraction is None else fraction),
            paths=paths,
            slots=slots.count,
            holds=cluster.holds,
            costs=costs.cost,
            fault=costs.fault,
            reference=functools.partial(derive_reference, space, run.facts),
            scheduler=scheduler if is_ours else None,
        )
        if search.unheard:
            sampler, count = space.search.sampler, search.unheard
            print_line(
                console, f"complete trials outside of the edited space, of which {sampler} does not hear: {count}"
            )
        keys_of = functools.partial(_measure_here, trial_keys, cluster, machine) if cluster.is_one else None
        with saying_that_the_ledger_is_full(search, run):
            for source in sources:
                print_line(console, learn(search, source, machine, run.stages, keys_of))
            _extend(search, trials)
            again = search.retry_failed() if retry_failed else 0
            if first:
                search.give(first)
        interrupted, lost = False, None
        if search.is_done:
            waits = ", and what is to be tried waits for that" if search.asking.next_given() is not None else ""
            print_line(console, f"finished already; mixtune resume {quoted(run)} --trials N extends it{waits}")
        else:
            print_line(console, _what_is_left(search, slots, again))
            forecast = forecast_trials(space, prepared.data, costs, search.step_times)
            with saying_that_the_ledger_is_full(search, run):
                search.open({**opened.to_dict(), **run.new_document, "slots": slots.count, "forecast_s": forecast})
                progress.begin(search)
                study.copy(search.suggester.study, search.records)
                foreign = None if is_ours else scheduler
                say = say_to(console)

                def train() -> bool:
                    return train_trials(search, session, cluster, run.path, paths, say, wait_s, callbacks, foreign)

                signals.search = search
                ask_to_end(run.path, asked=False)  # as a driver has left it that was killed
                interrupted, lost = _train_in_rounds(train, search, signals, session, cluster, say)
                signals.search = None
    if not cluster.is_one and not interrupted and lost is None:
        front = {*result_of(run).pareto_front()["trial"], *search.baselines}
        wanted = [record for record in search.records.values() if record.trial in front or record.state not in ENDED]
        for trial, epoch in collect_states(run.path, wanted):
            search.note_home(trial, epoch)
    result = result_of(run)
    study.close(search.suggester.study, search.records)
    _write_tables(result, report=not interrupted)
    if interrupted:
        raise KeyboardInterrupt
    if lost is not None:
        raise SearchError(f"{lost}; what is done is kept: mixtune resume {quoted(run)} continues")
    print_line(console, str(result.account()))
    if note := paused_note(result.counts()):
        print_line(console, f"paused: {note}")
    return _judge(search, result, console)


def _train_in_rounds(
    train: Callable[[], bool],
    search: RunningSearch,
    signals: Signals,
    session: Session,
    cluster: Cluster,
    say: Callable[[str], None],
) -> tuple[bool, str | None]:
    """Train until the search is over; go round again where Ray breaks down, in a session that is started in its place.

    Returns whether a signal ended it, and why it could not go round once more.
    """
    idle_rounds = 0
    while True:
        try:
            return train(), None
        except LostRound as error:
            lost = str(error)
        if search.ends_by is not None:  # the signal went to Ray's processes, too
            return True, None
        idle_rounds = 0 if search.active else idle_rounds + 1
        if not search.lose(lost) or idle_rounds > search.space.search.max_failures:
            return False, f"{lost}, again and again"
        if session.start is None and lost_process() is not None:
            return False, f"{lost}: start Ray again"
        say(f"{lost}: the search goes round again from what is stored")
        if session.start is not None:
            try:
                session.start()
                signals.catch()  # again: see above
                cluster.renew()
            except KeyboardInterrupt:
                return True, None
            except RequestError as error:
                return False, f"{lost}, and {error}"


def _judge(search: RunningSearch, result: Result, console: Console) -> Result:
    """Return the result, or raise SearchError where there is none, or none that can be trusted to be all."""
    run = RunDirectory(result.directory)
    if search.stop_reason:
        raise SearchError(f"{search.stop_reason}; what is done is kept: mixtune pareto {shlex.quote(str(run.path))}")
    if (early := ended_early(search.state, search.space)) is not None:
        done = f"{search.done} of {search.budget} trials done; mixtune resume {quoted(run)} --trials N trains up to N"
        print_line(console, early if search.state.exhausted else f"{early}: {done}")
    if not search.is_done:
        done = f"{search.done} of {search.budget} trials done"
        print_line(console, f"time budget spent: {done}; mixtune resume {quoted(run)} continues")
    elif not result.counts()["complete"]:
        raise SearchError(_why_nothing_completed(result))
    return result


def _measure_here(function: Callable[..., Any], *arguments: Any, cluster: Cluster) -> Any:
    cpus = cluster.space.resources.cpus_per_trial
    return run_here(function, *arguments, on_gpu=cluster.on_gpu, cpus=cpus, on_wait=cluster.tell_waiting)


def _extend(search: RunningSearch, trials: int | None) -> None:
    is_met = search.state.converged is None and trials == search.budget
    if trials is None or is_met:
        return
    if trials < search.done:
        raise RequestError(f"--trials {trials}: {search.done} have ended already; give at least as many")
    size = search.space.grid_size() or 0
    most = most_trials(search.state, search.space)
    if most is not None and trials > (most := max(most, size)):
        raise RequestError(f"--trials {trials}: the grid holds {most} recipes")
    search.extend(trials)


def _what_is_left(search: RunningSearch, slots: Slots, again: int) -> str:
    unfinished = sum(r.state not in AT_REST for r in search.records.values()) - again
    said = f"{search.done} of {search.budget} trials are done, " if search.records else ""
    said += f"{unfinished} continue from their last checkpoint, " if unfinished else ""
    said += f"{again} failed ones are trained again, " if again else ""
    return f"{said}trials: {slots}"


def _write_tables(result: Result, report: bool) -> None:
    """Write what is derived from the ledger; a full disk leaves what was there before, and costs no result."""
    try:
        result.write_tables()
        if report:
            write_report(result, driver=None)
    except DataError as error:
        _log.warning("%s: mixtune resume writes the tables again", error)


def _why_nothing_completed(result: Result) -> str:
    failed = [record for record in result.records.values() if record.state == "failed"]
    if not failed:
        return "no trial completed"
    return f"no trial completed, and {len(failed)} failed; {failed[0].trial}: {failed[0].reason}"


def say_to(console: Console) -> Callable[[str], None]:
    """Return what prints a line as it is."""
    return functools.partial(print_line, console)


TABLES_S = 10.0  # of a grace period at most, and no more than half of it


class InterruptedSearch(KeyboardInterrupt):
    """A signal during a search, in words."""


class Signals:
    """A context manager in which SIGTERM and its like do what Ctrl-C does, and all say how to continue.

    grace_s: how long a SIGTERM, and no other signal and no second one, leaves to running trials and to the tables; it
    is for the ``search`` that is set meanwhile.
    """

    def __init__(self, run: RunDirectory, grace_s: float | None) -> None:
        self._run, self._grace_s, self._has_asked = run, grace_s, False
        self.search: RunningSearch | None = None
        self._before = {number: signal.getsignal(number) for number in ENDING}

    def __enter__(self) -> Signals:
        self.catch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler or signal.SIG_DFL)
        run = self._run
        if self._has_asked:
            ask_to_end(run.path, asked=False)
        if isinstance(error, KeyboardInterrupt):
            done = f"to continue: mixtune resume {quoted(run)}" if run.holds_run else "nothing was trained yet"
            raise InterruptedSearch(f"interrupted; {done}") from None

    def catch(self) -> None:
        """Let signals raise KeyboardInterrupt.

        Ray's start puts handlers of its own in place, and while trials train Ray handles SIGUSR1 itself: see
        train_trials().
        """
        catch_signals(self._end)

    def _end(self, number: int, frame: Any) -> None:
        search = self.search
        if number != signal.SIGTERM or self._grace_s is None or search is None or search.ends_by is not None:
            if search is not None:  # Watch.look() raises again what a callback of a weak reference has swallowed
                search.end_within(0.0)
            raise KeyboardInterrupt
        search.end_within(self._grace_s - min(TABLES_S, self._grace_s / 2))
        self._has_asked = True
        ask_to_end(self._run.path)
