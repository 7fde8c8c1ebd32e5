"""The table of all trials and baselines, as a page's script reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mixtune.metrics import METRICS, find_metric, metric_text, metric_value, significant
from mixtune.report.tables import IDLE, setting_cells
from mixtune.run.result import Result
from mixtune.run.status import RunStatus, shown_state

Cell = str | tuple[str, float] | None  # a number has its text and what it is sorted by
_COUNTS = {"epochs_asked": "epochs requested", "epochs_trained": "epochs trained", "epochs_reused": "epochs reused"}


def trials_table(result: Result, status: RunStatus) -> dict[str, Any]:
    """Return columns and rows for the page; figures of the search are those of trials.csv and the ledger.

    columns: title, whether it is shown at first, whether it holds numbers. rows: [trial, state, marks, cells], a cell
    is a text, [text, number] or None. A trial that began and that nobody trains any more is "unfinished".
    """
    paths = list(result.parameters)
    settings = {trial: setting_cells(result, trial, paths) for trial in result.records}
    varies = [len({cells[i] for cells in settings.values()} - {IDLE, ""}) > 1 for i in range(len(paths))]
    objectives = list(result.objectives)
    others = [
        name
        for name, metric in METRICS.items()
        if metric.title
        and name not in objectives
        and any(math.isfinite(metric_value(record.metrics, name)) for record in result.records.values())
    ]
    found = result.confirmed
    again: dict[str, Any] = {} if found is None else {str(row["trial"]): row for _, row in found.frame.iterrows()}
    fresh = ["val_accuracy", "test_accuracy"] if again else []
    columns = [("trial", True, False), ("method", True, False), ("state", True, False)]
    columns += [(find_metric(name).title, True, True) for name in objectives]
    columns += [(f"{find_metric(name).title}, fresh seeds", True, True) for name in fresh]
    columns += [(path, shown, True) for path, shown in zip(paths, varies, strict=True)]
    columns += [("wall time", True, True), ("reason", True, False)]
    columns += [(find_metric(name).title, False, True) for name in others]
    columns += [(title, False, True) for title in _COUNTS.values()]
    front, recommended = set(result.pareto_front()["trial"]), result.recommendation().trial
    rows = []
    for trial, record in result.records.items():
        state = shown_state(record, is_driven=status.state == "running")
        marks = [
            *(["recommended"] if trial == recommended else []),
            *(["on the front"] if trial in front else []),
            *(["baseline"] if record.baseline else []),
        ]
        values = result.values[trial] or record.params
        cells: list[Cell] = [record.baseline or trial, result.method(trial), state]
        cells += [_number(record.metrics, name) for name in objectives]
        cells += [_number(again.get(trial, {}), name) for name in fresh]
        for path, text in zip(paths, settings[trial], strict=True):
            value = values.get(path)
            is_idle = text in (IDLE, "")
            cells.append((text, float(value)) if isinstance(value, int | float) and not is_idle else text)
        cells.append(None if record.wall_s is None else (f"{significant(record.wall_s)} s", record.wall_s))
        cells.append(" ".join((record.reason or "").split()))
        cells += [_number(record.metrics, name) for name in others]
        cells += [
            (f"{value:.0f}", value) if math.isfinite(value := metric_value(record.metrics, name)) else None
            for name in _COUNTS
        ]
        rows.append([trial, state, marks, cells])
    return {
        "columns": [{"title": title, "shown": shown, "number": number} for title, shown, number in columns],
        "rows": rows,
    }


def _number(metrics: Mapping[str, Any], name: str) -> Cell:
    value = metric_value(metrics, name)
    if not math.isfinite(value):
        return None
    return metric_text(metrics, name), value
