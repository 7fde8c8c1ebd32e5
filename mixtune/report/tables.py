"""The front for a terminal and as CSV, and what should be said alongside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from rich.table import Table

from mixtune.metrics import disturbed_note, find_metric, is_disturbed, metric_text, setting, significant
from mixtune.render import fits, terminal_table
from mixtune.run.frames import csv_text
from mixtune.run.latency import close_neighbours
from mixtune.run.ledger import describe_damage
from mixtune.run.recommendation import resolution
from mixtune.run.result import Result

WIDTH = 100
MIN_SETTINGS = 28  # characters of the column that they share
IDLE = "\u2013"  # an en dash: of a setting that has no effect in a recipe
_NONE = {IDLE, ""}


def front_table(result: Result, width: int = WIDTH, baselines: bool = True) -> Table:
    """Return the front, a row a recipe, the recommended one marked; under a line the baselines that are not on it.

    Columns: recipe, method, the objectives with their standard errors, on fresh seeds the probability of being on the
    front, the parameters that vary in the table. Where
    that is wider than ``width`` characters the parameters share one column that wraps, and where there is no room for
    that either they are left out. baselines: whether their rows are shown.
    """
    wide, none = _table(result, "columns", baselines), _table(result, "none", baselines)
    if fits(wide, width) or not fits(none, width - MIN_SETTINGS):
        return wide if fits(wide, width) else none
    return _table(result, "shared", baselines)


def front_notes(result: Result) -> list[str]:
    """Return a line each: damage, equal recipes, knee and hypervolume, constraints that are broken."""
    notes = [f"damaged ledger: {describe_damage(result.state)}"] if result.state.damaged else []
    if result.confirmed is not None:
        notes.append("means over fresh seeds; the front is what is on it more probably than not")
    if merged := [trial for trial in result.pareto_front()["trial"] if result.same_recipes.get(trial)]:
        same = (f"{trial} is also {', '.join(result.same_recipes[trial])}" for trial in merged)
        notes.append(f"one recipe, several trials: {'; '.join(same)}")
    if (volume := result.hypervolume()) is not None and not result.candidates.empty:
        corner = ((find_metric(name), value) for name, value in result.reference_point.items())
        point = ", ".join(f"{metric.title} {metric.text(value)}" for metric, value in corner)
        notes.append(f"knee {result.knee()}; hypervolume {significant(volume)} against the reference point {point}")
        if beyond := result.beyond_reference:
            is_beyond, adds = ("is", "adds") if len(beyond) == 1 else ("are", "add")
            notes.append(
                f"{some(beyond)} {is_beyond} beyond the reference point that was given and {adds} nothing to it"
            )
    if broken := len(result.complete()) - len(result.feasible()):
        limits = " and ".join(str(constraint) for constraint in result.constraints.values())
        notes.append(f"{broken} complete {'trial does' if broken == 1 else 'trials do'} not keep {limits}")
    if (line := resolution(result)) is not None:
        notes.append(line)
    if "train_latency_s" in result.objectives and result.confirmed is None:  # means have errors of their own
        notes += close_neighbours(result.state, result.highlights)
    shown = [result.records[trial] for trial in result.highlights]
    marks = [mark for name in result.objectives if (mark := find_metric(name).disturbed)]
    return notes + disturbed_note(r.trial for r in shown if any(is_disturbed(r.metrics.get(mark)) for mark in marks))


def front_csv(result: Result, baselines: bool = True) -> str:
    """Return the front as CSV with a header, in full precision; ``baselines``: whether theirs are in it."""
    front = result.pareto_front()
    return csv_text(front if baselines else front[front["baseline"].isna()])


def objective_cells(result: Result, metrics: Mapping[str, Any] | pd.Series[Any]) -> list[str]:
    """Return a trial's objectives with their standard errors, as text."""
    return [metric_text(metrics, name) for name in result.objectives]


def setting_cells(result: Result, trial: str, paths: list[str]) -> list[str]:
    """Return a recipe's settings as text, a dash for one that has no effect in it, "" for one that is not known."""
    values = result.values[trial] or result.records[trial].params
    idle = result.idle(trial)
    return [IDLE if path in idle else setting(values.get(path)) for path in paths]


def recipe_name(result: Result, trial: str) -> str:
    """Return a recipe's name in a table: a trial's id or a baseline's name, with its state where it is not complete."""
    record = result.records[trial]
    return trial if record.state == "complete" else f"{trial} ({record.state})"


def varying_parameters(result: Result, trials: list[str] | None = None) -> list[str]:
    """Return the searched parameters that differ among some trials, by default all; idle ones do not count."""
    chosen = list(result.trials["trial"]) if trials is None else trials
    columns = {path: [setting_cells(result, trial, [path])[0] for trial in chosen] for path in result.parameters}
    return [path for path, cells in columns.items() if len({*cells} - _NONE) > 1]


def some(trials: Sequence[str], most: int = 10) -> str:
    """Return the first of them, and how many there are more."""
    more = f" and {len(trials) - most:,} more" if len(trials) > most else ""
    return ", ".join(trials[:most]) + more


def _table(result: Result, shown: Literal["columns", "shared", "none"], baselines: bool) -> Table:
    front = result.pareto_front()
    members = [str(t) for t, name in zip(front["trial"], front["baseline"], strict=True) if baselines or pd.isna(name)]
    others = [str(t) for t in result.baselines["trial"] if t not in set(front["trial"])] if baselines else []
    recommended = result.recommendation().trial
    rows = {row["trial"]: row for frame in (result.baselines, result.rows) for _, row in frame.iterrows()}
    varying = varying_parameters(result, [*members, *others])
    settings = {trial: setting_cells(result, trial, varying) for trial in (*members, *others)}
    if shown != "columns":
        settings = {
            trial: [" ".join(f"{name}={cell}" for name, cell in zip(varying, cells, strict=True) if cell not in _NONE)]
            for trial, cells in settings.items()
        }
    titles = [find_metric(name).title for name in result.objectives]
    probable = {} if result.confirmed is None else result.confirmed.probabilities
    titles += ["on the\nfront"] if probable else []
    heads = ["recipe", "method", *titles, *(varying if shown == "columns" else ["settings"])]
    names = {trial: recipe_name(result, trial) for trial in (*members, *others)}
    if not probable:  # which there is a column more for
        names |= {trial: f"{trial} (baseline)" for trial in members if result.records[trial].baseline is not None}
    width = len(heads) - (shown == "none")
    caption = f"no recipe is complete yet{' and keeps the constraints' if result.constraints else ''}"
    counts = f"{len(front)} of {len(result.candidates)} complete recipes"
    return terminal_table(
        [_stacked(head) for head in heads[:width]],
        [
            [
                f"{'*' if trial == recommended else ' '}{names[trial]}",
                result.method(trial),
                *objective_cells(result, rows[trial]),
                *([f"{100 * probable[trial]:.0f} %" if trial in probable else ""] if probable else []),
                *settings[trial],
            ][:width]
            for trial in (*members, *others)
        ],
        title=f"the front: {counts}{' (* recommended)' if recommended in members else ''}",
        caption=caption if not members else None,
        styles={i: "bold" for i, t in enumerate(members) if t == recommended}
        | {i: "dim" for i in range(len(members), len(members) + len(others))},
        rules={len(members)},
        wrapped={1, 2 + len(titles)} if shown == "shared" else {1},
    )


def _stacked(title: str) -> str:
    """Return a column's title on two lines: "training time", "optim.sl.base_lr"."""
    if " " in title and "\n" not in title:
        return title.replace(" ", "\n", 1)
    head, dot, last = title.rpartition(".")
    return f"{head}\n.{last}" if dot else title
