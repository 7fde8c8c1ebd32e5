"""A run's status is right at every moment of its life, and says how to continue."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixtune.report.figures import stage_tree
from mixtune.report.trials import trials_table
from mixtune.run.ledger import Ledger
from mixtune.run.result import load
from mixtune.run.status import RunStatus, run_status

MakeRun = Callable[..., Path]
THREE = [(0.50, 5.0), (0.90, 10.0), (0.85, 12.0)]
HOLDER = "search, process 12 on host"


@pytest.fixture
def make_searched(make_run: MakeRun) -> MakeRun:
    """Return ``make_run`` with a budget, and other sections of space.yaml, by name."""

    def make(metrics: list[Any], *args: Any, trials: int = 3, sampler: str = "tpe", **options: Any) -> Path:
        directory: Path = make_run(metrics, *args, **options)
        change_space(directory, search={"sampler": sampler, "trials": trials})
        return directory

    return make


def change_space(directory: Path, **sections: Mapping[str, Any]) -> None:
    path = directory / "space.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections, sort_keys=False))


def ledger_of(directory: Path) -> Ledger:
    return Ledger(directory / "ledger.jsonl")


def fail(directory: Path, trial: str, reason: str | None, **fields: Any) -> None:
    ledger_of(directory).append("asked", trial=trial, params={}, **fields)
    ledger_of(directory).append("failed", trial=trial, reason=reason, metrics={})


def line_of(status: RunStatus, word: str) -> str:
    (line,) = [line for line in status.lines() if line.startswith(word)]
    return line


def test_a_paused_trial_is_explained(make_searched: MakeRun) -> None:
    directory = make_searched(THREE)
    ledger_of(directory).append("asked", trial="t0004", params={})
    ledger_of(directory).append("epoch", trial="t0004", metrics={"epoch": 2, "phase": "mix"})
    ledger_of(directory).append("paused", trial="t0004", metrics={"epoch": 2})
    run = load(directory)
    status = run_status(run, None)
    assert (status.state, line_of(status, "trials: ")) == ("finished", "trials: 3 complete, 1 paused")
    assert line_of(status, "paused: ") == "paused: 1 trial where a stage ended and another recipe promised more"
    (state,) = [state for trial, state, *_ in trials_table(run, status)["rows"] if trial == "t0004"]
    assert (state, [*stage_tree.compute(run).ends["kind"]]) == ("paused", ["paused"])


def test_a_finished_run_in_words(make_searched: MakeRun) -> None:
    metrics = {"val_accuracy": 0.9, "val_accuracy_se": 0.025, "train_latency_s": 10.0}
    directory = make_searched([THREE[0], metrics, THREE[2]], {"sl": {"val_accuracy": 0.8, "train_latency_s": 600.0}})
    (directory / "stages").mkdir()
    (directory / "stages" / "aa.state").write_bytes(bytes(1_500_000))
    (directory / "stages" / ".bb.tmp").write_bytes(bytes(500_000))
    ledger_of(directory).append("extended", trials=3, time=2e9)
    assert run_status(load(directory), None).lines() == [
        f"{directory}: finished, 3 of 3 trials done",
        "trials: 3 complete",
        "baselines: 1 complete",
        "front: 2 members",
        "best validation accuracy: 90.0 ± 2.5 % (t0002)",
        "best training time: 5.00 s (t0001)",
        "ended trials took 2:06; training time of their recipes: 10:27",
        "stages: 1 state, 2.0 MB",
        f"last event: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(2e9))}",
        f"continue: mixtune resume {directory} --trials 23",
        *load(directory).recommendation().lines(),
    ]


def test_what_began_is_running_while_somebody_drives_and_unfinished_after(make_searched: MakeRun) -> None:
    directory = make_searched(THREE, trials=9)
    ledger = ledger_of(directory)
    for trial in ("t0004", "t0005"):
        ledger.append("asked", trial=trial, params={})
    ledger.append("started", trial="t0004")
    ledger.append("epoch", trial="t0004", metrics={"epoch": 1, "val_accuracy": 1.0, "train_latency_s": 0.1})
    ledger.append("asked", trial="sl", baseline="sl", params={})
    running = run_status(load(directory), HOLDER)
    assert running.lines()[0] == f"{directory}: running ({HOLDER}), 3 of 9 trials done"
    assert running.trials == {"complete": 3, "running": 1, "asked": 1}
    assert running.baselines == {"asked": 1}
    assert running.commands() == []
    left = run_status(load(directory), None)
    assert (left.state, left.baselines) == ("interrupted", {"unfinished": 1})
    assert left.trials == {"complete": 3, "unfinished": 2}
    assert left.commands() == [f"mixtune resume {directory}"]
    assert (left.front, left.wall_s, left.train_latency_s) == (2, 126, 27)  # as far as trials have ended


def test_a_search_that_runs_says_how_far_its_trials_are_and_what_is_left(make_searched: MakeRun) -> None:
    directory, now = make_searched([], trials=2), time.time()
    ledger = ledger_of(directory)
    ledger.append("opened", time=now, slots=1, forecast_s={"trial": 1e5})
    ledger.append("asked", trial="t0001", params={}, forecast_s=1e5, epochs=30)
    ledger.append("started", trial="t0001", time=now)
    status = run_status(load(directory), HOLDER)
    assert line_of(status, "running") == "running: t0001 epoch 0/30"
    assert re.fullmatch(r"about 55:[23]\d:\d\d left", line_of(status, "about"))
    assert status.left_s == pytest.approx(2e5, rel=1e-3)
    for nobody in (None, "confirm, process 12 on host"):
        assert not any(line.startswith(("running: ", "about")) for line in run_status(load(directory), nobody).lines())


def test_stopped_and_failed_trials_spend_the_budget_but_not_rejected_ones_and_baselines(make_searched: MakeRun) -> None:
    directory = make_searched(THREE[:1], {"sl": {"val_accuracy": 0.8, "train_latency_s": 6.0}}, trials=3)
    ledger = ledger_of(directory)
    for trial, ending in (("t0002", "stopped"), ("t0003", "rejected")):
        ledger.append(ending, trial=trial, reason="why")
    assert run_status(load(directory), None).state == "interrupted"
    fail(directory, "ssl_sl", "why", baseline="ssl_sl")
    assert run_status(load(directory), None).state == "interrupted"
    fail(directory, "t0004", "why")
    status = run_status(load(directory), None)
    assert status.state == "finished"
    assert line_of(status, "trials") == "trials: 1 complete, 1 stopped, 1 failed, 1 rejected"
    assert line_of(status, "baselines") == "baselines: 1 complete, 1 failed"


def test_a_search_that_has_converged_is_finished_until_it_is_extended_or_its_stop_is_another(
    make_searched: MakeRun,
) -> None:
    directory, stop = make_searched(THREE), {"after": 2, "gain": 0.5}
    change_space(directory, search={"trials": 9, "stop": stop})
    assert run_status(load(directory), None).state == "interrupted"
    ledger_of(directory).append("converged", trials=3, stop=stop, reason="search.stop: no gain")
    status = run_status(load(directory), None)
    assert status.lines()[:2] == [f"{directory}: finished, 3 of 9 trials done", "search.stop: no gain"]
    assert status.commands() == [f"mixtune resume {directory} --trials 29"]
    change_space(directory, search={"trials": 9, "stop": {"after": 3, "gain": 0.5}})
    assert run_status(load(directory), None).state == "interrupted"
    change_space(directory, search={"trials": 9, "stop": stop})
    ledger_of(directory).append("extended", trials=9)
    assert run_status(load(directory), None).state == "interrupted"


def test_the_budget_is_what_the_search_was_last_extended_to(make_searched: MakeRun) -> None:
    directory = make_searched(THREE)
    for trials in (10, 4):
        ledger_of(directory).append("extended", trials=trials)
    assert run_status(load(directory), None).lines()[0] == f"{directory}: interrupted, 3 of 4 trials done"


def test_a_grid_is_not_extended_beyond_its_end(make_searched: MakeRun) -> None:
    directory = make_searched(THREE * 2, sampler="grid")
    change_space(directory, space={"rho": {"grid_search": [0.0, 0.5, 1.0]}, "epochs.sl": {"qrandint": [10, 20, 10]}})
    assert run_status(load(directory), None).commands() == [f"mixtune resume {directory} --trials 6"]
    ledger_of(directory).append("extended", trials=6)
    assert run_status(load(directory), None).commands() == []


def test_failures_that_differ_in_numbers_alone_are_one(make_searched: MakeRun) -> None:
    directory = make_searched([], trials=6, name="my digits")
    for i in (1, 2, 3, 4):
        fail(directory, f"t000{i}", f"out of memory:\n{i}.{i} GB requested in step {10**i}")
    fail(directory, "t0005", None)
    fail(directory, "t0006", "train_latency_s is nan")
    fail(directory, "sl", "train_latency_s is nan", baseline="sl")
    ledger_of(directory).append("retried", trial="t0005")
    fail(directory, "t0005", None)
    status = run_status(load(directory), None)
    assert status.commands() == [f"mixtune resume '{directory}' --trials 26"]  # ready to paste; no front to confirm
    assert [line for line in status.lines() if line.startswith("failed")] == [
        "failed: 4 x out of memory: 1.1 GB requested in step 10 (t0001, t0002, t0003, ...)",
        "failed: 2 x train_latency_s is nan (t0006, sl)",
        "failed: 1 x no reason given (t0005)",
    ]


def test_confirmed_seeds_are_counted_once(make_searched: MakeRun) -> None:
    directory = make_searched(THREE)
    for seed in (1, 2, 2):
        ledger_of(directory).append("confirmed", trial="t0001", seed=seed, metrics={})
    assert line_of(run_status(load(directory), None), "confirmed") == "confirmed: 1 trial with 2 seeds each"
    ledger_of(directory).append("confirmed", trial="t0002", seed=1, metrics={})
    status = run_status(load(directory), None)
    assert status.confirmed == {"t0001": 2, "t0002": 1}
    assert line_of(status, "confirmed") == "confirmed: 2 trials with 1 to 2 seeds each"


def test_a_run_that_has_asked_for_nothing_yet(make_searched: MakeRun) -> None:
    directory = make_searched([])
    none = "Nothing to recommend: nothing is complete yet."
    nothing = [f"{directory}: interrupted, 0 of 3 trials done", f"continue: mixtune resume {directory}", none]
    assert run_status(load(directory), None).lines() == nothing
    (directory / "ledger.jsonl").unlink()
    assert run_status(load(directory), None).lines() == nothing
    running = [f"{directory}: running ({HOLDER}), 0 of 3 trials done", none]
    assert run_status(load(directory), HOLDER).lines() == running
