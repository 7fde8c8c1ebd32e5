"""Where the training time goes: a bar a trial, its phases, and what of them was reused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mixtune.report.figures._style import NOTHING_COMPLETE, PHASES, Heading, hover_texts, new_figure, run_subtitle
from mixtune.run.result import Result

MAX_BARS = 40
ROW_HEIGHT = 22  # pixels


@dataclass(frozen=True)
class PhasesData:
    """``bars``: a row a trial, the cheapest first.

    Columns: trial; name (a baseline's method); for each phase the seconds of its steps that were trained and that were
    reused, as ssl_trained, ssl_reused, ...
    """

    heading: Heading
    bars: pd.DataFrame
    hover: list[str]


def compute(result: Result) -> PhasesData:
    """Return the bars of the front, the baselines and the cheapest other trials, at most 40 in all."""
    both = pd.concat([result.complete(), result.complete_baselines])
    first = result.highlights
    columns = ["train_latency_s", "latency_reused_s", *(f"latency_{phase}_s" for phase in PHASES)]
    seconds = both.reindex(columns=columns).apply(pd.to_numeric, errors="coerce").fillna(0.0).astype(float)
    seconds.insert(0, "trial", both["trial"].astype(str))
    seconds = seconds[seconds["train_latency_s"] > 0].sort_values("train_latency_s", kind="stable")
    others = seconds[~seconds["trial"].isin(first)]
    kept = set(first) | set(others["trial"].head(max(0, MAX_BARS - len(first))))
    shown = seconds[seconds["trial"].isin(kept)].head(MAX_BARS).reset_index(drop=True)
    bars = pd.DataFrame({"trial": shown["trial"]})
    bars["name"] = [result.records[trial].baseline or trial for trial in bars["trial"]]
    begin = np.zeros(len(shown))
    for phase in PHASES:  # what is reused is a recipe's beginning
        length = shown[f"latency_{phase}_s"].to_numpy()
        reused = np.clip(shown["latency_reused_s"].to_numpy() - begin, 0.0, length)
        bars[f"{phase}_reused"], bars[f"{phase}_trained"] = reused, length - reused
        begin = begin + length
    subtitle = run_subtitle(result, f"{len(bars)} of {len(seconds):,} shown" if len(bars) < len(seconds) else "")
    caption = (
        f"The front, the baselines and the cheapest others, at most {MAX_BARS}. Hatched is what another trial had "
        "trained already: it cost this search nothing, and counts in a recipe's training time all the same."
    )
    missing = None if len(bars) else NOTHING_COMPLETE
    heading = Heading("Training time by phase", subtitle.removesuffix(" · "), missing, caption)
    return PhasesData(heading, bars, hover_texts(result, bars["trial"]))


def draw(data: PhasesData) -> go.Figure:
    """Draw what ``compute`` found: hatched is what another trial had trained."""
    figure = new_figure(data.heading, "training time from scratch (s)", "")
    for phase, (name, colour) in PHASES.items():
        for kind, pattern in (
            ("reused", {"shape": "/", "fgcolor": colour, "bgcolor": "rgba(0,0,0,0)"}),
            ("trained", {}),
        ):
            values = data.bars[f"{phase}_{kind}"]
            if values.any():
                figure.add_bar(
                    y=data.bars["name"], x=values, orientation="h", name=f"{name}, {kind}", hovertext=data.hover,
                    marker={"color": colour, "pattern": pattern, "line": {"width": 0}}, hoverinfo="text",
                    customdata=data.bars["trial"],
                )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.25, height=max(360, 220 + ROW_HEIGHT * len(data.bars)))
    figure.update_yaxes(autorange="reversed", type="category", tickmode="linear", showgrid=False)
    return figure
