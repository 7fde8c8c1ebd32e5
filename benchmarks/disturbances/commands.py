"""The commands that follow a search, ended amid what they write: SIGKILL, a full disk, a folder that can only be read.

Each begins from a copy of one finished run. Whatever happens to it, the run's ledger, its front and the files of others
stay, nothing half is taken for whole, and the same command finishes what it began.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

import mixtune
from disturbances.checks import Row, litter, read_events, run_undisturbed, timed
from disturbances.disk import fill_disk, small_disk
from disturbances.searches import Harness, Say, small_space

PATIENCE_S = 300
REFUSED = 1, 2  # a command's exit status where data or disk, and where its request, is at fault
MEGABYTES = 60  # of a disk that has room for a run and for what a command writes
FOREIGN = "notes.txt"  # a file of somebody else in the run directory
# Changes of files below a folder are counted, and before the last one of so many the process kills itself.
COUNTED = """
import os, signal, sys
folder, left = os.path.realpath(sys.argv.pop(1)), int(sys.argv.pop(1))
changes, done = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"}, 0
def hook(event, given):
    global done
    if event == "open":
        is_change = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        is_change = event in changes
    if not is_change:
        return
    path = given[0]
    if isinstance(path, int):
        path = os.readlink(f"/proc/self/fd/{path}")
    if not os.path.realpath(os.fsdecode(path)).startswith(folder + "/"):
        return
    if done == left:
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1
sys.addaudithook(hook)
from mixtune.cli import main
try:
    main()
finally:
    print(f"changes: {done}", file=sys.stderr)
"""


@dataclass(frozen=True)
class Command:
    """A command in a folder that holds ``run``.

    outcome: of that folder, what the command leaves, None where it is not there; equal in two undisturbed folders.
    """

    words: tuple[str, ...]
    outcome: Callable[[Path], Any]

    def __str__(self) -> str:
        return self.words[0]


def _confirmed(folder: Path) -> Any:
    events = [event for event in read_events(folder / "run") if event["event"] == "confirmed"]
    return {(e["trial"], e["seed"]): (e["metrics"]["val_accuracy"], e["metrics"]["test_accuracy"]) for e in events}


def _report(folder: Path) -> Any:
    page = folder / "run" / "report.html"
    text = page.read_text() if page.exists() else None
    return None if text is None else (text.startswith("<!DOCTYPE html>"), text.rstrip().endswith("</html>"))


def _exported(folder: Path) -> Any:
    models = [path for path in (folder / "run" / "models").glob("*") if (path / "config.json").exists()]
    return _digests(models[0]) if models else None


def _states(folder: Path) -> Any:
    return sorted(path.name for path in (folder / "run" / "stages").iterdir())


def _proposed(folder: Path) -> Any:
    file = folder / "photos.yaml"
    if not file.exists():
        return None
    recipe = yaml.safe_load(file.read_text())["recipe"]
    recipe["data"]["root"] = Path(recipe["data"]["root"]).name
    return {name: recipe[name] for name in ("data", "model", "optim")}  # budgets follow what was measured


def _trained(folder: Path) -> Any:
    metrics = folder / "one" / "metrics.json"
    return json.loads(metrics.read_text())["val_accuracy"] if metrics.exists() else None


COMMANDS = [
    Command(("confirm", "run", "--seeds", "1"), _confirmed),
    Command(("report", "run"), _report),
    Command(("export", "run"), _exported),
    Command(("clean", "run"), _states),
    Command(("init", "photos", "-o", "photos.yaml"), _proposed),
    Command(("train", "run/space.yaml", "--out", "one"), _trained),
]
PAIRS = [("export", "export"), ("export", "clean"), ("confirm", "clean"), ("report", "confirm"), ("train", "train")]


def _digests(folder: Path) -> tuple[tuple[str, str], ...]:
    """Return each file's name and digest; of those that hold when and where they were made, the name alone."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    differing = ("README.md", "metrics.json")
    contents = [b"" if path.name in differing else path.read_bytes() for path in files]
    return tuple((path.name, hashlib.sha256(c).hexdigest()) for path, c in zip(files, contents, strict=True))


def make_folder(harness: Harness, run: Path, at: Path | None = None) -> Path:
    """Return a folder that holds a copy of a run, and photos in two classes."""
    folder = harness.new_run("commands") if at is None else at
    folder.mkdir(exist_ok=True)
    shutil.copytree(run, folder / "run")
    (folder / "run" / FOREIGN).write_text("mine")
    for number, name in enumerate(("china", "flower")):
        (folder / "photos" / name).mkdir(parents=True)
        photo = Image.fromarray(load_sample_images().images[number])
        for place in range(20):
            photo.crop((20 * place, 0, 20 * place + 48, 48)).save(folder / "photos" / name / f"{place:02d}.png")
    return folder


def start(harness: Harness, folder: Path, command: Command, kill_at: int = -1, wrapper: Sequence[str] = ()) -> Any:
    """Start a command in a folder; kill_at: before which change of a file it is killed, -1 for none."""
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", COUNTED, str(folder), str(kill_at), *command.words],
        cwd=folder,
        env=harness.environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: Any) -> tuple[int, str]:
    """Return the exit status and what was said, -1 where it hangs."""
    try:
        out, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return -1, process.communicate()[1]
    return process.returncode, f"{out}\n{errors}"


@dataclass
class Alone:
    """What a command leaves where nothing happens, and how many changes of files it makes."""

    outcome: Any
    changes: int


def run_alone(harness: Harness, run: Path, command: Command) -> Alone:
    """Run a command once. Raises RuntimeError where that alone does not work."""
    folder = make_folder(harness, run)
    status, said = finish(start(harness, folder, command))
    if status != 0 or command.outcome(folder) is None:
        raise RuntimeError(f"an undisturbed {command} ends with status {status}: {said}")
    return Alone(command.outcome(folder), int(re.search(r"changes: (\d+)", said)[1]))  # type: ignore[index]


def check_kept(folder: Path, run: Path) -> list[str]:
    """Return what of a run is not there any more."""
    kept, now = (run / "ledger.jsonl").read_bytes(), (folder / "run" / "ledger.jsonl").read_bytes()
    problems = [] if now.startswith(kept) else ["the ledger lost what it held"]
    problems += [] if (folder / "run" / FOREIGN).read_text() == "mine" else ["a file of others changed"]
    front = [list(mixtune.load(each).searched_front["trial"]) for each in (run, folder / "run")]
    return problems + ([] if front[0] == front[1] else [f"the front is {front[1]}, and was {front[0]}"])


def check_again(harness: Harness, folder: Path, run: Path, command: Command, alone: Alone) -> list[str]:
    """Run a command that was disturbed again; return what is missing or other than without the disturbance."""
    status, said = finish(start(harness, folder, command))
    if status != 0 and "is there already" not in said:  # what init wrote whole, it does not replace
        return [f"again: status {status}: {said[-600:]}"]
    problems = [] if command.outcome(folder) == alone.outcome else [f"again: {command.outcome(folder)}"]
    return problems + check_kept(folder, run) + litter(folder / "run")


def is_part(found: Any, whole: Any) -> bool:
    """Return whether what a killed command left is nothing, the whole, or a part that is whole in itself."""
    if found is None:
        return True
    if isinstance(whole, dict):  # training runs that were confirmed, or sections of a space
        return all(whole.get(name) == value for name, value in found.items())
    if isinstance(whole, list):  # states that are to be removed
        return set(whole) <= set(found)
    return bool(found == whole)


def kill_command(harness: Harness, run: Path, command: Command, alone: Alone, points: Sequence[int], say: Say) -> Row:
    """Kill a command before each of these changes of files, and run it again."""
    row = Row("commands", f"SIGKILL of {command}, before {len(points)} of its {alone.changes} changes of files")
    row.checked = "ledger, front and others' files stay; nothing half counts; again: as undisturbed"
    with timed(row):
        for point in points:
            folder = make_folder(harness, run)
            status, said = finish(start(harness, folder, command, point))
            problems = [] if status == -signal.SIGKILL else [f"it was not killed: status {status}: {said[-600:]}"]
            found = command.outcome(folder)
            problems += [] if is_part(found, alone.outcome) else [f"what it left counts: {found}"]
            problems += check_kept(folder, run) + check_again(harness, folder, run, command, alone)
            row.times += 1
            row.problems += [f"before change {point}: {problem}" for problem in problems]
            shutil.rmtree(folder)
    say(f"commands: {row.done}, lost {len(row.problems)}")
    return row


def fill_under(harness: Harness, run: Path, command: Command, alone: Alone, say: Say) -> Row:
    """Run a command where the disk is full, or has room for a part of what it writes; then make room."""
    row = Row("commands", f"{command} on a full disk, and with 2 and 60 kB left")
    row.checked = "it is done, or says in one line what cannot be written; again, with room: as undisturbed"
    with timed(row):
        for leave in (0, 2_000, 60_000):
            with small_disk(harness.folder / f"disk-{command}-{leave}", MEGABYTES) as disk:
                folder = make_folder(harness, run, disk / "own")
                filler = fill_disk(disk, leave)
                problems = check_words(*finish(start(harness, folder, command)))
                problems += check_kept(folder, run)
                filler.unlink()
                problems += check_again(harness, folder, run, command, alone)
            row.times += 1
            row.problems += [f"{leave} bytes left: {problem}" for problem in problems]
    say(f"commands: {row.done}, lost {len(row.problems)}")
    return row


def read_only(harness: Harness, run: Path, command: Command, alone: Alone, say: Say) -> Row:
    """Run a command in a folder that can only be read."""
    row = Row("commands", f"{command} in a folder that can only be read", times=1)
    row.checked = "one line that says so; nothing changes; again, where it can be written: as undisturbed"
    with timed(row):
        folder = make_folder(harness, run)
        bound = f'mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && cd {folder} && exec "$@"'
        status, said = finish(start(harness, folder, command, wrapper=["unshare", "-m", "sh", "-c", bound, "sh"]))
        row.problems += [] if status in REFUSED else [f"status {status}"]
        row.problems += check_words(status, said) + check_kept(folder, run)
        row.problems += check_again(harness, folder, run, command, alone)
    say(f"commands: {row.done}, lost {len(row.problems)}")
    return row


def two_at_once(harness: Harness, run: Path, pair: tuple[str, str], alone: Mapping[str, Alone], say: Say) -> Row:
    """Start two commands on one folder at once."""
    row = Row("commands", f"{pair[0]} and {pair[1]} at once", times=1)
    row.checked = "each is done, or says in one line who has the folder; again: as undisturbed"
    commands = {str(command): command for command in COMMANDS}
    with timed(row):
        folder = make_folder(harness, run)
        for status, said in [finish(p) for p in [start(harness, folder, commands[name]) for name in pair]]:
            row.problems += check_words(status, said)
            row.problems += [] if status == 0 or "in use by" in said else [f"status {status}: {said[-300:]}"]
        for name in pair:
            row.problems += check_again(harness, folder, run, commands[name], alone[name])
    say(f"commands: {row.done}, lost {len(row.problems)}")
    return row


def check_words(status: int, said: str) -> list[str]:
    """Return a problem where a command neither is done nor says in one line why not."""
    told = [line for line in said.splitlines() if line.startswith("mixtune: ")]
    if "Traceback" in said:
        return [f"a traceback: {said[-600:]}"]
    is_told = status == 0 or (status in REFUSED and len(told) == 1)
    return [] if is_told else [f"status {status}, {len(told)} lines: {said[-600:]}"]


def choose_points(changes: int, most: int, rng: random.Random) -> list[int]:
    """Return before which changes a command is killed: all, or at most so many."""
    return list(range(changes)) if changes <= most else sorted(rng.sample(range(changes), most))


def run_commands(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    run = run_undisturbed(harness, small_space(min(options.trials, 4))).directory
    alone = {str(command): run_alone(harness, run, command) for command in COMMANDS}
    say(f"commands: changes of files: {', '.join(f'{name} {each.changes}' for name, each in alone.items())}")
    rows = []
    for command in COMMANDS:
        points = choose_points(alone[str(command)].changes, max(1, options.kills // 4), rng)
        rows.append(kill_command(harness, run, command, alone[str(command)], points, say))
    if os.geteuid() == 0:
        for mishap in (fill_under, read_only):
            rows += [mishap(harness, run, command, alone[str(command)], say) for command in COMMANDS]
    return rows + [two_at_once(harness, run, pair, alone, say) for pair in PAIRS]
