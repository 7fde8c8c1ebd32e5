"""Accuracy against alpha and against rho, as in the paper's Tables 4 and 5."""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixtune.metrics import Metric, find_metric
from mixtune.report.figures._style import (
    BLUE,
    GREY,
    NOTHING_COMPLETE,
    PURPLE,
    Heading,
    add_marks,
    apply_template,
    dots,
    hover_texts,
    run_subtitle,
    scaled,
)
from mixtune.report.paper import paper_sweep
from mixtune.run.result import Result

PARAMETERS = {"alpha": "loss-ratio alpha", "rho": "mix-ratio rho"}
MAX_VALUES = 12  # of a parameter, to be averaged each by itself
MAX_BINS = 8  # of a parameter with more
MIN_POINTS = 8  # of a value or a bin, for its mean or median to say anything


@dataclass(frozen=True)
class Panel:
    """One parameter. ``points``: trial, value, accuracy, on_front; ``trend`` and ``paper``: value, accuracy.

    Accuracies are in the accuracy's unit, percent. ``points`` are of trials in whose recipe the parameter has an
    effect. ``trend`` has the mean of each value or, of many, the medians of up to eight equally filled bins, of at
    least eight points each.
    """

    parameter: str
    points: pd.DataFrame
    trend: pd.DataFrame
    paper: pd.DataFrame
    hover: list[str]


@dataclass(frozen=True)
class AlphaRhoData:
    """A panel for alpha and for rho, as far as they were searched."""

    heading: Heading
    accuracy: Metric
    panels: list[Panel]


def compute(result: Result) -> AlphaRhoData:
    """Return what the figure shows; works with no complete trial and while a search runs."""
    accuracy = find_metric(result.accuracy_name)
    searched = [name for name in PARAMETERS if name in result.parameters]
    panels = [_panel(result, name, accuracy) for name in searched if accuracy.name in result.trials]
    missing = None if any(len(panel.points) for panel in panels) else NOTHING_COMPLETE
    missing = missing if searched else "neither alpha nor rho was searched"
    title = f"{accuracy.title.capitalize()} against {' and '.join(searched) or 'alpha and rho'}"
    caption = "Trials differ in their other settings, too: what a value adds by itself is not what this shows."
    if any(len(panel.points) and panel.trend.empty for panel in panels):
        caption += f" A line needs {MIN_POINTS} points at each of its values."
    if any(len(panel.points) < len(result.complete()) for panel in panels):
        caption += " A trial is left out where its method has no use for the setting."
    return AlphaRhoData(Heading(title, run_subtitle(result), missing, caption), accuracy, panels)


def draw(data: AlphaRhoData) -> go.Figure:
    """Draw what ``compute`` found."""
    figure = make_subplots(cols=max(1, len(data.panels)), shared_yaxes=True, horizontal_spacing=0.04)
    apply_template(figure, data.heading)
    for column, panel in enumerate(data.panels, start=1):
        named = {"showlegend": column == 1}
        for is_front, name, marker in (
            (False, "complete trial", dots(GREY, 7)),
            (True, "on the front", dots(BLUE, 11)),
        ):
            rows = panel.points[panel.points["on_front"] == is_front]
            hover = [panel.hover[i] for i in rows.index]
            group = {"name": name, "legendgroup": name, "row": 1, "col": column}
            add_marks(figure, rows["value"], rows["accuracy"], rows["trial"], hover, marker, **group, **named)
        if len(panel.trend):
            figure.add_scatter(
                x=panel.trend["value"], y=panel.trend["accuracy"], mode="lines", line={"color": BLUE, "width": 2},
                name="mean of a value, or median of neighbours", legendgroup="trend", hoverinfo="skip",
                row=1, col=column, showlegend="trend" not in {trace.legendgroup for trace in figure.data},
            )  # fmt: skip
        if len(panel.paper):
            figure.add_scatter(
                x=panel.paper["value"], y=panel.paper["accuracy"], mode="lines+markers", row=1, col=column, **named,
                line={"color": PURPLE, "dash": "dot"}, marker=dots(PURPLE, 9, symbol="star"), legendgroup="paper",
                name="the paper: all images, 100 epochs, test images", visible="legendonly",
            )  # fmt: skip
        figure.update_xaxes(title_text=html.escape(PARAMETERS[panel.parameter]), row=1, col=column)
    if data.panels:
        figure.update_yaxes(title_text=html.escape(data.accuracy.axis_title), row=1, col=1)
    return figure


def _panel(result: Result, parameter: str, accuracy: Metric) -> Panel:
    rows = result.complete()
    values = pd.to_numeric(rows[parameter], errors="coerce")
    used = np.array([parameter not in result.idle(str(trial)) for trial in rows["trial"]], dtype=bool)
    rows = rows[values.notna() & rows[accuracy.name].notna() & used]
    on_front = set(result.pareto_front()["trial"])
    points = pd.DataFrame(
        {
            "trial": list(rows["trial"]),
            "value": values[rows.index].astype(float).tolist(),
            "accuracy": scaled(rows[accuracy.name], accuracy),
            "on_front": [trial in on_front for trial in rows["trial"]],
        }
    )
    paper = pd.DataFrame(columns=["value", "accuracy"], dtype=float)
    if recipe := dict(result.space.values):
        swept = paper_sweep(recipe, parameter)
        paper = pd.DataFrame({"value": swept[parameter], "accuracy": scaled(swept["accuracy"], accuracy)})
    return Panel(parameter, points, _trend(points), paper, hover_texts(result, points["trial"]))


def _trend(points: pd.DataFrame) -> pd.DataFrame:
    columns = points[["value", "accuracy"]].sort_values("value", kind="stable")
    if columns["value"].nunique() <= MAX_VALUES:
        values = columns.groupby("value", as_index=False)
        means = values.mean()[values.size()["size"] >= MIN_POINTS]
        return means if len(means) > 1 else means[:0]
    count = min(MAX_BINS, len(columns) // MIN_POINTS)
    if count < 3:
        return columns[:0]
    bins = pd.qcut(columns["value"], count, duplicates="drop")
    return columns.groupby(bins, observed=True).median().reset_index(drop=True)
