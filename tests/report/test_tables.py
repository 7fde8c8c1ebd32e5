"""The terminal's table fits, rounds sensibly and marks the knee; the CSV keeps full precision."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from rich.console import Console

from mixtune.report.tables import front_csv, front_notes, front_table
from mixtune.run.ledger import Ledger
from mixtune.run.result import Result, load

FIVE = [(0.50, 5.0), (0.90, 10.0), (0.85, 12.0), (0.95, 30.0), (0.96, 50.0)]
MakeRun = Callable[..., Path]


def printed(result: Result) -> list[str]:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(front_table(result))
    return console.export_text().splitlines()


def test_a_row_shows_the_trial_its_objectives_with_errors_and_what_varies(make_run: MakeRun) -> None:
    rows = [
        {"val_accuracy": 0.9612, "val_accuracy_se": 0.0161, "train_latency_s": 12.345},
        {"val_accuracy": 0.98, "val_accuracy_se": None, "train_latency_s": 1234.5},
    ]
    lines = printed(load(make_run(rows)))
    header = next(line for line in lines if "recipe " in line and "alpha" in line)
    assert "epochs.sl" not in header
    for trial, cells in (("t0001", ("96.1 ± 1.6 %", "12.3 s", "0.1")), ("t0002", ("98.0 %", "1230 s", "*"))):
        (row,) = (line for line in lines if trial in line)
        assert all(cell in row for cell in cells), row


def test_baselines_stand_beneath_the_front_and_say_when_they_failed(make_run: MakeRun) -> None:
    directory = make_run(FIVE, {"ssl_sl": {"val_accuracy": 0.8, "train_latency_s": 14.0}})
    ledger = Ledger(directory / "ledger.jsonl")
    ledger.append("asked", trial="sl", baseline="sl", params={})
    ledger.append("failed", trial="sl", reason="nan", metrics={})
    lines = printed(load(directory))
    at = {name: next(i for i, line in enumerate(lines) if name in line) for name in ("t0005", "ssl_sl")}
    assert at["ssl_sl"] == at["t0005"] + 2
    assert any("sl (failed)" in line and " - " in line for line in lines)


def test_many_parameters_share_a_column_and_the_table_stays_within_100_columns(make_run: MakeRun) -> None:
    directory = make_run(FIVE)
    ledger = Ledger(directory / "ledger.jsonl")
    for i in range(2):
        params = {f"optim.sl.setting_{k}": k + i / 3 for k in range(9)} | {"layers": [i, "[bold]"]}
        ledger.append("asked", trial=f"t090{i}", params=params)
        metrics = {"val_accuracy": 0.97 + i / 100, "train_latency_s": 1.0 + i}
        ledger.append("complete", trial=f"t090{i}", metrics=metrics)
    lines = printed(load(directory))
    assert max(map(len, lines)) <= 100
    text = " ".join(lines)
    assert "optim.sl.setting_8=8.33" in text
    assert "[bold]" in text


def test_an_empty_front_says_so_and_one_objective_recommends_the_best(make_run: MakeRun) -> None:
    assert any("no recipe is complete yet" in line for line in printed(load(make_run([]))))
    rows = [{"val_accuracy": 0.5}, {"val_accuracy": 0.7}]
    result = load(make_run(rows, objectives={"val_accuracy": "max"}, name="one"))
    assert any("*t0002" in line for line in printed(result))


def test_the_csv_keeps_full_precision(make_run: MakeRun) -> None:
    result = load(make_run([(0.1 + 0.2, 1 / 3)]))
    frame = pd.read_csv(io.StringIO(front_csv(result)), dtype=str)
    assert (frame["val_accuracy"][0], frame["train_latency_s"][0]) == (repr(0.1 + 0.2), repr(1 / 3))
    assert set(frame.columns) == {*result.trials.columns, "baseline"}


def test_a_baseline_stands_on_the_front_by_its_own_merit_and_can_be_left_out(make_run: MakeRun) -> None:
    points = [(0.90, 10.0), (0.95, 20.0), (0.97, 30.0)]
    found = {"sl": (0.96, 9.0), "ssl_sl": (0.5, 31.0)}  # better and faster than two; than none
    baselines = {name: {"val_accuracy": a, "train_latency_s": t} for name, (a, t) in found.items()}
    result = load(make_run(points, baselines))
    assert list(result.pareto_front()["trial"]) == ["sl", "t0003"]
    lines = printed(result)
    rows = [line.split()[0] for line in lines if line.split() and line.split()[0] in (*found, "t0003")]
    assert rows == ["sl", "t0003", "ssl_sl"] or rows == ["sl", "ssl_sl"]  # t0003 may be recommended
    hidden = io.StringIO()
    Console(width=100, file=hidden).print(front_table(result, baselines=False))
    assert "sl (baseline)" not in hidden.getvalue()
    assert "t0003" in hidden.getvalue()
    assert list(pd.read_csv(io.StringIO(front_csv(result, baselines=False)))["trial"]) == ["t0003"]


def test_after_fresh_seeds_the_table_says_how_probably_each_row_is_on_the_front(make_run: MakeRun) -> None:
    directory = make_run([(0.90, 10.0), (0.80, 20.0)], {"sl": {"val_accuracy": 0.95, "train_latency_s": 30.0}})
    for trial, accuracy, seconds in (("t0001", 0.90, 10.0), ("sl", 0.95, 30.0)):
        for seed in (1, 2, 3):
            metrics = {"val_accuracy": accuracy, "val_accuracy_se": 0.01, "train_latency_s": seconds, "device": "a CPU"}
            Ledger(directory / "ledger.jsonl").append("confirmed", trial=trial, seed=seed, metrics=metrics)
    lines = printed(load(directory))
    assert "on the" in lines[1]
    assert [line.split()[0] for line in lines if " 100 %" in line] == ["t0001", "*sl"]


def test_knee_and_hypervolume_are_noted_with_the_reference_point(make_run: MakeRun) -> None:
    notes = front_notes(load(make_run([(0.5, 50.0), (0.6, 55.0)])))
    assert notes[0] == (
        "knee t0002; hypervolume 4.50 against the reference point validation accuracy 10.0 %, training time 60.0 s"
    )
    assert front_notes(load(make_run([], name="empty"))) == []


def test_seconds_that_were_disturbed_are_marked_and_noted(make_run: MakeRun) -> None:
    quiet = {"val_accuracy": 0.9, "train_latency_s": 12.0, "disturbed": 0.0}
    loud = {"val_accuracy": 0.95, "train_latency_s": 20.0, "disturbed": 0.5}
    result = load(make_run([quiet, loud]))
    assert ["~20.0 s" in line for line in printed(result) if "t000" in line] == [False, True]
    assert front_notes(result)[-1] == ("~ t0002: timed while other processes computed, so the seconds may be too long")
