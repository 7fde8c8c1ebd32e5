"""Epoch budgets: the best accuracy that any trial reached with so many SSL and SL epochs."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from mixtune.metrics import Metric, counted, find_metric
from mixtune.report.figures._style import (
    NOTHING_COMPLETE,
    Heading,
    add_marks,
    dots,
    hover_texts,
    new_figure,
    numbers,
    run_subtitle,
    scaled,
)
from mixtune.run.result import Result
from mixtune.space.recipe import flatten

BUDGETS = {"epochs.ssl": "SSL epochs", "epochs.sl": "SL epochs"}


@dataclass(frozen=True)
class BudgetsData:
    """``cells``: a row a pair of budgets. Columns: ssl, sl (epochs), trial (the best), accuracy (percent), trials."""

    heading: Heading
    accuracy: Metric
    cells: pd.DataFrame
    hover: list[str]


def compute(result: Result) -> BudgetsData:
    """Return what the figure shows; a budget that is not searched is the base recipe's."""
    accuracy = find_metric(result.accuracy_name)
    title = f"Best {accuracy.title} by epoch budget"
    base, rows = flatten(result.space.values), result.complete()
    values = {trial: result.values[trial] or {**base, **result.records[trial].params} for trial in rows["trial"]}
    frame = pd.DataFrame(
        {
            **{
                path.removeprefix("epochs."): numbers(values[trial].get(path) for trial in rows["trial"])
                for path in BUDGETS
            },
            "trial": rows["trial"],
            "accuracy": scaled(rows[accuracy.name], accuracy) if accuracy.name in rows else None,
        }
    ).dropna()
    missing = None if len(frame) else NOTHING_COMPLETE
    if not any(path in result.parameters for path in BUDGETS):
        missing = "no epoch budget was searched"
    best_first = frame.sort_values("accuracy", ascending=False, kind="stable")
    cells = best_first.drop_duplicates(["ssl", "sl"]).sort_values(["ssl", "sl"]).reset_index(drop=True)
    counts = frame.groupby(["ssl", "sl"]).size()
    cells["trials"] = [int(counts.loc[pair]) for pair in zip(cells["ssl"], cells["sl"], strict=True)]
    hover = [
        f"{counted(count, 'trial')} with {ssl:g} + {sl:g} epochs; the best:<br>{text}"
        for count, ssl, sl, text in zip(
            cells["trials"], cells["ssl"], cells["sl"], hover_texts(result, cells["trial"]), strict=True
        )
    ]
    caption = (
        "A mark's size is how many trials had this pair of budgets (the smallest: one), its colour the best accuracy "
        "among them: of more trials the best is better by luck, too."
    )
    return BudgetsData(Heading(title, run_subtitle(result), missing, caption), accuracy, cells, hover)


def draw(data: BudgetsData) -> go.Figure:
    """Draw what ``compute`` found; larger marks stand for more trials."""
    figure = new_figure(data.heading, BUDGETS["epochs.ssl"], BUDGETS["epochs.sl"])
    if data.heading.missing is None:
        most = data.cells["trials"].max()
        bar = {"title": {"text": html.escape(data.accuracy.axis_title), "side": "right"}, "outlinewidth": 0}
        marker = dots(size=14) | {
            "color": data.cells["accuracy"],
            "size": 12 + 20 * ((data.cells["trials"] - 1) / max(1, most - 1)) ** 0.5,
            "opacity": 1.0,
            "colorbar": bar | {"thickness": 14},
        }
        cells = data.cells
        add_marks(figure, cells["ssl"], cells["sl"], cells["trial"], data.hover, marker, showlegend=False)
    return figure
