"""The front for a terminal and as CSV, and what should be said alongside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from mixtune.metrics import find_metric, setting, significant
from mixtune.render import fits, terminal_table
from mixtune.run.frames import csv_text
from mixtune.run.result import Result

WIDTH = 100


def front_table(result: Result, width: int = WIDTH) -> Table:
    """Return the front, a row a member, the knee marked; under a line the baselines alongside it.

    Columns: trial, the objectives with their standard errors, the parameters that vary among the trials.
    Where that is wider than ``width`` characters the parameters share one column that wraps.
    """
    wide = _table(result, varying_parameters(result), share_column=False)
    return wide if fits(wide, width) else _table(result, varying_parameters(result), share_column=True)


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


def objective_cells(result: Result, metrics: Mapping[str, Any] | pd.Series[Any]) -> list[str]:
    """Return a trial's objectives with their standard errors, as text."""
    return [find_metric(name).text(metrics[name], metrics.get(f"{name}_se")) for name in result.objectives]


def _table(result: Result, varying: list[str], share_column: bool) -> Table:
    members, knee = result.pareto_front(), result.knee()
    styles = {i: "dim" for i in range(len(members), len(members) + len(result.baselines))}
    styles |= {i: "bold" for i, trial in enumerate(members["trial"]) if trial == knee}
    mark = "knee" if len(result.objectives) > 1 else "best"
    heads = [f"{trial} ({mark})" if trial == knee else str(trial) for trial in members["trial"]]
    heads += [
        f"{method} (baseline{'' if state == 'complete' else f', {state}'})"
        for method, state in zip(result.baselines["method"], result.baselines["state"], strict=True)
    ]
    rows = [row for frame in (members, result.baselines) for _, row in frame.iterrows()]
    params = [result.records[row["trial"]].params for row in rows]
    settings = [[setting(own.get(name)) for name in varying] for own in params]
    if share_column:
        settings = [[" ".join(f"{name}={setting(own[name])}" for name in varying if name in own)] for own in params]
    caption = f"no trial is complete yet{' and keeps the constraints' if result.constraints else ''}"
    return terminal_table(
        ["trial", *result.objectives, *(["parameters"] if share_column else varying)],
        [[head, *objective_cells(result, row), *own] for head, row, own in zip(heads, rows, settings, strict=True)],
        title=f"the front: {len(members)} of {result.counts()['complete']} complete trials",
        caption=caption if members.empty else None,
        styles=styles,
        rules={len(members)},
        wrapped={1 + len(result.objectives)} if share_column else (),
    )


def varying_parameters(result: Result) -> list[str]:
    """Return the parameters with more than one value, compared as text because a value may be a list."""
    return [name for name in result.parameters if result.trials[name].astype(str).nunique() > 1]
