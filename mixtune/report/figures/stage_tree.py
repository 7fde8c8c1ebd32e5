"""The stage tree: which trials continue from which others' epochs, and what was trained once for many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mixtune.report.figures._style import (
    BLUE,
    GREY,
    PHASES,
    VERMILLION,
    Heading,
    add_marks,
    dots,
    hover_texts,
    joined,
    new_figure,
    run_subtitle,
)
from mixtune.run.ledger import TrialRecord
from mixtune.run.result import Result

MAX_TRIALS = 60
ROW_HEIGHT = 16  # pixels
ENDS = {
    "on the front": dots(BLUE, 11, symbol="star"),
    "complete": dots(GREY, 8),
    "ended early or failed": dots(VERMILLION, 8, symbol="x"),
    "paused": dots(GREY, 8, symbol="square-open"),
    "running": dots(GREY, 8, symbol="circle-open"),
}


@dataclass(frozen=True)
class StageTreeData:
    """``stretches``: trained epochs by phase; ``branches``: where a trial's path leaves another one's.

    stretches: trial, row, phase, start, end (epochs); branches: trial, row, parent, parent_row, epoch (how many epochs
    are the parent's); ends: trial, row, name, epoch, kind (a key of ENDS). Rows count from 0, children below parents.
    """

    heading: Heading
    stretches: pd.DataFrame
    branches: pd.DataFrame
    ends: pd.DataFrame
    hover: list[str]


def compute(result: Result) -> StageTreeData:
    """Return the tree of at most 60 trials: the front, the baselines, those that they come from, and the latest."""
    begun = {trial: record for trial, record in result.records.items() if record.epochs}
    parents = {trial: parent for trial, record in begun.items() if (parent := _parent(begun, record))}
    chosen = _choose(begun, parents, result.highlights)
    rows = {trial: row for row, trial in enumerate(_depth_first(chosen, parents))}
    on_front = set(result.pareto_front()["trial"])
    stretches, branches, ends = [], [], []
    for trial, row in rows.items():
        record = begun[trial]
        start = parents[trial][1] if trial in parents else 0
        stretches += [(trial, row, phase, max(a, start), b) for phase, a, b in _phases(record) if b > start]
        if trial in parents:
            branches.append((trial, row, parents[trial][0], rows[parents[trial][0]], start))
        ends.append((trial, row, record.baseline or trial, record.epochs[-1]["epoch"], _kind(record, on_front)))
    parts = [f"{len(rows)} of {len(begun):,} shown"] if len(rows) < len(begun) else []
    parts.append(f"{result.account().epochs_reused:,} epochs reused")
    missing = None if begun else "no epoch has been trained yet"
    caption = (
        "A line a trial, from where its path leaves another one's: what lies left of that was trained once for both. "
        f"Of many, {MAX_TRIALS} at most are shown: the front, the baselines, what they come from, and the latest."
    )
    heading = Heading("The stage tree", run_subtitle(result, *parts), missing, caption)
    return StageTreeData(
        heading,
        pd.DataFrame(stretches, columns=["trial", "row", "phase", "start", "end"]),
        pd.DataFrame(branches, columns=["trial", "row", "parent", "parent_row", "epoch"]),
        pd.DataFrame(ends, columns=["trial", "row", "name", "epoch", "kind"]),
        hover_texts(result, rows),
    )


def draw(data: StageTreeData) -> go.Figure:
    """Draw what ``compute`` found: a line a trial, from where its path leaves another one's."""
    figure = new_figure(data.heading, "epoch", "")
    xs, ys = joined(((b.epoch, b.parent_row), (b.epoch, b.row)) for b in data.branches.itertuples())
    figure.add_scatter(
        x=xs, y=ys, mode="lines", line={"color": GREY, "width": 1.5}, hoverinfo="skip", showlegend=bool(xs),
        name="continues from another trial's epochs",
    )  # fmt: skip
    for phase, (name, colour) in PHASES.items():
        own = data.stretches[data.stretches["phase"] == phase]
        xs, ys = joined(((s.start, s.row), (s.end, s.row)) for s in own.itertuples())
        if xs:
            figure.add_scatter(
                x=xs, y=ys, mode="lines", line={"color": colour, "width": 5}, name=name, hoverinfo="skip"
            )
    for kind, marker in ENDS.items():
        own = data.ends[data.ends["kind"] == kind]
        if len(own):
            add_marks(
                figure, own["epoch"], own["row"], own["trial"], [data.hover[row] for row in own["row"]], marker,
                mode="markers+text", name=kind, text=[f"  {name}" for name in own["name"]],
                textposition="middle right", textfont={"size": 11}, cliponaxis=False,
            )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showticklabels=False, ticks="", showgrid=False)
    figure.update_layout(height=max(360, 220 + ROW_HEIGHT * len(data.ends)))
    if len(data.ends):
        figure.update_xaxes(range=[0, 1.12 * data.ends["epoch"].max()])
    return figure


def _parent(begun: Mapping[str, TrialRecord], record: TrialRecord) -> tuple[str, int] | None:
    """Return whose epochs a trial really continued from, and how many; a stage may have been gone by then."""
    reused = record.metrics.get("epochs_reused")
    if record.follows is None or record.follows[0] not in begun:
        return None
    parent, shared = record.follows
    epochs = shared if reused is None else min(shared, int(reused))
    while (above := begun[parent].follows) and above[0] in begun and epochs <= above[1]:
        parent = above[0]
    return (parent, epochs) if epochs > 0 else None


def _choose(
    begun: Mapping[str, TrialRecord], parents: Mapping[str, tuple[str, int]], first: Sequence[str]
) -> dict[str, None]:
    """Return whom to show, in the order in which they were requested; no one without whom it comes from."""
    chosen: dict[str, None] = {}
    for trial in [*(trial for trial in first if trial in begun), *reversed(list(begun))]:
        line = [trial]
        while line[-1] in parents:
            line.append(parents[line[-1]][0])
        if len({*chosen, *line}) <= MAX_TRIALS:
            chosen |= dict.fromkeys(line)
    return {trial: None for trial in begun if trial in chosen}


def _depth_first(chosen: Mapping[str, None], parents: Mapping[str, tuple[str, int]]) -> Iterator[str]:
    """Yield each trial before those that continue from it, the latest branch first, so that lines cross little."""
    children: dict[str | None, list[str]] = {}
    for trial in chosen:
        children.setdefault(parents[trial][0] if trial in parents else None, []).append(trial)
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        trial = waiting.pop()
        yield trial
        waiting += sorted(children.get(trial, []), key=lambda child: parents[child][1])


def _phases(record: TrialRecord) -> Iterator[tuple[str, int, int]]:
    """Yield (phase, epochs before it, epochs at its end)."""
    for phase, epochs in groupby(record.epochs, key=lambda epoch: epoch.get("phase")):
        numbers = [int(epoch["epoch"]) for epoch in epochs]
        yield str(phase), numbers[0] - 1, numbers[-1]


def _kind(record: TrialRecord, on_front: set[Any]) -> str:
    if record.trial in on_front:
        return "on the front"
    if record.state in ("stopped", "failed"):
        return "ended early or failed"
    return record.state if record.state in ENDS else "running"
