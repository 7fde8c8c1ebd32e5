"""A run directory is read as it stands: finished, running, or with nothing complete."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mixtune.errors import RequestError
from mixtune.report.tables import front_notes, front_table
from mixtune.run.ledger import Ledger
from mixtune.run.result import load

FIVE = [(0.50, 5.0), (0.90, 10.0), (0.85, 12.0), (0.95, 30.0), (0.96, 50.0)]
COSTS = ["latency_ssl_s", "latency_mix_s", "latency_sl_s", "latency_reused_s", "wall_s"]
COSTS += ["epochs_asked", "epochs_trained", "epochs_reused"]
MakeRun = Callable[..., Path]


def add_unfinished(directory: Path) -> None:
    ledger = Ledger(directory / "ledger.jsonl")
    for trial, ending in (("t0101", "stopped"), ("t0102", "failed"), ("t0103", "rejected"), ("t0104", "started")):
        ledger.append("asked", trial=trial, params={"alpha": 0.7, "epochs.sl": 30})
        # Better than every complete trial, so that a leak to the front would show.
        ledger.append(ending, trial=trial, reason="why", metrics={"val_accuracy": 1.0, "train_latency_s": 0.1})
    metrics = {"epoch": 3, "phase": "sl", "val_accuracy": 1.0, "train_latency_s": 0.1}
    ledger.append("epoch", trial="t0104", metrics=metrics)
    ledger.append("asked", trial="t0105", params={"alpha": 0.8, "epochs.sl": 30})


def test_the_columns_of_trials_stand_in_the_promised_order(make_run: MakeRun) -> None:
    metrics = {"train_flops": 1e9, "latency_sl_s": 2.0, "train_latency_s": 12.3, "val_accuracy": 0.9}
    metrics |= {"val_accuracy_se": 0.02, "epochs_asked": 30, "epochs_trained": 20, "epochs_reused": 10}
    trials = load(make_run([metrics])).trials
    head = ["trial", "state", "reason", "alpha", "epochs.sl", "val_accuracy", "train_latency_s"]
    assert list(trials.columns) == [*head, "train_flops", "val_accuracy_se", *COSTS]
    row = trials.iloc[0]
    assert (row["wall_s"], row["epochs.sl"], row["epochs_reused"]) == (42, 20, 10)
    assert pd.isna(row["latency_ssl_s"])


def test_baselines_have_their_method_first_and_are_no_trials(make_run: MakeRun) -> None:
    result = load(make_run(FIVE, {"ssl_sl": {"val_accuracy": 0.99, "train_latency_s": 1.0}}))
    assert list(result.baselines["method"]) == ["ssl_sl"]
    assert list(result.baselines.columns[:4]) == ["method", "trial", "state", "reason"]
    assert "rho" in result.baselines
    assert "rho" not in result.trials
    assert len(result.trials) == 5
    assert list(result.pareto_front()["trial"]) == ["ssl_sl"]  # a baseline is a recipe like any other


def test_only_complete_trials_reach_the_front(make_run: MakeRun) -> None:
    directory = make_run([*FIVE, {"val_accuracy": None, "train_latency_s": 0.1}])
    add_unfinished(directory)
    result = load(directory)
    assert list(result.pareto_front()["trial"]) == ["t0001", "t0002", "t0004", "t0005"]
    assert result.counts() == {
        "complete": 6,
        "stopped": 1,
        "failed": 1,
        "rejected": 1,
        "known": 0,
        "paused": 0,
        "running": 1,
    }
    assert result.knee() == "t0002"
    assert "t0105" in set(result.trials["trial"])


def test_a_run_without_a_complete_trial_has_an_empty_front(make_run: MakeRun) -> None:
    """Nor has one that ended before its ledger's first line."""
    assert repr(load(make_run(FIVE, name="five"))).endswith("five': 5 complete)")
    directory = make_run([])
    ledger = directory / "ledger.jsonl"
    ledger.unlink()
    assert "no trial has started" in repr(load(directory))
    for _ in range(2):
        result = load(directory)
        assert result.pareto_front().empty
        assert result.hypervolume() == 0
        assert result.knee() is None
        assert result.recommendation().trial is None
        assert result.to_json_dict()["front"] == []
        with pytest.raises(RequestError, match=r"no trial of .* is complete yet"):
            result.best("val_accuracy")
        result.write_tables()
        ledger.touch()
        add_unfinished(directory)


def test_the_json_has_the_documented_schema(make_run: MakeRun) -> None:
    first = {"val_accuracy": 0.9, "val_accuracy_se": 0.025, "train_latency_s": 10.0, "train_flops": 1e9}
    baselines = {"ssl_sl": {"val_accuracy": 0.8, "train_latency_s": 14.0}}
    document = load(make_run([first, (0.5, 20.0)], baselines)).to_json_dict()
    recommended = document.pop("recommended")
    assert (recommended["trial"], recommended["confirmed"], recommended["margin"]) == ("t0001", False, None)
    assert recommended["gain"] == {"over": "ssl_sl", "mean": pytest.approx(0.1), "se": None, "shown": False}
    assert json.loads(json.dumps(document, allow_nan=False)) == {
        "objectives": {"val_accuracy": "max", "train_latency_s": "min"},
        "constraints": {},
        "reference_point": {"val_accuracy": 0.1, "train_latency_s": 60.0},
        "hypervolume": pytest.approx(0.8 * 50),
        "knee": "t0001",
        "front": [
            {
                "trial": "t0001",
                "method": "MixTraining",
                "val_accuracy": 0.9,
                "val_accuracy_se": 0.025,
                "train_latency_s": 10.0,
                "params": {"alpha": 0.1, "epochs.sl": 20},
            }
        ],
        "baselines": [{"method": "ssl_sl", "val_accuracy": 0.8, "train_latency_s": 14.0}],
        "trials": {"complete": 2, "stopped": 0, "failed": 0, "rejected": 0, "known": 0, "paused": 0, "running": 0},
    }


def test_a_notebook_shows_the_sentence_and_the_front(make_run: MakeRun) -> None:
    result = load(make_run(FIVE))
    shown = result._repr_html_()
    assert result.recommendation().sentence in html.unescape(shown)
    assert [f"<td>{trial}</td>" in shown for trial in result.trials["trial"]] == [True, True, False, True, True]


def test_without_a_whole_reference_point_there_is_no_hypervolume(make_run: MakeRun) -> None:
    for i, reference in enumerate([None, {}, {"train_latency_s": 60.0}, {"val_accuracy": None}]):
        document = load(make_run(FIVE, reference=reference, name=str(i))).to_json_dict()  # nobody knows the classes
        assert document["hypervolume"] is None
        assert document["reference_point"]["val_accuracy"] is None


def test_best_keeps_to_the_bounds_in_each_objectives_own_sense(make_run: MakeRun) -> None:
    result = load(make_run(FIVE))
    assert result.best("val_accuracy")["trial"] == "t0005"
    assert result.best("val_accuracy", {"train_latency_s": 30})["trial"] == "t0004"
    assert result.best("train_latency_s", {"val_accuracy": 0.9})["trial"] == "t0002"
    assert result.best("val_accuracy", {"alpha": 0.35})["trial"] == "t0002"
    equals = load(make_run([(0.9, 20.0), (0.9, 10.0), (0.9, 15.0)], name="equals"))
    assert equals.best("val_accuracy")["trial"] == "t0002"


def test_a_request_that_best_cannot_meet_says_why(make_run: MakeRun) -> None:
    result = load(make_run(FIVE))
    for metric, bounds, message in (
        ("val_acuracy", {}, "'val_acuracy' is not an objective .*did you mean 'val_accuracy'"),
        ("val_accuracy", {"train_latency": 5}, "no column 'train_latency'.*did you mean 'train_latency_s'"),
        ("val_accuracy", {"train_latency_s": 2}, "train_latency_s <= 2: the smallest is 5.0"),
        ("train_latency_s", {"val_accuracy": 0.99}, "val_accuracy >= 0.99: the largest is 0.96"),
        ("val_accuracy", {"state": 2}, "'state' is not numeric"),
    ):
        with pytest.raises(RequestError, match=message):
            result.best(metric, bounds)


def test_other_objectives_judge_the_same_run(make_run: MakeRun) -> None:
    result = load(make_run(FIVE))
    other = result.with_objectives({"alpha": "min"})
    assert list(other.pareto_front()["trial"]) == ["t0001"]
    assert list(result.pareto_front({"alpha": "max"})["trial"]) == ["t0005"]
    assert other.to_json_dict()["reference_point"] == {"alpha": pytest.approx(0.55)}
    with pytest.raises(RequestError, match="did you mean 'val_accuracy'"):
        result.with_objectives({"val_acuracy": "max"})


def test_the_tables_are_written_whole_and_read_back(make_run: MakeRun) -> None:
    directory = make_run(FIVE)
    load(directory).write_tables()
    trials = pd.read_csv(directory / "trials.csv")
    assert list(trials["val_accuracy"]) == [accuracy for accuracy, _ in FIVE]
    assert list(pd.read_csv(directory / "pareto.csv")["trial"]) == ["t0001", "t0002", "t0004", "t0005"]
    expected = {"space.yaml", "ledger.jsonl", "trials.csv", "pareto.csv"}
    assert {path.name for path in directory.iterdir()} == expected


def test_a_missing_directory_is_told_with_its_likely_sibling(make_run: MakeRun) -> None:
    directory = make_run(FIVE)
    with pytest.raises(RequestError, match=r"no run directory .*digts; did you mean 'digits'"):
        load(directory.with_name("digts"))
    with pytest.raises(RequestError, match="is a file, not a run directory"):
        load(directory / "space.yaml")
    (directory / "space.yaml").unlink()
    with pytest.raises(RequestError, match=r"holds no run: space\.yaml is missing"):
        load(directory)


def test_a_trial_that_breaks_a_constraint_is_never_on_the_front(make_run: MakeRun) -> None:
    """However good it is: here the most accurate trial is too slow, and the cheapest not accurate enough."""
    limits = {"train_latency_s": "<= 30", "val_accuracy": ">= 0.6"}
    result = load(make_run([(0.9, 40.0), (0.8, 30.0), (0.7, 20.0), (0.5, 5.0)], constraints=limits))
    assert list(result.complete()["trial"]) == ["t0001", "t0002", "t0003", "t0004"]
    assert list(result.pareto_front()["trial"]) == ["t0003", "t0002"]
    assert result.best("val_accuracy")["trial"] == "t0002"
    assert result.hypervolume() == pytest.approx(0.7 * 30 + 0.6 * 10)
    assert result.to_json_dict()["constraints"] == limits
    assert "2 complete trials do not keep train_latency_s <= 30 and val_accuracy >= 0.6" in front_notes(result)

    none = load(make_run(FIVE, constraints={"train_latency_s": "<= 1"}, name="none"))
    assert none.feasible().empty
    assert (none.knee(), none.hypervolume()) == (None, 0)
    assert front_notes(none) == ["5 complete trials do not keep train_latency_s <= 1"]
    assert front_table(none).caption == "no recipe is complete yet and keeps the constraints"
    with pytest.raises(RequestError, match="is complete yet and keeps its constraints"):
        none.best("val_accuracy")


def test_a_constraint_on_a_metric_that_no_trial_has_reported_yet_is_not_kept(make_run: MakeRun) -> None:
    limits = {"train_flops": "<= 1e9"}
    assert load(make_run([], constraints=limits, name="empty")).pareto_front().empty
    rows = [{"val_accuracy": 0.9, "train_latency_s": 9.0}, {"val_accuracy": 0.5, "train_latency_s": 5.0}]
    assert load(make_run(rows, constraints=limits, name="none")).feasible().empty
    some = [rows[0], {**rows[1], "train_flops": 1e8}]
    assert list(load(make_run(some, constraints=limits, name="some")).feasible()["trial"]) == ["t0002"]


def test_a_recipe_without_its_alpha_is_shown_for_what_is_known_of_it(make_run: MakeRun) -> None:
    directory = make_run([(0.5, 5.0)], {"sl": {"val_accuracy": 0.4, "train_latency_s": 3.0}})
    values = yaml.safe_load((directory / "space.yaml").read_text())
    del values["recipe"]["alpha"]
    (directory / "space.yaml").write_text(yaml.safe_dump(values))
    result = load(directory)
    assert list(result.pareto_front()["trial"]) == ["sl", "t0001"]
    assert result.recommendation().lines()


def test_a_space_that_cannot_be_understood_is_told(make_run: MakeRun) -> None:
    directory = make_run(FIVE)
    for text, message in (
        ("objectives: [", "not valid YAML"),
        ("", "the file is empty"),
        ("space: {}", "objectives: missing"),
        ("objectives: [val_accuracy]", "objectives: should be a mapping"),
        ("objectives: {a: max}\nconstraints: [a]", "constraints: should be a mapping"),
        ("objectives: {a: max}\nconstraints: {a: 60}", "constraints.a: should be <= and a number"),
        ("objectives: {a: up}", "objectives.a: should be max or min"),
        (
            "objectives: {a: max}\nrun: {reference_point: {a: high}}",
            'run.reference_point.a: input should be a valid number, got "high"',
        ),
    ):
        (directory / "space.yaml").write_text(text)
        with pytest.raises(RequestError, match=message):
            load(directory)
