"""What the figures look like, in light and in dark, and what hovering over a trial says."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import plotly.graph_objects as go

from mixtune.metrics import Metric, find_metric, setting
from mixtune.run.ledger import TrialRecord
from mixtune.run.result import Result

# Okabe and Ito's palette, which the colour-blind can tell apart; a scale is of one hue, and leads away from the paper.
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
SKY, GREEN, PURPLE = "#56B4E9", "#009E73", "#CC79A7"
GREY = "#97A1AD"
SERIES = [BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY]
PHASES = {"ssl": ("SSL", SKY), "mix": ("mix", ORANGE), "sl": ("SL", BLUE)}
SYMBOLS = ["diamond", "square", "triangle-up", "cross", "pentagon", "hexagram"]
METHOD_SYMBOLS = {"SL": "diamond", "SSL+SL": "square", "MixTraining": "circle"}
FAINT_BARS = {BLUE: "rgba(0, 114, 178, 0.4)", VERMILLION: "rgba(213, 94, 0, 0.4)", GREEN: "rgba(0, 158, 115, 0.5)"}

LIGHT_SCALE = [[0.0, "#C3D0DC"], [0.5, "#4C8FC4"], [1.0, "#062A4F"]]
DARK_SCALE = [[0.0, "#3A4A5A"], [0.5, "#3F93CF"], [1.0, "#E4F2FD"]]

NOTHING_COMPLETE = "no trial is complete yet"

_HOVER_TEXTS: WeakKeyDictionary[Result, dict[str, str]] = WeakKeyDictionary()  # a trial stands in many figures


@dataclass(frozen=True)
class Heading:
    """A figure's title, the line below it, why there is nothing to show (None: there is), and how to read it."""

    title: str
    subtitle: str = ""
    missing: str | None = None
    caption: str = ""


def template(dark: bool = False) -> go.layout.Template:
    """Return all that differs between light and dark, and what every figure has in common."""
    paper, ink, faint, quiet = (
        ("#14181D", "#E3E8EE", "#2B323B", "#A3ACB8") if dark else ("#FFFFFF", "#1F2933", "#E6EAEF", "#5B6673")
    )
    axis = {
        **{"gridcolor": faint, "zeroline": False, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY},
        **{"automargin": True, "title": {"standoff": 12}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": "Inter, Segoe UI, Helvetica, Arial, sans-serif", "size": 14, "color": ink},
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "title": {
                **{"font": {"size": 20}, "x": 0, "xref": "paper"},
                "subtitle": {"font": {"size": 14, "color": quiet}},
            },
            "xaxis": axis,
            "yaxis": axis,
            "colorscale": {"sequential": DARK_SCALE if dark else LIGHT_SCALE},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"},
            "hoverlabel": {"bgcolor": paper, "bordercolor": GREY, "font": {"color": ink}, "align": "left"},
            "margin": {"l": 60, "r": 24, "t": 90, "b": 60},
        }
    )


def new_figure(heading: Heading, x_title: str, y_title: str) -> go.Figure:
    """Return a figure with titles and axes; one with nothing to show says why."""
    figure = go.Figure()
    apply_template(figure, heading)
    figure.update_layout(xaxis_title_text=html.escape(x_title), yaxis_title_text=html.escape(y_title))
    return figure


def apply_template(figure: go.Figure, heading: Heading) -> None:
    """Give a figure its template, its title, and the reason why it is empty where it is."""
    title = {"text": f"<b>{html.escape(heading.title)}</b>", "subtitle": {"text": heading.subtitle}}
    figure.update_layout(template=template(), title=title)
    if heading.missing is not None:
        figure.update_xaxes(showticklabels=False)
        figure.update_yaxes(showticklabels=False)
        middle = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
        figure.add_annotation(text=html.escape(heading.missing), showarrow=False, **middle)


def scaled(values: Iterable[Any], of: Metric) -> list[float]:
    """Return stored values in the unit that people read; NaN for what is not a number."""
    return [number * of.scale for number in numbers(values)]


def numbers(values: Iterable[Any]) -> list[float]:
    """Return values as numbers; NaN for what is none, since a ledger's parameters may be anything."""
    return [float(v) if isinstance(v, Real) and not isinstance(v, bool) else math.nan for v in values]


def hover_texts(result: Result, trials: Iterable[str]) -> list[str]:
    """Return for each trial or baseline its name, method, objectives with standard errors, and parameters."""
    known = _HOVER_TEXTS.setdefault(result, {})
    objectives = [find_metric(name) for name in result.objectives]
    names = [str(trial) for trial in trials]
    known |= {name: _hover_text(result, result.records[name], objectives) for name in names if name not in known}
    return [known[name] for name in names]


def _hover_text(result: Result, record: TrialRecord, objectives: Iterable[Metric]) -> str:
    lines = [f"<b>{html.escape(record.baseline or record.trial)}</b> {html.escape(result.method(record.trial))}"]
    if record.state != "complete":
        lines.append(html.escape(record.state if record.reason is None else f"{record.state}: {record.reason}"))
    for of in objectives:
        value = record.metrics.get(of.name)
        if value is not None:
            lines.append(f"{html.escape(of.title)}: {of.text(value, record.metrics.get(f'{of.name}_se'))}")
    idle = result.idle(record.trial)
    lines += [html.escape(f"{path} = {setting(value)}") for path, value in record.params.items() if path not in idle]
    return "<br>".join(lines)


def run_subtitle(result: Result, *parts: str) -> str:
    """Return the run's name, how many trials are in which state, and what else there is to say."""
    counts = ", ".join(f"{count:,} {state}" for state, count in result.counts().items() if count)
    name = html.escape(result.directory.resolve().name)
    return " · ".join([name, counts or "no trial has started", *parts])


def error_bars(x_error: Sequence[float], y_error: Sequence[float], colour: str) -> dict[str, Any]:
    """Return bars of standard errors for a trace; an axis without one has none."""
    style = {"color": colour, "thickness": 1.5, "width": 0}
    given = {"error_x": x_error, "error_y": y_error}
    return {
        axis: {"array": list(values), **style}
        for axis, values in given.items()
        if any(math.isfinite(value) for value in values)
    }


def add_marks(
    figure: go.Figure, x: Any, y: Any, trials: Any, hover: Sequence[str], marker: Mapping[str, Any], **more: Any
) -> None:
    """Add a trace of marks, one a trial: ``hover`` is what pointing at each says, and a page finds it by its trial."""
    trace = {"mode": "markers", "marker": marker, "hoverinfo": "text", "hovertext": hover, "customdata": trials}
    figure.add_scatter(x=x, y=y, **trace | more)


def joined(lines: Iterable[Iterable[tuple[Any, Any]]]) -> tuple[list[Any], list[Any]]:
    """Return the x and the y of lines of points as one trace, gaps between them."""
    points = [point for line in lines for point in [*line, (None, None)]]
    return [x for x, _ in points], [y for _, y in points]


def dots(colour: str = GREY, size: int = 8, **more: Any) -> dict[str, Any]:
    """Return a marker that reads well on light and on dark."""
    return {"color": colour, "size": size, "line": {"color": "rgba(127, 127, 127, 0.5)", "width": 1}, **more}
