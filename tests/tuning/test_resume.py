"""Searches that end before they are done, and continue: real processes, real signals."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from forgery import forge
from plain_search import continue_here, search_here
from rich.console import Console

import mixtune
from mixtune.errors import RequestError
from mixtune.run.ledger import fold, read_ledger
from mixtune.run.lock import hold_run
from mixtune.tuning.prepare import parse_duration
from mixtune.tuning.run import resume

UNTIMED = {"val_accuracy": "max", "train_flops": "min"}
OUTCOME = ["trial", "state", "alpha", "rho", "epochs.sl", "val_accuracy", "train_flops", "ssl_loss", "sl_loss", "epoch"]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def mixtune_command(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("mixtune")), *words]


def run_command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(mixtune_command(*words), cwd=folder, capture_output=True, text=True, check=False)


def assert_the_files_agree(run: Path) -> None:
    """Ledger, tables, study and front of a run say the same."""
    records = {k: r for k, r in fold(read_ledger(run / "ledger.jsonl")).records.items() if r.baseline is None}
    table = pd.read_csv(run / "trials.csv").set_index("trial")
    assert list(table.index) == list(records)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{run / 'study.db'}")
    told = {t.user_attrs["trial"]: t for t in study.trials if "baseline" not in t.user_attrs}
    assert set(told) == {key for key, record in records.items() if record.ended_time}
    objectives = list(mixtune.load(run).objectives)
    for key, record in records.items():
        assert table.loc[key, "state"] == record.state
        if record.state == "complete":
            assert told[key].values == [record.metrics[name] for name in objectives]
            assert list(table.loc[key, objectives]) == told[key].values
    result = mixtune.load(run)
    trained = pd.concat([result.complete(), result.complete_baselines])
    best = mixtune.pareto_front(trained, result.objectives)["trial"]
    assert sorted(best) == sorted(trial.user_attrs["trial"] for trial in study.best_trials)
    assert list(pd.read_csv(run / "pareto.csv")["trial"]) == list(result.pareto_front()["trial"])


def test_a_spent_time_budget_leaves_a_run_that_can_be_continued_and_extended(
    small_space: Any, ray_quietly: None, tmp_path: Path
) -> None:
    run, console = tmp_path / "run", quiet()
    mixtune.search(small_space(objectives=UNTIMED), out=run, time_budget="0.5s", console=console)
    assert f"of 6 trials done; mixtune resume {run} continues" in said(console)
    unfinished = [r for r in fold(read_ledger(run / "ledger.jsonl")).records.values() if not r.ended_time]
    assert all(record.state in ("asked", "running") for record in unfinished)
    continue_here(run, trials=7)
    again = quiet()
    extended = resume(run, console=again)
    assert f"finished already; mixtune resume {run} --trials N extends it" in said(again)
    assert extended.counts() == {
        "complete": 7,
        "stopped": 0,
        "failed": 0,
        "rejected": 0,
        "known": 0,
        "paused": 0,
        "running": 0,
    }
    assert_the_files_agree(run)
    with pytest.raises(RequestError, match="--trials 3: 7 have ended already"):
        resume(run, trials=3, console=quiet())


def test_a_search_without_a_clock_is_the_same_wherever_its_driver_stopped(small_space: Any, tmp_path: Path) -> None:
    values = small_space(objectives=UNTIMED, search={"sampler": "tpe", "trials": 6})  # cost_aware reads seconds
    whole = search_here(values, tmp_path / "whole")
    for stop in (1, 7, 16):
        folder = tmp_path / f"stopped-{stop}"
        shutil.copytree(tmp_path / "whole", folder, ignore=shutil.ignore_patterns("stages", "*.csv"))
        lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
        (folder / "ledger.jsonl").write_text("".join(lines[: stop * len(lines) // 20]))
        again = continue_here(folder)
        pd.testing.assert_frame_equal(whole.trials[OUTCOME], again.trials[OUTCOME])


def test_another_device_is_refused_and_another_packing_is_not(
    small_space: Any, ray_quietly: None, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    search_here(small_space(search={"trials": 1}, baselines=[]), run)
    console = quiet()
    result = resume(run, trials=2, cpus_per_trial=2, console=console)
    assert "1 at once with 2 CPUs each" in said(console)
    assert result.trials["device"].nunique() == 1  # threads, and so bits and seconds, stay those of the first start
    text = (run / "space.yaml").read_text()
    device = yaml.safe_load(text)["run"]["machine"]["device"]
    (run / "space.yaml").write_text(text.replace(device, "an abacus"))
    forge(run / "ledger.jsonl", lambda event: event.pop("document", None))  # as of an older version
    with pytest.raises(RequestError, match="train_latency_s of this run is of an abacus, and here is "):
        resume(run, trials=5, console=quiet())


def test_a_run_in_use_is_not_taken_over(small_space: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    search_here(small_space(search={"trials": 1}, baselines=[]), run)
    with hold_run(run, "search"), pytest.raises(RequestError, match=r"run is in use by process \d+"):
        resume(run, trials=2, console=quiet())


def test_what_a_checkpoint_holds_is_not_trained_again(small_space: Any, tmp_path: Path) -> None:
    values = small_space(space={"optim.sl.base_lr": {"uniform": [0.01, 0.05]}}, search={"trials": 3}, baselines=[])
    values["recipe"]["rho"] = 0.0
    trials = search_here(values, tmp_path / "run").trials
    assert list(trials["epochs_reused"]) == [0, 2, 2]  # the SSL phase is the same in all
    assert list(trials["epochs_trained"]) == [5, 3, 3]
    assert trials["latency_ssl_s"].nunique() == 1  # and counts in full


def test_constraints_are_known_before_training_and_kept_by_the_front(small_space: Any, tmp_path: Path) -> None:
    values = small_space(objectives=UNTIMED, search={"trials": 4, "sampler": "random"}, baselines=[])
    free = search_here(values, tmp_path / "free")
    limit = float(free.trials["train_flops"].median())
    limited = search_here({**values, "constraints": {"train_flops": f"<= {limit}"}}, tmp_path / "limited")
    complete = limited.trials[limited.trials["state"] == "complete"]
    assert len(complete) == 4
    assert (complete["train_flops"] <= limit).all()
    assert limited.counts()["rejected"] > 0
    assert limited.reference_point["train_flops"] == limit


def test_status_clean_and_confirm_from_the_command_line(small_space: Any, tmp_path: Path) -> None:
    search_here(small_space(search={"trials": 2}, baselines=["sl"]), tmp_path / "run")
    status = run_command(tmp_path, "status", "run").stdout
    assert status.startswith("run: finished, 2 of 2 trials done\n")
    assert "continue: mixtune resume run --trials 22\n" in status
    confirmed = run_command(tmp_path, "confirm", "run", "--seeds", "2")
    assert confirmed.returncode == 0, confirmed.stderr
    seeds = [
        (e["trial"], e["seed"]) for e in read_ledger(tmp_path / "run" / "ledger.jsonl") if e["event"] == "confirmed"
    ]
    wanted = [record.trial for record in mixtune.load(tmp_path / "run").to_confirm]
    assert sorted(seeds) == sorted((trial, seed) for trial in wanted for seed in (1, 2))
    assert json.loads(_front(tmp_path))["recommended"]["confirmed"]
    assert confirmed.stdout.splitlines()[-1] == "next: mixtune export run"
    states = list((tmp_path / "run" / "stages").glob("*.state"))
    assert states
    cleaned = run_command(tmp_path, "clean", "run").stdout
    assert cleaned.startswith(f"{len(states)} files removed, ")
    assert not list((tmp_path / "run" / "stages").glob("*.state"))


def _front(folder: Path) -> str:
    return run_command(folder, "pareto", "run", "--format", "json").stdout


def test_a_dry_run_says_what_a_search_will_cost(small_space: Any, tmp_path: Path) -> None:
    space = small_space()
    space["recipe"]["data"] |= {"fraction": 0.1, "ssl_fraction": 1.0}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    lines = run_command(tmp_path, "search", "space.yaml", "--dry-run").stdout.splitlines()
    passes = (
        "an SSL epoch passes 0.099 times over SSL's 1,293 images; 1 SSL epochs 0.099 times; 1 mix epochs draw as many"
    )
    assert [line for line in lines if "SSL epoch" in line] == [f"{passes} as 0.099 passes"]
    assert lines[-4].startswith("forecast: 6 trials and 2 baselines, about ")
    assert lines[-3].startswith("trials: ")
    assert lines[-2].startswith("disk: up to ")
    assert lines[-1] == "nothing was trained, no run directory written"
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1.5d", 129600), ("12", 12), (3.5, 3.5), ("1d12h", 129600)),
        *(("00:30:00", 1800), ("2H", 7200), ("30min", 1800), ("1h 30m", 5400), ("2 hours", 7200)),
    ],
)
def test_a_time_budget_is_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "h", "-3", "0s", "2h later", "nat", "1:30"])
def test_a_time_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="time budget"):
        parse_duration(text)
