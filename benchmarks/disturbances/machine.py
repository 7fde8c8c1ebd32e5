"""What a machine does to a search as its command: signals, Ray's processes that die, lost output, odd starts."""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from disturbances.checks import (
    Row,
    Undisturbed,
    litter,
    lost_endings,
    read_endings,
    read_events,
    read_figures,
    timed,
)
from disturbances.searches import PATIENCE_S, Events, Harness, Say, Values, small_space

SOON_S = 10.0  # from a signal to the prompt
STARTING_S = 40.0  # where Ray's processes are ended, too, while it waits for them to start
FULL = Path("/dev/full")
MIXTUNE = str(Path(sys.executable).with_name("mixtune"))


class Search:
    """A search, or the resume of one, as a command in a folder that holds space.yaml; the run is ``run`` there."""

    def __init__(
        self,
        harness: Harness,
        folder: Path,
        words: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
        output: Path | None = None,
    ) -> None:
        self.run, self._log = folder / "run", folder / "log"
        self.events_before = len(read_events(self.run)) if self.run.exists() else 0
        begun = (self.run / "space.yaml").exists()
        command = ["resume", "run"] if begun else ["search", "space.yaml", "--out", "run"]
        changed = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **(environment or {})}
        known = harness.environment | {name: value for name, value in changed.items() if value is not None}
        with (output or self._log).open("wb") as out:
            self._process = subprocess.Popen(
                [*wrapper, MIXTUNE, *command, *words],
                cwd=folder,
                env={name: value for name, value in known.items() if changed.get(name, "") is not None},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_as_from_a_shell,
            )

    @property
    def process(self) -> int:
        """Its process id."""
        return self._process.pid

    def said(self) -> str:
        """Return what it has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def events(self) -> Events:
        """Return what it has added to the ledger."""
        return read_events(self.run)[self.events_before :] if self.run.exists() else []

    def reaches(self, moment: Callable[[], bool]) -> bool:
        """Return whether a moment comes before its end."""
        deadline = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if moment():
                return True
            time.sleep(0.01)
        return False

    def end(self) -> int | None:
        """Return its exit status, None where it hangs and is killed."""
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None


def _as_from_a_shell() -> None:
    """Let a command hear of signals that whoever runs this in the background ignores."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _trains(search: Search, phase: str) -> bool:
    events = search.events()
    return bool(events) and events[-1]["event"] == "epoch" and events[-1]["metrics"]["phase"] == phase


def _is_closing(search: Search, whole: int) -> bool:
    return search.run.exists() and len(read_endings(read_events(search.run))) == whole


MOMENTS: dict[str, Callable[[Search, Harness, int], bool]] = {  # with how many trials and baselines there are to be
    "as it begins": lambda search, harness, whole: bool(search.said()),
    "as Ray starts": lambda search, harness, whole: any("/gcs_server " in c for c in harness.processes().values()),
    "in an SSL epoch": lambda search, harness, whole: _trains(search, "ssl"),
    "in an SL epoch": lambda search, harness, whole: _trains(search, "sl"),
    "in the closing tables": lambda search, harness, whole: _is_closing(search, whole),
}
Send = Callable[[Search, Harness], None]


def _send(*signals: signal.Signals) -> Send:
    def send(search: Search, harness: Harness) -> None:
        for place, number in enumerate(signals):
            if place:
                search.reaches(lambda: "finishing" in search.said())
            with suppress(ProcessLookupError):
                os.kill(search.process, number)

    return send


def _end_the_job(search: Search, harness: Harness) -> None:
    for process in harness.processes():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)


SIGNALS: dict[str, Send] = {
    **{number.name: _send(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
    **{number.name: _send(number) for number in (signal.SIGUSR1, signal.SIGUSR2)},
    "SIGINT twice": _send(signal.SIGINT, signal.SIGINT),
    "SIGTERM to every process": _end_the_job,
}
RAYS = {"Ray's head": "/gcs_server ", "Ray's node process": "/raylet ", "the worker": "ray::"}


def make_folder(harness: Harness, undisturbed: Undisturbed, name: str) -> Path:
    """Return a new folder with the space of a search."""
    folder = harness.new_run(name)
    write_space(folder, undisturbed.space)
    return folder


def write_space(folder: Path, space: Values) -> None:
    """Make a folder that holds a space."""
    folder.mkdir()
    (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))


def check_whole(
    harness: Harness, undisturbed: Undisturbed, search: Search, status: int | None, done: int = 0
) -> list[str]:
    """Return what is wrong with a search that should have been brought to its end; done: its exit status."""
    if status != done:
        return [f"exit status {status}: {search.said()[-600:]}"]
    said = ["a traceback: " + search.said()[-600:]] if "Traceback" in search.said() else []
    return said + undisturbed.check(search.run) + litter(search.run) + harness.left_behind()


def interrupt(harness: Harness, undisturbed: Undisturbed, name: str, say: Say) -> list[Row]:
    """Send a search and its resumes a signal, at one moment after the other; then let it finish."""
    folder, rows = make_folder(harness, undisturbed, "signal"), []
    for moment, is_now in MOMENTS.items():
        row = Row("machine", f"{name} {moment}", times=1)
        row.checked = "exit 130 and one line in the seconds given; what had ended is there, and no process"
        with timed(row):
            search = Search(harness, folder)
            has_come = search.reaches(lambda: is_now(search, harness, undisturbed.count))  # noqa: B023 - called here
            seen = read_endings(read_events(search.run)) if search.run.exists() else {}
            sent = time.monotonic()
            SIGNALS[name](search, harness)
            status = search.end()
            took = time.monotonic() - sent
            if not has_come or (status == 0 and moment == "in the closing tables"):
                row.done += " (too late: it had ended)"
                row.problems += check_whole(harness, undisturbed, search, status)
            else:
                row.done += f" ({took:.1f} s)"
                most = STARTING_S if SIGNALS[name] is _end_the_job and moment == "as Ray starts" else SOON_S
                row.problems += check_interrupted(search.said(), status, took, most)
            row.problems += lost_endings(seen, search.run) + harness.left_behind()
        say(f"machine: {row.done}, wrong {len(row.problems)}")
        rows.append(row)
    row = Row("machine", f"{name}: the run at its end", times=1, checked="as the undisturbed run")
    with timed(row):
        search = Search(harness, folder)
        row.problems += check_whole(harness, undisturbed, search, search.end())
    return [*rows, row]


def check_interrupted(said: str, status: int | None, took: float, most: float) -> list[str]:
    """Return what is wrong with how a command was interrupted."""
    problems = [] if status == 130 else [f"exit status {status}: {said[-600:]}"]
    problems += [] if took <= most else [f"{took:.1f} s to the prompt"]
    problems += [f"a traceback: {said[-900:]}"] if "Traceback" in said or "Exception ignored" in said else []
    told = [line for line in said.splitlines() if line.startswith("mixtune: interrupted")]
    return problems + ([] if len(told) == 1 else [f"{len(told)} lines say that it was interrupted: {said[-300:]}"])


def end_ray(harness: Harness, undisturbed: Undisturbed, name: str, say: Say) -> Row:
    """Kill a process of Ray's under a search in an SSL epoch, in an SL epoch and in the closing tables."""
    search = Search(harness, make_folder(harness, undisturbed, "ray"))
    row = Row("machine", f"SIGKILL of {name}", checked="the search goes round again; at its end as the undisturbed run")
    with timed(row):
        for moment in [*MOMENTS][2:]:
            if search.reaches(lambda: MOMENTS[moment](search, harness, undisturbed.count)):  # noqa: B023
                row.done += f"{',' if row.times else ''} {moment}"
                row.times += 1
                for process, command in harness.processes().items():
                    if RAYS[name] in command and "agent" not in command.lower():
                        with suppress(ProcessLookupError):
                            os.kill(process, signal.SIGKILL)
                        break
        row.problems += check_whole(harness, undisturbed, search, search.end())
    say(f"machine: {row.done}, wrong {len(row.problems)}")
    return row


def odd_starts(harness: Harness) -> dict[str, dict[str, object]]:
    """Return the options of Search for machines that are not as usual."""
    long = harness.folder / ("x" * 120)
    long.mkdir(exist_ok=True)
    own = {"RAY_TMPDIR": None}
    read_only = harness.folder / "read-only"
    read_only.mkdir(exist_ok=True)

    def under(mounts: str) -> list[str]:
        return ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh"]

    lone = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    piped = '{ "$@"; echo $? > status; } 2>&1 | head -2'
    ro = f"mount -t tmpfs -o ro none {read_only}"
    return {
        "TMPDIR of 120 characters": {"environment": {**own, "TMPDIR": str(long)}},
        "a TMPDIR that is not there": {"environment": {**own, "TMPDIR": str(harness.folder / "none")}},
        "a TMPDIR that can only be read": {
            "environment": {**own, "TMPDIR": str(read_only)},
            "wrapper": under(ro),
        },
        "a HOME that can only be read": {"environment": {"HOME": str(read_only)}, "wrapper": under(ro)},
        "a HOME that is not there": {"environment": {"HOME": str(harness.folder / "none")}},
        "no room in /dev/shm": {"wrapper": under("mount -t tmpfs -o size=4k,ro none /dev/shm")},
        "no network but loopback": {"wrapper": lone},
        "one CPU by affinity": {"wrapper": ["taskset", "-c", "0"], "words": ["--cpus-per-trial", "1"]},
        "an address where nobody is": {"words": ["--address", "127.0.0.1:1"]},
        "FORCE_COLOR": {"environment": {"FORCE_COLOR": "1"}},
        "TERM=dumb": {"environment": {"TERM": "dumb"}},
        "output to a full disk": {"output": FULL},
        "output to a pipe that is closed": {"wrapper": ["sh", "-c", piped, "sh"]},
    }


def start_oddly(harness: Harness, undisturbed: Undisturbed, name: str, options: dict[str, object], say: Say) -> Row:
    """Search where the machine is not as usual: it works, or one line says what is wrong."""
    row = Row("machine", name, times=1, checked="as the undisturbed run, or a line that says what to change")
    folder = make_folder(harness, undisturbed, "odd")
    with timed(row):
        began = time.monotonic()
        search = Search(harness, folder, **options)  # type: ignore[arg-type]
        status, said = search.end(), search.said()
        if (folder / "status").exists():
            status = int((folder / "status").read_text())
        told = [line for line in said.splitlines() if line.startswith("mixtune: ")]
        if status in (1, 2) and len(told) == 1 and "Traceback" not in said:
            row.done += f": {told[0].removeprefix('mixtune: ')}".replace(str(harness.folder), "DIR").replace("|", "/")
            row.problems += [] if time.monotonic() - began < 60 else ["it took more than a minute to say so"]
            row.problems += harness.left_behind()
        else:  # what a full disk did not take makes the status 1
            done = int(options.get("output") == FULL)
            row.problems += check_whole(harness, undisturbed, search, status, done)
        moves = [code for code in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", said) if not code.endswith("m")]  # no colours
        row.problems += [f"a terminal's codes in a file: {moves[:5]}"] if moves else []
    say(f"machine: {row.done}, wrong {len(row.problems)}")
    return row


def run_machine(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    undisturbed = run_undisturbed_command(harness, min(options.trials, 4))
    rows = [row for name in SIGNALS for row in interrupt(harness, undisturbed, name, say)]
    rows += [end_ray(harness, undisturbed, name, say) for name in RAYS]
    odd = odd_starts(harness)
    return rows + [start_oddly(harness, undisturbed, name, given, say) for name, given in odd.items()]


def run_undisturbed_command(harness: Harness, trials: int) -> Undisturbed:
    """Search once without a disturbance, one trial at a time. Raises RuntimeError where that alone does not work."""
    more_than_half = len(os.sched_getaffinity(0)) / 2 + 0.5
    space = small_space(trials, resources={"cpus_per_trial": more_than_half})
    folder, began = harness.new_run("undisturbed"), time.monotonic()
    write_space(folder, space)
    search = Search(harness, folder)
    if (status := search.end()) != 0:
        raise RuntimeError(f"an undisturbed search ends with status {status}: {search.said()}")
    return Undisturbed(space, search.run, read_figures(search.run), startup=0.0, seconds=time.monotonic() - began)
