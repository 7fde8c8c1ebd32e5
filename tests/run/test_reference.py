"""The hypervolume's reference: derived from what was measured, or given; in the table, in the JSON, between runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from plain_search import search_here

from mixtune.cli import app
from mixtune.errors import RequestError
from mixtune.metrics import METRICS
from mixtune.report.several import compare_runs
from mixtune.report.tables import front_notes
from mixtune.run.directory import RunFacts
from mixtune.run.ledger import Ledger
from mixtune.run.reference import derive_reference
from mixtune.run.result import load
from mixtune.space.space import space_from_dict

MakeRun = Callable[..., Path]
TASKS = {
    "a": {"classes": 10, "train_images": 900, "val_images": 100},
    "b": {"classes": 2, "train_images": 900, "val_images": 100},
}
FACTS = RunFacts(tasks=TASKS, most_expensive={"train_latency_s": 40.0, "train_flops": 1e9})
TRIALS = [(0.5, 50.0), (0.9, 20.0), (0.8, 10.0)]


def test_every_objective_has_one(small_space: Callable[..., dict[str, Any]]) -> None:
    """Scores by chance, costs a tenth above the worst that was measured or is forecast, whatever the order."""
    goals = {name: row.direction for name, row in METRICS.items() if row.direction}
    space = space_from_dict(small_space(objectives=goals))
    complete = [
        {"train_latency_s": 50.0, "train_flops": 1e8, "infer_latency_ms": 2.0, "peak_memory_mb": None},
        {"train_latency_s": 20.0, "train_flops": 2e8, "infer_latency_ms": 3.0, "peak_memory_mb": 400.0},
    ]
    chance = pytest.approx((0.1 + 0.5) / 2)
    expected = {
        **dict.fromkeys(("val_accuracy", "val_balanced_accuracy", "val_macro_f1"), chance),
        **dict.fromkeys(("ssl_knn_accuracy", "ssl_probe_accuracy", "knn_accuracy", "probe_accuracy"), chance),
        "val_calibration_error": pytest.approx(0.7),
        **{"train_latency_s": pytest.approx(55.0), "train_flops": pytest.approx(1.1e9)},
        **{"infer_latency_ms": pytest.approx(3.3), "peak_memory_mb": pytest.approx(440.0)},
    }
    assert derive_reference(space, FACTS, complete) == expected
    assert derive_reference(space, FACTS, complete[::-1]) == derive_reference(space, FACTS, iter(complete))
    before = derive_reference(space, FACTS, [])
    assert set(goals) - set(before) == {"infer_latency_ms", "peak_memory_mb"}  # nothing is known of them yet
    assert before["train_latency_s"] == pytest.approx(44.0)


def test_a_constraint_is_one_and_a_given_one_comes_before_all(small_space: Callable[..., dict[str, Any]]) -> None:
    search = {"reference_point": {"val_accuracy": 0.25}}
    space = space_from_dict(small_space(constraints={"train_latency_s": "<= 30"}, search=search))
    assert derive_reference(space, FACTS, []) == {"val_accuracy": 0.25, "train_latency_s": 30.0}
    old = replace(FACTS, reference_point={"val_accuracy": 0.2, "train_latency_s": 9.0})
    assert derive_reference(space, old, []) == {"val_accuracy": 0.25, "train_latency_s": 9.0}


def test_batches_that_take_longer_than_was_forecast_add_to_the_hypervolume(small_space: Any, tmp_path: Path) -> None:
    values = small_space(space={"optim.batch_size": {"choice": [8, 32, 128]}}, search={"sampler": "grid"})
    result = search_here(values, tmp_path / "run")
    point = result.reference_point
    assert set(yaml.safe_load((tmp_path / "run" / "space.yaml").read_text())["run"]["most_expensive"]) == {
        "train_latency_s",
        "train_flops",
    }
    assert point["val_accuracy"] == 0.1
    assert (result.candidates["train_latency_s"] <= (point["train_latency_s"] or 0.0) / 1.1 + 1e-9).all()
    assert (result.hypervolume() or 0.0) > 0.0
    assert load(tmp_path / "run").hypervolume() == result.hypervolume()
    assert not result.beyond_reference


def test_a_given_one_is_used_as_given_and_what_is_beyond_it_is_named(make_run: MakeRun, capsys: Any) -> None:
    """An older run had its own, fixed before its trials; mixtune pareto takes another one."""
    run = make_run(TRIALS, reference={"val_accuracy": 0.1, "train_latency_s": 20.0})
    result = load(run)
    assert result.hypervolume() == pytest.approx(0.7 * 10)
    line = "t0001, t0002 are beyond the reference point that was given and add nothing to it"
    assert line in front_notes(result)
    found = json.loads(printed(capsys, "pareto", str(run), "--format", "json", "--reference", "train_latency_s=60"))
    assert found["reference_point"] == {"val_accuracy": 0.1, "train_latency_s": 60.0}
    assert found["hypervolume"] == pytest.approx(0.8 * 40 + 0.7 * 10)
    wide = printed(capsys, "pareto", str(run), "--reference", "val_accuracy=0.55,train_latency_s=60")
    twice = ("--reference", "val_accuracy=0.55", "--reference", "train_latency_s=60")
    assert printed(capsys, "pareto", str(run), *twice) == wide
    assert "against the reference point validation accuracy 55.0 %, training time 60.0 s" in wide
    assert "t0001 is beyond the reference point that was given and adds nothing to it" in wide
    for given, message in (
        ("val_acuracy=0.1", "is not an objective of this run: .*did you mean 'val_accuracy'"),
        ("val_accuracy:0.1", "--reference val_accuracy:0.1: should be metric=number, such as"),
        ("val_accuracy=nan", "--reference val_accuracy=nan: should be metric=number, such as"),
    ):
        with pytest.raises(RequestError, match=message):
            app(["pareto", str(run), "--reference", given], standalone_mode=False)


def printed(capsys: Any, *words: str) -> str:
    """Return what a command prints."""
    app([*words], standalone_mode=False)
    return str(capsys.readouterr().out)


def test_a_mistake_in_a_space_is_one_line(small_space: Callable[..., dict[str, Any]]) -> None:
    for point, message in (
        (
            {"val_acuracy": 0.1},
            "search.reference_point.val_acuracy: is not an objective; .*did you mean 'val_accuracy'",
        ),
        ({"val_accuracy": "low"}, 'search.reference_point: should be a valid number, got "low"'),
        ({"train_latency_s": float("inf")}, "search.reference_point: should be a finite number"),
    ):
        with pytest.raises(RequestError, match=message):
            space_from_dict(small_space(search={"reference_point": point}))


def test_runs_are_compared_up_to_one_and_fresh_seeds_count(make_run: MakeRun) -> None:
    facts = {"tasks": {"a": TASKS["a"]}, "most_expensive": {"train_latency_s": 40.0}}
    first = make_run(TRIALS, reference=None, facts=facts)
    second = make_run([(0.7, 70.0)], reference=None, facts=facts, name="second")
    result = load(first)
    assert result.reference_point == {"val_accuracy": 0.1, "train_latency_s": pytest.approx(55.0)}
    assert compare_runs([result, load(second)]).reference == {
        "val_accuracy": 0.1,
        "train_latency_s": pytest.approx(77.0),
    }
    ledger = Ledger(first / "ledger.jsonl")
    for trial, seconds in (("t0002", 60.0), ("t0003", 10.0)):
        for seed in (1, 2):
            metrics = {"val_accuracy": 0.8, "val_accuracy_se": 0.01, "train_latency_s": seconds, "device": "a CPU"}
            ledger.append("confirmed", trial=trial, seed=seed, metrics=metrics)
    confirmed = load(first)
    assert confirmed.confirmed is not None
    assert confirmed.reference_point["train_latency_s"] == pytest.approx(66.0)
