"""Trial records as a table, a row a trial, and tables as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from mixtune.metrics import last_columns
from mixtune.run.ledger import TrialRecord

_FORMULA = re.compile(r"[=+@\t\r]|-[^0-9.]")


def trial_frame(
    records: Iterable[TrialRecord], parameters: Sequence[str], objectives: Iterable[str], named: Sequence[str]
) -> pd.DataFrame:
    """Return a row a record: columns are ``named``, parameters, objectives, other metrics and last_columns().

    ``named`` are fields of a record (trial, state, reason; baseline; method: a baseline's name). Where a field or a
    parameter shares its name with a metric, the metric is not shown. ``parameters`` fixes the order of those it names.
    Objectives and costs are floats or ints, NaN where missing; wall_s is the last attempt's, in seconds.
    """
    records = list(records)
    objectives = list(objectives)
    rows: list[dict[str, Any]] = []
    for record in records:
        fields = {"trial": record.trial, "state": record.state, "reason": record.reason}
        fields |= {"baseline": record.baseline} if "baseline" in named else {}
        fields |= {} if record.baseline is None or "method" not in named else {"method": record.baseline}
        rows.append({**record.metrics, "wall_s": record.wall_s, **record.params, **fields})
    asked = dict.fromkeys([*parameters, *(name for record in records for name in record.params)])
    last = last_columns()
    found = dict.fromkeys([*named, *asked, *objectives, *(name for row in rows for name in row)])
    columns = [name for name in found if name not in last] + last
    frame = pd.DataFrame([dict.fromkeys(columns) | row for row in rows], columns=columns)
    for name in (*objectives, *last):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame.astype(dict.fromkeys(objectives, float))


def csv_text(frame: pd.DataFrame) -> str:
    """Return the table as CSV with a header, without the index, numbers in full precision.

    Text that a spreadsheet would take for a formula has ``'`` before it.
    """
    texts = frame.select_dtypes(include=["object", "string"])
    frame = frame.assign(**{str(name): column.map(_guarded) for name, column in texts.items()})
    return frame.to_csv(index=False, lineterminator="\n")


def _guarded(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def plain(value: Any) -> Any:
    """Return a table's cell as plain Python for JSON: numpy's types unwrapped, None for a missing number."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and value != value else value
