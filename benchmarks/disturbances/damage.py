"""Stored states, ledgers and other files cut, emptied, overwritten and exchanged."""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mixtune
from disturbances.checks import (
    Row,
    Undisturbed,
    changed_endings,
    copy_run,
    count_problems,
    litter,
    read_endings,
    read_events,
    read_params,
    remove_all,
    resume_all,
    run_undisturbed,
    timed,
)
from disturbances.searches import Answer, Harness, Say, Values, one_thread, small_space, to_resume, to_search
from mixtune.run.ledger import Ledger, fold, read_ledger
from mixtune.space.recipe import change_recipe
from mixtune.space.space import load_space
from mixtune.stages.keys import stage_keys
from mixtune.stages.resume import Recovery
from mixtune.stages.store import StateStore
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.state import TrainState, start_state


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
        places = [0, first_line - 1, first_line, size - 1, rng.randrange(size)]
        place = rng.choice([place for place in places if 0 <= place < size])  # of a file that was cut before
        damaged = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    elif kind == "zeros at the end":
        keep = rng.randrange(size)
        damaged = content[:keep] + bytes(size - keep)
    elif kind == "another's" and others:
        damaged = rng.choice(others)
    return (kind, damaged) if damaged != content else ("emptied", b"")


def damage_states(folder: Path, rng: random.Random) -> None:
    """Damage every checkpoint of a run that is not empty already."""
    files = [file for file in sorted(folder.glob("*.state")) if file.stat().st_size]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(damage_bytes(content, contents, rng)[1])


@dataclass(frozen=True)
class TrialStates:
    """A trial's recipe, the keys of its states, and those that are stored."""

    trial: str
    start: Callable[[], TrainState]
    keys: tuple[str, ...]
    stored: list[int]


def read_paths(run: Undisturbed) -> list[TrialStates]:
    """Return what each trial of a run may continue from."""
    space = load_space(run.directory / "space.yaml")
    times = fold(read_events(run.directory)).step_times
    paths = []
    for trial, params in read_params(read_events(run.directory)).items():
        recipe = change_recipe(space.recipe, params)
        data = load_training_data(recipe)

        def start(recipe: Any = recipe, data: Any = data) -> TrainState:
            state = start_state(recipe, data)
            state.step_times = times.copy()
            return state

        keys = stage_keys(recipe, data)
        stored = [k for k, key in enumerate(keys) if (run.directory / "stages" / f"{key}.state").exists()]
        paths.append(TrialStates(trial, start, keys, stored))
    return paths


def check_damaged_store(run: Undisturbed, count: int, rng: random.Random, say: Say) -> list[Row]:
    """Damage checkpoints one by one, or several of a trial at once: what is found must be whole, and the trial's."""
    looked_up = Row("states", "a checkpoint damaged, looked up", checked="the longest whole prefix, bit for bit")
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


def cut_ledger(undisturbed: Undisturbed, count: int, rng: random.Random, say: Say) -> Row:
    """Cut the ledger at every byte of its last two lines and elsewhere: readers see the whole lines before the cut."""
    from mixtune.tuning.search import RunningSearch

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
                found: list[Any] = [fold(read_ledger(path)).records]
                if cut in looked_at:
                    found += [mixtune.load(scratch).records, RunningSearch(space, path).records]
                    Ledger(path).append("note", cut=cut)
                    grown = read_events(Path(scratch))
                    row.problems += [] if grown[:-1] == prefix else [f"cut at {cut}: another line after it is wrong"]
            except Exception as error:  # noqa: BLE001  a torn end should be read like none
                row.problems.append(f"cut at {cut}: {error!r}")
                continue
            row.problems += [f"cut at {cut}: not the prefix" for records in found if records != fold(prefix).records]
    say(f"states: the ledger cut {row.times} times, lost {len(row.problems)}")
    return row


def leave_litter(harness: Harness, undisturbed: Undisturbed, say: Say) -> Row:
    """Put what a writer leaves that is killed before its rename: before a search's first word, and into a run."""
    row = Row("states", "temporary files of a killed writer", times=2)
    row.checked = "the search begins in spite of them and resume removes them"
    with timed(row):
        fresh, finished = harness.new_run("begun"), copy_run(harness, undisturbed.directory)
        fresh.mkdir()
        writer = subprocess.Popen(["true"])
        writer.wait()
        for file in (fresh / ".space.yaml", finished / ".report.html", finished / ".study.db"):
            file.with_name(f"{file.name}.{writer.pid}.tmp").write_text("half of")
        answers = harness.run(to_search(undisturbed.space, fresh), to_resume(finished))
        row.problems += [str(answer) for answer in answers if answer.error is not None]
        for directory in (fresh, finished):
            row.problems += litter(directory)
        row.problems += undisturbed.check(finished)
        row.problems += undisturbed.check(fresh) if (fresh / "ledger.jsonl").exists() else []
        row.problems += harness.left_behind()
    say(f"states: {row.done}, lost {len(row.problems)}")
    return row


DAMAGED_FILES = ("space.yaml", "ledger.jsonl", "study.db", "trials.csv", "pareto.csv", "report.html")


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
            before = [(sound_endings(copy), (copy / "ledger.jsonl").read_bytes()) for copy in copies]
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
    """Damage a file or remove it, and say how; a ledger loses its end or a byte.

    Of what is not derived from the ledger a folder may take the place.
    """
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
    if how < 0.1 or path.name != "space.yaml":
        return "removed"
    path.mkdir()
    return "a folder"


def sound_endings(directory: Path) -> dict[str, Values]:
    """Return how trials ended by the lines of a ledger that are sound."""
    return read_endings(read_ledger(directory / "ledger.jsonl"))


def check_after_damage(
    undisturbed: Undisturbed, directory: Path, answer: Answer, ended: Values, ledger: bytes, is_derived: bool
) -> list[str]:
    """Return what a resume after damage lost; a refused one must have left the ledger as it was."""
    if answer.is_refusal() and not is_derived:
        return [] if (directory / "ledger.jsonl").read_bytes() == ledger else ["a refused resume changed the ledger"]
    if answer.error is not None:
        return [f"{answer} {answer.trace}"]
    problems = changed_endings(ended, sound_endings(directory))
    return problems + (undisturbed.check(directory) if is_derived else [])


def run_states(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    undisturbed = run_undisturbed(harness, small_space(options.trials))
    rows = check_damaged_store(undisturbed, options.damages, rng, say)
    rows.append(cut_ledger(undisturbed, options.damages, rng, say))
    resumed = max(1, options.damages // 40)
    rows += [resume_cut_runs(harness, undisturbed, resumed, rng, say, damaged) for damaged in (False, True)]
    rows.append(leave_litter(harness, undisturbed, say))
    return rows + resume_with_damaged_files(harness, undisturbed, max(2, options.damages // 10), rng, say)
