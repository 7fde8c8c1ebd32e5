"""Hypervolume over device-seconds: what the search had found after how much training, reused epochs not counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mixtune.metrics import setting
from mixtune.report.figures._style import (
    BLUE,
    NOTHING_COMPLETE,
    Heading,
    add_marks,
    dots,
    hover_texts,
    new_figure,
    run_subtitle,
)
from mixtune.run import front
from mixtune.run.accounting import trained_seconds
from mixtune.run.ledger import ENDED
from mixtune.run.result import Result


@dataclass(frozen=True)
class HypervolumeData:
    """``steps``: a row for each trial that enlarged the hypervolume, in the order in which they ended.

    Columns: trial, device_s (seconds of training steps of all trials and baselines up to its end, reused epochs not
    counted), hypervolume. ``end_s``: the same seconds of the whole search.
    """

    heading: Heading
    steps: pd.DataFrame
    hover: list[str]
    end_s: float


def compute(result: Result) -> HypervolumeData:
    """Return how the hypervolume grew; works while a search runs."""
    reference = {name: bound for name, bound in result.reference_point.items() if bound is not None}
    point = ", ".join(f"{name} {setting(value)}" for name, value in reference.items())
    missing = None
    if len(reference) < len(result.objectives):
        missing = "no reference point: nothing is known yet of an objective"
    steps, spent = grow({} if missing else reference, result)
    if steps.empty and missing is None:
        missing = NOTHING_COMPLETE if result.candidates.empty else "no trial is better than the reference point"
    title = "Hypervolume over training time spent"
    caption = (
        "How much of the plane the front dominates, after how many seconds of training steps. Where the line has long "
        "been flat, more trials of the same kind will hardly find better ones. It is of the search's own figures."
    )
    heading = Heading(title, run_subtitle(result, f"reference point {point}" if point else ""), missing, caption)
    return HypervolumeData(heading, steps, hover_texts(result, steps["trial"]), spent)


def grow(reference: Mapping[str, float], result: Result) -> tuple[pd.DataFrame, float]:
    """Return ``steps`` up to a reference point, and ``end_s``; no step without one. See HypervolumeData."""
    feasible = result.candidates.set_index("trial")
    costs = dict(zip(feasible.index, front.costs(feasible, result.objectives), strict=True)) if reference else {}
    spent, volume, rows = 0.0, 0.0, []
    trials: list[str] = []  # the front so far
    members = np.empty((0, len(result.objectives)))  # their costs
    ended = [record for record in result.records.values() if record.state in ENDED]
    for record in sorted(ended, key=lambda record: record.ended_time or 0.0):
        spent += np.nan_to_num(trained_seconds(record.metrics))
        own = costs.get(record.trial)
        if own is None or not np.isfinite(own).all() or (members <= own).all(axis=1).any():
            continue
        stays = ~(own <= members).all(axis=1)
        trials = [*compress(trials, stays), record.trial]
        members = np.vstack([members[stays], own])
        now = front.hypervolume(feasible.loc[trials], result.objectives, reference)
        if now > volume:
            volume = now
            rows.append((record.trial, float(spent), volume))
    return pd.DataFrame(rows, columns=["trial", "device_s", "hypervolume"]), float(spent)


def draw(data: HypervolumeData) -> go.Figure:
    """Draw what ``compute`` found."""
    figure = new_figure(data.heading, "training time spent (s)", "hypervolume")
    if data.heading.missing is None:
        x, y = list(data.steps["device_s"]), list(data.steps["hypervolume"])
        line = {"shape": "hv", "color": BLUE, "width": 2}
        figure.add_scatter(
            x=[*x, max(data.end_s, x[-1])], y=[*y, y[-1]], mode="lines", line=line, hoverinfo="skip", showlegend=False
        )
        named = {"name": "a trial that enlarged it", "showlegend": True}
        add_marks(figure, x, y, list(data.steps["trial"]), data.hover, dots(BLUE, 9), **named)
        figure.update_yaxes(rangemode="tozero")
        figure.update_xaxes(rangemode="tozero")
    return figure
