"""Means, standard deviations and speed-ups against sums done by hand; tables that fit, Markdown and CSV."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from mixtune.comparison.table import (
    Run,
    comparison_csv,
    comparison_markdown,
    comparison_notes,
    comparison_table,
    summarise,
)
from mixtune.report.paper import Setting, paper_rows

NAN = float("nan")
METHODS = [("sl", None), ("ssl_sl", "visible"), ("mixtraining", "visible"), ("ssl_sl", "full"), ("mixtraining", "full")]
LABELS = ["SL", "SSL+SL (visible)", "MixTraining (visible)", "SSL+SL (full)", "MixTraining (full)"]
SECONDS = [10.0, 16.0, 12.8, 22.4, 16.0]
FLOPS = [100.0, 140.0, 128.0, 216.0, 168.0]
TASKS = ("CIFAR10", "SVHN")


def run(method: str, encode: str | None, seed: int = 0, accuracy: float = 0.8, tasks: Sequence[str] = ()) -> Run:
    """Return a run whose tasks lie evenly around ``accuracy``, 0.02 apart."""
    at = METHODS.index((method, encode))
    offsets = [0.02 * (i - (len(tasks) - 1) / 2) for i in range(len(tasks))]
    by_task = {task: accuracy + offset for task, offset in zip(tasks, offsets, strict=True)} or {"digits": accuracy}
    return Run(method, encode, seed, accuracy, by_task, SECONDS[at], FLOPS[at])


def five(seeds: int = 2, tasks: Sequence[str] = ()) -> list[Run]:
    """Return all five methods, the last first; seed 1 is 0.02 better than seed 0, and so on."""
    return [run(*method, seed, 0.80 + 0.02 * seed, tasks) for method in METHODS[::-1] for seed in range(seeds)]


def paper_of(dataset: str | tuple[str, ...] = "CIFAR10") -> pd.DataFrame:
    return paper_rows(Setting(dataset, None, 10, 100, 100, 0.5, 0.5))


def printed(frame: pd.DataFrame, paper: pd.DataFrame | None = None, width: int = 100) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(comparison_table(frame, paper, "val", width))
    return console.export_text().splitlines()


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines]


def test_means_deviations_and_order_whatever_the_order_of_the_runs() -> None:
    frame = summarise(five(seeds=3))
    assert list(frame["label"]) == LABELS
    assert list(frame["seeds"]) == [3] * 5
    assert list(frame["accuracy_mean"]) == pytest.approx([0.82] * 5)
    assert list(frame["accuracy_std"]) == pytest.approx([0.02] * 5)  # of 0.80, 0.82, 0.84, over n - 1
    assert list(frame["latency_mean_s"]) == pytest.approx(SECONDS)
    assert list(frame["latency_std_s"]) == pytest.approx([0.0] * 5)
    assert list(frame["flops"]) == pytest.approx(FLOPS)
    assert frame["encode"][0] is None
    assert not [name for name in frame.columns if "digits" in name]


def test_speedups_at_the_same_encoding_and_against_the_fastest() -> None:
    frame = summarise(five())
    for name, expected in {
        "speedup_same_encoding": [NAN, NAN, 16 / 12.8, NAN, 22.4 / 16],
        "speedup_same_encoding_by_flops": [NAN, NAN, 140 / 128, NAN, 216 / 168],
        "speedup_fastest": [NAN, 1.0, 16 / 12.8, 16 / 22.4, 16 / 16],
        "speedup_fastest_by_flops": [NAN, 1.0, 140 / 128, 140 / 216, 140 / 168],
    }.items():
        assert list(frame[name]) == pytest.approx(expected, nan_ok=True), name


def test_an_objective_without_encodings_has_one_speedup() -> None:
    runs = [Run("ssl_sl", None, 0, 0.5, {"a": 0.5}, 10.0, 5.0), Run("mixtraining", None, 0, 0.6, {"a": 0.6}, 8.0, 4.0)]
    frame = summarise(runs)
    assert list(frame["label"]) == ["SSL+SL", "MixTraining"]
    assert frame["speedup_same_encoding"][1] == frame["speedup_fastest"][1] == 1.25
    header, _, _, mixed = markdown_cells(comparison_markdown(frame, None, "test"))
    assert header == ["method", "test accuracy", "training time", "speed-up"]
    assert mixed == ["MixTraining", "60.0 %", "8.00 s", "1.25x"]


def test_what_is_missing_leaves_gaps_and_never_divides_by_zero() -> None:
    without_full_pair = [r for r in five() if (r.method, r.encode) != ("ssl_sl", "full")]
    frame = summarise(without_full_pair).set_index("label")
    assert math.isnan(frame["speedup_same_encoding"]["MixTraining (full)"])
    assert frame["speedup_fastest"]["MixTraining (full)"] == 1.0
    instant = [Run(m, "full", 0, 0.5, {}, 0.0, 0.0) for m in ("ssl_sl", "mixtraining")]
    assert summarise(instant).filter(like="speedup").isna().all(axis=None)
    assert comparison_notes(summarise(instant)) == ["a standard deviation needs two seeds: there is only one"]
    for runs in ([], [run("sl", None)], [run("mixtraining", "full")]):
        frame = summarise(runs)
        assert len(frame) == len(runs)
        assert frame.filter(like="speedup").isna().all(axis=None)
        assert len(markdown_cells(comparison_markdown(frame, None, "val"))) == 2 + len(runs)
        assert len(pd.read_csv(io.StringIO(comparison_csv(frame, None)))) == len(runs)
        assert printed(frame)[0].strip() == ("one seed" if runs else "no training is complete yet")


def test_a_speedup_below_one_is_called_a_slow_down() -> None:
    note = "a speed-up below 1x is a slow-down: SSL+SL (full) takes 1.40x as long as SSL+SL (visible)"
    assert note in comparison_notes(summarise(five()))


def test_seeds_that_are_missing_or_single_are_counted_and_have_no_deviation() -> None:
    frame = summarise(five(seeds=1))
    assert frame[["accuracy_std", "latency_std_s"]].isna().all(axis=None)
    assert not any("±" in line for line in printed(frame))
    assert comparison_notes(frame)[0] == "a standard deviation needs two seeds: there is only one"
    frame = summarise([*five(seeds=1), run("ssl_sl", "full", 1), run("sl", None, 1)])
    assert "mean ± standard deviation over 1 to 2 seeds" in printed(frame)[0]
    few = "SSL+SL (visible)", "MixTraining (visible)", "MixTraining (full)"
    assert comparison_notes(frame)[:2] == [
        f"not every seed is in: {', '.join(f'{label} 1' for label in few)} of 2",
        f"a standard deviation needs two seeds: {', '.join(few)}",
    ]


def test_a_diverged_run_takes_the_mean_with_it_but_not_the_time() -> None:
    diverged = Run("mixtraining", "full", 2, NAN, {}, 1.0, NAN)
    frame = summarise([*five(tasks=TASKS), diverged])
    mixed = frame.iloc[-1]
    assert (mixed["seeds"], mixed["diverged"]) == (3, 1)
    assert mixed[["accuracy_mean", "accuracy_std", "accuracy_SVHN_mean"]].isna().all()
    assert (mixed["latency_mean_s"], mixed["flops"]) == (16.0, 168.0)
    note = "MixTraining (full): 1 of 3 seeds diverged, so it has no mean accuracy; its time is from the other 2"
    assert note in comparison_notes(frame)
    assert markdown_cells(comparison_markdown(frame, None, "val"))[-1][1:4] == ["-", "-", "-"]
    nothing_left = summarise([diverged])
    assert math.isnan(nothing_left["latency_mean_s"][0])
    assert comparison_notes(nothing_left)[-1].endswith("it has no time either")


def test_a_gap_is_a_win_only_outside_its_paired_interval() -> None:
    """Seeds move both methods by 5 points; what counts are the differences on one seed."""
    drift = [0.00, 0.05, 0.02, 0.04]

    def both(gaps: Sequence[float]) -> list[Run]:
        runs = [Run("ssl_sl", "full", seed, 0.8 + by, {}, 22.0, 22.0) for seed, by in enumerate(drift)]
        mixed = [0.8 + by + gap for by, gap in zip(drift, gaps, strict=True)]
        return [*runs, *(Run("mixtraining", "full", seed, at, {}, 20.0, 16.0) for seed, at in enumerate(mixed))]

    predicted = "speed-up measured / predicted by FLOPs, at the same encoding: MixTraining (full) 0.80 (1.10x / 1.38x)"
    for gaps, verdict in (
        ([0.010, 0.014, 0.012, 0.012], "better"),
        ([-0.010, -0.014, -0.012, -0.012], "worse"),
        ([0.030, -0.010, 0.020, 0.008], "which may be nothing"),
    ):
        runs = both(gaps)
        mean = sum(gaps) / 4
        margin = 3.1824 * math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 3) / 2  # Student's t with 3 degrees
        interval = f"{100 * (mean - margin):+.1f} to {100 * (mean + margin):+.1f}"
        said = f"MixTraining (full) over SSL+SL (full): {100 * mean:+.1f} points of accuracy (95 % interval {interval})"
        assert comparison_notes(summarise(runs), runs=runs) == [f"{said}, {verdict}", predicted]
    alone = [run for run in both([0.1] * 4) if run.seed == 0]
    assert not any("interval" in note for note in comparison_notes(summarise(alone), runs=alone))


def test_step_times_that_rows_share_make_their_speedup_more_certain() -> None:
    def timed(method: str, seed: int, **phases: float) -> Run:
        seconds = sum(phases.values())
        error = 0.06 * math.hypot(*phases.values())  # each step time is uncertain by 6 %
        return Run(method, "full", seed, 0.8, {}, seconds, seconds, latency_se_s=error, phase_s=phases)

    ssl_sl = [timed("ssl_sl", seed, ssl=10.0, sl=10.0) for seed in range(2)]
    mixed = [timed("mixtraining", seed, ssl=9.0, sl=9.0, mix=1.8) for seed in range(2)]
    frame = summarise([*ssl_sl, *mixed]).set_index("method")
    shares = (0.5 - 9 / 19.8, 0.5 - 9 / 19.8, 1.8 / 19.8)  # of what each spends on its own
    error = frame.loc["mixtraining", "speedup_same_encoding_se"]
    assert error == pytest.approx(20 / 19.8 * 0.06 * math.hypot(*shares) / math.sqrt(2))
    assert error < 0.01 < 0.06 / math.sqrt(2)  # far less than of two rows that share nothing
    assert frame.loc["ssl_sl", "speedup_fastest_se"] == 0.0  # itself
    notes = comparison_notes(summarise([*ssl_sl, *mixed]))
    assert not any("distinguishable" in note for note in notes)
    close = [timed("mixtraining", seed, ssl=5.0, sl=5.0, mix=9.9) for seed in range(2)]
    assert comparison_notes(summarise([*ssl_sl, *close]))[0] == (
        "MixTraining (full) and SSL+SL (full) are not distinguishable in training time: the speed-up of "
        "1.01 ± 0.03 may be nothing"
    )
    apart = [replace(run, latency_s=run.latency_s * (1 + 0.1 * run.seed)) for run in mixed]  # seeds that disagree
    scattered = summarise([*ssl_sl, *apart]).set_index("method").loc["mixtraining", "speedup_same_encoding_se"]
    assert scattered > 5 * error
    assert "1.01 ± 0.03x" in comparison_markdown(summarise([*ssl_sl, *close]), None, "val")


def test_the_cells_and_the_papers_rows_beneath() -> None:
    frame, paper = summarise(five(seeds=3)), paper_of()
    cells = markdown_cells(comparison_markdown(frame, paper, "test"))
    header = ["method", "test accuracy", "training time", "speed-up, same encoding", "speed-up, fastest SSL+SL"]
    assert cells[0] == header
    assert cells[1] == ["---", *["---:"] * 4]
    assert cells[2:] == [
        ["SL", "82.0 ± 2.0 %", "10.0 ± 0.0 s", "-", "-"],
        ["SSL+SL (visible)", "82.0 ± 2.0 %", "16.0 ± 0.0 s", "-", "1.00x"],
        ["MixTraining (visible)", "82.0 ± 2.0 %", "12.8 ± 0.0 s", "1.25x", "1.25x"],
        ["SSL+SL (full)", "82.0 ± 2.0 %", "22.4 ± 0.0 s", "-", "0.71x"],
        ["MixTraining (full)", "82.0 ± 2.0 %", "16.0 ± 0.0 s", "1.40x", "1.00x"],
        ["paper: SL", "53.4 %", "589 s", "-", "-"],
        ["paper: SSL+SL", "56.8 %", "1250 s", "-", "-"],
        ["paper: MixTraining", "60.5 %", "962 s", "1.30x", "-"],
    ]
    lines = printed(frame, paper)
    for row in cells[2:]:
        assert any(line.split() == " ".join(row).split() for line in lines), row
    assert comparison_notes(frame, paper)[-1] == (
        "paper (Table 1): CIFAR-10, 10 % of the data, 100 + 100 epochs, alpha 0.5, rho 0.5; test accuracy, "
        "seconds on its own hardware, encoding full"
    )


def test_a_deviation_has_the_decimals_of_its_mean() -> None:
    for times, text in (
        ([12.0, 12.6], "12.3 ± 0.4 s"),
        ([1200.0, 1260.0], "1230 ± 42 s"),
        ([0.40, 0.42], "0.410 ± 0.014 s"),
        ([2e6, 2e6 + 10], "2e+06 ± 7 s"),
    ):
        frame = summarise([Run("sl", None, seed, 0.5, {}, time, 1.0) for seed, time in enumerate(times)])
        assert markdown_cells(comparison_markdown(frame, None, "val"))[-1][2] == text


def test_the_table_fits_and_loses_no_cell() -> None:
    long = ("CIFAR10", "a task | of some [length]", "b", "c", "d")
    for width, tasks in itertools.product((60, 100), ((), TASKS, long)):
        frame = summarise(five(tasks=tasks))
        paper = paper_of(TASKS if len(tasks) == 2 else "CIFAR10")
        lines = printed(frame, paper, width)
        assert max(map(len, lines)) <= width
        text = " ".join(" ".join(lines).split())
        cells = ["81.0 ± 1.4 %", "12.8 ± 0.0 s", "1.25x", "0.71x", "1.30x", "60.8 %" if len(tasks) == 2 else "60.5 %"]
        for part in (*(label.split()[0] for label in (*LABELS, *tasks)), *cells):
            assert part in text, (width, tasks, part)
        rows = markdown_cells(comparison_markdown(frame, paper, "val"))
        assert {len(row) for row in rows} == {5 + len(tasks)}


def test_the_papers_tasks_are_found_by_name_and_else_by_order() -> None:
    paper = paper_of(("SVHN", "CIFAR10"))
    for tasks in (TASKS, ("image_folder", "image_folder_2")):
        frame = summarise(five(tasks=tasks))
        assert list(frame[f"accuracy_{tasks[1]}_mean"]) == pytest.approx([0.82] * 5)
        first_and_second = markdown_cells(comparison_markdown(frame, paper, "val"))[-1][2:4]
        assert first_and_second == (["63.4 %", "76.8 %"] if tasks == TASKS else ["76.8 %", "63.4 %"])
    single = markdown_cells(comparison_markdown(summarise(five(tasks=("a", "b", "c"))), paper, "val"))
    assert single[-1][1:5] == ["70.1 %", "-", "-", "-"]


def test_the_csv_reads_back_to_the_same_figures() -> None:
    frame, paper = summarise(five(seeds=3, tasks=TASKS)), paper_of(TASKS)
    back = pd.read_csv(io.StringIO(comparison_csv(frame, paper)))
    measured, theirs = back[back["source"] == "measured"], back[back["source"] != "measured"]
    given, expected = (f[list(frame)].astype(object).where(f[list(frame)].notna(), None) for f in (measured, frame))
    assert given.to_dict("records") == expected.to_dict("records")
    assert list(theirs["source"]) == ["paper, Tables 3, 12"] * 3
    assert list(theirs["accuracy_mean"]) == list(paper["accuracy"])
    assert list(theirs["accuracy_SVHN_mean"]) == list(paper["accuracy_SVHN"])
    assert list(theirs["latency_mean_s"]) == list(paper["latency_s"])
    assert list(theirs["encode"].fillna("")) == ["", "full", "full"]
    assert theirs["speedup_same_encoding"].iloc[-1] == paper["speedup"].iloc[-1]


def test_seconds_that_were_disturbed_are_marked_and_noted() -> None:
    runs = [*five(), replace(run("ssl_sl", "full", seed=2), disturbed=0.25)]
    frame = summarise(runs)
    (marked,) = (cells for cells in markdown_cells(comparison_markdown(frame, None, "val")) if "~" in " ".join(cells))
    assert marked[0] == "SSL+SL (full)"
    assert "~22.4 ± 0.0 s" in marked
    note = "~ SSL+SL (full): timed while other processes computed, so the seconds may be too long"
    assert [line for line in comparison_notes(frame) if "~" in line] == [note]
    assert any("~22.4" in line for line in printed(frame))
