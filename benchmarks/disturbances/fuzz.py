"""Space files and run directories that somebody or something changed at random, read by all that reads them."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import mixtune
from disturbances.checks import Row, run_undisturbed, timed
from disturbances.damage import damage_bytes
from disturbances.searches import Harness, Say, small_space
from mixtune.errors import DataError, RequestError
from mixtune.report.page import write_report
from mixtune.report.tables import front_csv, front_notes, front_table
from mixtune.run.lines import Lines, seal
from mixtune.run.status import run_status
from mixtune.space.document import ready_spaces
from mixtune.space.space import load_space
from mixtune.stages.clean import clean_run
from mixtune.stages.store import StateStore

PATIENCE_S = 20  # for one file; then it hangs
TOLD = (RequestError, DataError)  # what is said in a line
ODD_TEXTS = [
    *("", "~", "true", "-1", "0", "1e999", ".nan", ".inf", "1" * 5000, "[]", "{}", "[[[[[[1]]]]]]", "'", '"', "%", "@"),
    *("!!python/object/apply:os.mkdir [x]", "&a [*a]", "*a", "<<: *a", "? a", "2026-13-45", "0x10", "1:30", "a: b: c"),
    *(
        "../../x",
        "/etc/passwd",
        "x:y",
        "a.b:c",
        "\x00",
        "\x1b[2J",
        "\ud7ff",
        "ß" * 300,
        "- - - -",
        "#",
        "|",
        ">",
        "---",
    ),
    *(
        "{uniform: [1, 0]}",
        "{quniform: [0, 1, 1.0e-9]}",
        "{choice: []}",
        "{choice: [1, a, null]}",
        "{randint: [0, .5]}",
    ),
]
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 5.0, 1e308, 10**30, "", "0.99", "x" * 5000, "../../x", "\x1b[31m", "<script>", "a\nb"),
    *([], {}, [None], {"a": {"b": {"c": {"d": {"e": 1}}}}}, [[[[[[[1]]]]]]], ["t0001", 1], {"": 1}, {"x": "y"}),
]


def change_text(text: str, rng: random.Random) -> str:
    """Return a space file after one to three changes of lines, values or bytes."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        kind = rng.choice(["value", "value", "value", "drop", "double", "swap", "indent", "byte", "join"])
        if kind == "value":
            head, colon, _ = lines[at].partition(":")
            lines[at] = f"{head}{colon} {rng.choice(ODD_TEXTS)}"
        elif kind == "drop":
            del lines[at]
        elif kind == "double":
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif kind == "swap":
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "indent":
            lines[at] = " " * rng.randrange(6) + lines[at].lstrip()
        elif kind == "join" and at + 1 < len(lines):
            lines[at] += lines.pop(at + 1)
        text = "\n".join(lines)
        if kind == "byte" and text:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice("{}[]:,-#&*!|>'\"%@`\t \n0a") + text[place + rng.randrange(2) :]
        text = text or "x"
    return text


def fuzz_spaces(count: int, seed: int, say: Say) -> Row:
    """Read changed copies of all ready spaces."""
    row = Row("fuzz", "a ready space's file changed", checked="it is read, or refused in a line; nothing hangs")
    texts = [path.read_text() for path in ready_spaces().values()]
    read = 0
    with timed(row), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "space.yaml"
        for number in range(count):
            rng = random.Random(f"{seed}/space/{number}")
            file.write_text(change_text(rng.choice(texts), rng), errors="surrogatepass")
            row.times += 1
            read += watch(row, f"space {number}", lambda: load_space(file).to_dict())
        row.problems += [f"{path.name} was made" for path in Path(folder).iterdir() if path != file]
    row.done += f" ({read} read, {count - read} refused)"
    say(f"fuzz: {count} spaces, wrong {len(row.problems)}")
    return row


def watch(row: Row, what: str, work: Callable[[], Any]) -> bool:
    """Do a piece of work; note what it raises but a line, and where it hangs. Return whether it was done."""
    try:
        with bounded():
            work()
    except TOLD as error:
        if len(str(error).splitlines()) != 1:
            row.problems.append(f"{what}: says {str(error)!r}")
        return False
    except Exception as error:  # noqa: BLE001 - which is what is looked for
        row.problems.append(f"{what}: {type(error).__name__}: {error}")
        return False
    return True


@contextmanager
def bounded() -> Iterator[None]:
    """Raise TimeoutError in what computes longer than PATIENCE_S, or waits for ten times as long.

    Others' load, which makes everything take longer, is no fault of what is read.
    """

    def end(*_: object) -> None:
        raise TimeoutError(f"longer than {PATIENCE_S} s")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, 1), signal.SIGALRM: (signal.ITIMER_REAL, 10)}
    before = {number: signal.signal(number, end) for number in timers}
    for timer, factor in timers.values():
        signal.setitimer(timer, factor * PATIENCE_S)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def forge_ledger(run: Path, rng: random.Random) -> None:
    """Change one to three fields of a ledger, or one in all its lines, as somebody who knows how they are sealed."""
    events = read_events(run)
    if rng.random() < 0.3:
        put_everywhere(events, rng)
    else:
        for _ in range(rng.randint(1, 3)):
            put_odd_value(rng.choice(events), rng)
    replace(run / "ledger.jsonl", seal_all(events))


def put_everywhere(events: Sequence[dict[str, Any]], rng: random.Random) -> None:
    """Give a field of events, or one of its mappings', the same value wherever it is, or take it out everywhere."""
    inside = [where for event in events for where in (event, *(v for v in event.values() if isinstance(v, dict)))]
    name = rng.choice(sorted({name for where in inside for name in where} - {"line", "sum", "event"}))
    is_gone, value = rng.random() < 0.2, rng.choice(ODD_VALUES)
    for where in inside:
        if name in where and is_gone:
            del where[name]
        elif name in where:
            where[name] = copy.deepcopy(value)


def forge_space(run: Path, rng: random.Random) -> None:
    """Change one to three values of a run's space, in space.yaml and in the event that holds it."""
    values = yaml.safe_load((run / "space.yaml").read_text())
    for _ in range(rng.randint(1, 3)):
        section = values.get(rng.choice(list(values)))
        put_odd_value(section if isinstance(section, dict) and section else values, rng)
    events = [event | ({"document": values} if "document" in event else {}) for event in read_events(run)]
    replace(run / "ledger.jsonl", seal_all(events))
    replace(run / "space.yaml", yaml.safe_dump(values, sort_keys=False).encode(errors="surrogatepass"))


def put_odd_value(inside: Any, rng: random.Random) -> None:
    """Change a value, or the name of one, somewhere in nested mappings."""
    while isinstance(inside, dict) and inside:
        name = rng.choice([name for name in inside if name not in ("line", "sum")] or list(inside))
        if isinstance(inside[name], dict) and inside[name] and rng.random() < 0.7:
            inside = inside[name]
            continue
        if rng.random() < 0.2:
            inside[rng.choice(ODD_TEXTS)] = inside.pop(name)
        else:
            inside[name] = copy.deepcopy(rng.choice(ODD_VALUES))
        return


def read_events(run: Path) -> list[dict[str, Any]]:
    """Return a sound ledger's events."""
    return [json.loads(line) for line in (run / "ledger.jsonl").read_bytes().splitlines()]


def seal_all(events: Sequence[dict[str, Any]]) -> bytes:
    """Return a ledger of events, each line with its number and sum."""
    before, lines = Lines(), []
    for event in events:
        lines.append(seal({k: v for k, v in event.items() if k not in ("line", "sum")}, before))
        before = before.followed_by(lines[-1])
    return b"\n".join(lines) + b"\n"


def replace(path: Path, content: bytes) -> None:
    """Give a file, which may be a link to another run's, a content of its own."""
    path.unlink()
    path.write_bytes(content)


def change_run(run: Path, kind: str, rng: random.Random) -> bool:
    """Change a file of a run; return whether it is a ledger that is cut, which is that of an earlier moment."""
    if kind == "ledger.jsonl, forged":
        forge_ledger(run, rng)
        return False
    if kind == "space.yaml, forged":
        forge_space(run, rng)
        return False
    path = rng.choice(sorted(run.glob("stages/*.state"))) if kind == "a state" else run / kind
    content = path.read_bytes()
    if kind == "space.yaml" and rng.random() < 0.8:
        replace(path, change_text(content.decode(), rng).encode(errors="surrogatepass"))
    else:
        replace(path, damage_bytes(content, [], rng)[1])
    return kind == "ledger.jsonl" and content.startswith(whole_lines(path))


def fuzz_runs(runs: Sequence[Path], count: int, seed: int, say: Say) -> list[Row]:
    """Read copies of runs, of the last one each ninth, of which one file is changed, by all that reads a run."""
    fronts = [mixtune.load(run).pareto_front()["trial"].tolist() for run in runs]
    kinds = ["ledger.jsonl", "ledger.jsonl, forged", "space.yaml", "space.yaml, forged"]
    kinds += ["trials.csv", "pareto.csv", "study.db", "a state"]
    rows = {kind: Row("fuzz", f"{kind} of a run changed", checked=CHECKED) for kind in kinds}
    for number in range(count):
        rng, kind = random.Random(f"{seed}/run/{number}"), kinds[number % len(kinds)]
        row, told = rows[kind], len(rows[kind].problems)
        with timed(row), tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "outer" / "run"
            shutil.copytree(runs[which := 0 if number % 9 else -1], run, copy_function=link_or_copy)
            is_cut = change_run(run, kind, rng)
            names = {item.relative_to(folder) for item in Path(folder).rglob("*")}
            row.times += 1
            wanted = None if is_cut or kind.endswith("forged") else fronts[which]  # a forger may write any front
            watch(row, f"run {number}", functools.partial(read_all, run, wanted, number))
            made = {item.relative_to(folder) for item in Path(folder).rglob("*")} - names
            row.problems += [f"run {number}: {name} was made" for name in sorted(made) if name.name not in OURS]
        for problem in row.problems[told:]:
            say(f"fuzz: {kind}: {problem}")
        if number % 500 == 499:
            say(f"fuzz: {number + 1} runs, wrong {sum(len(row.problems) for row in rows.values())}")
    return list(rows.values())


CHECKED = "read by load, tables, status, report, clean: the front is the same, or the damage is named in a line"
OURS = ("report.html", ".driver.lock", "ledger.torn")


def whole_lines(path: Path) -> bytes:
    """Return a file up to its last newline."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def link_or_copy(source: str, target: str) -> None:
    """Link a file that is not changed in place."""
    Path(target).hardlink_to(source)


def read_all(run: Path, wanted: list[str] | None, number: int) -> None:
    """Read a run as the commands do. Raises AssertionError where its front is another one and nothing says why."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mixtune")
    logger.addHandler(handler)
    try:
        result = mixtune.load(run)
        front = result.pareto_front()["trial"].tolist()
        status = run_status(result, None)
        if wanted is not None and front != wanted and not said:
            raise AssertionError(f"the front is {front}, not {wanted}")
        front_table(result, 80), front_notes(result), front_csv(result)
        result.recommendation().lines(), result.to_json_dict(), result.trials, result.confirmed
        status.lines()
        if number % 9 == 0 or wanted is None:
            write_report(result, None)
        clean_run(run, 10**9)
        store = StateStore(run / "stages")
        for file in sorted((run / "stages").glob("*.state")):
            store.load(file.stem)
    finally:
        logger.removeHandler(handler)


def run_fuzz(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    """Change space files and runs, options.mutations times each; a mutation is that of its number and the seed."""
    logging.getLogger("mixtune").propagate = False
    spaces = fuzz_spaces(options.mutations, options.seed, say)
    found = run_undisturbed(harness, small_space(trials=8, epochs=4)).directory
    confirmed = Path(shutil.copytree(found, found.with_name("confirmed")))
    mixtune.confirm(confirmed, seeds=1)
    return [spaces, *fuzz_runs([found, confirmed], options.mutations, options.seed, say)]
