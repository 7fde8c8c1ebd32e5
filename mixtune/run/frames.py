"""Trial records as a table, a row a trial, and tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mixtune.metrics import last_columns
from mixtune.run.ledger import TrialRecord


def trial_frame(
    records: Iterable[TrialRecord], parameters: Sequence[str], objectives: Iterable[str], named: Sequence[str]
) -> pd.DataFrame:
    """Return a row a record: columns are ``named``, parameters, objectives, other metrics and last_columns().

    ``named`` are fields that every record has (trial, state, reason; method). Where a field or a parameter
    shares its name with a metric, the metric is not shown. ``parameters`` fixes the order of those it names.
    Objectives and costs are floats or ints, NaN where missing; wall_s is the last attempt's, in seconds.
    """
    records = list(records)
    objectives = list(objectives)
    rows = [_row(record) for record in records]
    asked = dict.fromkeys([*parameters, *(name for record in records for name in record.params)])
    fixed = dict.fromkeys([*named, *asked, *objectives])
    others = [name for row in rows for name in row]
    last = last_columns()
    columns = [name for name in dict.fromkeys([*fixed, *others]) if name not in last] + last
    frame = pd.DataFrame([{**{name: None for name in columns}, **row} for row in rows], columns=columns)
    for name in (*objectives, *last):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame.astype(dict.fromkeys(objectives, float))


def csv_text(frame: pd.DataFrame) -> str:
    """Return the table as CSV with a header, without the index, numbers in full precision."""
    return frame.to_csv(index=False, lineterminator="\n")


def plain(value: Any) -> Any:
    """Return a table's cell as plain Python for JSON: numpy's types unwrapped, None for a missing number."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and value != value else value


def _row(record: TrialRecord) -> Mapping[str, Any]:
    fields = {"trial": record.trial, "state": record.state, "reason": record.reason}
    if record.baseline is not None:
        fields["method"] = record.baseline
    return {**record.metrics, "wall_s": record.wall_s, **record.params, **fields}
