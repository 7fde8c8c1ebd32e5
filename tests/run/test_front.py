"""Front, hypervolume and knee against slow, independent versions, on integers so that ties abound."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from mixtune.errors import RequestError
from mixtune.run.front import hypervolume, knee, pareto_front

MODES = [modes for size in (1, 2, 3) for modes in itertools.product(("max", "min"), repeat=size)]
TWO = {"acc": "max", "time": "min"}


def integers(seed: int, modes: tuple[str, ...], rows: int = 25) -> tuple[pd.DataFrame, dict[str, str]]:
    names = ["a", "b", "c"][: len(modes)]
    values = np.random.default_rng(seed).integers(0, 8, (rows, len(modes)))
    frame = pd.DataFrame(values, columns=names, index=[f"r{i}" for i in range(rows)])
    return frame, dict(zip(names, modes, strict=True))


def costs(frame: pd.DataFrame, objectives: dict[str, str]) -> list[tuple[int, ...]]:
    signs = [-1 if mode == "max" else 1 for mode in objectives.values()]
    rows = frame[list(objectives)].itertuples(index=False)
    return [tuple(sign * int(value) for sign, value in zip(signs, row, strict=True)) for row in rows]


def slow_front(frame: pd.DataFrame, objectives: dict[str, str]) -> set[str]:
    points = costs(frame, objectives)
    return {
        str(label)
        for label, p in zip(frame.index, points, strict=True)
        if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)
    }


def test_the_front_is_what_pairwise_comparison_finds() -> None:
    for modes, seed in itertools.product(MODES, range(8)):
        frame, objectives = integers(seed, modes)
        front = pareto_front(frame, objectives)
        assert set(front.index) == slow_front(frame, objectives), (modes, seed)
        assert front.index.is_unique, (modes, seed)
        assert pareto_front(front, objectives).equals(front), (modes, seed)


def test_the_hypervolume_is_the_count_of_dominated_cells() -> None:
    for modes, seed in itertools.product((modes for modes in MODES if len(modes) > 1), range(4)):
        frame, objectives = integers(seed, modes, rows=6)
        reference = {name: 1 if mode == "max" else 6 for name, mode in objectives.items()}
        corner = [-1 if mode == "max" else 6 for mode in modes]
        points = costs(frame, objectives)
        cells = sum(
            any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points)
            for cell in itertools.product(*(range(-8, bound) for bound in corner))
        )
        assert hypervolume(frame, objectives, reference) == pytest.approx(cells), (modes, seed)


def test_columns_and_labels_are_kept_and_rows_go_by_the_first_min_objective_or_the_first() -> None:
    frame = pd.DataFrame({"id": list("abcd"), "acc": [3, 1, 2, 0], "time": [30, 10, 20, 25]}, index=[7, 5, 3, 1])
    front = pareto_front(frame, TWO)
    assert list(front["id"]) == ["b", "c", "a"]
    assert list(front.index) == [5, 3, 7]
    assert list(front.columns) == ["id", "acc", "time"]
    no_min = pd.DataFrame({"a": [1, 3, 2], "b": [3, 1, 2]})
    assert list(pareto_front(no_min, {"a": "max", "b": "max"})["a"]) == [3, 2, 1]
    equal = pd.DataFrame({"acc": [1, 1, 0], "time": [2, 2, 2]})
    assert list(pareto_front(equal, TWO).index) == [0, 1]


def test_rows_that_are_not_finite_take_no_part_and_those_beyond_the_reference_add_nothing() -> None:
    frame = pd.DataFrame({"acc": [0.5, np.nan, np.inf, 0.9], "time": [2.0, 1.0, 1.0, -np.inf]})
    assert list(pareto_front(frame, TWO).index) == [0]
    assert hypervolume(frame, TWO, {"acc": 0.0, "time": 4.0}) == pytest.approx(1.0)
    frame = pd.DataFrame({"acc": [0.5, 0.05, 0.9], "time": [10.0, 1.0, 60.0]})
    assert hypervolume(frame, TWO, {"acc": 0.1, "time": 60.0}) == pytest.approx(0.4 * 50)
    for acc in (pd.Series([0.5, None], dtype=object), pd.Series([0.5, None], dtype="Float64")):
        assert list(pareto_front(pd.DataFrame({"acc": acc, "time": [1, 0]}), TWO).index) == [0], acc.dtype


def test_an_empty_table_has_an_empty_front_with_its_columns() -> None:
    frame = pd.DataFrame(columns=["id", "acc", "time"])
    assert list(pareto_front(frame, TWO).columns) == ["id", "acc", "time"]
    assert hypervolume(frame, TWO, {"acc": 0, "time": 1}) == 0
    assert knee(frame, TWO) is None


def test_a_wrong_objective_or_reference_is_told() -> None:
    frame = pd.DataFrame({"id": ["a"], "acc": [1.0], "time": [1.0]})
    for objectives, message in (
        ({"accc": "max"}, "no column 'accc': columns are id, acc, time; did you mean 'acc'"),
        ({"acc": "maximum"}, "'acc': the mode is 'max' or 'min', got 'maximum'; did you mean 'max'"),
        ({"id": "max"}, "column 'id' is not numeric"),
        ({}, "no objectives were given"),
    ):
        for ask in (pareto_front, knee):
            with pytest.raises(RequestError, match=message):
                ask(frame, objectives)
    with pytest.raises(RequestError, match="column 'ok' is not numeric"):
        pareto_front(frame.assign(ok=[True]), {"ok": "max"})
    for reference in ({"acc": 0.1}, {"acc": 0.1, "time": float("inf")}):
        with pytest.raises(RequestError, match="finite reference for 'time'"):
            hypervolume(frame, TWO, reference)


def test_the_knee_is_farthest_from_the_line_through_the_extremes_in_any_units() -> None:
    frame = pd.DataFrame({"acc": [0.0, 80.0, 90.0, 100.0], "time": [0.0, 1.0, 5.0, 10.0]}, index=list("abcd"))
    # Distances to the chord, worked by hand on [0, 1]: (0.8 - 0.1), (0.9 - 0.5), each over sqrt(2).
    assert knee(frame, TWO) == "b"
    assert knee(frame.assign(acc=frame["acc"] * 1e-3 + 5, time=frame["time"] * 1e6), TWO) == "b"


def test_where_nothing_bulges_the_knee_is_the_best_in_the_first_objective() -> None:
    """One member, two, a straight front and a hollow one."""
    for acc in ([0.1], [0.1, 0.9], [0.1, 0.2, 0.3, 0.4], [0.0, 0.01, 0.02, 0.9]):
        frame = pd.DataFrame({"acc": acc, "time": [0.1 * (i + 1) for i in range(len(acc))]})
        assert knee(frame, TWO) == len(acc) - 1, acc
        assert knee(frame, {"time": "min", "acc": "max"}) == 0, acc


def test_the_knee_of_three_objectives_is_nearest_to_the_ideal_corner_and_of_one_its_best() -> None:
    corners = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    frame = pd.DataFrame([*corners, (0.3, 0.3, 0.3), (0.2, 0.2, 0.25)], columns=["a", "b", "c"])
    assert knee(frame, {"a": "min", "b": "min", "c": "min"}) == 4
    assert knee(pd.DataFrame({"acc": [1, 3, 2]}), {"acc": "max"}) == 1
