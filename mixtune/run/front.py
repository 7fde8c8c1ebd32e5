"""Pareto fronts, hypervolume and knee of anyone's DataFrame; moocore does the counting.

An objective is a column with its mode, "max" or "min". Rows with a missing or infinite objective take no
part.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from numbers import Real

import moocore
import numpy as np
import numpy.typing as npt
import pandas as pd

from mixtune.errors import RequestError, suggest

Floats = npt.NDArray[np.float64]


def pareto_front(df: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows that no other row dominates, in_order(), with all columns and their index labels.

    Rows with equal objectives are all kept. Raises RequestError for a column that is unknown or not
    numeric, a mode that is neither "max" nor "min", and no objectives.
    """
    values = costs(df, objectives)
    rows = np.flatnonzero(np.isfinite(values).all(axis=1))
    return in_order(df.iloc[rows[moocore.is_nondominated(values[rows], keep_weakly=True)]], objectives)


def in_order(df: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows by the first "min" objective, ascending; where there is none by the first one, descending."""
    modes = list(objectives.values())
    by = modes.index("min") if "min" in modes else 0
    ordered: pd.DataFrame = df.iloc[np.argsort(costs(df, objectives)[:, by], kind="stable")]
    return ordered


def hypervolume(df: pd.DataFrame, objectives: Mapping[str, str], reference: Mapping[str, float]) -> float:
    """Return the volume that the rows dominate, up to ``reference`` (its unit: the objectives' product).

    A row that is not better than the reference in every objective adds nothing. Raises RequestError where the
    reference of an objective is missing or not finite, and as ``pareto_front`` does.
    """
    values = costs(df, objectives)
    for name in objectives:
        bound = reference.get(name)
        if bound is None or not math.isfinite(bound):
            raise RequestError(f"the hypervolume needs a finite reference for {name!r}, not {bound}")
    bounds = [float(reference[name]) for name in objectives] * _signs(objectives)
    return float(moocore.hypervolume(values[np.isfinite(values).all(axis=1)], ref=bounds))


def knee(front: pd.DataFrame, objectives: Mapping[str, str]) -> Hashable | None:
    """Return the index label of the front's member with the largest distance to the chord, None if empty.

    After min-max normalisation over the front (0 is the best, 1 the worst, in m objectives) the extremes lie
    at the unit points, and the chord through them is sum(x) = 1: for two objectives it is the line through
    the members best in either. Only the bulge towards the ideal counts: the distance is max(0, 1 - sum(x)) /
    sqrt(m). Of equal distances the one that is better in the first objective wins; so where nothing bulges
    (one or two members, a straight or a hollow front) the answer is the best in the first objective.

    The definition is that of Das, "On characterizing the 'knee' of the Pareto curve based on Normal-Boundary
    Intersection", Structural Optimization 18, 1999. Branke, Deb, Dierolf and Osswald, "Finding knees in
    multi-objective optimization", PPSN VIII, 2004, discuss others (angle, expected utility).
    """
    front = pareto_front(front, objectives)
    if front.empty:
        return None
    values = costs(front, objectives)
    low, spread = values.min(axis=0), np.ptp(values, axis=0)
    normal = (values - low) / np.where(spread > 0, spread, 1.0)
    # Rounded, so that members of a straight front tie in spite of rounding errors.
    distance = np.maximum(0.0, 1.0 - normal.sum(axis=1)).round(12) / math.sqrt(len(objectives))
    order = np.lexsort((normal[:, 0], -distance))
    label: Hashable = front.index[order[0]]
    return label


def costs(df: pd.DataFrame, objectives: Mapping[str, str]) -> Floats:
    """Return the objectives' values, shape (rows, objectives), all to be small. Raises as ``pareto_front`` does."""
    check_objectives(objectives)
    return np.column_stack([numeric_column(df, name) for name in objectives]) * _signs(objectives)


def check_objectives(objectives: Mapping[str, str]) -> None:
    """Raise RequestError unless there is an objective and every mode is "max" or "min"."""
    if not objectives:
        raise RequestError('no objectives were given: name at least one, as in {"val_accuracy": "max"}')
    for name, mode in objectives.items():
        if mode not in ("max", "min"):
            hint = suggest(str(mode), ["max", "min"])
            raise RequestError(f"objective {name!r}: the mode is 'max' or 'min', got {mode!r}{hint}")


def numeric_column(df: pd.DataFrame, name: str) -> Floats:
    """Return column ``name`` as floats, shape (rows,), NaN where missing; RequestError if not numeric."""
    if name not in df.columns:
        known = [str(column) for column in df.columns]
        raise RequestError(f"there is no column {name!r}: columns are {_listed(known)}{suggest(name, known)}")
    column = df[name]
    if isinstance(column, pd.DataFrame):
        raise RequestError(f"there is more than one column {name!r}")
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column)
    present = () if is_number else column.dropna()
    if pd.api.types.is_bool_dtype(column) or not all(isinstance(v, Real) and not isinstance(v, bool) for v in present):
        raise RequestError(f"column {name!r} is not numeric: its type is {column.dtype}")
    return np.asarray(column.to_numpy(dtype=float, na_value=np.nan), dtype=np.float64)


def _signs(objectives: Mapping[str, str]) -> Floats:
    return np.array([-1.0 if mode == "max" else 1.0 for mode in objectives.values()])


def _listed(names: Iterable[str], limit: int = 20) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
