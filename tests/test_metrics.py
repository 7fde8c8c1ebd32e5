"""A metric is a row of a table: what is registered there is a column, an objective, and in the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mixtune.metrics import METRICS, Metric, counted, find_metric, setting, significant
from mixtune.report.page import write_report
from mixtune.run.directory import RunDirectory, RunFacts, space_document, space_text
from mixtune.run.result import result_of
from mixtune.space.space import space_from_dict
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import EpochReport


def test_a_new_metric_is_one_row(
    small_space: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Metric("val_top3_accuracy", "validation accuracy of three guesses", "max", "epoch", "chance")
    monkeypatch.setitem(METRICS, row.name, row)
    values = small_space(
        objectives={"val_top3_accuracy": "max", "train_latency_s": "min"},
        constraints={"val_top3_accuracy": ">= 0.2"},
        search={"trials": 3},
        baselines=[],
    )
    run = RunDirectory(tmp_path)
    space = space_from_dict(values)
    run.space_file.write_text(space_text(space_document(space, RunFacts())))
    search = RunningSearch(space, run.ledger_file)
    bill = Bill(dict.fromkeys(PHASES, 10), (("sl", "sl steps", 1.0),), "inference")
    windows = [("sl steps", 0.1, True, {"device": "a CPU"})]
    for found in (0.8, 0.9, 0.1):
        asked = search.ask()
        assert asked
        search.start(asked.trial)
        counts = {"epoch": 1, "epochs_asked": 1, "epochs_trained": 1, "epochs_reused": 0}
        metrics = {**counts, "val_top3_accuracy": found}
        search.report(asked.trial, EpochReport([metrics], metrics, windows, bill))
        search.end(asked.trial)
    result = result_of(run)
    result.write_tables()
    assert list(pd.read_csv(run.trials_file)["val_top3_accuracy"]) == [0.8, 0.9, 0.1]
    assert list(result.pareto_front()["val_top3_accuracy"]) == [0.9]  # by the objective, and within the constraint
    assert search.suggester.study.trials[1].values[0] == 0.9
    assert [epoch["val_top3_accuracy"] for epoch in result.records["t0001"].epochs] == [0.8]
    page = write_report(result, None).read_text(encoding="utf-8")
    assert "validation accuracy of three guesses" in page
    assert "90.0 %" in page


def test_numbers_are_written_with_three_significant_digits_in_the_unit_that_people_read() -> None:
    for value, text in (
        (0, "0"), (0.41234, "0.412"), (12.0, "12.0"), (9.999, "10.0"), (99.96, "100"), (123.4, "123"),
        (1234.5, "1230"), (1.5e15, "1.5e+15"), (-0.05, "-0.0500"), (2e-7, "2e-07"),
    ):  # fmt: skip
        assert significant(value) == text
    assert find_metric("val_accuracy").text(0.97, 0.014) == "97.0 ± 1.4 %"
    assert find_metric("train_latency_s").text(12.345) == "12.3 s"
    assert find_metric("x_ms").text(0.5) == "0.500 ms"
    for nothing in (None, math.nan, math.inf):
        assert find_metric("val_accuracy").text(nothing) == "-"
    assert (setting(None), setting(True)) == ("", "True")


def test_axes_carry_their_units() -> None:
    for name, title in {
        "val_accuracy": "validation accuracy (%)",
        "val_balanced_accuracy": "balanced validation accuracy (%)",
        "val_macro_f1": "validation macro F1 (%)",
        "test_calibration_error": "test calibration error (%)",
        "train_latency_s": "training time (s)",
        "train_flops": "training compute (FLOP)",
        "latency_ssl_s": "latency_ssl_s (s)",
        "infer_latency_ms": "inference time (ms)",
        "loss": "loss",
    }.items():
        assert find_metric(name).axis_title == title


def test_a_count_has_its_plural() -> None:
    assert [counted(n, "trial") for n in (0, 1, 1200)] == ["0 trials", "1 trial", "1,200 trials"]
