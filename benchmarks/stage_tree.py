"""How much of what a search's trials ask for does the stage tree save, and what does the search cost alongside them?

    python benchmarks/stage_tree.py sharing       # 50 random trials on two spaces, with 2 and with 4 at once
    python benchmarks/stage_tree.py overhead      # 200 short trials
    python benchmarks/stage_tree.py suggestions   # what a suggestion takes after 1,000 and after 10,000 trials

`sharing` searches digits with `wsd` schedules: the budgets of search_spaces/digits.yaml, and an SSL-heavy space with
four times the SSL epochs and more. It counts epochs and metered device-seconds requested and trained, how long slots
had to wait for a stage, and whether any epoch was trained twice; cosine is counted alongside it, not trained. One
search is ended by SIGKILL of a worker amid a shared stage, and must end complete.

`overhead` compares a search's wall clock, less what its slots waited for stages, with its trials' own steps, held-out
images and states divided by the slots. `suggestions` times `ask` of each sampler after so many finished random trials,
whose accuracies are made up, and `report` at the ends of stages, where a search by stage decides whether the trial goes
on; paths, bills and prices are a real search's.

Nothing else should run meanwhile. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from rich.console import Console
from training_report import count_cores, cpu_model, format_table

import mixtune
from mixtune.cost.machine import Machine
from mixtune.cost.model import CostModel
from mixtune.run.ledger import read_ledger
from mixtune.space.recipe import with_values
from mixtune.space.space import SearchSpace, load_space, space_from_dict
from mixtune.stages.paths import RecipePaths
from mixtune.training.data import load_training_data
from mixtune.training.plan import PHASES
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import EpochReport

HERE = Path(__file__).parent
RESULTS, DIGITS = HERE / "results", HERE.parent / "search_spaces" / "digits.yaml"
WSD = {f"optim.{loss}.{key}": v for loss in ("ssl", "sl") for key, v in (("schedule", "wsd"), ("warmup_epochs", 2))}
COSINE = {f"optim.{loss}.schedule": "cosine" for loss in ("ssl", "sl")}
SPACES: dict[str, tuple[dict[str, Any], float]] = {  # other budgets, and the share to be trained at most
    "digits": ({}, 0.75),  # of different recipes: repeats are not trained at all
    "SSL-heavy": ({"epochs.ssl": {"qrandint": [40, 160, 40]}, "epochs.sl": {"qrandint": [10, 40, 10]}}, 0.30),
}
OVERHEAD_GOAL = 1.03
ASK_GOALS_S = {1_000: 0.1, 10_000: 1.0}  # after so many trials
WHOLE = {"name": "cost_aware", "by_stage": False}
SAMPLERS = {"random": "random", "tpe": "tpe", "cost_aware": "cost_aware", "cost_aware, whole": WHOLE, "nsga2": "nsga2"}
ASKED = {100: {"gp": "gp"}, 1_000: SAMPLERS, 10_000: SAMPLERS}  # Optuna's gp takes seconds soon
TIMED = 20  # suggestions of each
SPENT = ("train_clock_s", "validation_s", "compile_s", "checkpoint_s")


def search_values(epochs: Mapping[str, Any], changes: Mapping[str, Any], trials: int, seed: int = 0) -> dict[str, Any]:
    """Return a search over alpha, rho and budgets on digits, as search_spaces/digits.yaml has it."""
    values = yaml.safe_load(DIGITS.read_text())
    values["recipe"] = with_values(values["recipe"], dict(changes))
    values["space"] |= dict(epochs)
    return {**values, "search": {"sampler": "random", "trials": trials, "seed": seed}}


@dataclass(frozen=True)
class Searched:
    """A finished search, when it began (unix seconds), its wall-clock seconds, how often epochs were trained twice."""

    result: mixtune.Result
    began: float
    wall_s: float
    twice: int


@contextmanager
def searched(values: Mapping[str, Any], slots: int) -> Iterator[Searched]:
    """Search in a scratch folder."""
    with tempfile.TemporaryDirectory() as scratch:
        began, started = time.time(), time.perf_counter()
        cpus = count_cores() / slots
        result = mixtune.search(
            dict(values), out=Path(scratch) / "run", cpus_per_trial=cpus, gpus=0, console=Console(quiet=True)
        )
        yield Searched(result, began, time.perf_counter() - started, trained_twice(result))


def trained_twice(result: mixtune.Result) -> int:
    """Return how many epochs were trained by a trial though another one had trained them."""
    paths = RecipePaths(load_space(result.directory / "space.yaml"))
    trained = Counter(
        paths(record.params).keys[epoch]
        for record in result.records.values()
        for epoch in range(record.metrics["epochs_reused"] + 1, record.metrics["epoch"] + 1)
    )
    return sum(count - 1 for count in trained.values())


def count_epochs(space: SearchSpace) -> tuple[int, int]:
    """Return the epochs that a search of random recipes asks for and those that differ; nothing is trained."""
    paths, asked, keys = RecipePaths(space), 0, set[str]()
    with tempfile.TemporaryDirectory() as scratch:
        search = RunningSearch(space, Path(scratch) / "ledger.jsonl", slots=space.budget + 2)
        while trial := search.ask():
            own = paths(trial.params).keys
            asked, keys = asked + len(own) - 1, keys | set(own[1:])
    return asked, len(keys)


SHARING_HEAD = (
    "space | schedules | at once | epochs requested | trained | share | seconds of steps requested | trained | share | "
    "trained twice | slots waited, s | wall, s"
)


def measure_sharing(trials: int) -> tuple[list[str], list[tuple[str, bool]]]:
    """Search both spaces and return tables and goals."""
    lines, goals = [], []
    for name, (epochs, most) in SPACES.items():
        asked, distinct = count_epochs(space_from_dict(search_values(epochs, COSINE, trials)))
        counted = [f"{asked:,}", f"{distinct:,}", f"{distinct / asked:.0%}"]
        lines.append([name, "cosine (counted)", "", *counted, *[""] * 6])
        for slots in (2, 4):
            with searched(search_values(epochs, WSD, trials), slots) as search:
                account = search.result.account()
                share = account.epochs_trained / account.epochs_asked
                figures = [account.epochs_asked, account.epochs_trained]
                lines.append(
                    [
                        *(name, "wsd", str(slots)),
                        *(f"{figure:,}" for figure in figures),
                        f"{share:.0%}",
                        *(f"{seconds:.0f}" for seconds in (account.asked_s, account.trained_s)),
                        f"{account.trained_s / account.asked_s:.0%}",
                        *(str(search.twice), f"{account.waited_s:.1f}", f"{search.wall_s:.0f}"),
                    ]
                )
                where = f"{name}, {slots} at once"
                goals.append((f"{where}: at most {most:.0%} of the epochs trained: {share:.0%}", share <= most))
                goals.append((f"{where}: no epoch trained twice: {search.twice}", search.twice == 0))
                print(" | ".join(lines[-1]), flush=True)
    line, is_whole = kill_builder(trials=8)
    goals.append((line, is_whole))
    text = (
        f"{trials} random trials and two baselines on digits, alpha and rho as in search_spaces/digits.yaml. Seconds "
        "are metered: what the epochs take on a device of their own."
    )
    return [text, format_table(SHARING_HEAD, lines)], goals


def kill_builder(trials: int) -> tuple[str, bool]:
    """Kill the first worker that trains a shared stage; return what came of the search."""
    values = search_values({"epochs.ssl": {"choice": [20, 30]}, "epochs.sl": {"choice": [5]}}, WSD, trials)
    values["baselines"] = []
    killed: list[int] = []

    def kill(run: Path) -> None:
        while not killed:
            time.sleep(0.2)
            events = read_ledger(run / "ledger.jsonl") if (run / "ledger.jsonl").exists() else []
            if sum(event["event"] == "epoch" for event in events) >= 5:  # amid the first SSL phase
                killed.extend(kill_one_worker())

    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        threading.Thread(target=kill, args=[run], daemon=True).start()
        started = time.perf_counter()
        result = mixtune.search(values, out=run, gpus=0, console=Console(quiet=True))
        took, counts = time.perf_counter() - started, result.counts()
        retried = sum(event["event"] == "retried" for event in read_ledger(run / "ledger.jsonl"))
    line = (
        f"a worker killed amid a shared stage blocks nobody: {retried} trial tried again, {counts['complete']} of "
        f"{trials} complete in {took:.0f} s"
    )
    return line, bool(killed) and retried == 1 and counts["complete"] == trials


def kill_one_worker() -> list[int]:
    """Kill one of this search's processes that train a trial now, children of its own Ray; return it."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    processes = [line.split(None, 2) for line in listed.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, _ in processes}
    trains = (int(pid) for pid, _, words in processes if "ray::" in words and "Trainable" in words)
    pids = [pid for pid in trains if parents.get(parents[pid]) == os.getpid()]
    for pid in pids[:1]:
        os.kill(pid, signal.SIGKILL)
    return pids[:1]


def measure_overhead(trials: int) -> tuple[list[str], list[tuple[str, bool]]]:
    """Time a search of short trials; return what came of it, and the goal."""
    epochs = {"epochs.ssl": {"qrandint": [5, 15, 5]}, "epochs.sl": {"qrandint": [5, 15, 5]}}
    values = search_values(epochs, {}, trials)
    values["search"]["sampler"] = "tpe"
    slots = count_cores()
    with searched(values, slots) as search:
        rows = [record.metrics for record in search.result.records.values()]
        own = sum(row[column] for row in rows for column in SPENT)
        waited, locked = search.result.account().waited_s, sum(row["waiting_s"] for row in rows)
        ratio = (search.wall_s - waited / slots) / (own / slots)
        trained = sum(record.wall_s or 0.0 for record in search.result.records.values())
        first = min(record.started_time or math.inf for record in search.result.records.values())
        last = max(record.ended_time or 0.0 for record in search.result.records.values())
        within, between = ((trained - own - locked) / len(rows), (slots * (last - first) - trained) / len(rows))
    text = (
        f"{trials} trials and two baselines on digits, {slots} at once, TPE, sharing stages: wall clock "
        f"{search.wall_s:.0f} s, with Ray's start. Their own steps, held-out images and states: {own:.0f} s, "
        f"{own / slots:.0f} s a slot; slots waited {waited:.0f} s for a stage, trials {locked:.1f} s for each other's "
        f"quiet windows. So the wall clock, less waiting for stages, is {ratio:.3f} of the trials' own. "
        f"The first trial begins after {first - search.began:.1f} s, and after the last "
        f"{search.began + search.wall_s - last:.1f} s follow; a trial takes {within:.3f} s besides its own, and "
        f"{between:.3f} s pass between two (with the slots that are idle while the last trial trains)."
    )
    what = f"wall clock, less waiting for stages, at most {OVERHEAD_GOAL} of the trials' own: {ratio:.3f}"
    return [text], [(what, ratio <= OVERHEAD_GOAL)]


def measure_suggestions() -> tuple[list[str], list[tuple[str, bool]]]:
    """Time suggestions; return a table and goals."""
    lines, goals = [], []
    for count, samplers in ASKED.items():
        with tempfile.TemporaryDirectory() as scratch:
            asking = Asking(Path(scratch), count)
            for name, sampler in samplers.items():
                asked, decided = asking.seconds(sampler)
                lines.append(
                    [name, f"{count:,}", *(f"{1e3 * of(s):.1f}" for s in (asked, decided) for of in (median, max))]
                )
                print(" | ".join(lines[-1]), flush=True)
                if name == "tpe" or sampler in ("cost_aware", WHOLE):
                    what = f"a suggestion by {name} after {count:,} trials under {ASK_GOALS_S[count]:g} s"
                    goals.append((f"{what}: {median(asked):.3f} s", median(asked) < ASK_GOALS_S[count]))
    head = "sampler | finished trials | a suggestion, ms: median | highest | a stage's end, ms: median | highest"
    text = f"{TIMED} suggestions and the ends of their trials' stages but the last, with the ledger's lines of them:"
    return [text, format_table(head, lines)], goals


class Asking:
    """A search of five parameters in which so many random trials have ended, each with its states stored."""

    def __init__(self, scratch: Path, finished: int) -> None:
        values = search_values({"epochs.ssl": {"randint": [1, 200]}}, {}, finished + TIMED)
        values["space"]["optim.sl.base_lr"] = {"loguniform": [1e-3, 1e-1]}
        self._values = {**values, "baselines": []}
        space = space_from_dict(self._values)
        self._machine = Machine("a CPU", 1, "float32", dict.fromkeys(PHASES, 1e10))
        self._costs = CostModel(space, load_training_data(space.recipe), self._machine)
        self._scratch = scratch
        search = self._search(scratch / "ledger.jsonl", "random")
        for _ in range(finished):
            self._try_one(search)

    def seconds(self, sampler: str | dict[str, Any]) -> tuple[list[float], list[float]]:
        """Return what each suggestion takes, and what each end of a stage but a trial's last does."""
        search = self._search(Path(shutil.copy(self._scratch / "ledger.jsonl", self._scratch / "copy.jsonl")), sampler)
        took = [self._try_one(search) for _ in range(TIMED)]
        return [asked for asked, _ in took], [seconds for _, decided in took for seconds in decided]

    def _search(self, ledger: Path, sampler: str | dict[str, Any]) -> RunningSearch:
        space = space_from_dict({**self._values, "search": self._values["search"] | {"sampler": sampler}})
        return RunningSearch(
            space,
            ledger,
            paths=RecipePaths(space),
            costs=self._costs.cost,
            fault=self._costs.fault,
            reference=lambda complete: {"val_accuracy": 0.1, "train_latency_s": 300.0},
        )

    def _try_one(self, search: RunningSearch) -> tuple[float, list[float]]:
        """Ask for a trial and go on as far as the search wants; return the seconds of asking and of each report."""
        started = time.perf_counter()
        asked = search.ask()
        took = time.perf_counter() - started
        assert asked is not None
        search.start(asked.trial)
        bill = self._costs.bill(search.space.recipe_at(asked.params))
        accuracy = 0.9 - 0.3 / len(bill.epochs) - (asked.params["alpha"] - 0.5) ** 2
        steps = {signature: self._machine.step_seconds(phase, flops) for phase, signature, flops in bill.epochs}
        steps[bill.infer] = 1e-3
        windows = [(signature, seconds, True, {"device": "none"}) for signature, seconds in steps.items()]
        trained = max((epoch["epoch"] for epoch in search.records[asked.trial].epochs), default=0)
        decided = []
        for epoch in sorted(end for end in search.stages.ends(asked.params) if end > trained):
            key = hashlib.sha256(f"{asked.trial} {epoch}".encode()).hexdigest()[:40]
            metrics = {"epoch": epoch, "epochs_asked": len(bill.epochs), "val_accuracy": accuracy}
            report = EpochReport([metrics], metrics, windows, bill, stored=key)
            started = time.perf_counter()
            continues = search.report(asked.trial, report)
            if not report.is_whole:
                decided.append(time.perf_counter() - started)
            if not continues:
                break
        search.end(asked.trial)
        return took, decided


def write_report(name: str, title: str, parts: list[str], goals: list[tuple[str, bool]], out: Path) -> None:
    """Print the results and write them."""
    about = [
        f"{cpu_model()}, {count_cores()} cores, a thread a trial",
        ", ".join(f"{package} {version(package)}" for package in ("torch", "ray", "optuna")),
        f"mixtune {mixtune.__version__}, Python {platform.python_version()}, {date.today().isoformat()}",
    ]
    verdicts = [f"- {'met' if met else 'missed'}: {what}" for what, met in goals]
    head = [f"# {title}", "Printed by benchmarks/stage_tree.py, which says what is measured and how."]
    text = "\n\n".join([*head, "\n".join(f"- {line}" for line in about), "\n".join(verdicts), *parts]) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    print(f"\n{text}\nwritten to {out / name}.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["sharing", "overhead", "suggestions"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--trials", type=int, help="default: 50 for sharing, 200 for overhead")
    options = parser.parse_args()
    if options.do == "sharing":
        parts, goals = measure_sharing(options.trials or 50)
        write_report("stage_tree", "What the stage tree saves", parts, goals, options.out)
    elif options.do == "overhead":
        parts, goals = measure_overhead(options.trials or 200)
        write_report("search_overhead", "What a search costs alongside its trials", parts, goals, options.out)
    else:
        parts, goals = measure_suggestions()
        write_report("suggestions", "What a suggestion takes", parts, goals, options.out)


if __name__ == "__main__":
    main()
