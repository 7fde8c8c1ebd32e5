"""A full disk."""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from disturbances.checks import (
    Row,
    Undisturbed,
    differences,
    lost_endings,
    read_endings,
    read_events,
    read_figures,
    resume_all,
    run_undisturbed,
    timed,
)
from disturbances.searches import Answer, Harness, Say, small_space, to_resume, to_search


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
    row.checked = "it continues" if leave else "it ends with one line that says so"
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
    """Return a problem where a search does not end with one line that says how to continue."""
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
