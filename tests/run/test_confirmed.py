"""Fronts on fresh seeds: standard deviations by hand, probabilities against Student's t, and what falls off."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import t as student

from mixtune.run.confirmed import Confirmation, counted_trainings
from mixtune.run.ledger import Ledger, read_ledger
from mixtune.run.result import load

MakeRun = Callable[..., Path]
Pair = tuple[float, float]  # validation accuracy and seconds, NaN where the training diverged
FOUND: list[Mapping[str, Any]] = [
    {"val_accuracy": 0.90, "val_accuracy_se": 0.02, "train_latency_s": 10.0, "train_flops": 1e12, "device": "CPU"},
    {"val_accuracy": 0.95, "val_accuracy_se": 0.02, "train_latency_s": 20.0, "train_flops": 3e12, "device": "CPU"},
]
BASELINE = {"sl": {"val_accuracy": 0.80, "val_accuracy_se": 0.03, "train_latency_s": 5.0, "train_flops": 5e11}}
NAN = math.nan


def around(accuracy: float, seconds: float, by: float = 0.01, seeds: int = 4) -> list[Pair]:
    """Return training runs of which half are above and half below, seconds by the same share."""
    signs = [1 if seed % 2 else -1 for seed in range(seeds)]
    return [(accuracy + sign * by, seconds * (1 + sign * by)) for sign in signs]


def add(directory: Path, trial: str, trainings: Sequence[Pair], device: str = "CPU", error: float = 0.016) -> None:
    """Note training runs; error: of the images, which without predictions are taken to be independent."""
    ledger = Ledger(directory / "ledger.jsonl")
    for seed, (accuracy, seconds) in enumerate(trainings, start=1):
        if math.isnan(accuracy):
            ledger.append("confirmed", trial=trial, seed=seed, reason="the loss is nan", metrics={"device": device})
            continue
        metrics = {"val_accuracy": accuracy, "val_accuracy_se": error, "train_latency_s": seconds, "device": device}
        metrics |= {"test_accuracy": 1.0 - accuracy, "test_accuracy_se": 0.02}  # decides nothing
        ledger.append("confirmed", trial=trial, seed=seed, metrics=metrics)


def read(directory: Path, objectives: Mapping[str, str] | None = None) -> Confirmation:
    result = load(directory)
    result = result.with_objectives(objectives) if objectives else result
    found = result.confirmation
    assert found is not None
    return found


def printed(confirmed: Confirmation, width: int = 100) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(confirmed.table(width))
    return console.export_text().splitlines()


def test_means_deviations_and_pooled_errors_are_those_by_hand(make_run: MakeRun) -> None:
    directory = make_run(FOUND, BASELINE)
    add(directory, "t0001", [(0.88, 10.0), (0.90, 11.0), (0.92, 12.0)])
    add(directory, "t0002", [(0.90, 19.0), (0.94, 21.0)])
    add(directory, "sl", [(0.80, 5.0)])
    frame = read(directory).frame
    frame = frame.set_index("trial").loc[["t0001", "t0002", "sl"]]
    assert list(frame["method"]) == [None, None, "sl"]
    assert list(frame["seeds"]) == [3, 2, 1]
    assert list(frame["test_accuracy"]) == pytest.approx([0.10, 0.08, 0.20])
    assert list(frame["val_accuracy"]) == pytest.approx([0.90, 0.92, 0.80])
    assert list(frame["val_accuracy_std"]) == pytest.approx([0.02, 0.02 * math.sqrt(2), NAN], nan_ok=True)
    # squares 0.02^2 * 2 and 0.02^2 * 2 over 2 + 1 + 0 degrees of freedom
    pooled = 0.02 * math.sqrt(4 / 3)
    assert list(frame["val_accuracy_se"]) == pytest.approx([pooled / math.sqrt(n) for n in (3, 2, 1)])
    assert list(frame["train_latency_s"]) == pytest.approx([11.0, 20.0, 5.0])
    assert list(frame["train_latency_std_s"]) == pytest.approx([1.0, math.sqrt(2), NAN], nan_ok=True)
    # in shares of the means: 1/11 twice, 1/20 twice
    share = math.sqrt((2 / 11**2 + 2 / 20**2) / 3)
    errors = [share * mean / math.sqrt(n) for mean, n in ((11, 3), (20, 2), (5, 1))]
    assert list(frame["train_latency_se_s"]) == pytest.approx(errors)
    assert list(frame["search_val_accuracy"]) == [0.90, 0.95, 0.80]
    assert list(frame["search_val_accuracy_se"]) == [0.02, 0.02, 0.03]
    assert list(frame["search_train_latency_s"]) == [10.0, 20.0, 5.0]


def test_the_better_of_two_is_the_likelier_and_as_likely_each_time(make_run: MakeRun) -> None:
    """Less so than by Student's t: that most recipes are alike is known before."""
    directory = make_run(FOUND[:1], BASELINE, objectives={"val_accuracy": "max"})
    add(directory, "t0001", around(0.910, 10.0), error=0.001)
    add(directory, "sl", around(0.900, 5.0), error=0.001)
    confirmed = read(directory)
    deviation = 0.01 * math.sqrt(8 / 6)  # eight squares of 0.01 over 3 + 3 degrees of freedom
    expected = student.cdf(0.010 / (deviation * math.sqrt(2 / 4)), 6)
    better, worse = confirmed.frame["p_front"]
    assert 0.6 < better < expected
    assert better + worse == pytest.approx(1.0)
    assert 0.05 <= worse < 0.3  # too likely to have fallen off, and too unlikely to be on it for certain
    assert not confirmed.frame["fell_off"].any()
    assert confirmed.frame["undecided"].all()
    assert read(directory).to_json_dict() == confirmed.to_json_dict()
    assert confirmed.objectives == {"val_accuracy": "max"}


def test_members_far_apart_are_certain_and_equal_ones_have_about_the_same_chance(make_run: MakeRun) -> None:
    directory = make_run(FOUND, BASELINE)
    for trial, figures in (("t0001", (0.95, 10.0)), ("t0002", (0.70, 20.0)), ("sl", (0.60, 5.0))):
        add(directory, trial, around(*figures), error=0.001)
    frame = read(directory).frame
    assert list(frame["trial"]) == ["sl", "t0001", "t0002"]
    assert list(frame["p_front"]) == pytest.approx([1.0, 1.0, 0.0], abs=0.02)
    assert list(frame["fell_off"]) == [False, False, True]
    assert not frame["undecided"].any()

    equal = make_run([FOUND[0]] * 2, name="equal")
    for trial in ("t0001", "t0002"):
        add(equal, trial, around(0.9, 10.0))
    frame = read(equal).frame
    assert frame["p_front"][0] == pytest.approx(frame["p_front"][1], abs=0.02)
    assert 0.7 < frame["p_front"][0] < 0.8  # one of four quadrants is lost
    assert not frame["fell_off"].any()
    assert frame["undecided"].all()
    assert list(read(equal, {"train_flops": "min"}).frame["p_front"]) == [1.0, 1.0]  # exact, and neither dominates


def test_a_baseline_can_push_a_member_off_and_what_was_confirmed_stays(make_run: MakeRun) -> None:
    """Also a trial that the search's figures of one seed have dominated since."""
    dominated = {**FOUND[1], "train_latency_s": 21.0}
    directory = make_run(
        [FOUND[0] | {"val_accuracy": 0.81}, FOUND[1], dominated], dict.fromkeys(("sl", "ssl_sl"), BASELINE["sl"])
    )
    assert load(directory).confirmation is None
    for trial, accuracy, seconds in (("t0001", 0.70, 10.0), ("t0002", 0.95, 20.0), ("t0003", 0.99, 25.0)):
        add(directory, trial, around(accuracy, seconds), error=0.001)
    add(directory, "sl", around(0.90, 5.0), error=0.001)
    add(directory, "ssl_sl", around(0.80, 6.0), error=0.001)
    confirmed = read(directory)
    assert list(confirmed.frame["trial"]) == ["sl", "ssl_sl", "t0001", "t0002", "t0003"]
    assert list(confirmed.frame["fell_off"]) == [False, True, True, False, False]
    assert any("t0001 (fell off)" in line for line in printed(confirmed))


def test_every_set_of_objectives_has_its_front(make_run: MakeRun) -> None:
    directory = make_run(FOUND)
    add(directory, "t0001", around(0.80, 10.0), error=0.001)
    add(directory, "t0002", around(0.95, 20.0, by=0.005), error=0.001)
    modes = {"val_accuracy": "max", "train_latency_s": "min", "train_flops": "min"}
    for names, on_front in (
        (["val_accuracy"], {"t0002": 1.0}),
        (["train_latency_s"], {"t0001": 1.0}),
        (["train_flops"], {"t0001": 1.0}),
        (["val_accuracy", "train_flops"], {"t0001": 1.0, "t0002": 1.0}),
        (list(modes), {"t0001": 1.0, "t0002": 1.0}),
    ):
        confirmed = read(directory, {name: modes[name] for name in names})
        found = dict(zip(confirmed.frame["trial"], confirmed.frame["p_front"], strict=True))
        assert {trial: p for trial, p in found.items() if p > 0.05} == pytest.approx(on_front, abs=0.05), names
        assert ("train_flops" in confirmed.frame) == ("train_flops" in names)
        assert any("FLOP" in line for line in printed(confirmed)) == ("train_flops" in names)


def test_a_diverged_training_counts_as_off_the_front_and_is_told(make_run: MakeRun) -> None:
    directory = make_run(FOUND)
    add(directory, "t0001", around(0.80, 10.0), error=0.001)
    add(directory, "t0002", [*around(0.95, 20.0, by=0.001)[:3], (NAN, NAN)], error=0.001)
    confirmed = read(directory)
    row = confirmed.frame.iloc[1]
    assert (row["seeds"], row["diverged"]) == (4, 1)
    assert row["val_accuracy"] == pytest.approx(0.95, abs=0.001)
    assert row["p_front"] == pytest.approx(3 / 4, abs=0.02)
    assert not row["fell_off"]
    assert confirmed.notes[0].startswith("1 of 8 training runs diverged (t0002 1 of 4): means are of the others")

    add(directory, "t0002", [(NAN, NAN)] * 4)  # now always: it beats nobody
    frame = read(directory).frame
    assert list(frame["p_front"]) == [1.0, 0.0]
    assert list(frame["fell_off"]) == [False, True]
    assert frame["val_accuracy"].isna().tolist() == [False, True]
    assert "- " in printed(read(directory))[-1]


def test_a_member_that_breaks_a_constraint_on_fresh_seeds_fell_off_and_beats_nobody(make_run: MakeRun) -> None:
    directory = make_run(FOUND, objectives={"val_accuracy": "max"}, constraints={"train_latency_s": "<= 25"})
    add(directory, "t0002", around(0.95, 30.0))
    confirmed = read(directory)
    (row,) = confirmed.frame.to_dict("records")
    assert (row["trial"], row["fell_off"], row["p_front"] < 0.01) == ("t0002", True, True)
    assert "train_latency_s <= 25 does not hold on fresh seeds: t0002" in confirmed.notes

    bounded = make_run(FOUND, BASELINE, constraints={"train_latency_s": "<= 20"}, name="bounded")
    add(bounded, "t0001", around(0.80, 10.0), error=0.001)
    add(bounded, "t0002", around(0.95, 20.0), error=0.001)  # half of its mean's draws are above
    add(bounded, "sl", [(0.99, 30.0)] * 4)  # the best, and forbidden
    frame = read(bounded).frame.set_index("trial")
    assert not frame.loc["t0001", "fell_off"]
    assert frame.loc["t0001", "p_front"] == 1.0
    assert frame.loc["t0002", "p_front"] == pytest.approx(0.5, abs=0.03)
    assert frame.loc["sl", "p_front"] == 0.0


def test_one_seed_takes_the_binomial_error_and_says_so(make_run: MakeRun) -> None:
    directory = make_run(FOUND)
    add(directory, "t0001", [(0.90, 10.0)])
    add(directory, "t0002", [(0.90 + 0.016, 20.0)])
    confirmed = read(directory)
    assert list(confirmed.frame["val_accuracy_se"]) == [0.016] * 2
    assert confirmed.frame["val_accuracy_std"].isna().all()
    assert list(confirmed.frame["train_latency_se_s"]) == [0.0] * 2
    # better by one binomial error, for which the normal distribution at 1 / sqrt(2) has 0.76, and the search by more
    assert list(confirmed.frame["p_front"]) == pytest.approx([1.0, 0.76], abs=0.05)
    assert confirmed.notes == (
        "one seed has no spread: ± is the binomial standard error of the images, 1.6 points of validation images, and "
        "training times are taken as exact; more --seeds tell more",
    )
    text = "\n".join(printed(confirmed))
    assert "on 1 fresh seed:" in text
    assert "90.0 ± 1.6 %" in text
    assert "10.0 s" in text


def test_a_row_with_many_seeds_has_a_deviation_of_its_own(make_run: MakeRun) -> None:
    directory = make_run(FOUND)
    for trial, accuracy, by in (("t0001", 0.90, 0.001), ("t0002", 0.95, 0.04)):
        add(directory, trial, around(accuracy, 10.0, by=by, seeds=10))
    confirmed = read(directory)
    own = [by * math.sqrt(10 / 9) / math.sqrt(10) for by in (0.001, 0.04)]
    assert list(confirmed.frame["val_accuracy_se"]) == pytest.approx(own)
    assert not any("pooled" in note for note in confirmed.notes)


def test_the_notes_say_what_the_spread_is_and_what_is_not_in_it(make_run: MakeRun) -> None:
    directory = make_run(FOUND, BASELINE)
    add(directory, "t0001", around(0.90, 10.0, seeds=2))
    add(directory, "sl", around(0.80, 5.0, seeds=2)[:1])
    assert read(directory).notes == (
        "± is the standard error over seeds, from standard deviations pooled over the rows: 1.4 points of accuracy, "
        "1.4 % of the training time (1 degree of freedom)",
        "± of accuracies holds the images' sampling error too, about 1.6 points of one run, which all rows share: "
        "differences between rows are more certain than it",
        "not confirmed yet, so not compared with: t0002",
        "not every seed is in: sl 1 of 2",
    )


def test_of_one_trial_and_seed_the_latest_counts_and_of_devices_the_last(make_run: MakeRun) -> None:
    directory = make_run(FOUND)
    add(directory, "t0001", [(0.5, 99.0), (0.9, 10.0)])
    add(directory, "t0002", around(0.95, 20.0, seeds=2))
    add(directory, "t0001", [(0.9, 10.0)])
    assert read(directory).frame["val_accuracy"][0] == pytest.approx(0.9)
    events = [event for event in read_ledger(directory / "ledger.jsonl") if event["event"] == "confirmed"]
    assert list(counted_trainings(events)) == [("t0001", 2), ("t0002", 1), ("t0002", 2), ("t0001", 1)]
    assert counted_trainings(events, "NVIDIA H200") == {}

    add(directory, "t0001", around(0.9, 1.0, seeds=2), device="NVIDIA H200")
    confirmed = read(directory)
    assert list(confirmed.frame["trial"]) == ["t0001"]
    assert confirmed.device == "NVIDIA H200"
    assert confirmed.notes[-2:] == (
        "of the training runs on NVIDIA H200 alone; left out: 5 on CPU",
        "confirmed on NVIDIA H200; the search's seconds are of CPU",
    )


def test_the_table_shows_means_beside_the_searchs_figures(make_run: MakeRun) -> None:
    directory = make_run(FOUND, BASELINE, objectives={"val_accuracy": "max", "train_flops": "min"})
    for trial, *figures in (("t0001", 0.91, 10.0), ("t0002", 0.94, 20.0), ("sl", 0.80, 5.0)):
        add(directory, trial, around(*figures))
    for width in (60, 80, 100):
        lines = printed(read(directory), width)
        assert max(map(len, lines)) <= width
        assert not any("…" in line for line in lines)
        text = " ".join(" ".join(lines).split())
        assert all(word in text for word in ("t0001", "t0002", "sl", "91.0", "94.0", "0.06", "1e+12", "100 %")), width
    assert lines[0].strip() == "the front on 4 fresh seeds: mean ± standard error"
    # 0.01 * sqrt(12 / 9) / sqrt(4) is 0.6 points, and the images' error 1.6
    assert "t0001 91.0 ± 1.7 % 9.0 % 10.00 ± 0.06 s 1e+12 FLOP 90.0 % 100 %" in text
    assert "sl 80.0 ± 1.7 %" in text


def test_csv_and_json_read_back_to_the_same_figures(make_run: MakeRun) -> None:
    directory = make_run(FOUND, BASELINE)
    add(directory, "t0001", around(0.91, 10.0))
    add(directory, "sl", [(0.80, 5.0)])
    confirmed = read(directory)
    back = pd.read_csv(io.StringIO(confirmed.to_csv()))
    given = json.loads(json.dumps(confirmed.to_json_dict(), allow_nan=False))
    assert given["objectives"] == {"val_accuracy": "max", "train_latency_s": "min"}
    assert (given["device"], given["notes"]) == ("CPU", list(confirmed.notes))
    cells = back.astype(object).where(back.notna(), None).to_dict("records")
    assert [{name: row[name] for name in confirmed.frame} for row in given["confirmed"]] == cells
    by_trial = {row["trial"]: row for row in given["confirmed"]}
    assert by_trial["t0001"]["params"] == {"alpha": 0.1, "epochs.sl": 20}
    assert by_trial["sl"]["val_accuracy_std"] is None


def test_other_figures_are_confirmed_where_they_are_aimed_at(make_run: MakeRun) -> None:
    found = [{**m, "val_macro_f1": m["val_accuracy"], "val_calibration_error": 0.04} for m in FOUND]
    aims = {"val_macro_f1": "max", "train_latency_s": "min"}
    directory = make_run(found, objectives=aims, constraints={"val_calibration_error": "<= 0.05"})
    ledger = Ledger(directory / "ledger.jsonl")
    for trial, f1, error in (("t0001", 0.80, 0.03), ("t0002", 0.90, 0.09)):
        for seed, sign in enumerate([1, -1, 1, -1]):
            metrics = {"val_macro_f1": f1 + sign * 0.01, "val_calibration_error": error, "train_latency_s": 10.0}
            metrics |= {"val_accuracy": 0.9, "val_accuracy_se": 0.016, "device": "CPU"}
            ledger.append("confirmed", trial=trial, seed=seed, metrics=metrics)
    confirmed = read(directory)
    older = make_run(found, objectives=aims, name="older")  # whose training runs did not measure it
    add(older, "t0001", around(0.9, 10.0))
    assert read(older).frame["val_macro_f1"].isna().all()
    assert confirmed.objectives == {"val_macro_f1": "max", "train_latency_s": "min"}
    assert list(confirmed.frame["val_macro_f1"]) == pytest.approx([0.80, 0.90])
    assert list(confirmed.frame["val_macro_f1_se"]) == pytest.approx([0.01 * math.sqrt(8 / 6) / 2] * 2)
    assert list(confirmed.frame["val_calibration_error"]) == pytest.approx([0.03, 0.09])
    assert list(confirmed.frame["fell_off"]) == [False, True]
    assert "val_calibration_error <= 0.05 does not hold on fresh seeds: t0002" in confirmed.notes
    assert any("80.0 ± 0.6 %" in line for line in printed(confirmed))


def test_seconds_that_were_disturbed_are_marked_and_noted(make_run: MakeRun) -> None:
    directory = make_run([FOUND[0], FOUND[1] | {"disturbed": 1.0}])
    add(directory, "t0001", around(0.91, 10.0))
    add(directory, "t0002", around(0.94, 20.0))
    metrics = {"val_accuracy": 0.91, "val_accuracy_se": 0.016, "train_latency_s": 10.0, "disturbed": 0.1}
    Ledger(directory / "ledger.jsonl").append("confirmed", trial="t0001", seed=9, metrics=metrics | {"device": "CPU"})
    found = read(directory)
    first, second = (" ".join(line.split()) for line in printed(found) if "t000" in line)
    assert "~10.00 ± 0.05 s 90.0 %" in first
    assert "20.00 ± 0.11 s 95.0 %" in second  # its fresh seeds were not
    assert "~" not in second
    assert found.notes[-1].startswith("~ t0001, t0002: timed while other processes computed")
