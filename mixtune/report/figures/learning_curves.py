"""Learning curves: held-out accuracy and SSL loss by epoch, with the boundaries of the phases."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixtune.metrics import find_metric
from mixtune.report.figures._style import GREY, SERIES, Heading, apply_template, dots, hover_texts, joined, run_subtitle
from mixtune.run.ledger import TrialRecord
from mixtune.run.result import Result

MAX_NAMED = 12  # curves with a colour and a name
MAX_OTHERS = 100  # grey ones
PANELS = {"val_accuracy": 1, "ssl_loss": 2}  # metric -> row


@dataclass(frozen=True)
class Curve:
    """One trial's epochs, equally long lists: accuracies in percent, None where not measured.

    ``boundaries``: the places in them of each phase's first epoch, but for the first phase's.
    """

    trial: str
    name: str
    hover: str
    epochs: list[int]
    val_accuracy: list[float | None]
    ssl_loss: list[float | None]
    boundaries: list[int]


@dataclass(frozen=True)
class CurvesData:
    """``named``: the front's members and the baselines; ``others``: the latest of the rest."""

    heading: Heading
    named: list[Curve]
    others: list[Curve]


def compute(result: Result) -> CurvesData:
    """Return the curves of at most 12 of the front and the baselines, and of the 100 latest others."""
    begun = {trial: record for trial, record in result.records.items() if record.epochs}
    chosen = [trial for trial in result.highlights if trial in begun]
    places = {round(i * (len(chosen) - 1) / (MAX_NAMED - 1)) for i in range(MAX_NAMED)}  # all over the front
    first = [trial for i, trial in enumerate(chosen) if i in places]
    rest = [trial for trial in begun if trial not in first][-MAX_OTHERS:]
    shown = [*first, *rest]
    parts = [f"{len(shown)} of {len(begun):,} curves"] if len(shown) < len(begun) else []
    missing = None if begun else "no epoch has been reported yet"
    caption = (
        f"In colour at most {MAX_NAMED} of the front and the baselines, in grey the {MAX_OTHERS} latest others. A bar "
        "across a curve is where a phase begins; accuracy is measured once supervised training has begun."
    )
    heading = Heading("Learning curves", run_subtitle(result, *parts), missing, caption)
    curves = [
        _curve(result.records[trial], hover) for trial, hover in zip(shown, hover_texts(result, shown), strict=True)
    ]
    return CurvesData(heading, curves[: len(first)], curves[len(first) :])


def draw(data: CurvesData) -> go.Figure:
    """Draw what ``compute`` found; a bar across a curve is where a phase begins."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.65, 0.35])
    apply_template(figure, data.heading)
    for metric, row in PANELS.items():
        xs, ys = joined(zip(curve.epochs, getattr(curve, metric), strict=True) for curve in data.others)
        trials = [trial for curve in data.others for trial in [curve.trial] * (len(curve.epochs) + 1)]
        figure.add_scatter(
            x=xs, y=ys, mode="lines", line={"color": GREY, "width": 1}, opacity=0.45, customdata=trials,
            hovertemplate="%{customdata}<extra></extra>",
            name="other trials", legendgroup="others", showlegend=row == 1 and bool(xs), row=row, col=1,
        )  # fmt: skip
        for i, curve in enumerate(data.named):
            _draw_curve(figure, curve, metric, SERIES[i % len(SERIES)], "solid" if i < len(SERIES) else "dot")
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    figure.update_yaxes(title_text=find_metric("val_accuracy").axis_title, row=1, col=1)
    figure.update_yaxes(title_text="SSL loss", row=2, col=1)
    figure.update_layout(height=620)
    return figure


def _curve(record: TrialRecord, hover: str) -> Curve:
    scale = find_metric("val_accuracy").scale
    accuracies = [epoch.get("val_accuracy") for epoch in record.epochs]
    phases = [epoch.get("phase") for epoch in record.epochs]
    return Curve(
        trial=record.trial,
        name=record.baseline or record.trial,
        hover=hover,
        epochs=[int(epoch.get("epoch") or 0) for epoch in record.epochs],
        val_accuracy=[None if value is None else scale * value for value in accuracies],
        ssl_loss=[epoch.get("ssl_loss") for epoch in record.epochs],
        boundaries=[i for i, (before, now) in enumerate(pairwise(phases), start=1) if before != now],
    )


def _draw_curve(figure: go.Figure, curve: Curve, metric: str, colour: str, dash: str) -> None:
    row, values = PANELS[metric], getattr(curve, metric)
    place: dict[str, Any] = {"row": row, "col": 1, "legendgroup": curve.trial, "hoverinfo": "text"}
    figure.add_scatter(
        x=curve.epochs, y=values, mode="lines", line={"color": colour, "width": 2, "dash": dash}, name=curve.name,
        hovertext=[f"epoch {epoch}<br>{curve.hover}" for epoch in curve.epochs], showlegend=row == 1,
        customdata=[curve.trial] * len(curve.epochs), **place,
    )  # fmt: skip
    boundaries = [i for i in curve.boundaries if values[i] is not None]
    bar = dots(colour, 12, symbol="line-ns") | {"line": {"color": colour, "width": 2}}
    figure.add_scatter(
        x=[curve.epochs[i] for i in boundaries], y=[values[i] for i in boundaries], mode="markers", marker=bar,
        hovertext=["a phase begins"] * len(boundaries), showlegend=False, **place,
    )  # fmt: skip
