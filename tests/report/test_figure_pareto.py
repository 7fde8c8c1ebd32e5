"""The Pareto figure shows what the ledger says, for one, two and three objectives and none complete."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixtune.report.figures.pareto import compute, draw
from mixtune.run.ledger import Ledger
from mixtune.run.result import load

FIVE = [(0.50, 5.0), (0.90, 10.0), (0.85, 12.0), (0.95, 30.0), (0.96, 50.0)]
BASELINES = {"ssl_sl": {"val_accuracy": 0.8, "val_accuracy_se": 0.02, "train_latency_s": 14.0}}
MakeRun = Callable[..., Path]


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


@pytest.mark.parametrize("names", [("val_accuracy", "train_latency_s"), ("train_latency_s", "val_accuracy")])
def test_time_is_on_x_and_accuracy_in_percent_on_y(make_run: MakeRun, names: tuple[str, str]) -> None:
    """The front, the rest, the baselines and the recommended one, whatever the order of the objectives."""
    objectives = {name: "max" if name == "val_accuracy" else "min" for name in names}
    data = compute(load(make_run(FIVE, BASELINES, objectives)))
    assert data.heading.subtitle.startswith("digits · 5 complete · 4 on the front · hypervolume ")
    assert (data.x.axis_title, data.y.axis_title) == ("training time (s)", "validation accuracy (%)")
    assert data.front.names == ["t0001", "t0002", "t0004", "t0005"]
    assert data.front.y == pytest.approx([50.0, 90.0, 95.0, 96.0])
    for text in ("t0002", "validation accuracy: 90.0 %", "training time: 10.0 s", "alpha = 0.2", "epochs.sl = 20"):
        assert text in data.front.hover[1]
    assert data.front.names[data.recommended or 0] == "t0005"  # without errors all but the best are worse
    figure = draw(data)
    drawn = traces(figure)
    assert list(drawn["on the front"].x) == data.front.x == [5.0, 10.0, 30.0, 50.0]
    assert (list(drawn["trial"].x), data.others.names) == ([12.0], ["t0003"])
    assert list(drawn["recommended"].x) == [50.0]
    assert (drawn["baseline ssl_sl"].text[0].strip(), data.baselines.y_error) == ("ssl_sl", [2.0])
    assert drawn["baseline ssl_sl"].marker.symbol != drawn["on the front"].marker.symbol
    assert drawn["on the front"].marker.size > drawn["trial"].marker.size
    assert figure.layout.xaxis.title.text == "training time (s)"


@pytest.mark.parametrize("y_mode", ["max", "min"])
@pytest.mark.parametrize("x_mode", ["max", "min"])
def test_the_step_line_is_the_best_that_is_attained_at_each_x(make_run: MakeRun, x_mode: str, y_mode: str) -> None:
    rising = [(0.1 * i, float(i * i)) for i in range(1, 6)]
    falling = [(0.6 - accuracy, seconds) for accuracy, seconds in rising]
    objectives = {"val_accuracy": y_mode, "train_latency_s": x_mode}
    data = compute(load(make_run(falling if x_mode == y_mode else rising, objectives=objectives)))
    if data.x.name == "val_accuracy":
        x_mode, y_mode = y_mode, x_mode
    assert len(data.line_x) == 5
    best = max if y_mode == "max" else min
    points = list(zip(data.front.x, data.front.y, strict=True))
    for (x1, y1), (x2, y2) in pairwise(zip(data.line_x, data.line_y, strict=True)):
        middle = (x1 + x2) / 2
        attained = best(y for x, y in points if (x <= middle if x_mode == "min" else x >= middle))
        assert x1 < x2
        assert attained == (y1 if data.line_shape == "hv" else y2)


def test_one_objective_is_drawn_by_trial_with_the_best_so_far(make_run: MakeRun) -> None:
    rows = [{"val_accuracy": accuracy} for accuracy in (0.5, 0.9, 0.7, 0.95)]
    data = compute(load(make_run(rows, BASELINES, objectives={"val_accuracy": "max"})))
    assert data.line_x == [1.0, 2.0, 3.0, 4.0]
    assert data.line_y == pytest.approx([50.0, 90.0, 90.0, 95.0])
    assert data.front.names == ["t0004"]
    assert data.recommended is None
    figure = draw(data)
    assert list(traces(figure)["best"].x) == [4.0]
    assert figure.layout.annotations[0].text == "ssl_sl"


def test_three_objectives_show_the_third_as_colour_without_a_step_line(make_run: MakeRun) -> None:
    objectives = {"val_accuracy": "max", "train_latency_s": "min", "peak_memory_mb": "min"}
    rows = [{"val_accuracy": a, "train_latency_s": t, "peak_memory_mb": 100.0 + t} for a, t in FIVE]
    data = compute(load(make_run(rows, objectives=objectives)))
    assert data.front.colour == [105.0, 110.0, 130.0, 150.0]
    assert data.line_x == []
    marker = traces(draw(data))["on the front"].marker
    assert list(marker.color) == data.front.colour
    assert marker.colorbar.title.text == "peak memory (MB)"


def area(xs: list[float], ys: list[float]) -> float:
    """Return a closed polygon's area by the shoelace formula."""
    corners = list(zip(xs, ys, strict=True))
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise([*corners, corners[0]]))) / 2


@pytest.mark.parametrize("modes", [("max", "min"), ("max", "max"), ("min", "min"), ("min", "max")])
def test_the_dominated_regions_area_is_the_hypervolume(make_run: MakeRun, modes: tuple[str, str]) -> None:
    names = ("val_accuracy", "train_latency_s")
    objectives = dict(zip(names, modes, strict=True))
    reference = dict(zip(names, (0.1 if modes[0] == "max" else 1.0, 60.0 if modes[1] == "min" else 1.0), strict=True))
    result = load(make_run(FIVE, objectives=objectives, reference=reference))
    region = traces(draw(compute(result)))["dominated, up to the reference point"]
    assert area(region.x, region.y) == pytest.approx(100 * (result.hypervolume() or 0.0))  # accuracies are in percent


def test_a_confirmed_front_stands_beside_the_searchs_both_with_standard_errors_in_percent(make_run: MakeRun) -> None:
    """t0002 has the same mean as t0001, which took less time, and was far better in the search: it is a member, and the
    line, which is of the means, passes it by."""
    rows = [{"val_accuracy": a, "train_latency_s": t, "val_accuracy_se": 0.02} for a, t in FIVE]
    directory = make_run(rows, BASELINES)
    ledger = Ledger(directory / "ledger.jsonl")
    worse = {"t0004": (12.0, 0.3), "t0005": (50.0, 0.3), "ssl_sl": (14.0, 0.3)}
    for trial, (seconds, less) in ({"t0001": (5.0, 0.0), "t0002": (11.0, 0.0)} | worse).items():
        for seed, accuracy in ((1, 0.8), (2, 0.9)):
            metrics = {"val_accuracy": accuracy - less, "val_accuracy_se": 0.01}
            metrics |= {"train_latency_s": seconds, "device": "a CPU"}
            ledger.append("confirmed", trial=trial, seed=seed, metrics=metrics)
    data = compute(load(directory))
    assert (data.front.names, data.front.x, data.front.y) == (
        ["t0001", "t0002"],
        [5.0, 11.0],
        [pytest.approx(85.0)] * 2,
    )
    assert (data.line_x, data.line_y) == ([5.0], [pytest.approx(85.0)])
    assert data.front.y_error[0] == pytest.approx(100 * math.hypot(0.05, 0.01))  # 0.1 / sqrt(2) / sqrt(2); images
    assert data.confirmed.names == ["t0004", "t0005"]
    assert data.others.y == [50.0, 90.0, 85.0, 95.0, 96.0]
    drawn = traces(draw(data))
    assert list(drawn["on the front, on fresh seeds (± standard error)"].customdata) == ["t0001", "t0002"]
    assert list(drawn["off the front, on fresh seeds (± standard error)"].customdata) == ["t0004", "t0005"]


def test_the_papers_points_are_shown_at_its_own_setting_alone(make_run: MakeRun) -> None:
    directory = make_run(FIVE)
    path = directory / "space.yaml"
    space = yaml.safe_load(path.read_text())
    data = {"dataset": "CIFAR10", "fraction": 1.0, "ssl_fraction": None, "ssl_dataset": None}
    space["recipe"] = {"data": data, "epochs": {"ssl": 100, "sl": 100}, "alpha": 0.5, "rho": 0.5, "lambda": 0.5}
    path.write_text(yaml.safe_dump(space))
    assert compute(load(directory)).paper.names == ["sl", "ssl_sl", "mixtraining"]
    space["recipe"]["epochs"]["sl"] = 50
    path.write_text(yaml.safe_dump(space))
    assert compute(load(directory)).paper.names == []
