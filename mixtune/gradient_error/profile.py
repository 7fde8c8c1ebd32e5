"""The error profile of shortened sequences as a table, as CSV and as a figure."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from mixtune.report.figures._style import GREY, SERIES, SYMBOLS, Heading, apply_template

UNCOMPRESSED = "uncompressed"
PARTS = {
    "squared_bias": "squared bias",
    "adjusted_variance": "cost-adjusted variance",
    "ca_mse": "CA-MSE (their sum)",
}


def describe_strategy(settings: pd.Series) -> str:
    """Return a strategy in words; settings: by the names of ``ssl.compression``."""
    words = []
    for name, unit in (("token_dropout", "token dropout"), ("patch_size", "patch size")):
        query, key = settings[name], settings[f"key_{name}"]
        shown = [f"{value:g}" if pd.notna(value) and value else "none" for value in (query, key)]
        if shown != ["none", "none"]:
            words.append(f"{unit} {shown[0]}" if shown[0] == shown[1] else f"{unit} {shown[0]} (key {shown[1]})")
    return ", ".join(words) or UNCOMPRESSED


def relative(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a profile whose errors are shares of the uncompressed gradient's variance at the same point.

    frame: a row a point and strategy: epoch, consumed, token_dropout, key_token_dropout, patch_size, key_patch_size,
    cost, units, squared_bias, variance, adjusted_variance, ca_mse, ca_mse_se, batches, batch_size (see GradientError
    in mixtune.gradient_error.measure). Added are strategy, in words, and is_best, the least CA-MSE of a point.
    """
    shown = frame.assign(strategy=[describe_strategy(row) for _, row in frame.iterrows()])
    whole = shown[shown["strategy"] == UNCOMPRESSED].set_index("epoch")["variance"]
    for name in ("squared_bias", "variance", "adjusted_variance", "ca_mse", "ca_mse_se"):
        shown[name] = shown[name] / shown["epoch"].map(whole)
    return shown.assign(is_best=shown["ca_mse"] == shown.groupby("epoch")["ca_mse"].transform("min"))


def profile_table(frame: pd.DataFrame) -> Table:
    """Return the CA-MSE of each strategy, with its standard error, at each point, 1 being no compression's."""
    shown = relative(frame)
    points = list(dict.fromkeys(shown["epoch"]))
    table = Table(title="CA-MSE, the uncompressed gradient being 1; * is the least", box=None)
    table.add_column("strategy")
    table.add_column("cost", justify="right")
    for epoch in points:
        table.add_column(f"after {epoch} epochs" if epoch == points[0] else str(epoch), justify="right")
    for strategy, rows in shown.groupby("strategy", sort=False):
        cells = [f"{row.ca_mse:.2f} ± {row.ca_mse_se:.2f}{'*' if row.is_best else ' '}" for row in rows.itertuples()]
        table.add_row(str(strategy), f"{rows['cost'].iloc[0]:.2f}", *cells)
    return table


def profile_figure(frame: pd.DataFrame, subtitle: str) -> go.Figure:
    """Draw squared bias, cost-adjusted variance and their sum over the consumed budget, a line a strategy."""
    shown = relative(frame)
    figure = make_subplots(rows=1, cols=len(PARTS), subplot_titles=list(PARTS.values()), horizontal_spacing=0.07)
    apply_template(figure, Heading("Error of the gradient with shortened sequences", subtitle))
    for number, (strategy, rows) in enumerate(shown.groupby("strategy", sort=False), start=-1):  # uncompressed is first
        hover = f"{strategy}, cost {rows['cost'].iloc[0]:.2f}<br>%{{y:.3g}} after %{{x:.3g}}<extra></extra>"
        colour = GREY if strategy == UNCOMPRESSED else SERIES[number % len(SERIES)]
        symbol = "circle" if strategy == UNCOMPRESSED else SYMBOLS[number % len(SYMBOLS)]
        for column, part in enumerate(PARTS, start=1):
            figure.add_scatter(
                x=rows["consumed"], y=rows[part], name=str(strategy), legendgroup=str(strategy),
                mode="lines+markers", showlegend=column == 1, line={"color": colour},
                marker={"symbol": symbol, "size": 9}, row=1, col=column,
                hovertemplate=hover,
            )  # fmt: skip
    for column in range(1, len(PARTS) + 1):
        figure.update_xaxes(title={"text": "forward passes an image"}, row=1, col=column)
    figure.update_yaxes(title={"text": "share of the uncompressed variance"}, row=1, col=1)
    figure.update_layout(height=560, margin={"t": 120, "b": 150})
    return figure
