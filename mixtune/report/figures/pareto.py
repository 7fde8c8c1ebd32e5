"""Accuracy against cost: the recipes that no other beats, the recommended one, and all others.

A mark's shape is its method. Where the front was confirmed, its marks are means over fresh seeds, and the small ones
are what the search found with one. The paper's own points stand alongside where it has the setting. With one objective
it is the objective by trial and the best so far; with three or more the first two are the axes and the third the
colour.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mixtune.metrics import Metric, error_name, find_metric, significant
from mixtune.report.figures._style import (
    BLUE,
    FAINT_BARS,
    GREEN,
    METHOD_SYMBOLS,
    NOTHING_COMPLETE,
    ORANGE,
    PURPLE,
    VERMILLION,
    Heading,
    add_marks,
    dots,
    error_bars,
    hover_texts,
    new_figure,
    run_subtitle,
    scaled,
)
from mixtune.report.paper import NoPaperRowsError, paper_rows_of
from mixtune.run.front import pareto_front
from mixtune.run.result import Result

CORNERS = [("bottom", "right"), ("top", "left"), ("bottom", "left"), ("top", "right")]  # of labels side by side
REGION = "rgba(0, 114, 178, 0.09)"


@dataclass(frozen=True)
class Points:
    """Points in the axes' units (percent for accuracies); equally long lists, NaN for what is not known."""

    names: list[str]
    trials: list[str]
    symbols: list[str]
    x: list[float]
    y: list[float]
    x_error: list[float]
    y_error: list[float]
    colour: list[float]
    hover: list[str]


NO_POINTS = Points([], [], [], [], [], [], [], [], [])


@dataclass(frozen=True)
class FrontData:
    """What the figure shows. ``line`` is the edge of what the front attains, as a plotly line shape; where fresh seeds
    decide, members may lie inside.

    ``x_mode`` and ``y_mode`` are "max" or "min"; ``x_mode`` is None where x is the trial's number. ``region`` is the
    corner of the dominated region, the hypervolume's reference point, None where there is none; ``recommended`` is its
    place in ``front``, None where there is none. ``confirmed``: recipes on fresh seeds that are not on the front;
    ``is_confirmed``: whether the front is. ``paper``: names are methods, seconds are of its own device.
    """

    heading: Heading
    x: Metric
    y: Metric
    colour: Metric | None
    x_mode: str | None
    y_mode: str
    others: Points
    front: Points
    baselines: Points
    confirmed: Points
    paper: Points
    line_x: list[float]
    line_y: list[float]
    line_shape: str
    region: tuple[float, float] | None
    recommended: int | None
    is_confirmed: bool


def compute(result: Result) -> FrontData:
    """Return what the figure shows of ``result``; works with no complete trial and while a search runs."""
    names = list(result.objectives)
    x_name, y_name, colour_name = _axes(result.objectives)
    members = result.pareto_front().sort_values(x_name or y_name, kind="stable")
    complete = result.complete().dropna(subset=names)
    rows = pd.concat([result.complete_baselines, result.rows]).drop_duplicates("trial", keep="last")
    trained = rows[rows["trial"].isin(result.complete_baselines["trial"])].dropna(subset=names)
    numbers = {trial: number for number, trial in enumerate(result.trials["trial"], start=1)}
    x = find_metric(x_name) if x_name else Metric("trial", "trial, in the order asked")
    y = find_metric(y_name)
    colour = find_metric(colour_name) if colour_name else None

    def points(frame: pd.DataFrame) -> Points:
        def column(of: Metric | None, is_error: bool = False) -> list[float]:
            name = "" if of is None else error_name(of.name) if is_error else of.name
            return scaled(frame[name], of) if of and name in frame else [math.nan] * len(frame)

        return Points(
            names=[result.records[trial].baseline or str(trial) for trial in frame["trial"]],
            trials=list(map(str, frame["trial"])),
            symbols=[METHOD_SYMBOLS.get(result.method(trial), "circle") for trial in frame["trial"]],
            x=column(x) if x_name else [float(numbers.get(trial, math.nan)) for trial in frame["trial"]],
            y=column(y),
            x_error=column(x, is_error=True),
            y_error=column(y, is_error=True),
            colour=column(colour),
            hover=hover_texts(result, frame["trial"]),
        )

    front = points(members)
    edge = points(pareto_front(members, result.objectives).sort_values(x_name or y_name, kind="stable"))
    x_mode, y_mode = result.objectives.get(x_name or ""), result.objectives[y_name]
    line_x, line_y = edge.x, edge.y
    if x_name is None:
        shown = points(result.feasible().dropna(subset=names))
        so_far = pd.Series(shown.y, dtype=float)
        line_x, line_y = shown.x, list(so_far.cummax() if y_mode == "max" else so_far.cummin())
    elif colour:
        line_x, line_y = [], []
    recommended = result.recommendation().trial if x_name else None
    title = f"{y.title[:1].upper()}{y.title[1:]} against {x.title}" if x_name else f"Best {y.title} so far"
    is_plane = x_name is not None and colour is None
    parts = [f"{len(front.names)} on the front"] if front.names and len(names) > 1 else []
    if parts and (volume := result.hypervolume()) is not None:
        parts.append(f"hypervolume {significant(volume)}")
    missing = NOTHING_COMPLETE if complete.empty and trained.empty else None
    point = result.reference_point
    corner = (point.get(x.name), point.get(y.name)) if is_plane and front.names else (None, None)
    return FrontData(
        heading=Heading(title, run_subtitle(result, *parts), missing, " ".join(_captions(result, names))),
        x=x,
        y=y,
        colour=colour,
        x_mode=x_mode,
        y_mode=y_mode,
        others=points(complete if result.confirmed else complete[~complete["trial"].isin(members["trial"])]),
        front=front,
        baselines=points(trained),
        confirmed=points(_off_the_front(result)),
        paper=_paper_points(result, x, y) if is_plane else NO_POINTS,
        line_x=line_x,
        line_y=line_y,
        line_shape="vh" if x_mode == "max" else "hv",
        region=None if corner[0] is None or corner[1] is None else (corner[0] * x.scale, corner[1] * y.scale),
        recommended=front.trials.index(recommended) if recommended in front.trials else None,
        is_confirmed=result.confirmed is not None,
    )


def draw(data: FrontData) -> go.Figure:
    """Draw what ``compute`` found."""
    figure = new_figure(data.heading, data.x.axis_title, data.y.axis_title)
    if data.region is not None:
        _draw_region(figure, data, data.region)
    _draw_points(figure, data.others, "one seed, in the search" if data.is_confirmed else "trial", dots(opacity=0.75))
    if data.line_x:
        line = {"shape": data.line_shape, "color": BLUE, "width": 2}
        figure.add_scatter(x=data.line_x, y=data.line_y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    marker = dots(BLUE, 13)
    if data.colour:
        bar = {"title": {"text": data.colour.axis_title}, "outlinewidth": 0, "thickness": 14}
        marker |= {"color": data.front.colour, "colorbar": bar}
    bars = "rgba(127, 127, 127, 0.4)" if data.colour else FAINT_BARS[BLUE]
    on_fresh_seeds = ", on fresh seeds" if data.is_confirmed else ""
    _draw_points(figure, data.front, f"on the front{on_fresh_seeds}" if data.x_mode else "best", marker, bars)
    _draw_points(figure, data.confirmed, "off the front, on fresh seeds", dots(GREEN, 10), FAINT_BARS[GREEN])
    _draw_points(figure, data.paper, "the paper, on its own GPU", dots(PURPLE, 11))
    _draw_baselines(figure, data)
    if data.recommended is not None:
        _draw_recommended(figure, data, data.recommended)
    drawn = {symbol for each in (data.others, data.front, data.confirmed, data.baselines) for symbol in each.symbols}
    for method, symbol in METHOD_SYMBOLS.items():
        if symbol in drawn and data.x_mode:
            figure.add_scatter(x=[None], y=[None], mode="markers", name=method, marker=dots(size=9, symbol=symbol))
    return figure


def _axes(objectives: Mapping[str, str]) -> tuple[str | None, str, str | None]:
    """Return the objectives of x, y and colour: what costs goes to x, what is bought to y."""
    names = list(objectives)
    if len(names) == 1:
        return None, names[0], None
    y_name, x_name = names[:2]
    if objectives[y_name] == "min" and objectives[x_name] == "max":
        y_name, x_name = x_name, y_name
    return x_name, y_name, names[2] if len(names) > 2 else None


def _captions(result: Result, names: list[str]) -> Iterator[str]:
    if len(names) == 1:
        yield "The line is the best so far, in the order in which trials were requested."
        return
    yield "A mark's shape is its method."
    if result.confirmed is not None:
        yield (
            "Large marks are means over fresh seeds; the small ones are what the search found with one seed. On the "
            "front is what is on it more probably than not; the line is drawn by the means alone."
        )
    else:
        yield (
            "Bars are standard errors of one training run. Differences between recipes are more certain than the bars, "
            "since the same images judged all, but what another seed would change is not in them."
        )
    if len(names) > 2:
        yield f"The colour is the {find_metric(names[2]).title}."


def _off_the_front(result: Result) -> pd.DataFrame:
    """Return the recipes that were confirmed and are not on the front, baselines aside: these are drawn anyway."""
    if result.confirmed is None:
        return result.rows.iloc[:0]
    rows = result.rows
    return rows[rows["baseline"].isna() & ~rows["trial"].isin(result.pareto_front()["trial"])]


def _paper_points(result: Result, x: Metric, y: Metric) -> Points:
    """Return the paper's methods at the base recipe's setting, or no point where it has none."""
    recipe = dict(result.space.values)
    if not recipe or (x.name, y.name) != ("train_latency_s", "val_accuracy"):
        return NO_POINTS
    try:
        rows = paper_rows_of(recipe)
    except NoPaperRowsError:
        return NO_POINTS
    rows = rows.dropna(subset=["latency_s"])
    hover = [
        f"<b>{html.escape(row['method'])}, Table {html.escape(str(row['table']))} of the paper</b><br>"
        f"test accuracy: {y.text(row['accuracy'])}<br>training time on its own GPU: {x.text(row['latency_s'])}"
        for row in rows.to_dict("records")
    ]
    nothing = [math.nan] * len(rows)
    names = [str(name) for name in rows["method"]]
    seconds, accuracies, symbols = list(rows["latency_s"]), scaled(rows["accuracy"], y), ["star"] * len(rows)
    return Points(names, names, symbols, seconds, accuracies, nothing, nothing, nothing, hover)


def _draw_region(figure: go.Figure, data: FrontData, corner: tuple[float, float]) -> None:
    """Fill what the front dominates up to the reference point: its area is the hypervolume."""
    x_sign, y_sign = (-1 if mode == "max" else 1 for mode in (data.x_mode, data.y_mode))
    inside = [
        (x, y)
        for x, y in sorted(zip(data.line_x, data.line_y, strict=True), key=lambda point: x_sign * point[0])
        if x_sign * x < x_sign * corner[0] and y_sign * y < y_sign * corner[1]
    ]
    if not inside:
        return
    edge = [(inside[0][0], corner[1])]
    for (x, y), after in zip(inside, [*inside[1:], (corner[0], inside[-1][1])], strict=True):
        edge += [(x, y), (after[0], y)]
    edge.append(corner)
    xs, ys = zip(*edge, strict=True)
    drawn = [(p.x, p.x_error, p.y, p.y_error) for p in (data.front, data.baselines, data.confirmed)]
    nothing = [0.0] * len(data.others.names)
    drawn.append((data.others.x, nothing, data.others.y, nothing))
    figure.update_xaxes(range=_around([pair for x, error, _, _ in drawn for pair in zip(x, error, strict=True)]))
    figure.update_yaxes(range=_around([pair for _, _, y, error in drawn for pair in zip(y, error, strict=True)]))
    figure.add_scatter(
        x=xs, y=ys, mode="lines", line={"width": 0}, fill="toself", fillcolor=REGION, hoverinfo="skip",
        name="dominated, up to the reference point",
    )  # fmt: skip


def _around(points: list[tuple[float, float]]) -> list[float]:
    """Return a range with some room alongside values with their errors: the reference point is far off."""
    known = [(value, error if math.isfinite(error) else 0.0) for value, error in points if math.isfinite(value)]
    low, high = min(value - error for value, error in known), max(value + error for value, error in known)
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - room, high + room]


def _draw_points(figure: go.Figure, points: Points, name: str, marker: dict[str, Any], bars: str | None = None) -> None:
    """Add one trace of points; ``bars`` is the colour of their standard error bars, None for no bars."""
    if not points.names:
        return
    errors = error_bars(points.x_error, points.y_error, bars) if bars else {}
    name = f"{name} (± standard error)" if errors else name
    marker = marker | {"symbol": points.symbols}
    add_marks(figure, points.x, points.y, points.trials, points.hover, marker, name=name, **errors)


def _draw_baselines(figure: go.Figure, data: FrontData) -> None:
    baselines = data.baselines
    from_left = sorted(range(len(baselines.names)), key=lambda i: baselines.x[i])
    corners = {i: CORNERS[rank % len(CORNERS)] for rank, i in enumerate(from_left)}
    for i, name in enumerate(baselines.names):
        label = html.escape(name)
        if data.x_mode is None:
            text = {"text": label, "font": {"color": VERMILLION}}
            line = {"dash": "dot", "color": VERMILLION, "width": 1.5}
            figure.add_hline(y=baselines.y[i], line=line, annotation=text, annotation_position="top left")
            continue
        level, side = corners[i]
        place = _place(data, baselines.x[i])
        side = "left" if place > 0.8 else "right" if place < 0.2 else side
        marker = dots(VERMILLION, 13, symbol=baselines.symbols[i])
        bars = error_bars([baselines.x_error[i]], [baselines.y_error[i]], FAINT_BARS[VERMILLION])
        add_marks(
            figure, [baselines.x[i]], [baselines.y[i]], [baselines.trials[i]], [baselines.hover[i]], marker,
            name=f"baseline {label}", mode="markers+text", text=[f"  {label}  "], textposition=f"{level} {side}",
            textfont={"color": VERMILLION}, cliponaxis=False, **bars,
        )  # fmt: skip


def _place(data: FrontData, x: float) -> float:
    """Return where an abscissa is among all that are drawn, from 0 at the left to 1."""
    drawn = [x for each in (data.others, data.front, data.baselines) for x in each.x if math.isfinite(x)]
    return (x - min(drawn)) / ((max(drawn) - min(drawn)) or 1.0)


def _draw_recommended(figure: go.Figure, data: FrontData, place: int) -> None:
    x, y = data.front.x[place], data.front.y[place]
    ring = {"size": 23, "symbol": "circle-open", "color": ORANGE, "line": {"width": 3}}
    figure.add_scatter(x=[x], y=[y], mode="markers", name="recommended", marker=ring, hoverinfo="skip")
    # The label stands on the side of the ideal, where by the front's definition no trial can be.
    away_x, away_y = 42 if data.x_mode == "max" else -42, 38 if data.y_mode == "min" else -38
    if not 0.2 <= _place(data, x) <= 0.8:  # though not beyond the figure's edge
        away_x = 62 if _place(data, x) < 0.2 else -62
    figure.add_annotation(
        x=x, y=y, ax=away_x, ay=away_y, text=f"<b>recommended</b> {html.escape(data.front.names[place])}",
        showarrow=True, arrowhead=0, arrowcolor=ORANGE, arrowwidth=1.5, standoff=11,
    )  # fmt: skip
