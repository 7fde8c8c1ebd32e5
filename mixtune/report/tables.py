"""The front for a terminal and as CSV, and what should be said beside it."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.table import Table

from mixtune.metrics import find_metric, setting, significant
from mixtune.render import fits, terminal_table
from mixtune.run.frames import csv_text
from mixtune.run.result import Result

WIDTH = 100


def front_table(result: Result, width: int = WIDTH) -> Table:
    """Return the front, a row a member, the knee marked; under a line the baselines beside it.

    Columns: trial, the objectives with their standard errors, the parameters that vary among the trials.
    Where that is wider than ``width`` characters the parameters share one column that wraps.
    """
    table = _table(result, share_column=False)
    return table if fits(table, width) else _table(result, share_column=True)


def front_notes(result: Result) -> list[str]:
    """Return a line each: knee and hypervolume with its reference point, noise, and baselines that beat the front."""
    notes = []
    if (volume := result.hypervolume()) is not None and not result.feasible().empty:
        point = ", ".join(f"{name} {setting(value)}" for name, value in result.reference_point.items())
        notes.append(f"knee {result.knee()}; hypervolume {significant(volume)} against the reference point {point}")
    if broken := len(result.complete()) - len(result.feasible()):
        limits = " and ".join(str(constraint) for constraint in result.constraints.values())
        notes.append(f"{broken} complete {'trial does' if broken == 1 else 'trials do'} not keep {limits}")
    if warning := result.noise_warning():
        notes.append(warning)
    members = len(result.pareto_front())
    for method, beaten in result.beaten_by_baselines().items():
        notes.append(f"the baseline {method} dominates {beaten} of the {members} front members")
    return notes


def front_csv(result: Result) -> str:
    """Return the front as CSV with a header: the columns of ``result.trials``, in full precision."""
    return csv_text(result.pareto_front())


def _table(result: Result, share_column: bool) -> Table:
    members, varying, knee = result.pareto_front(), varying_parameters(result), result.knee()
    mark = "knee" if len(result.objectives) > 1 else "best"
    heads = [f"{trial} ({mark})" if trial == knee else str(trial) for trial in members["trial"]]
    heads += [
        f"{method} (baseline{'' if state == 'complete' else f', {state}'})"
        for method, state in zip(result.baselines["method"], result.baselines["state"], strict=True)
    ]
    rows = [row for frame in (members, result.baselines) for _, row in frame.iterrows()]
    styles = {i: "bold" if row["trial"] == knee else "dim" for i, row in enumerate(rows)}
    caption = f"no trial is complete yet{' and keeps the constraints' if result.constraints else ''}"
    count = 1 + len(result.objectives)
    return terminal_table(
        ["trial", *result.objectives, *(["parameters"] if share_column else varying)],
        [[head, *_cells(result, row, varying, share_column)] for head, row in zip(heads, rows, strict=True)],
        title=f"the front: {len(members)} of {result.counts()['complete']} complete trials",
        caption=caption if members.empty else None,
        styles={i: style for i, style in styles.items() if style == "bold" or i >= len(members)},
        rules={len(members)},
        wrapped={count} if share_column else (),
    )


def varying_parameters(result: Result) -> list[str]:
    """Return the parameters with more than one value, compared as text because a value may be a list."""
    return [name for name in result.parameters if result.trials[name].astype(str).nunique() > 1]


def _cells(result: Result, row: pd.Series[Any], varying: list[str], share_column: bool) -> list[str]:
    params = result.records[row["trial"]].params
    objectives = [find_metric(name).text(row[name], row.get(f"{name}_se")) for name in result.objectives]
    settings = [setting(params.get(name)) for name in varying]
    if share_column:
        settings = [" ".join(f"{name}={setting(params[name])}" for name in varying if name in params)]
    return [*objectives, *settings]
