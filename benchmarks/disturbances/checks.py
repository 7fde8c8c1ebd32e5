"""What must hold after a disturbance: nothing lost, nothing other than without it, and all files of one mind.

Runs are read without mixtune's own reader of ledgers.
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mixtune
from disturbances.searches import Events, Harness, Values, to_resume, to_search
from mixtune.run.frames import csv_text

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

BASELINES = ("sl", "ssl_sl")


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


def count_problems(rows: Sequence[Row]) -> int:
    """Return how much was lost or wrong."""
    return sum(len(row.problems) for row in rows)


def read_events(directory: Path) -> Events:
    """Return what the ledger holds: a line counts once its newline is there."""
    path = directory / "ledger.jsonl"
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def read_endings(events: Events) -> dict[str, Values]:
    """Return the event that ended each trial and baseline."""
    endings: dict[str, Values] = {}
    for event in events:
        if event.get("event") == "retried":
            endings.pop(event.get("trial"), None)
        elif event.get("event") in ENDINGS and "trial" in event:
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
    """Return the complete trials and baselines that no other dominates, by comparing all with all."""
    signs = {name: 1 if mode == "max" else -1 for name, mode in objectives.items()}
    complete = {
        trial: [sign * ending["metrics"][name] for name, sign in signs.items()]
        for trial, ending in read_endings(events).items()
        if ending["event"] in ("complete", "baseline")
    }

    def is_dominated(values: list[float]) -> bool:
        return any(
            all(o >= v for o, v in zip(other, values, strict=True)) and other != values for other in complete.values()
        )

    return sorted(trial for trial, values in complete.items() if not is_dominated(values))


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return a line for each trial, and for the front, that is not as in the undisturbed run."""
    lines = []
    for name in sorted({*expected, *found}):
        if name not in found or name not in expected:
            lines.append(f"{name} is {'lost' if name not in found else 'one too many'}")
        elif expected[name] != found[name]:
            lines.append(f"{name} differs from the undisturbed run: {first_difference(expected[name], found[name])}")
    return lines


def first_difference(expected: Any, found: Any) -> str:
    """Return where two values begin to differ, by keys."""
    if isinstance(expected, dict) and isinstance(found, dict):
        key = next(k for k in [*expected, *found] if expected.get(k) != found.get(k))
        return f"{key}: {first_difference(expected.get(key), found.get(key))}"
    return f"{found} instead of {expected}"


def lost_endings(before: Mapping[str, Values], directory: Path) -> list[str]:
    """Return a line for each trial that had ended and has not any more, or not as it had."""
    return changed_endings(before, read_endings(read_events(directory)))


def changed_endings(before: Mapping[str, Values], now: Mapping[str, Values]) -> list[str]:
    """Return a line for each ending that is not there any more, or not as it was."""
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
                problems.append(f"{trial}, epoch {figures['epoch']}: two training runs of it differ")
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
    found = [trial for trial in find_front(events, result.objectives) if trial in result.same_recipes]
    front = {trial: _row(endings[trial], result.objectives) for trial in found}
    members = read_table(directory / "pareto.csv")
    in_table = {t: (row["state"], *(_number(row[name]) for name in result.objectives)) for t, row in members.items()}
    problems += _disagreements("pareto.csv", in_table, front)
    return problems + _disagreements("study.db", read_study(directory, result.objectives), wanted)


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
        trials = optuna.load_study(study_name=None, storage=storage).get_trials()
    finally:
        storage.engine.dispose()
    names = {"complete": "COMPLETE", "stopped": "PRUNED", "rejected": "PRUNED", "known": "FAIL", "failed": "FAIL"}
    rows = {}
    for trial in trials:
        own = trial.user_attrs
        if "baseline" in own:
            continue
        agrees = names[own["state"]] == trial.state.name
        if own["state"] == "known" and agrees:  # it trained nothing that could be compared
            continue
        metrics = trial.values or [own.get(name) for name in objectives]
        rows[own["trial"]] = (own["state"] if agrees else trial.state.name, *metrics)
    return rows


def check_budget(directory: Path, trials: int, baselines: int = 2) -> list[str]:
    """Return a problem where the run has more or fewer ended trials than requested."""
    ended = read_endings(read_events(directory))
    own = [trial for trial in ended if trial not in BASELINES]
    if (len(own), len(ended) - len(own)) == (trials, baselines):
        return []
    return [f"{len(own)} trials and {len(ended) - len(own)} baselines ended, of {trials} and {baselines}"]


@dataclass(frozen=True)
class Undisturbed:
    """A finished run that nothing happened to: its directory and figures, and the seconds until its first word.

    is_repeated: whether another run of its space asks for the same recipes; cost_aware goes by measured seconds.
    """

    space: Values
    directory: Path
    figures: dict[str, Any]
    startup: float
    seconds: float
    is_repeated: bool = True

    @property
    def count(self) -> int:
        """How many trials and baselines it has."""
        return len(self.figures) - 1  # the front is there too

    def check(self, directory: Path) -> list[str]:
        """Return what another finished run of the same space lost or has wrong."""
        baselines = len(self.space.get("baselines", BASELINES))
        problems = check_budget(directory, self.space["search"]["trials"], baselines)
        if self.is_repeated:
            problems += differences(self.figures, read_figures(directory))
        return [*problems, *check_run(directory)]


def run_undisturbed(harness: Harness, space: Values, is_repeated: bool = True) -> Undisturbed:
    """Search once without a disturbance. Raises RuntimeError where that alone does not work."""
    directory = harness.new_run("undisturbed")
    driver = harness.start(to_search(space, directory))
    answer = driver.finish()[-1]
    seconds = time.time() - driver.started
    if answer.error is not None:
        raise RuntimeError(f"an undisturbed search fails: {answer}\n{answer.trace}")
    startup = read_events(directory)[0]["time"] - driver.started
    run = Undisturbed(space, directory, read_figures(directory), startup, seconds, is_repeated)
    if problems := run.check(directory) + harness.left_behind():
        raise RuntimeError(f"an undisturbed search is wrong already: {problems}")
    return run


def litter(directory: Path) -> list[str]:
    """Return a problem where a finished run still holds temporary files; those of states go when a trial begins."""
    found = [path.name for path in directory.iterdir() if path.name.endswith((".tmp", "-journal", "-wal"))]
    return [f"temporary files are left: {', '.join(found)}"] if found else []


def copy_run(harness: Harness, directory: Path) -> Path:
    """Return a copy of a run that nobody drives."""
    return shutil.copytree(directory, harness.new_run("copy"))


def remove_all(directories: Sequence[Path]) -> None:
    """Remove run directories that are not needed any more."""
    for directory in directories:
        shutil.rmtree(directory)


def resume_all(harness: Harness, undisturbed: Undisturbed, directories: Sequence[Path]) -> list[str]:
    """Resume runs one after another; return what each lost or has wrong at its end."""
    before = [read_endings(read_events(directory)) for directory in directories]
    answers = harness.run(*(to_resume(directory) for directory in directories))
    problems = [str(answer) for answer in answers if answer.error is not None]
    for ended, directory in zip(before, directories, strict=True):
        problems += lost_endings(ended, directory) + undisturbed.check(directory)
    return problems + harness.left_behind()
