"""All complete recipes at once: a line each, through its settings and its objectives; the colour is the accuracy."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from mixtune.metrics import find_metric, metric_value, setting, significant
from mixtune.report.figures._style import NOTHING_COMPLETE, Heading, apply_template, run_subtitle
from mixtune.report.tables import IDLE
from mixtune.run.result import Result

MIN_TRIALS = 5  # fewer are read more easily in a table
AXIS_WIDTH = 110  # pixels
TICKS = 5
_ROOM = 0.12  # of an axis, below it: where lines go whose recipe has no use for the setting


@dataclass(frozen=True)
class Axis:
    """One axis. ``values``: one a line, in the axis's own numbers; ``ticks``: where and what it says there."""

    title: str
    values: list[float]
    ticks: list[tuple[float, str]]
    low: float
    high: float


@dataclass(frozen=True)
class ParallelData:
    """``trials``: whose lines they are; ``colour``: the accuracy in percent, as its axis has it."""

    heading: Heading
    trials: list[str]
    axes: list[Axis]
    colour: list[float]


def compute(result: Result) -> ParallelData:
    """Return a line for each complete recipe, baselines too, through the settings that vary and the objectives."""
    title = "Settings and objectives"
    names = list(result.objectives)
    trials = [
        trial
        for trial, record in result.records.items()
        if record.state == "complete" and all(math.isfinite(metric_value(record.metrics, name)) for name in names)
    ]
    if len(trials) < MIN_TRIALS:
        missing = NOTHING_COMPLETE if not trials else f"fewer than {MIN_TRIALS} recipes are complete"
        return ParallelData(Heading(title, run_subtitle(result), missing), [], [], [])
    axes = [axis for path in result.parameters if (axis := _setting_axis(result, path, trials)) is not None]
    for name in reversed(names):  # the accuracy, which is first as a rule, last
        metric = find_metric(name)
        values = [metric.scale * metric_value(result.records[trial].metrics, name) for trial in trials]
        axes.append(Axis(metric.axis_title, values, _number_ticks(min(values), max(values)), *_range(values)))
    accuracy = find_metric(result.accuracy_name)
    colour = [accuracy.scale * metric_value(result.records[trial].metrics, accuracy.name) for trial in trials]
    if not all(map(math.isfinite, colour)):
        colour = axes[-1].values
    caption = (
        f"The colour is the {accuracy.title}. Drag along an axis to see the lines that pass there alone, and an axis's "
        f"title to move it. {IDLE} is where the recipe has no use for the setting."
    )
    return ParallelData(Heading(title, run_subtitle(result), None, caption), trials, axes, colour)


def draw(data: ParallelData) -> go.Figure:
    """Draw what ``compute`` found."""
    figure = go.Figure()
    apply_template(figure, data.heading)
    if data.heading.missing is None:
        bar = {"thickness": 14, "outlinewidth": 0}
        figure.add_parcoords(
            dimensions=[
                {
                    "label": html.escape(axis.title), "values": axis.values, "range": [axis.low, axis.high],
                    "tickvals": [value for value, _ in axis.ticks],
                    "ticktext": [html.escape(text) for _, text in axis.ticks],
                }
                for axis in data.axes
            ],
            line={"color": data.colour, "showscale": True, "colorbar": bar}, customdata=data.trials,
            labelangle=-18, labelside="top",
        )  # fmt: skip
        figure.update_layout(
            height=460, width=AXIS_WIDTH * (len(data.axes) + 1), margin={"l": 70, "r": 30, "t": 130, "b": 40}
        )
    return figure


def _setting_axis(result: Result, path: str, trials: list[str]) -> Axis | None:
    """Return a setting's axis, or None where it does not vary; what is not a number has a place a value."""
    given: dict[str, Any] = {}
    for trial in trials:
        values = result.values[trial] or result.records[trial].params
        if path in values and path not in result.idle(trial):
            given[trial] = values[path]
    if len({*map(str, given.values())}) < 2:
        return None
    distribution = result.space.space.get(path)
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given.values())
    if is_number:
        is_log = distribution is not None and distribution.log
        scaled = {trial: math.log10(value) if is_log and value > 0 else float(value) for trial, value in given.items()}
        low, high = min(scaled.values()), max(scaled.values())
        distinct = sorted({*scaled.values()})
        if len(distinct) <= TICKS + 3 and not is_log:
            ticks = [(value, setting(value)) for value in distinct]
        else:
            ticks = _number_ticks(low, high, is_log)
    else:
        order = {text: float(place) for place, text in enumerate(sorted({*map(str, given.values())}))}
        scaled = {trial: order[str(value)] for trial, value in given.items()}
        ticks = [(place, text) for text, place in order.items()]
        low, high = 0.0, float(len(order) - 1)
    if len(given) < len(trials):
        low -= _ROOM * (high - low)
        ticks = [(low, IDLE), *ticks]
    return Axis(path, [scaled.get(trial, low) for trial in trials], ticks, low, high)


def _number_ticks(low: float, high: float, is_log: bool = False) -> list[tuple[float, str]]:
    places = [low + (high - low) * i / (TICKS - 1) for i in range(TICKS)]
    return [(place, significant(10**place if is_log else place)) for place in dict.fromkeys(places)]


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)
