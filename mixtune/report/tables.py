"""The front for a terminal and as CSV, and what should be said beside it."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mixtune.metrics import quantity, setting, significant
from mixtune.run.frames import csv_text
from mixtune.run.result import Result

WIDTH = 100


def front_table(result: Result, width: int = WIDTH) -> Table:
    """Return the front, a row a member, the knee marked; under a line the baselines beside it.

    Columns: trial, the objectives with their standard errors, the parameters that vary among the trials.
    Where that is wider than ``width`` characters the parameters share one column that wraps.
    """
    table = _table(result, share_column=False)
    unbounded = Console(width=10_000)
    if Measurement.get(unbounded, unbounded.options, table).maximum > width:
        table = _table(result, share_column=True)
    return table


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
    members = result.pareto_front()
    counts = result.counts()
    varying = varying_parameters(result)
    title = f"the front: {len(members)} of {counts['complete']} complete trials"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("trial", no_wrap=True)
    for name in result.objectives:
        table.add_column(name, justify="right", no_wrap=True)
    for name in ["parameters"] if share_column else varying:
        table.add_column(name, justify="left" if share_column else "right", overflow="fold")
    knee, mark = result.knee(), "knee" if len(result.objectives) > 1 else "best"
    for _, row in members.iterrows():
        is_knee = row["trial"] == knee
        head = f"{row['trial']} ({mark})" if is_knee else row["trial"]
        table.add_row(*_cells(result, row, head, varying, share_column), style="bold" if is_knee else None)
    table.add_section()
    for _, row in result.baselines.iterrows():
        head = f"{row['method']} (baseline)"
        if row["state"] != "complete":
            head = f"{row['method']} (baseline, {row['state']})"
        table.add_row(*_cells(result, row, head, varying, share_column), style="dim")
    if members.empty:
        keeps = " and keeps the constraints" if result.constraints else ""
        table.caption = f"no trial is complete yet{keeps}"
    return table


def varying_parameters(result: Result) -> list[str]:
    """Return the parameters with more than one value, compared as text because a value may be a list."""
    return [name for name in result.parameters if result.trials[name].astype(str).nunique() > 1]


def _cells(result: Result, row: pd.Series[Any], head: str, varying: list[str], share_column: bool) -> list[Text]:
    params = result.records[row["trial"]].params
    objectives = [quantity(name).text(row[name], row.get(f"{name}_se")) for name in result.objectives]
    if share_column:
        settings = [" ".join(f"{name}={setting(params[name])}" for name in varying if name in params)]
    else:
        settings = [setting(params.get(name)) for name in varying]
    # Text, because rich would read a list such as [0.9] in a plain string as markup.
    return [Text(cell) for cell in (head, *objectives, *settings)]
