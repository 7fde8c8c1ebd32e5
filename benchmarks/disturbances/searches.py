"""Small searches in processes of their own, which can be killed and leave nothing behind."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from disturbances.nodes import kill_marked, marked_processes

Values = dict[str, Any]
Events = list[dict[str, Any]]
Say = Callable[[str], None]

MARK, FAULTS = "MIXTUNE_RELIABILITY", "MIXTUNE_FAULTS"  # environment variables of what this script starts
PATIENCE_S = 300.0  # for any one search; then it hangs


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
        "baselines": ["sl", "ssl_sl"],
        "search": {"trials": trials, "sampler": "tpe"},
        "resources": {"cpus_per_trial": 1},
    } | sections


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


def drive(job: Path) -> None:
    """Make the calls of a job one after another in one Ray session, and write down how each ended.

    This is the process that is disturbed: it imports what it needs here, and has one CPU for one trial at a time.
    """
    from mixtune.tuning import run
    from mixtune.tuning.session import ray_session

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
        runtime_env={"worker_process_setup_hook": "disturbances.faults.install_faults"},
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
                [sys.executable, "-m", "disturbances.searches", str(job)],
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

    @property
    def process(self) -> int:
        """The driver's process id."""
        return self._process.pid

    @property
    def is_done(self) -> bool:
        """Whether all its calls returned without an error."""
        lines = self._answers.read_text().splitlines() if self._answers.exists() else []
        return self._process.returncode == 0 and bool(lines) and all(json.loads(e)["error"] is None for e in lines)

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
        search_path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | {
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
        return Driver(job, self.environment | added)

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
        return marked_processes(MARK, str(self.folder))

    def kill_all(self) -> None:
        """Kill every process that is left."""
        kill_marked(MARK, str(self.folder))

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


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
