"""A long search of short trials with a fault every minute: nothing is lost, and its driver does not grow."""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mixtune
from disturbances.checks import Row, check_budget, differences, litter, read_endings, read_events, read_figures, timed
from disturbances.damage import damage_states
from disturbances.searches import Driver, Harness, Say, Values, one_thread, small_space, to_go_on

LOOK_S = 2.0  # between two looks at the driver
SETTLED_S = 60.0  # after which a driver has loaded what it needs
GROWTH = 0.2  # of a driver's memory, at most


def soak_space(trials: int) -> Values:
    """Return a space of trials that train for a moment; its sampler suggests the same whatever happens."""
    return small_space(
        trials,
        epochs=1,
        space={
            "alpha": {"uniform": [0.05, 0.95]},
            "rho": {"choice": [0.0, 1.0]},
            "optim.sl.base_lr": {"loguniform": [0.003, 0.3]},
        },
        search={"trials": trials, "sampler": "random"},
    )


def run_soak(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    """Search options.soak trials with a fault each options.every seconds; in turn each of FAULTS."""
    space = soak_space(options.soak)
    expected = harness.new_run("alone")
    with one_thread(), mixtune.Study(space, out=expected, overrides={"resources.gpus_per_trial": 0}) as study:
        while (trial := study.ask()) is not None:
            trial.train()
    say(f"soak: {options.soak} trials without Ray and without a fault are done")
    found = harness.new_run("soaked")
    rows = {name: Row("soak", name, checked="goes on, or is continued by resume") for name in FAULTS}
    whole = Row("soak", f"a search of {options.soak} trials, a fault every {options.every:g} s")
    whole.checked = "trials, epochs and front as of the search alone; the driver's memory and files do not grow"
    sizes: list[list[tuple[float, int]]] = []
    with timed(whole):
        while not (driver := harness.start(to_go_on(space, found))).ends_within(0.0):
            sizes.append([])
            watch_driver(driver, sizes[-1], harness, found, rows, rng, options.every, say)
            if driver.ends_within(0.0) and driver.is_done:
                break
    whole.times += 1
    whole.problems += check_budget(found, options.soak) + litter(found) + harness.left_behind()
    whole.problems += differences(read_figures(expected), read_figures(found))
    grown, files = growth(sizes)
    whole.done += f": the longest driver's memory grew by {grown:.0%}, its open files by {files}"
    if grown > GROWTH or files > 10:
        whole.problems.append("its driver grows")
    return [*rows.values(), whole]


def watch_driver(
    driver: Driver,
    sizes: list[tuple[float, int]],
    harness: Harness,
    run: Path,
    rows: dict[str, Row],
    rng: random.Random,
    every_s: float,
    say: Say,
) -> None:
    """Note a driver's memory in bytes and its open files until it ends, and disturb it."""
    started = due = time.monotonic()
    while not driver.ends_within(LOOK_S):
        now = time.monotonic()
        if now - started > SETTLED_S:
            with suppress(OSError):
                sizes.append(look(driver.process))
        if now - due < every_s:
            continue
        due = now
        name = min(rows, key=lambda each: (rows[each].times, rng.random()))
        rows[name].times += 1
        FAULTS[name](driver, harness, run, rng)
        say(f"soak: {name}; {len(read_endings(read_events(run)))} trials have ended")


def look(process: int) -> tuple[float, int]:
    """Return a process's resident memory in bytes, and how many files it has open."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * float(os.sysconf("SC_PAGE_SIZE")), len(os.listdir(f"/proc/{process}/fd"))


def growth(sizes: list[list[tuple[float, int]]]) -> tuple[float, int]:
    """Return by which share the longest-lived driver's memory grew, and by how many its open files, tenth to tenth."""
    longest = max(sizes, key=len)
    tenth = max(1, len(longest) // 10)
    if len(longest) < 2 * tenth:
        return 0.0, 0
    (memory, files), (later, more) = (
        (statistics.median(size for size, _ in part), statistics.median(count for _, count in part))
        for part in (longest[:tenth], longest[-tenth:])
    )
    return later / memory - 1.0, round(more - files)


def _kill_a_process(pattern: str) -> Callable[[Driver, Harness, Path, random.Random], None]:
    def kill(driver: Driver, harness: Harness, run: Path, rng: random.Random) -> None:
        found = [process for process, command in harness.processes().items() if pattern in command]
        if found:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)

    return kill


def _kill_driver(driver: Driver, harness: Harness, run: Path, rng: random.Random) -> None:
    driver.kill()
    if rng.random() < 0.5:
        harness.kill_all()


def _end_driver(driver: Driver, harness: Harness, run: Path, rng: random.Random) -> None:
    with suppress(ProcessLookupError):
        os.kill(driver.process, rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))


def _damage(driver: Driver, harness: Harness, run: Path, rng: random.Random) -> None:
    with suppress(OSError):  # it is removed meanwhile
        damage_states(run / "stages", rng)


FAULTS: dict[str, Callable[[Driver, Harness, Path, random.Random], None]] = {
    "SIGKILL of a worker": _kill_a_process("ray::"),
    "all states damaged": _damage,
    "SIGKILL of Ray's node process": _kill_a_process("raylet"),
    "SIGINT, SIGTERM or SIGHUP to the driver": _end_driver,
    "SIGKILL of the driver": _kill_driver,
}
