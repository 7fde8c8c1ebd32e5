"""The front: complete trials, those that no other dominates, the knee, and the baselines beside them.

With one objective it is the objective by trial and the best so far; with three or more the first two
objectives are the axes and the third is the colour.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mixtune.analysis.labels import Quantity, quantity, setting, significant
from mixtune.analysis.result import Result

# Okabe and Ito's palette, which the colour-blind can tell apart; cividis is its like for a scale.
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
GREY, INK, FAINT = "#A3ACB8", "#1F2933", "#E6EAEF"
SYMBOLS = ["diamond", "square", "triangle-up", "cross", "pentagon", "hexagram"]


@dataclass(frozen=True)
class Points:
    """Points in the axes' units (percent for accuracies); equally long lists, NaN for what is not known."""

    names: list[str]
    x: list[float]
    y: list[float]
    x_error: list[float]
    y_error: list[float]
    colour: list[float]
    hover: list[str]


@dataclass(frozen=True)
class FrontData:
    """What the figure shows. ``line`` is the border of what the front attains, as a plotly line shape.

    ``x_mode`` and ``y_mode`` are "max" or "min"; ``x_mode`` is None where x is the trial's number. ``knee``
    is its place in ``front``, None where there is nothing to trade.
    """

    title: str
    subtitle: str
    x: Quantity
    y: Quantity
    colour: Quantity | None
    x_mode: str | None
    y_mode: str
    others: Points
    front: Points
    baselines: Points
    line_x: list[float]
    line_y: list[float]
    line_shape: str
    knee: int | None


def front_data(result: Result) -> FrontData:
    """Return what the figure shows of ``result``; works with no complete trial and while a search runs."""
    names = list(result.objectives)
    x_name, y_name, colour_name = _axes(result.objectives)
    members = result.pareto_front().sort_values(x_name or y_name, kind="stable")
    complete = result.complete().dropna(subset=names)
    trained = result.baselines[result.baselines["state"] == "complete"].dropna(subset=names)
    x = quantity(x_name) if x_name else Quantity("trial", "trial, in the order asked")
    y = quantity(y_name)
    colour = quantity(colour_name) if colour_name else None

    def points(frame: pd.DataFrame, name_column: str = "trial") -> Points:
        return Points(
            names=[str(name) for name in frame[name_column]],
            x=_scaled(frame, x) if x_name else [float(number) + 1 for number in frame.index],
            y=_scaled(frame, y),
            x_error=_scaled(frame, x, "_se"),
            y_error=_scaled(frame, y, "_se"),
            colour=_scaled(frame, colour) if colour else [float("nan")] * len(frame),
            hover=[_hover(result, row, name_column) for _, row in frame.iterrows()],
        )

    front = points(members)
    x_mode, y_mode = result.objectives.get(x_name or ""), result.objectives[y_name]
    line_x, line_y = front.x, front.y
    if x_name is None:
        feasible = result.feasible().dropna(subset=names)
        line_x, so_far = points(feasible).x, pd.Series(_scaled(feasible, y), dtype=float)
        line_y = list(so_far.cummax() if y_mode == "max" else so_far.cummin())
    elif colour:
        line_x, line_y = [], []
    knee = result.knee() if x_name else None
    return FrontData(
        title=f"{y.title[:1].upper()}{y.title[1:]} against {x.title}" if x_name else f"Best {y.title} so far",
        subtitle=_subtitle(result, len(members)),
        x=x,
        y=y,
        colour=colour,
        x_mode=x_mode,
        y_mode=y_mode,
        others=points(complete.drop(index=members.index)),
        front=front,
        baselines=points(trained, "method"),
        line_x=line_x,
        line_y=line_y,
        line_shape="vh" if x_mode == "max" else "hv",
        knee=front.names.index(knee) if knee else None,
    )


def draw(data: FrontData) -> go.Figure:
    """Draw what ``front_data`` computed."""
    figure = go.Figure()
    _draw_points(figure, data.others, "complete trial", {"size": 8, "color": GREY, "opacity": 0.85})
    if data.line_x:
        line = {"shape": data.line_shape, "color": BLUE, "width": 2}
        figure.add_scatter(x=data.line_x, y=data.line_y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    marker: dict[str, Any] = {"size": 13, "color": BLUE, "line": {"color": "white", "width": 1.5}}
    if data.colour:
        bar = {"title": {"text": data.colour.axis_title}, "outlinewidth": 0, "thickness": 14}
        marker |= {"color": data.front.colour, "colorscale": "Cividis", "colorbar": bar}
    bars = "rgba(95, 107, 120, 0.4)" if data.colour else "rgba(0, 114, 178, 0.4)"
    _draw_points(figure, data.front, "on the front" if data.x_mode else "best", marker, bars)
    _draw_baselines(figure, data)
    if data.knee is not None:
        _draw_knee(figure, data, data.knee)
    _lay_out(figure, data)
    return figure


def _axes(objectives: dict[str, str]) -> tuple[str | None, str, str | None]:
    """Return the objectives of x, y and colour: what costs goes to x, what is bought to y."""
    names = list(objectives)
    if len(names) == 1:
        return None, names[0], None
    y_name, x_name = names[:2]
    if objectives[y_name] == "min" and objectives[x_name] == "max":
        y_name, x_name = x_name, y_name
    return x_name, y_name, names[2] if len(names) > 2 else None


def _scaled(frame: pd.DataFrame, of: Quantity, ending: str = "") -> list[float]:
    name = of.name + ending
    if name not in frame:
        return [float("nan")] * len(frame)
    values = pd.to_numeric(frame[name], errors="coerce").astype(float) * of.scale
    return [float(value) for value in values]


def _hover(result: Result, row: pd.Series[Any], name_column: str) -> str:
    lines = [f"<b>{html.escape(str(row[name_column]))}</b>"]
    for name in result.objectives:
        of = quantity(name)
        lines.append(f"{html.escape(of.title)}: {of.text(row[name], row.get(f'{name}_se'))}")
    params = result.records[row["trial"]].params
    lines += [f"{html.escape(path)} = {html.escape(setting(value))}" for path, value in params.items()]
    return "<br>".join(lines)


def _subtitle(result: Result, members: int) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in result.counts().items() if count)
    parts = [html.escape(result.directory.resolve().name), counts or "no trial has started"]
    if members and len(result.objectives) > 1:
        parts.append(f"{members} on the front")
        volume = result.hypervolume()
        if volume is not None:
            parts.append(f"hypervolume {significant(volume)}")
    return " · ".join(parts)


def _draw_points(figure: go.Figure, points: Points, name: str, marker: dict[str, Any], bars: str | None = None) -> None:
    """Add one trace of points; ``bars`` is the colour of their standard error bars, None for no bars."""
    if not points.names:
        return
    errors = _error_bars(points.x_error, points.y_error, bars) if bars else {}
    figure.add_scatter(
        x=points.x, y=points.y, mode="markers", name=f"{name} (± standard error)" if errors else name,
        marker=marker, hovertext=points.hover, hoverinfo="text", **errors,
    )  # fmt: skip


def _error_bars(x_error: list[float], y_error: list[float], colour: str) -> dict[str, Any]:
    style = {"color": colour, "thickness": 1.5, "width": 0}
    given = {"error_x": x_error, "error_y": y_error}
    return {
        axis: {"array": values, **style}
        for axis, values in given.items()
        if any(math.isfinite(value) for value in values)
    }


def _draw_baselines(figure: go.Figure, data: FrontData) -> None:
    baselines = data.baselines
    for i, name in enumerate(baselines.names):
        label = html.escape(name)
        if data.x_mode is None:
            text = {"text": label, "font": {"color": VERMILLION}}
            line = {"dash": "dot", "color": VERMILLION, "width": 1.5}
            figure.add_hline(y=baselines.y[i], line=line, annotation=text, annotation_position="top left")
            continue
        marker = {"size": 13, "color": VERMILLION, "symbol": SYMBOLS[i % len(SYMBOLS)]}
        marker["line"] = {"color": "white", "width": 1}
        bars = _error_bars([baselines.x_error[i]], [baselines.y_error[i]], "rgba(213, 94, 0, 0.4)")
        figure.add_scatter(
            x=[baselines.x[i]], y=[baselines.y[i]], mode="markers+text", name=f"baseline {label}",
            text=[f"  {label}"], textposition="middle right", textfont={"color": VERMILLION},
            cliponaxis=False, marker=marker, hovertext=[baselines.hover[i]], hoverinfo="text", **bars,
        )  # fmt: skip


def _draw_knee(figure: go.Figure, data: FrontData, place: int) -> None:
    x, y = data.front.x[place], data.front.y[place]
    ring = {"size": 23, "symbol": "circle-open", "color": ORANGE, "line": {"width": 3}}
    figure.add_scatter(x=[x], y=[y], mode="markers", name="knee", marker=ring, hoverinfo="skip")
    # The label stands on the side of the ideal, where by the front's definition no trial can be.
    away_x, away_y = 42 if data.x_mode == "max" else -42, 38 if data.y_mode == "min" else -38
    figure.add_annotation(
        x=x, y=y, ax=away_x, ay=away_y, text=f"<b>knee</b> {html.escape(data.front.names[place])}",
        showarrow=True, arrowhead=0, arrowcolor=ORANGE, arrowwidth=1.5, standoff=11, font={"color": INK},
        bgcolor="rgba(255, 255, 255, 0.8)",
    )  # fmt: skip


def _lay_out(figure: go.Figure, data: FrontData) -> None:
    axis = {"gridcolor": FAINT, "zeroline": False, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY}
    figure.update_layout(
        template="plotly_white",
        font={"family": "Inter, Segoe UI, Helvetica, Arial, sans-serif", "size": 14, "color": INK},
        title={
            "text": f"<b>{html.escape(data.title)}</b>",
            "subtitle": {"text": data.subtitle, "font": {"size": 14, "color": "#5B6673"}},
            "font": {"size": 20},
            "x": 0,
            "xref": "paper",
        },
        margin={"l": 80, "r": 40, "t": 100, "b": 100},
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        hoverlabel={"bgcolor": "white", "bordercolor": GREY, "font": {"color": INK}, "align": "left"},
        xaxis={**axis, "title": {"text": html.escape(data.x.axis_title)}},
        yaxis={**axis, "title": {"text": html.escape(data.y.axis_title)}},
    )
    if not data.front.names:
        if not data.baselines.names:
            figure.update_xaxes(showticklabels=False)
            figure.update_yaxes(showticklabels=False)
        text = "no trial is complete yet"
        figure.add_annotation(text=text, xref="paper", yref="paper", x=0.5, y=0.5, showarrow=False)
