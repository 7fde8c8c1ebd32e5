"""What every figure promises, and what each shows of a made-up search whose answers are known."""

from __future__ import annotations

import html
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mixtune import plugins
from mixtune.errors import RequestError
from mixtune.report.figures import _style
from mixtune.run import front
from mixtune.run.ledger import Ledger
from mixtune.run.result import Result, load

MakeRun = Callable[..., Path]
NAMES = plugins.names("report.figures")


@pytest.fixture(scope="session")
def searched(write_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished search of 60 trials."""
    return load(write_run(tmp_path_factory.mktemp("made-up") / "sixty", 60))


def module_of(name: str) -> Any:
    return importlib.import_module(f"mixtune.report.figures.{name}")


def computed(name: str, result: Result) -> Any:
    return module_of(name).compute(result)


@pytest.mark.parametrize("trials", [1, 60])
@pytest.mark.parametrize("running", [False, True])
def test_every_figure_is_drawn_of_one_trial_of_many_and_of_a_running_search(
    write_run: MakeRun, tmp_path: Path, trials: int, running: bool
) -> None:
    result = load(write_run(tmp_path / "run", trials, running))
    for name in NAMES:
        heading = computed(name, result).heading
        figure = result.plot(name)
        drawn = json.loads(figure.to_json())
        assert heading.title in figure.layout.title.text, name
        if heading.missing is None:
            assert any(trace.get("x") is not None or trace.get("dimensions") for trace in drawn["data"]), name
            if drawn["data"][0]["type"] == "parcoords":
                continue
            axes = [axis for key, axis in drawn["layout"].items() if key.startswith(("xaxis", "yaxis"))]
            assert any((axis.get("title") or {}).get("text") for axis in axes), name
        else:
            assert heading.missing in [note["text"] for note in drawn["layout"]["annotations"]], name
            assert trials == 1, name


@pytest.mark.parametrize("objectives", [{"val_accuracy": "max"}, {"val_accuracy": "max", "train_latency_s": "min"}])
def test_every_figure_of_a_run_without_trials_says_why_it_is_empty(make_run: MakeRun, objectives: Any) -> None:
    result = load(make_run([], objectives=objectives))
    for name in NAMES:
        notes = [html.unescape(note.text) for note in result.plot(name).layout.annotations]
        assert computed(name, result).heading.missing in notes, name
    assert computed("pareto", result).heading.missing == "no trial is complete yet"


def test_of_five_thousand_trials_every_figure_shows_what_can_be_read(write_run: MakeRun, tmp_path: Path) -> None:
    result = load(write_run(tmp_path / "run", 5000))
    figures = {name: computed(name, result) for name in NAMES}
    assert not any(data.heading.missing for data in figures.values())
    assert len(figures["phases"].bars) == module_of("phases").MAX_BARS
    assert len(figures["stage_tree"].ends) == module_of("stage_tree").MAX_TRIALS
    curves = figures["learning_curves"]
    assert (len(curves.named), len(curves.others)) == (12, 100)
    assert "112 of 5,002 curves" in curves.heading.subtitle


def test_an_unknown_figure_lists_the_known_ones_as_the_method_does(make_run: MakeRun) -> None:
    with pytest.raises(RequestError, match=r"unknown figure 'phase'.*alpha_rho, .*did you mean 'phases'"):
        load(make_run([])).plot("phase")
    assert all(name in (Result.plot.__doc__ or "") for name in NAMES)


def test_hypervolume_grows_to_the_runs_own_over_the_seconds_that_were_trained(searched: Result) -> None:
    data = computed("hypervolume", searched)
    steps = data.steps
    assert data.end_s == pytest.approx(searched.account().trained_s)
    assert steps["hypervolume"].is_monotonic_increasing
    assert steps["device_s"].is_monotonic_increasing
    assert steps["hypervolume"].iloc[-1] == pytest.approx(searched.hypervolume())
    half = steps.iloc[len(steps) // 2]
    order = list(searched.records)
    found = searched.candidates
    before = found[found["trial"].map(order.index) <= order.index(half["trial"])]
    reference = {name: bound or 0.0 for name, bound in searched.reference_point.items()}
    assert front.hypervolume(before, searched.objectives, reference) == pytest.approx(half["hypervolume"])


def test_without_a_reference_point_or_an_objective_there_is_no_hypervolume(make_run: MakeRun) -> None:
    untimed = {"val_accuracy": 0.99, "train_latency_s": None}
    assert "no reference point" in computed("hypervolume", load(make_run([(0.9, 5.0)], reference=None))).heading.missing
    steps = computed("hypervolume", load(make_run([(0.9, 5.0), untimed], name="untimed"))).steps
    assert list(steps["trial"]) == ["t0001"]


def test_alpha_and_rho_have_a_panel_each_with_the_complete_trials_that_use_it(searched: Result) -> None:
    data = computed("alpha_rho", searched)
    assert [panel.parameter for panel in data.panels] == ["alpha", "rho"]
    for panel in data.panels:
        used = [trial for trial in searched.complete()["trial"] if panel.parameter not in searched.idle(trial)]
        assert list(panel.points["trial"]) == used
        assert set(panel.points["trial"][panel.points["on_front"]]) == set(searched.pareto_front()["trial"]) & {*used}
    rho = data.panels[1]
    values = searched.complete().groupby("rho")["val_accuracy"]
    means = values.mean()[values.size() >= module_of("alpha_rho").MIN_POINTS]
    assert len(means) >= 2
    assert list(rho.trend["value"]) == list(means.index)
    assert list(rho.trend["accuracy"]) == pytest.approx(list(100 * means))


def test_a_budget_shows_its_best_trial_and_how_many_there_were(searched: Result) -> None:
    cells = computed("budgets", searched).cells
    complete = searched.complete()
    assert cells["trials"].sum() == len(complete)
    for cell in cells.to_dict("records"):
        own = complete[(complete["epochs.ssl"] == cell["ssl"]) & (complete["epochs.sl"] == cell["sl"])]
        assert cell["accuracy"] == pytest.approx(100 * own["val_accuracy"].max())
        assert cell["trial"] in set(own["trial"])


def test_the_bars_of_the_phases_add_up_to_the_training_time(searched: Result) -> None:
    bars = computed("phases", searched).bars.set_index("trial")
    both = pd.concat([searched.complete(), searched.baselines]).set_index("trial")
    parts = bars.drop(columns="name")
    assert list(parts.sum(axis=1)) == pytest.approx(list(both["train_latency_s"][bars.index]))
    reused = parts[[name for name in parts if str(name).endswith("_reused")]].sum(axis=1)
    assert list(reused) == pytest.approx(list(both["latency_reused_s"][bars.index]))
    assert set(searched.pareto_front()["trial"]) <= set(bars.index)


def test_importance_finds_what_the_made_up_accuracies_and_seconds_come_from(searched: Result) -> None:
    shares = computed("importance", searched).shares
    assert list(shares) == ["val_accuracy", "train_latency_s"]
    assert shares["val_accuracy"].sum() == pytest.approx(1.0)
    assert set(shares.index) == {"alpha", "rho", "epochs.ssl", "epochs.sl"}
    assert shares["train_latency_s"].idxmax() == "epochs.sl"
    assert shares["train_latency_s"]["alpha"] < 0.15
    assert shares["val_accuracy"]["rho"] < shares["val_accuracy"]["epochs.sl"]
    spreads = computed("importance", searched).spreads
    assert list(spreads.index) == list(shares.index)
    assert ((spreads > 0) & (spreads < 0.5)).all(axis=None)


def test_few_trials_have_no_importance_and_no_trend(write_run: MakeRun, tmp_path: Path) -> None:
    result = load(write_run(tmp_path / "run", 15))
    assert computed("importance", result).heading.missing == "fewer than 25 trials are complete"
    panels = computed("alpha_rho", result).panels
    assert all(len(panel.points) and panel.trend.empty for panel in panels)
    assert "8 points" in computed("alpha_rho", result).heading.caption


def test_parallel_coordinates_have_a_line_a_complete_recipe_and_an_end_for_idle_settings(searched: Result) -> None:
    data = computed("parallel_coordinates", searched)
    complete = [trial for trial, record in searched.records.items() if record.state == "complete"]
    assert data.trials == complete
    axes = {axis.title: axis for axis in data.axes}
    assert list(axes)[-2:] == ["training time (s)", "validation accuracy (%)"]
    assert data.colour == axes["validation accuracy (%)"].values
    alpha = axes["alpha"]
    assert alpha.ticks[0] == (alpha.low, "\N{EN DASH}")
    idle = {trial for trial, value in zip(complete, alpha.values, strict=True) if value == alpha.low}
    assert idle == {trial for trial in complete if "alpha" in searched.idle(trial)}


def test_learning_curves_mark_where_phases_begin(searched: Result) -> None:
    data = computed("learning_curves", searched)
    curve = next(curve for curve in data.named if curve.name == "ssl_sl")
    assert (curve.epochs, curve.boundaries) == (list(range(1, 31)), [10])
    assert curve.val_accuracy[:10] == [None] * 10
    assert curve.ssl_loss[9] == pytest.approx(0.4)


def test_the_stage_tree_hangs_each_trial_on_the_one_that_it_goes_on_from(searched: Result) -> None:
    data = computed("stage_tree", searched)
    rows = dict(zip(data.ends["trial"], data.ends["row"], strict=True))
    assert sorted(rows.values()) == list(range(len(rows)))
    for branch in data.branches.to_dict("records"):
        follows = searched.records[branch["trial"]].follows
        assert follows == (branch["parent"], branch["epoch"])
        assert branch["row"] > branch["parent_row"]
    trained = data.stretches["end"] - data.stretches["start"]
    whole = [trial for trial in rows if searched.records[trial].state == "complete"]
    expected = sum(searched.records[trial].metrics["epochs_trained"] for trial in whole)
    assert trained[data.stretches["trial"].isin(whole)].sum() == expected


def test_a_stage_that_was_gone_hangs_a_trial_on_an_earlier_one(make_run: MakeRun) -> None:
    directory = make_run([])
    ledger = Ledger(directory / "ledger.jsonl")
    for trial, follows, reused in (("t1", None, 0), ("t2", ["t1", 3], 3), ("t3", ["t2", 5], 2)):
        ledger.append("asked", trial=trial, params={})
        ledger.append("started", trial=trial, **({"follows": follows} if follows else {}))
        for epoch in range(1, 7):
            ledger.append("epoch", trial=trial, metrics={"epoch": epoch, "phase": "sl"})
        metrics = {"epoch": 6, "epochs_reused": reused, "epochs_asked": 6, "epochs_trained": 6 - reused}
        ledger.append("complete", trial=trial, metrics={**metrics, "val_accuracy": 0.5, "train_latency_s": 1.0})
    branches = computed("stage_tree", load(directory)).branches[["trial", "parent", "epoch"]]
    assert branches.values.tolist() == [["t2", "t1", 3], ["t3", "t1", 2]]


def contrast(*colours: str) -> float:
    """Return that of two colours, #rrggbb (WCAG 2)."""
    channels = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours]
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb] for rgb in channels]
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (light + 0.05) / (dark + 0.05)


def test_text_reads_well_and_marks_stand_out_in_light_and_in_dark() -> None:
    for layout in (_style.template(dark).layout for dark in (False, True)):
        paper = layout.paper_bgcolor
        assert contrast(layout.font.color, paper) >= 7
        assert contrast(layout.title.subtitle.font.color, paper) >= 4.5
        for colour in (_style.BLUE, _style.VERMILLION, _style.GREEN, _style.GREY):
            assert contrast(colour, paper) >= 2.5, (colour, paper)
