"""Does a search lose anything to what happens to searches: kills, damaged files, failing trials, a full disk?

    python benchmarks/reliability.py --kills 100

runs small searches on digits, one trial at a time on one CPU thread, so that an undisturbed run is repeatable bit for
bit, and disturbs others:

kills       a search and its resumes are killed with SIGKILL at random moments until it has finished, again and again,
            in turn the driver alone and every process of it;
states      stored states, space.yaml, the ledger, study.db and the tables are cut, emptied, overwritten and exchanged;
injections  trials get NaN and infinite weights, raise, exit, are killed and run out of memory while they are set up and
            at a random step of each of six epochs (two of each phase), once and always; a folder of images disappears
            in mid-search;
disk        the disk is full while ledger, states and tables are written.

After each the trials, their figures and the front are compared with those of an undisturbed run, every trial that was
ever seen to have ended must have kept its figures, and ledger, tables, study.db and ``mixtune.load`` must agree. What
is lost or wrong is printed and written down, and the exit status is then 1. Results go to benchmarks/results/.
Nothing is put into the package for this: faults come from a wrapper around mixtune's training step that Ray's workers
load at their start. Linux alone; ``disk`` mounts a tmpfs, as root, and else bounds the size of files instead.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import platform
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mixtune
from mixtune.analysis.frames import csv_text
from mixtune.ledger import Ledger, read_ledger, step_windows, trial_states
from mixtune.recipe import change_recipe
from mixtune.space import load_space
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.recovery import Recovery
from mixtune.training.stages import stage_keys
from mixtune.training.state import TrainState, start_state
from mixtune.training.step_times import StepTimes
from mixtune.training.store import StateStore

Values = dict[str, Any]
Events = list[dict[str, Any]]
Say = Callable[[str], None]

RESULTS = Path(__file__).parent / "results"
MARK, FAULTS = "MIXTUNE_RELIABILITY", "MIXTUNE_FAULTS"  # environment variables of what this script starts
PATIENCE_S = 300.0  # for any one search; then it hangs
ENDINGS = {name: name for name in ("complete", "stopped", "rejected", "failed")} | {"baseline": "complete"}
# what a clock has no part in
EXACT = (
    "val_accuracy",
    "val_accuracy_se",
    "train_flops",
    "ssl_loss",
    "sl_loss",
    "method",
    "phase",
    "epoch",
    "epochs_asked",
    "train_images",
    "lr_ssl",
    "lr_sl",
    "precision",
)


def small_space(trials: int = 12, epochs: int = 10, **sections: Any) -> Values:
    """Return the values of a space on a part of digits; a trial of 20 epochs takes about a second."""
    return {
        "recipe": {
            "data": {"dataset": "digits", "fraction": 0.2},
            "model": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
            "epochs": {"ssl": epochs, "sl": epochs},
            "optim": {"batch_size": 32, "ssl": {"base_lr": 0.02}, "sl": {"base_lr": 0.04}},
        },
        "space": {
            "alpha": {"uniform": [0.05, 0.95]},
            "rho": {"quniform": [0.0, 1.0, 0.25]},
            "epochs.sl": {"randint": [max(1, epochs // 2), epochs + 5]},
        },
        "objectives": {"val_accuracy": "max", "train_flops": "min"},
        "search": {"trials": trials, "sampler": "tpe"},
        "resources": {"cpus_per_trial": 1},
    } | sections


# What is found out.


@dataclass
class Row:
    """One kind of disturbance: how often, how long it took, what was lost or wrong, and what was looked at."""

    part: str
    done: str
    times: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    checked: str = ""


@contextmanager
def timed(row: Row) -> Iterator[Row]:
    """Count the seconds of a stretch of work."""
    started = time.perf_counter()
    yield row
    row.seconds += time.perf_counter() - started


# Searches in processes of their own.


def drive(job: Path) -> None:
    """Make the calls of a job one after another in one Ray session, and write down how each ended.

    This is the process that is disturbed: it imports what it needs here, and has one CPU for one trial at a time.
    """
    from mixtune.tuning import run
    from mixtune.tuning.cluster import ray_session

    told = json.loads(job.read_text())
    with _faulty_session(told["gpus"]) if told["faults"] else nullcontext(), ray_session(None, 1, told["gpus"]):
        if told["file_bytes"] is not None:  # of the driver alone: Ray's processes are running already
            resource.setrlimit(resource.RLIMIT_FSIZE, (told["file_bytes"], resource.RLIM_INFINITY))
        for call in told["calls"]:
            answer: Values = {"error": None, "message": ""}
            try:
                if call["do"] == "search":
                    run.search(call["space"], out=call["directory"])
                else:
                    run.resume(call["directory"], **call["options"])
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  whatever it is, it is written down
                kinds = [kind.__name__ for kind in type(error).__mro__]
                answer = {"error": kinds, "message": str(error), "trace": traceback.format_exc()}
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with Path(told["answers"]).open("a") as file:
                print(json.dumps(answer), file=file)


@contextmanager
def _faulty_session(gpus: int) -> Iterator[None]:
    """Start Ray so that its workers load the faults; its GPUs are logical, so the machine needs none."""
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        runtime_env={"worker_process_setup_hook": f"{Path(__file__).stem}.install_faults"},
    )
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Answer:
    """How a call ended: ``error`` are the names of the error's classes, None where it returned."""

    error: list[str] | None
    message: str
    trace: str = ""

    def is_refusal(self) -> bool:
        """Return whether it says in one line what is wrong with the request or its data."""
        return bool({"RequestError", "DataError"} & set(self.error or ())) and "\n" not in self.message

    def __str__(self) -> str:
        return "done" if self.error is None else f"{self.error[0]}: {self.message}"


def to_search(space: Values, directory: Path) -> Values:
    """Return a call of a job."""
    return {"do": "search", "space": space, "directory": str(directory)}


def to_resume(directory: Path, **options: Any) -> Values:
    """Return a call of a job."""
    return {"do": "resume", "directory": str(directory), "options": options}


def to_go_on(space: Values, directory: Path) -> Values:
    """Return the call that a user would make after a crash: before its first word a run is not there to resume."""
    return to_resume(directory) if (directory / "space.yaml").exists() else to_search(space, directory)


class Driver:
    """A process that makes the calls of a job."""

    def __init__(self, job: Path, environment: Mapping[str, str]) -> None:
        self._answers, self._log = job.with_suffix(".answers"), job.with_suffix(".log")
        self.started = time.time()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--drive", str(job)],
                env=environment,
                cwd=job.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ends_within(self, seconds: float) -> bool:
        """Return whether the process ends by itself in that time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Return whether a condition comes true while the process runs."""
        while not condition():
            if self.ends_within(0.02) or time.time() - self.started > PATIENCE_S:
                return condition()
        return True

    def kill(self) -> None:
        """Kill the driver, and nothing else that it started."""
        self._process.kill()
        self._process.wait()

    def finish(self) -> list[Answer]:
        """Wait for the end and return how the calls ended, at least one; a driver that hangs is killed."""
        hangs = not self.ends_within(PATIENCE_S)
        if hangs:
            self.kill()
        lines = self._answers.read_text().splitlines() if self._answers.exists() else []
        answers = [Answer(**json.loads(line)) for line in lines]
        if hangs or self._process.returncode != 0:
            how = f"hangs after {PATIENCE_S:.0f} s" if hangs else f"ended with status {self._process.returncode}"
            answers.append(Answer(["Hang" if hangs else "Crash"], f"the driver {how}: {self.log()[-400:]}"))
        return answers or [Answer(["Crash"], f"the driver said nothing: {self.log()[-400:]}")]

    def log(self) -> str:
        """Return what the process has printed."""
        return self._log.read_text(errors="replace")


class Harness:
    """A folder for the runs, and processes that carry its name in their environment, so that none is left behind.

    Temporary files, Ray's and the decoded images are kept below the folder too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = 0
        for name in ("tmp", "runs", "jobs", "data"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        search_path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = os.environ | {
            MARK: str(folder),
            "MIXTUNE_DATA": str(folder / "data"),
            "TMPDIR": str(folder / "tmp"),
            "RAY_TMPDIR": str(folder / "tmp"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join(search_path),
            "COLUMNS": "120",
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        }

    def start(self, *calls: Values, faults: Path | None = None, gpus: int = 0, file_bytes: int | None = None) -> Driver:
        """Start a process that makes the calls; faults: a plan for install_faults(); gpus: logical ones."""
        self._jobs += 1
        job = self.folder / "jobs" / f"{self._jobs:04d}.json"
        told = {"calls": calls, "faults": str(faults or ""), "gpus": gpus, "file_bytes": file_bytes}
        job.write_text(json.dumps(told | {"answers": str(job.with_suffix(".answers"))}))
        # all train on the CPU: a GPU computes no bits twice; where GPUs are logical, install_faults() hides real ones
        added = {FAULTS: str(faults)} if faults else {"CUDA_VISIBLE_DEVICES": ""}
        return Driver(job, self._environment | added)

    def run(self, *calls: Values, **options: Any) -> list[Answer]:
        """Make the calls and return how they ended."""
        return self.start(*calls, **options).finish()

    def call(self, call: Values, **options: Any) -> Answer:
        """Make one call and return how it ended."""
        return self.run(call, **options)[-1]

    def new_run(self, name: str) -> Path:
        """Return a run directory that does not exist."""
        directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder / "runs"))
        directory.rmdir()
        return directory

    def processes(self) -> dict[int, str]:
        """Return the commands of the processes that this harness's drivers and their descendants are."""
        mark, found = f"{MARK}={self.folder}".encode(), {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # it has ended meanwhile, or is nobody's
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    def kill_all(self) -> None:
        """Kill every process that is left."""
        while left := self.processes():
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def left_behind(self, patience_s: float = 30.0) -> list[str]:
        """Return a problem where processes do not end by themselves once their driver has; end them.

        Ray's agents do not count: they look a minute for its dead head, and hold nothing of a search.
        """

        def left() -> list[str]:
            return [command for command in self.processes().values() if "agent" not in command.lower()]

        deadline = time.monotonic() + patience_s
        while left() and time.monotonic() < deadline:
            time.sleep(0.2)
        commands = [command[:80] for command in left()]
        self.kill_all()
        return [f"left {patience_s:.0f} s after their driver: {', '.join(commands)}"] if commands else []


@contextmanager
def make_harness() -> Iterator[Harness]:
    """Yield a harness in a new temporary folder, which is removed; its name is short, as Ray's sockets need it."""
    folder = Path(tempfile.mkdtemp(prefix="mixtune-rel-", dir="/tmp"))
    harness = Harness(folder)
    try:
        yield harness
    finally:
        harness.kill_all()
        shutil.rmtree(folder, ignore_errors=True)


# Reading a run directory, without mixtune's own reader of ledgers.


def read_events(directory: Path) -> Events:
    """Return what the ledger holds: a line counts once its newline is there."""
    path = directory / "ledger.jsonl"
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def read_endings(events: Events) -> dict[str, Values]:
    """Return the event that ended each trial and baseline."""
    endings: dict[str, Values] = {}
    for event in events:
        if event["event"] == "retried":
            endings.pop(event["trial"], None)
        elif event["event"] in ENDINGS:
            endings.setdefault(event["trial"], event)
    return endings


def read_params(events: Events) -> dict[str, Values]:
    """Return the parameters of each trial and baseline."""
    return {e["trial"]: e["params"] for e in events if "params" in e}


def exact_figures(metrics: Mapping[str, Any]) -> Values:
    """Return what an equal training has again, bit for bit."""
    return {name: metrics[name] for name in EXACT if name in metrics}


def read_figures(directory: Path) -> dict[str, Any]:
    """Return all of a run that an undisturbed run has too: by trial, and the front."""
    events = read_events(directory)
    params = read_params(events)
    figures: dict[str, Any] = {}
    for trial, ending in read_endings(events).items():
        epochs = {
            e["metrics"]["epoch"]: exact_figures(e["metrics"])
            for e in events
            if e["event"] == "epoch" and e["trial"] == trial
        }
        metrics = exact_figures(ending.get("metrics") or {})
        figures[trial] = {"state": ENDINGS[ending["event"]], "params": params[trial], **metrics, "epochs": epochs}
    figures["the front"] = find_front(events, mixtune.load(directory).objectives)
    return figures


def find_front(events: Events, objectives: Mapping[str, str]) -> list[str]:
    """Return the complete trials that no other dominates, by comparing all with all."""
    signs = {name: 1 if mode == "max" else -1 for name, mode in objectives.items()}
    complete = {
        trial: [sign * ending["metrics"][name] for name, sign in signs.items()]
        for trial, ending in read_endings(events).items()
        if ending["event"] == "complete"
    }

    def is_dominated(values: list[float]) -> bool:
        return any(
            all(o >= v for o, v in zip(other, values, strict=True)) and other != values for other in complete.values()
        )

    return sorted(trial for trial, values in complete.items() if not is_dominated(values))


# What must hold.


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return a line for each trial, and for the front, that is not as in the undisturbed run."""
    lines = []
    for name in sorted({*expected, *found}):
        if name not in found or name not in expected:
            lines.append(f"{name} is {'lost' if name not in found else 'one too many'}")
        elif expected[name] != found[name]:
            lines.append(f"{name} differs from the undisturbed run: {_first_difference(expected[name], found[name])}")
    return lines


def _first_difference(expected: Any, found: Any) -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        key = next(k for k in [*expected, *found] if expected.get(k) != found.get(k))
        return f"{key}: {_first_difference(expected.get(key), found.get(key))}"
    return f"{found} instead of {expected}"


def lost_endings(before: Mapping[str, Values], directory: Path) -> list[str]:
    """Return a line for each trial that had ended and has not any more, or not as it had."""
    now = read_endings(read_events(directory))
    return [
        f"{trial} had ended, and is {'lost' if trial not in now else f'now {now[trial]}, before {ending}'}"
        for trial, ending in before.items()
        if now.get(trial) != ending
    ]


def check_ledger(events: Events) -> list[str]:
    """Return a line for each trial that ends twice, and for each epoch that was trained twice to other figures."""
    problems: list[str] = []
    ended: set[str] = set()
    epochs: dict[tuple[str, int], Values] = {}
    for event in events:
        trial = event.get("trial", "")
        if event["event"] == "retried":
            ended.discard(trial)
        elif event["event"] in ENDINGS:
            problems += [f"{trial} ends twice in the ledger"] if trial in ended else []
            ended.add(trial)
        elif event["event"] == "epoch":
            figures = exact_figures(event["metrics"])
            if epochs.setdefault((trial, figures["epoch"]), figures) != figures:
                problems.append(f"{trial}, epoch {figures['epoch']}: two trainings of it differ")
    return problems


def check_run(directory: Path) -> list[str]:
    """Return where ledger, trials.csv, pareto.csv, study.db and mixtune.load disagree; the run has no driver."""
    events = read_events(directory)
    endings = read_endings(events)
    result = mixtune.load(directory)
    trials = {trial: ending for trial, ending in endings.items() if ending["event"] != "baseline"}
    wanted = {trial: _row(ending, result.objectives) for trial, ending in trials.items() if trial not in BASELINES}
    problems = check_ledger(events)
    loaded = {trial: record.state for trial, record in result.records.items() if trial in endings}
    if loaded != {trial: ENDINGS[ending["event"]] for trial, ending in endings.items()}:
        problems.append("mixtune.load has other states than the ledger")
    if (directory / "trials.csv").read_text() != csv_text(result.trials):
        problems.append("trials.csv is not what mixtune.load has")
    table = read_table(directory / "trials.csv")
    rows = {t: (row["state"], *(_number(row[name]) for name in result.objectives)) for t, row in table.items()}
    problems += _disagreements("trials.csv", {t: r for t, r in rows.items() if r[0] in ENDINGS.values()}, wanted)
    front = {trial: wanted[trial] for trial in find_front(events, result.objectives)}
    members = read_table(directory / "pareto.csv")
    in_table = {t: (row["state"], *(_number(row[name]) for name in result.objectives)) for t, row in members.items()}
    problems += _disagreements("pareto.csv", in_table, front)
    return problems + _disagreements("study.db", read_study(directory, result.objectives), wanted)


BASELINES = ("sl", "ssl_sl")


def _row(ending: Values, objectives: Mapping[str, str]) -> tuple[Any, ...]:
    metrics = ending.get("metrics") or {}
    return ENDINGS[ending["event"]], *(metrics.get(name) for name in objectives)


def _disagreements(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} has {found.get(trial, 'nothing')} of {trial}, the ledger has {wanted.get(trial, 'nothing')}"
        for trial in sorted({*found, *wanted})
        if found.get(trial) != wanted.get(trial)
    ]


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a CSV file by trial."""
    with path.open(newline="") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def _number(text: str) -> float | None:
    return float(text) if text else None


def read_study(directory: Path, objectives: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
    """Return our state and the objectives of each trial of study.db, as anyone would read it by Optuna."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(f"sqlite:///{directory / 'study.db'}")
    try:
        trials = optuna.load_study(study_name="mixtune", storage=storage).get_trials()
    finally:
        storage.engine.dispose()
    names = {"complete": "COMPLETE", "stopped": "PRUNED", "rejected": "PRUNED", "failed": "FAIL"}
    rows = {}
    for trial in trials:
        own = trial.user_attrs
        agrees = names[own["state"]] == trial.state.name
        metrics = trial.values or [own.get(name) for name in objectives]
        rows[own["trial"]] = (own["state"] if agrees else trial.state.name, *metrics)
    return rows


def check_budget(directory: Path, trials: int, baselines: int = 2) -> list[str]:
    """Return a problem where the run has more or fewer ended trials than asked for."""
    ended = read_endings(read_events(directory))
    own = [trial for trial in ended if trial not in BASELINES]
    if (len(own), len(ended) - len(own)) == (trials, baselines):
        return []
    return [f"{len(own)} trials and {len(ended) - len(own)} baselines ended, of {trials} and {baselines}"]


@dataclass(frozen=True)
class Undisturbed:
    """A finished run that nothing happened to: its directory and figures, and the seconds until its first word."""

    space: Values
    directory: Path
    figures: dict[str, Any]
    startup: float
    seconds: float

    @property
    def count(self) -> int:
        """How many trials and baselines it has."""
        return len(self.figures) - 1  # the front is there too

    def check(self, directory: Path) -> list[str]:
        """Return what another finished run of the same space lost or has wrong."""
        baselines = len(self.space.get("baselines", BASELINES))
        problems = check_budget(directory, self.space["search"]["trials"], baselines)
        return [*problems, *differences(self.figures, read_figures(directory)), *check_run(directory)]


def run_undisturbed(harness: Harness, space: Values) -> Undisturbed:
    """Search once without a disturbance. Raises RuntimeError where that alone does not work."""
    directory = harness.new_run("undisturbed")
    driver = harness.start(to_search(space, directory))
    answer = driver.finish()[-1]
    seconds = time.time() - driver.started
    if answer.error is not None:
        raise RuntimeError(f"an undisturbed search fails: {answer}\n{answer.trace}")
    startup = read_events(directory)[0]["time"] - driver.started
    run = Undisturbed(space, directory, read_figures(directory), startup, seconds)
    if problems := run.check(directory) + harness.left_behind():
        raise RuntimeError(f"an undisturbed search is wrong already: {problems}")
    return run


# Kills.


def kill_searches(
    harness: Harness, undisturbed: Undisturbed, kills: int, rng: random.Random, say: Say, damaged: float = 0.0
) -> list[Row]:
    """Kill searches until there were so many kills; every run is brought to its end and compared.

    damaged: after which share of the kills all stored states are damaged too.
    """
    alone, all_of_it = Row("kills", "SIGKILL of the driver"), Row("kills", "SIGKILL of all processes")
    alone.checked = all_of_it.checked = "what had ended is there again, bit for bit"
    runs = Row("kills", "runs finished in spite of that")
    runs.checked = "as the undisturbed run: budget, trials, epochs, front, tables, study.db; no process is left"
    early = late = 0
    while alone.times + all_of_it.times < kills:
        directory = harness.new_run("killed")
        seen: dict[str, Values] = {}
        while True:
            row = rng.choice([alone, all_of_it])
            with timed(row):
                driver = harness.start(to_go_on(undisturbed.space, directory))
                left = kills - alone.times - all_of_it.times
                if not left or not reaches_its_kill(driver, directory, undisturbed, len(seen), rng):
                    break
                driver.kill()
                if row is all_of_it:
                    harness.kill_all()
                row.times += 1
                row.problems += lost_endings(seen, directory)
                seen |= read_endings(read_events(directory))
                early += not (directory / "ledger.jsonl").exists()
                late += len(seen) == undisturbed.count
                if rng.random() < damaged:
                    damage_states(directory / "stages", rng)
        with timed(runs):
            runs.times += 1
            answer = driver.finish()[-1]
            problems = lost_endings(seen, directory) + ([f"{answer} {answer.trace}"] if answer.error else [])
            if answer.error is None:
                problems += undisturbed.check(directory) + litter(directory)
            runs.problems += [f"run {runs.times}: {problem}" for problem in problems + harness.left_behind()]
        done = alone.times + all_of_it.times
        say(f"kills: {done} of {kills}, {runs.times} runs finished, lost {count_problems([alone, all_of_it, runs])}")
    runs.done += f"; {early} of the kills fell before their first word, {late} after their last trial"
    return [alone, all_of_it, runs]


def reaches_its_kill(driver: Driver, directory: Path, undisturbed: Undisturbed, ended: int, rng: random.Random) -> bool:
    """Wait for a random moment; return whether it comes before the driver's end.

    As a rule it is in the time between a driver's first word and its expected end, now and then before that.
    """
    if rng.random() < 0.15:
        return not driver.ends_within(rng.uniform(0.5, 1.0) * undisturbed.startup)
    ledger = directory / "ledger.jsonl"
    words = len(read_events(directory))
    if not driver.wait_until(lambda: ledger.exists() and len(read_events(directory)) > words):
        return False
    expected = (undisturbed.seconds - undisturbed.startup) * (1 - ended / undisturbed.count)
    return not driver.ends_within(rng.uniform(0.0, expected + 2.0))


def litter(directory: Path) -> list[str]:
    """Return a problem where a finished run still holds temporary files; those of states go when a trial begins."""
    found = [path.name for path in directory.iterdir() if path.name.endswith((".tmp", "-journal", "-wal"))]
    return [f"temporary files are left: {', '.join(found)}"] if found else []


# Damage.


def damage_bytes(content: bytes, others: Sequence[bytes], rng: random.Random) -> tuple[str, bytes]:
    """Return what a damage is called, and a file's content after it; never the same content."""
    size = len(content)
    first_line = content.find(b"\n") + 1
    cuts = [0, 1, first_line - 1, first_line, first_line + 1, size // 2, size - 1, rng.randrange(size)]
    kind = rng.choice(["cut", "cut", "emptied", "overwritten", "a bit flipped", "zeros at the end", "another's"])
    damaged = b""
    if kind == "cut":
        damaged = content[: max(0, rng.choice(cuts))]
    elif kind == "overwritten":
        damaged = rng.randbytes(rng.choice([1, 100, size]))
    elif kind == "a bit flipped":
        place = rng.choice([0, first_line - 1, first_line, size - 1, rng.randrange(size)])
        damaged = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    elif kind == "zeros at the end":
        keep = rng.randrange(size)
        damaged = content[:keep] + bytes(size - keep)
    elif kind == "another's" and others:
        damaged = rng.choice(others)
    return (kind, damaged) if damaged != content else ("emptied", b"")


def damage_states(folder: Path, rng: random.Random) -> None:
    """Damage every stored state of a run."""
    files = sorted(folder.glob("*.state"))
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(damage_bytes(content, contents, rng)[1])


@contextmanager
def one_thread() -> Iterator[None]:
    """Train in this process as trials do; mixtune's warnings about damage are wanted, and not shown."""
    threads, logger = torch.get_num_threads(), logging.getLogger("mixtune")
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)


@dataclass(frozen=True)
class TrialStates:
    """A trial's recipe, the keys of its states, and those that are stored."""

    trial: str
    start: Callable[[], TrainState]
    keys: tuple[str, ...]
    stored: list[int]


def read_paths(run: Undisturbed) -> list[TrialStates]:
    """Return what each trial of a run may go on from."""
    space = load_space(run.directory / "space.yaml")
    windows = step_windows(read_events(run.directory))
    paths = []
    for trial, params in read_params(read_events(run.directory)).items():
        recipe = change_recipe(space.recipe, params)
        data = load_training_data(recipe)

        def start(recipe: Any = recipe, data: Any = data) -> TrainState:
            state = start_state(recipe, data)
            state.step_times = StepTimes(windows)
            return state

        keys = stage_keys(recipe, data)
        stored = [k for k, key in enumerate(keys) if (run.directory / "stages" / f"{key}.state").exists()]
        paths.append(TrialStates(trial, start, keys, stored))
    return paths


def check_damaged_store(run: Undisturbed, count: int, rng: random.Random, say: Say) -> list[Row]:
    """Damage stored states one by one, or several of a trial at once: what is found must be whole, and the trial's."""
    looked_up = Row("states", "a stored state damaged, looked up", checked="the longest whole prefix, bit for bit")
    trained = Row("states", "the same, and trained on", checked="final weights and losses, bit for bit")
    with one_thread(), tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(run.directory / "stages", Path(scratch) / "stages")
        pristine = {file.name: file.read_bytes() for file in folder.iterdir()}
        whole = {key: StateStore(folder).load(key) for key in (Path(name).stem for name in pristine)}
        with timed(looked_up):
            paths = read_paths(run)
            ends = {path.trial: finish_training(path.start(), folder / "nowhere") for path in paths[:6]}
        for number in range(count):
            path = rng.choice(paths)
            places = rng.sample(path.stored, rng.randint(1, len(path.stored)))
            for place in places:
                file = folder / f"{path.keys[place]}.state"
                file.write_bytes(damage_bytes(file.read_bytes(), list(pristine.values()), rng)[1])
            what = f"{path.trial}, damage {number}"
            with timed(looked_up):
                looked_up.times += 1
                looked_up.problems += check_lookup(path, folder, whole, set(path.stored) - set(places), what)
            if path.trial in ends and trained.times < count // 10 + 1:
                with timed(trained):
                    trained.times += 1
                    if finish_training(path.start(), folder) != ends[path.trial]:
                        trained.problems.append(f"{what}: trained to other weights")
            shutil.rmtree(folder)
            folder.mkdir()
            for name, content in pristine.items():
                (folder / name).write_bytes(content)
    say(f"states: {looked_up.times} looked up, {trained.times} trained on, lost {count_problems([looked_up, trained])}")
    return [looked_up, trained]


def check_lookup(path: TrialStates, folder: Path, whole: Mapping[str, Any], intact: set[int], what: str) -> list[str]:
    """Return a problem where the longest stored prefix is not the longest intact one, or not what was stored."""
    try:
        found = StateStore(folder).longest(path.keys)
    except Exception as error:  # noqa: BLE001  it promises to raise nothing
        return [f"{what}: {error!r}"]
    if found is None or not intact:
        return [] if found is None and not intact else [f"{what}: found {found and found[0]}, intact are {intact}"]
    k, state = found
    if k != max(intact) or not same(state, whole[path.keys[k]]):
        return [f"{what}: found epoch {k}, wanted epoch {max(intact)} as it was stored"]
    return []


def same(a: Any, b: Any) -> bool:
    """Return whether two states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def finish_training(state: TrainState, folder: Path) -> tuple[Any, ...]:
    """Train on from what a folder of states has, storing nothing, and return the final weights and losses."""
    Recovery(state, folder)
    for _ in train(state):
        pass
    weights = [tensor.numpy().tobytes() for tensor in state.backbone.state_dict().values()]
    weights += [tensor.numpy().tobytes() for tensor in state.classifiers.state_dict().values()]
    return *weights, *((result.ssl_loss, result.sl_loss, result.accuracies) for result in state.history)


def resume_cut_runs(
    harness: Harness, undisturbed: Undisturbed, count: int, rng: random.Random, say: Say, damaged: bool
) -> Row:
    """Resume copies of a finished run whose ledger ends at a random line, as after a crash there."""
    row = Row("states", f"resume after a crash at a random line{', every stored state damaged' if damaged else ''}")
    row.checked = "the whole run equals the undisturbed one"
    with timed(row):
        copies = [copy_run(harness, undisturbed.directory) for _ in range(count)]
        for copy in copies:
            ledger = (copy / "ledger.jsonl").read_bytes().splitlines(keepends=True)
            (copy / "ledger.jsonl").write_bytes(b"".join(ledger[: rng.randrange(len(ledger))]))
            if damaged:
                damage_states(copy / "stages", rng)
        row.times = count
        row.problems += resume_all(harness, undisturbed, copies)
        remove_all(copies)
    say(f"{row.part}: {row.done}: {count} times, lost {len(row.problems)}")
    return row


def copy_run(harness: Harness, directory: Path) -> Path:
    """Return a copy of a run that nobody drives."""
    return shutil.copytree(directory, harness.new_run("copy"))


def remove_all(directories: Sequence[Path]) -> None:
    """Remove run directories that are not needed any more."""
    for directory in directories:
        shutil.rmtree(directory)


def resume_all(harness: Harness, undisturbed: Undisturbed, directories: Sequence[Path]) -> list[str]:
    """Resume runs one after another; return what each lost or has wrong at its end."""
    before = [endings_if_readable(directory) for directory in directories]
    answers = harness.run(*(to_resume(directory) for directory in directories))
    problems = [str(answer) for answer in answers if answer.error is not None]
    for ended, directory in zip(before, directories, strict=True):
        problems += lost_endings(ended, directory) + undisturbed.check(directory)
    return problems + harness.left_behind()


def endings_if_readable(directory: Path) -> dict[str, Values]:
    """Return how trials ended, nothing of a ledger that is damaged in its middle."""
    try:
        return read_endings(read_events(directory))
    except ValueError:
        return {}


def cut_ledger(undisturbed: Undisturbed, count: int, rng: random.Random, say: Say) -> Row:
    """Cut the ledger at every byte of its last two lines and elsewhere: readers see the whole lines before the cut."""
    from mixtune.tuning.state import RunningSearch

    row = Row(
        "states", "the ledger cut", checked="reader, mixtune.load, resumed search: a prefix; the next line fits on"
    )
    content = (undisturbed.directory / "ledger.jsonl").read_bytes()
    events = read_events(undisturbed.directory)
    space = load_space(undisturbed.directory / "space.yaml")
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    cuts = [*range(ends[-3], len(content) + 1), *(rng.randrange(len(content)) for _ in range(count))]
    looked_at = {ends[-3], ends[-2] - 1, ends[-2], len(content) - 1, *rng.sample(cuts, min(count, len(cuts)))}
    with timed(row), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "ledger.jsonl"
        shutil.copy(undisturbed.directory / "space.yaml", scratch)
        for cut in cuts:
            row.times += 1
            path.write_bytes(content[:cut] + rng.choice([b"", b"", bytes(rng.randint(1, 600))]))
            prefix = events[: sum(end <= cut for end in ends)]
            try:
                found: list[Any] = [trial_states(read_ledger(path))]
                if cut in looked_at:
                    found += [mixtune.load(scratch).records, RunningSearch(space, path).records]
                    Ledger(path).append("note", cut=cut)
                    grown = read_events(Path(scratch))
                    row.problems += [] if grown[:-1] == prefix else [f"cut at {cut}: another line after it is wrong"]
            except Exception as error:  # noqa: BLE001  a torn end should be read like none
                row.problems.append(f"cut at {cut}: {error!r}")
                continue
            row.problems += [f"cut at {cut}: not the prefix" for records in found if records != trial_states(prefix)]
    say(f"states: the ledger cut {row.times} times, lost {len(row.problems)}")
    return row


def leave_litter(harness: Harness, undisturbed: Undisturbed, say: Say) -> Row:
    """Put what a writer leaves that is killed before its rename: before a search's first word, and into a run."""
    row = Row("states", "temporary files of a killed writer", times=2)
    row.checked = "the search begins in spite of them and resume removes them"
    with timed(row):
        fresh, finished = harness.new_run("begun"), copy_run(harness, undisturbed.directory)
        fresh.mkdir()
        for file in (fresh / ".space.yaml.1.tmp", finished / ".pareto.html.1.tmp", finished / ".study.db.1.tmp"):
            file.write_text("half of")
        answers = harness.run(to_search(undisturbed.space, fresh), to_resume(finished))
        row.problems += [str(answer) for answer in answers if answer.error is not None]
        for directory in (fresh, finished):
            row.problems += litter(directory)
        row.problems += undisturbed.check(finished)
        row.problems += undisturbed.check(fresh) if (fresh / "ledger.jsonl").exists() else []
        row.problems += harness.left_behind()
    say(f"states: {row.done}, lost {len(row.problems)}")
    return row


DAMAGED_FILES = ("space.yaml", "ledger.jsonl", "study.db", "trials.csv", "pareto.csv", "pareto.html")


def resume_with_damaged_files(
    harness: Harness, undisturbed: Undisturbed, count: int, rng: random.Random, say: Say
) -> list[Row]:
    """Resume copies of a finished run, one file of each damaged: it works, or is refused in one line."""
    rows = []
    for name in DAMAGED_FILES:
        row = Row("states", f"resume with {name} damaged", times=count)
        is_derived = name not in ("space.yaml", "ledger.jsonl")
        row.checked = (
            "the run is whole again" if is_derived else "it works, or is refused in one line; no trial is lost"
        )
        with timed(row):
            copies = [copy_run(harness, undisturbed.directory) for _ in range(count)]
            damages = [damage_file(copy / name, rng) for copy in copies]
            before = [(endings_if_readable(copy), (copy / "ledger.jsonl").read_bytes()) for copy in copies]
            answers = harness.run(*(to_resume(copy) for copy in copies))
            refused = sum(answer.is_refusal() for answer in answers)
            row.done += f" ({refused} refused)" if refused else ""
            for copy, damage, answer, (ended, ledger) in zip(copies, damages, answers, before, strict=False):
                found = check_after_damage(undisturbed, copy, answer, ended, ledger, is_derived)
                row.problems += [f"{damage}: {problem}" for problem in found]
            row.problems += [str(answer) for answer in answers[count:]]
            row.problems += harness.left_behind()
            remove_all(copies)
        say(f"states: {row.done}: {count} times, lost {len(row.problems)}")
        rows.append(row)
    return rows


def damage_file(path: Path, rng: random.Random) -> str:
    """Damage a file, remove it or put a folder in its place, and say how; a ledger loses its end or a byte."""
    whole, how = path.read_bytes(), rng.random()
    if path.name == "ledger.jsonl":
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + (b"" if how < 0.5 else rng.randbytes(1) + whole[place + 1 :]))
        return f"{'cut' if how < 0.5 else 'another byte'} at {place}"
    if how > 0.2:
        kind, content = damage_bytes(whole, [], rng)
        path.write_bytes(content)
        return f"{kind}, {len(content)} of {len(whole)} bytes"
    path.unlink()
    if how < 0.1:
        return "removed"
    path.mkdir()
    return "a folder"


def check_after_damage(
    undisturbed: Undisturbed, directory: Path, answer: Answer, ended: Values, ledger: bytes, is_derived: bool
) -> list[str]:
    """Return what a resume after damage lost; a refused one must have left the ledger as it was."""
    if answer.is_refusal() and not is_derived:
        return [] if (directory / "ledger.jsonl").read_bytes() == ledger else ["a refused resume changed the ledger"]
    if answer.error is not None:
        return [f"{answer} {answer.trace}"]
    problems = lost_endings(ended, directory)
    return problems + (undisturbed.check(directory) if is_derived else [])


# Faults in trials.


@dataclass(frozen=True)
class Fault:
    """What happens to a trial at a step of an epoch, once or every time that it comes there."""

    kind: str  # nan, inf, exception, exit, kill, oom
    always: bool = True

    def __str__(self) -> str:
        return self.kind if self.kind in ("nan", "inf") else f"{self.kind}, {'always' if self.always else 'once'}"


CRASHES = ("exception", "exit", "kill")
REASONS = {
    "nan": "DivergedError: the loss is nan in epoch ",
    "inf": "DivergedError: the loss is ",
    "exception": "ArithmeticError: injected",
    "exit": "the worker process died",
    "kill": "the worker process died",
    "oom": "OutOfMemoryError: CUDA out of memory: injected",
}
SIX_FAULTS: tuple[Fault | None, ...] = (
    None,
    Fault("nan"),
    Fault("inf"),
    *(Fault(kind, always) for kind in (*CRASHES, "oom") for always in (False, True)),
    None,
)
MOST_RETRIES = 2  # search.max_failures
EPOCHS, STEPS = 6, 8  # two epochs of each phase; epoch 0 stands for the time before the first


def install_faults() -> None:
    """Wrap the training step of this worker process: what a plan says for a trial's SSL rate happens to it.

    A fault of epoch 0 strikes while the trial is set up.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    from mixtune.training import loop
    from mixtune.tuning import trainable

    plan_file = Path(os.environ[FAULTS])
    plan = json.loads(plan_file.read_text())
    train_step, start_state = loop.train_step, trainable.start_state
    last = {"epoch": -1, "step": -1}

    def start(*given: Any) -> Any:
        state = start_state(*given)
        last["epoch"] = -1
        reach(state, 0, 0)
        return state

    def step(state: Any, epoch: Any, *batch: Any) -> Any:
        last["step"] = last["step"] + 1 if last["epoch"] == epoch.index else 0
        last["epoch"] = epoch.index
        reach(state, epoch.index + 1, last["step"])
        return train_step(state, epoch, *batch)

    def reach(state: Any, epoch: int, number: int) -> None:
        rate = str(state.recipe.optim.ssl.base_lr)
        fault = plan.get(rate)
        if fault and (epoch, number) == (fault["epoch"], fault["step"]):
            fired = plan_file.with_name(f"{plan_file.stem}.{rate}.fired")
            if fault["always"] or not fired.exists():
                with fired.open("a") as file:
                    print(os.getpid(), file=file)
                strike(fault["kind"], state)

    loop.train_step, trainable.start_state = step, start


def strike(kind: str, state: Any) -> None:
    """Let a fault happen."""
    if kind == "exception":
        raise ArithmeticError("injected")
    if kind == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory: injected")
    if kind == "exit":
        os._exit(1)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    with torch.no_grad():
        for weight in state.backbone.parameters():
            weight.fill_(math.nan if kind == "nan" else math.inf)


def fault_space(faults: Sequence[Fault | None]) -> tuple[Values, dict[float, Fault | None]]:
    """Return a space that has a trial for each fault, told apart by the SSL rate, and which rate has which."""
    by_rate = {round(0.02 + 0.001 * i, 3): fault for i, fault in enumerate(faults)}
    space = small_space(trials=len(by_rate), baselines=[], space={"optim.ssl.base_lr": {"choice": list(by_rate)}})
    space["recipe"]["epochs"] = {"ssl": 4, "sl": 4}
    space["recipe"]["rho"] = 0.5
    space["search"] = {"sampler": "grid", "max_failures": MOST_RETRIES}
    space["resources"] = {"cpus_per_trial": 1, "gpus_per_trial": 0.25}
    return space, by_rate


def train_undisturbed(space: Values) -> dict[float, Values]:
    """Train every recipe of a fault_space() in this process, without Ray; return exact figures by SSL rate."""
    with one_thread():
        return {
            rate: exact_figures(finish_alone(space["recipe"], rate))
            for rate in space["space"]["optim.ssl.base_lr"]["choice"]
        }


def finish_alone(recipe: Values, rate: float) -> Values:
    """Return the metrics of a recipe that is trained by itself, on a CPU."""
    from mixtune.training.metrics import measure

    changed = change_recipe(mixtune.parse_recipe(recipe), {"optim.ssl.base_lr": rate})
    state = start_state(changed, load_training_data(changed))
    for _ in train(state):
        pass
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in measure(state).to_dict().items()}


def inject(
    harness: Harness, faults: Sequence[Fault | None], epoch: int, wanted: Mapping[float, Values], rng: random.Random
) -> list[str]:
    """Search while faults strike in one epoch; return a line for each trial that did not end as it should."""
    space, by_rate = fault_space(faults)
    plan = {
        str(rate): {
            "kind": fault.kind,
            "always": fault.always,
            "epoch": epoch,
            "step": rng.randrange(STEPS) if epoch else 0,
        }
        for rate, fault in by_rate.items()
        if fault is not None
    }
    directory = harness.new_run("faults")
    plan_file = harness.folder / f"plan-{directory.name}.json"
    plan_file.write_text(json.dumps(plan))
    answers = harness.run(to_search(space, directory), faults=plan_file, gpus=1)
    problems = [str(answer) for answer in answers if answer.error is not None]
    events = read_events(directory)
    endings, params = read_endings(events), read_params(events)
    for trial, given in params.items():
        rate = given["optim.ssl.base_lr"]
        fired = plan_file.with_name(f"{plan_file.stem}.{rate}.fired")
        struck = len(fired.read_text().splitlines()) if fired.exists() else 0
        retries = [e for e in events if e["event"] == "retried" and e["trial"] == trial]
        where = f"{by_rate[rate] or 'undisturbed'}, epoch {epoch}"
        problems += check_fault(by_rate[rate], endings.get(trial), retries, struck, wanted[rate], where)
    return problems + check_budget(directory, len(faults), baselines=0) + check_run(directory) + harness.left_behind()


def check_fault(
    fault: Fault | None, ending: Values | None, retries: Events, struck: int, wanted: Values, where: str
) -> list[str]:
    """Return a line where a trial did not end as its fault demands."""
    if ending is None:
        return [f"{where}: never ended"]
    shares: list[Any] = []
    if fault is not None and fault.kind == "oom":
        shares = [0.5, 1.0] if fault.always else [0.5]
    elif fault is not None and fault.kind in CRASHES:
        shares = [None] * (MOST_RETRIES if fault.always else 1)
    fails = fault is not None and fault.always
    found = {
        "state": ENDINGS[ending["event"]],
        "shares of a GPU for each retry": [e.get("gpus_per_trial") for e in retries],
        "strikes": struck,
        "figures": None if fails else exact_figures(ending["metrics"]),
    }
    expected = {
        "state": "failed" if fails else "complete",
        "shares of a GPU for each retry": shares,
        "strikes": 0 if fault is None else len(shares) + fault.always,
        "figures": None if fails else wanted,
    }
    problems = [f"{where}: {_first_difference(expected, found)}"] if found != expected else []
    told = [e["reason"] for e in retries] + ([ending["reason"]] if ending["event"] == "failed" else [])
    wrong = [reason for reason in told if fault is None or not reason.startswith(REASONS[fault.kind])]
    return problems + [f"{where}: the reason is {reason!r}" for reason in wrong]


def inject_all(harness: Harness, epochs: Sequence[int], rng: random.Random, say: Say) -> list[Row]:
    """Inject every fault in every epoch."""
    row = Row("injections", "NaN, inf, exception, exit, SIGKILL, out of memory, in set-up and at a step of each epoch")
    row.checked = "failed with its reason, or retried to an undisturbed training's figures; the others as ever"
    with timed(row):
        wanted = train_undisturbed(fault_space(SIX_FAULTS)[0])
    for epoch in epochs:
        with timed(row):
            row.times += sum(fault is not None for fault in SIX_FAULTS)
            row.problems += inject(harness, SIX_FAULTS, epoch, wanted, rng)
        say(f"injections: epoch {epoch}, {row.times} faults, lost {len(row.problems)}")
    return [row]


def fail_all(harness: Harness, rng: random.Random, say: Say) -> Row:
    """Let every trial raise: the search stops and says why, and once the cause is gone it can be gone on with."""
    row = Row("injections", "every trial raises", times=1, checked="the search stops early, says why, and can go on")
    faults = [Fault("exception")] * 8
    space, by_rate = fault_space(faults)
    plan = {str(rate): {"kind": "exception", "always": True, "epoch": 2, "step": 0} for rate in by_rate}
    with timed(row):
        directory = harness.new_run("hopeless")
        plan_file = harness.folder / f"plan-{directory.name}.json"
        plan_file.write_text(json.dumps(plan))
        answer = harness.call(to_search(space, directory), faults=plan_file, gpus=1)
        told = "4 of 4 trials failed for one reason: ArithmeticError: injected"
        if "SearchError" not in (answer.error or ()) or told not in answer.message:
            row.problems.append(f"{answer} instead of {told}")
        row.problems += check_run(directory)
        plan_file.write_text("{}")
        answer = harness.call(to_resume(directory, retry_failed=True), faults=plan_file, gpus=1)
        row.problems += [] if answer.error is None else [str(answer)]
        wanted = train_undisturbed(space)
        events = read_events(directory)
        params = read_params(events)
        for trial, ending in read_endings(events).items():
            if exact_figures(ending["metrics"]) != wanted[params[trial]["optim.ssl.base_lr"]]:
                row.problems.append(f"{trial} differs from an undisturbed training")
        row.problems += check_budget(directory, len(faults), baselines=0) + check_run(directory)
        row.problems += harness.left_behind()
    say(f"injections: every trial raises, lost {len(row.problems)}")
    return row


def lose_images(harness: Harness, say: Say) -> Row:
    """Remove the folder of images in mid-search, and kill a worker, so that a new one has to look for them."""
    row = Row("injections", "the folder of images removed in mid-search", times=1)
    row.checked = "it goes on, or says what is missing; with the images back it ends as an undisturbed search"
    with timed(row):
        images = harness.folder / "images"
        write_images(images)
        space = small_space(trials=6, epochs=4, space={"optim.ssl.base_lr": {"choice": [0.02, 0.03, 0.04]}})
        space["space"]["alpha"] = {"uniform": [0.05, 0.95]}
        space["recipe"]["data"] = {"dataset": "image_folder", "root": str(images)}
        undisturbed = run_undisturbed(harness, space)
        directory = harness.new_run("imageless")
        plan_file = harness.folder / f"plan-{directory.name}.json"
        strikes = {"kind": "exit", "always": False, "epoch": 3, "step": 1}
        plan_file.write_text(json.dumps(dict.fromkeys(["0.02", "0.03", "0.04"], strikes)))
        driver = harness.start(to_search(space, directory), faults=plan_file)
        driver.wait_until(lambda: len(read_endings(read_events(directory))) >= 2)
        images.rename(harness.folder / "elsewhere")
        answer = driver.finish()[-1]
        ended = read_endings(read_events(directory))
        lacking = [e["reason"] for e in ended.values() if e["event"] == "failed"]
        row.problems += [f"the reason is {reason!r}" for reason in lacking if str(images) not in reason]
        if answer.error is not None and not {"SearchError", "DataError", "RequestError"} & set(answer.error):
            row.problems.append(f"{answer} {answer.trace}")
        answer = harness.call(to_resume(directory))  # still without them
        row.problems += [str(answer)] if answer.error and not answer.is_refusal() else []
        (harness.folder / "elsewhere").rename(images)
        answer = harness.call(to_resume(directory, retry_failed=bool(lacking)))
        row.problems += [str(answer)] if answer.error else []
        row.problems += undisturbed.check(directory) + harness.left_behind()
    say(f"injections: the images removed ({len(lacking)} trials failed of it), lost {len(row.problems)}")
    return row


def write_images(folder: Path, count: int = 400) -> None:
    """Write some of digits as files, a class a folder."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(place / f"{i}.png")


# A full disk.


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk of so many MB on a folder. Raises OSError."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        raise OSError("a tmpfs cannot be mounted: that needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def enlarge_disk(folder: Path, megabytes: int) -> None:
    """Let a small_disk() have so many MB."""
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(folder)], check=True)


def fill_disk(folder: Path, leave: int = 0) -> Path:
    """Fill a disk but for so many bytes; return the file that does."""
    filler = folder / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while (free := shutil.disk_usage(folder).free) > leave:
            file.write(bytes(min(1 << 20, free - leave)))
            file.flush()
    return filler


def search_on_a_tiny_disk(harness: Harness, undisturbed: Undisturbed, say: Say) -> Row:
    """Search where neither states nor the plot have room; then make room and resume."""
    row = Row("disk", "no room for states and tables", times=1)
    row.checked = "the search finishes with one warning for each; resume with room: equal to the undisturbed run"
    with timed(row), small_disk(harness.folder / "tiny", 3) as disk:
        directory = disk / "run"
        driver = harness.start(to_search(undisturbed.space, directory))
        answer = driver.finish()[-1]
        row.problems += [] if answer.error is None else [f"{answer} {answer.trace}"]
        row.problems += one_warning(driver.log(), "mixtune resume writes the tables again")
        row.problems += one_warning(driver.log(), "epochs are trained again instead of reused")
        row.problems += differences(undisturbed.figures, read_figures(directory)) if not row.problems else []
        enlarge_disk(disk, 200)
        row.problems += resume_all(harness, undisturbed, [directory])
    say(f"disk: {row.done}, lost {len(row.problems)}")
    return row


def one_warning(log: str, words: str) -> list[str]:
    """Return a problem where a log does not say something in exactly one line."""
    lines = [line for line in log.splitlines() if words in line]
    return [] if len(lines) == 1 else [f"{len(lines)} warnings {words!r} instead of one"]


def fill_while_searching(harness: Harness, undisturbed: Undisturbed, leave: int, say: Say) -> Row:
    """Fill the disk in mid-search: nothing fits any more, or with some bytes left the ledger alone does."""
    row = Row("disk", f"full in mid-search but for {leave / 1e6:.0f} MB" if leave else "full in mid-search", times=1)
    row.checked = "it goes on" if leave else "it ends with one line that says so"
    row.checked += "; resume with room: equal to the undisturbed run"
    with timed(row), small_disk(harness.folder / f"filled-{leave}", 120) as disk:
        directory = disk / "run"
        driver = harness.start(to_search(undisturbed.space, directory))
        driver.wait_until(lambda: len(read_endings(read_events(directory))) >= 4)
        filler = fill_disk(disk, leave)
        answer = driver.finish()[-1]
        row.problems += check_full(answer) if not leave else [str(answer)] if answer.error else []
        ended = read_endings(read_events(directory))
        if not leave:
            answer = harness.call(to_resume(directory))  # still full
            row.problems += [f"resumed on a full disk: {p}" for p in check_full(answer)]
            row.problems += lost_endings(ended, directory)
        filler.unlink()
        row.problems += resume_all(harness, undisturbed, [directory])
        row.problems += lost_endings(ended, directory)
    say(f"disk: {row.done}, lost {len(row.problems)}")
    return row


def check_full(answer: Answer) -> list[str]:
    """Return a problem where a search does not end with one line that says how to go on."""
    is_clear = answer.is_refusal() and "cannot be written" in answer.message
    return [] if is_clear else [f"{answer} {answer.trace}"]


def bound_files(harness: Harness, undisturbed: Undisturbed, say: Say) -> Row:
    """Let no file of the driver grow beyond half of what the ledger needs, where no disk can be mounted."""
    row = Row("disk", "no file may grow any more", times=1)
    row.checked = "the search ends with one line that says so; resume: equal to the undisturbed run"
    with timed(row):
        directory = harness.new_run("bounded")
        most = (undisturbed.directory / "ledger.jsonl").stat().st_size // 2
        answer = harness.call(to_search(undisturbed.space, directory), file_bytes=most)
        row.problems += check_full(answer)
        row.problems += resume_all(harness, undisturbed, [directory])
    say(f"disk: {row.done}, lost {len(row.problems)}")
    return row


# The parts.


def run_kills(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    undisturbed = run_undisturbed(harness, small_space(options.trials))
    say(f"kills: an undisturbed search takes {undisturbed.seconds:.0f} s, {undisturbed.startup:.0f} s of it to start")
    return kill_searches(harness, undisturbed, options.kills, rng, say)


def run_states(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    undisturbed = run_undisturbed(harness, small_space(options.trials))
    rows = check_damaged_store(undisturbed, options.damages, rng, say)
    rows.append(cut_ledger(undisturbed, options.damages, rng, say))
    resumed = max(1, options.damages // 40)
    rows += [resume_cut_runs(harness, undisturbed, resumed, rng, say, damaged) for damaged in (False, True)]
    rows.append(leave_litter(harness, undisturbed, say))
    return rows + resume_with_damaged_files(harness, undisturbed, max(2, options.damages // 10), rng, say)


def run_injections(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    rows = inject_all(harness, options.epochs, rng, say)
    return [*rows, fail_all(harness, rng, say), lose_images(harness, say)]


def run_disk(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    undisturbed = run_undisturbed(harness, small_space(options.trials))
    try:
        with small_disk(harness.folder / "probe", 1):
            pass
    except OSError as error:
        say(f"disk: {error}; the size of files is bounded instead")
        return [bound_files(harness, undisturbed, say)]
    tiny = search_on_a_tiny_disk(harness, undisturbed, say)
    return [tiny, *(fill_while_searching(harness, undisturbed, leave, say) for leave in (0, 20_000_000))]


PARTS = {"kills": run_kills, "states": run_states, "injections": run_injections, "disk": run_disk}


# The report.


def count_problems(rows: Sequence[Row]) -> int:
    """Return how much was lost or wrong."""
    return sum(len(row.problems) for row in rows)


def write_report(rows: Sequence[Row], options: argparse.Namespace, seconds: float) -> str:
    """Return the results file."""
    packages = [f"{name} {version(name)}" for name in ("torch", "ray", "optuna")]
    command = ["--kills", options.kills, "--damages", options.damages, "--trials", options.trials]
    command += ["--epochs", ",".join(map(str, options.epochs)), "--seed", options.seed]
    command += ["--only", ",".join(options.only)]
    about = [
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
        ", ".join([f"mixtune {mixtune.__version__}", f"Python {platform.python_version()}", *packages]),
        f"{date.today().isoformat()}, {seconds:.0f} s",
        f"`python benchmarks/reliability.py {shlex.join(map(str, command))}`",
    ]
    head = ["part", "what was done", "times", "lost or wrong", "seconds", "what was checked"]
    table = [
        [row.part, row.done, f"{row.times}", f"{len(row.problems)}", f"{row.seconds:.0f}", row.checked] for row in rows
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *table)]
    problems = [f"- {row.part}, {row.done}: {' '.join(p.split())[:600]}" for row in rows for p in row.problems[:20]]
    sections = [
        "# What searches survive",
        "Printed by benchmarks/reliability.py, which says what is done and how.",
        "\n".join(f"- {line}" for line in about),
        "\n".join(lines),
        "Lost or wrong:" if problems else "Nothing was lost.",
        "\n".join(problems),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def parse_options(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=200, help="of stored states; of other files a tenth, each")
    parser.add_argument("--trials", type=int, default=12, help="of a search that is killed, damaged or out of disk")
    parser.add_argument("--epochs", default="0,1,2,3,4,5,6", help="at which faults are injected")
    parser.add_argument("--only", default=",".join(PARTS), help=",".join(PARTS))
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of reliability.md")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    options.only = options.only.split(",")
    options.epochs = [int(epoch) for epoch in options.epochs.split(",")]
    if not set(options.only) <= set(PARTS):
        parser.error(f"--only {','.join(options.only)}: known are {', '.join(PARTS)}")
    if not set(options.epochs) <= set(range(EPOCHS + 1)) or min(options.kills, options.damages) < 1:
        parser.error(f"--epochs are 0 to {EPOCHS}; --kills and --damages at least 1")
    if options.trials < 2:
        parser.error("--trials should be at least 2")
    return options


def main() -> None:
    options = parse_options()
    if options.drive is not None:
        drive(options.drive)
        return
    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {line}", flush=True)

    say(f"seed {options.seed}; {', '.join(options.only)}")
    rows: list[Row] = []
    for part in options.only:
        with make_harness() as harness:
            rows += PARTS[part](harness, options, random.Random(f"{options.seed}/{part}"), say)
    text = write_report(rows, options, time.perf_counter() - started)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "reliability.md").write_text(text)
    print(f"\n{text}\nwritten to {options.out / 'reliability.md'}")
    sys.exit(1 if count_problems(rows) else 0)


if __name__ == "__main__":
    main()
