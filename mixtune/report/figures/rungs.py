"""Rungs and stops: where trials stood after 1/9 and 1/3 of their supervised epochs, and which were ended there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixtune.metrics import find_metric, metric_value
from mixtune.report.figures._style import (
    BLUE,
    GREY,
    VERMILLION,
    Heading,
    add_marks,
    apply_template,
    dots,
    hover_texts,
    run_subtitle,
)
from mixtune.run.ledger import TrialRecord
from mixtune.run.result import Result
from mixtune.run.rungs import LEVELS

STANDINGS = {"continued": dots(GREY, 7), "ended here": dots(VERMILLION, 10, symbol="x"), "on the front": dots(BLUE, 10)}


@dataclass(frozen=True)
class RungsData:
    """``points``: a row for each trial that reached a rung, and for the end (level 1).

    Columns: level (share of the supervised epochs), trial, seconds (forecast training time of the whole recipe),
    accuracy (percent, validation images, at that epoch), standing (a key of STANDINGS).
    """

    heading: Heading
    points: pd.DataFrame
    hover: list[str]


def compute(result: Result) -> RungsData:
    """Return where trials stood at the rungs of ``pareto_asha``, whatever scheduler the search had."""
    on_front = set(result.pareto_front()["trial"])
    trials = [record for record in result.records.values() if record.baseline is None]
    rows = [row for record in trials for row in _standings(record, record.trial in on_front)]
    points = pd.DataFrame(rows, columns=["level", "trial", "seconds", "accuracy", "standing"])
    stopped = result.counts()["stopped"]
    scheduler = result.space.search.scheduler
    part = f"{stopped:,} ended early" if stopped else f"scheduler {scheduler}: none ended early"
    missing = None if len(points) else "no trial has reached a rung yet"
    if scheduler == "fifo":
        missing = "the scheduler is fifo: there are no rungs, and no trial is ended early"
    caption = (
        "Each panel has the trials that reached it, by what was known of them then. A trial ended early was behind the "
        "front at its rung; how it would have ended is not known."
    )
    heading = Heading("Rungs and stops", run_subtitle(result, part), missing, caption)
    return RungsData(heading, points, hover_texts(result, points["trial"]))


def draw(data: RungsData) -> go.Figure:
    """Draw what ``compute`` found, a panel a rung."""
    levels = sorted(set(data.points["level"])) or [1.0]
    titles = ["the end" if level == 1.0 else f"rung 1/{round(1 / level)}" for level in levels]
    figure = make_subplots(cols=len(levels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    apply_template(figure, data.heading)
    named = set()
    for column, level in enumerate(levels, start=1):
        for standing, marker in STANDINGS.items():
            rows = data.points[(data.points["level"] == level) & (data.points["standing"] == standing)]
            if len(rows):
                hover = [data.hover[i] for i in rows.index]
                group = {"name": standing, "legendgroup": standing, "showlegend": standing not in named}
                add_marks(
                    figure, rows["seconds"], rows["accuracy"], rows["trial"], hover, marker, **group, row=1, col=column
                )
                named.add(standing)
    middle = 1 + (len(levels) - 1) // 2
    figure.update_xaxes(title_text="forecast training time (s)", row=1, col=middle)
    figure.update_yaxes(title_text=find_metric("val_accuracy").axis_title, row=1, col=1)
    return figure


def _standings(record: TrialRecord, is_on_front: bool) -> Iterator[tuple[float, str, float, float, str]]:
    """Yield where one trial stood at each rung that it reached, and at its end."""
    epochs = [epoch for epoch in record.epochs if epoch.get("val_accuracy") is not None and epoch.get("sl_progress")]
    for level in (*LEVELS, 1.0):
        reached = next((epoch for epoch in epochs if epoch["sl_progress"] >= level - 1e-9), None)
        if reached is None:
            break
        is_end = record.state == "stopped" and reached["sl_progress"] == epochs[-1]["sl_progress"]
        standing = "ended here" if is_end else "on the front" if is_on_front else "continued"
        seconds = metric_value(reached, "forecast_latency_s")
        yield level, record.trial, seconds, 100.0 * reached["val_accuracy"], standing
