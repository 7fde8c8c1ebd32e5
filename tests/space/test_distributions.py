"""Distributions have Ray Tune's names and bounds; their sets of values are checked against a slow count."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest
import yaml

from mixtune.errors import RequestError
from mixtune.space.distributions import parse_distribution

KINDS = (
    *("uniform", "quniform", "loguniform", "qloguniform", "randint", "qrandint", "lograndint", "qlograndint"),
    *("choice", "grid_search"),
)
STEPS = ("0.05", "0.1", "0.25", "0.3", "0.001")


def slow_values(given: dict[str, list[Any]]) -> list[Fraction]:
    """All values of a stepped distribution by exact counting from its file's form."""
    ((kind, arguments),) = given.items()
    low, high, *q = (Fraction(str(a)) for a in arguments)
    if kind in ("randint", "lograndint"):
        high, q = high - 1, [Fraction(1)]
    values = []
    while low <= high:
        values.append(low)
        low += q[0]
    return values


def random_stepped(rng: random.Random) -> dict[str, list[Any]]:
    kind = rng.choice(["quniform", "qloguniform", "randint", "qrandint", "lograndint", "qlograndint"])
    low, size = rng.randint(1, 9), rng.randint(1, 12)
    if kind in ("quniform", "qloguniform"):
        q = Fraction(rng.choice(STEPS))
        return {kind: [float(low * q), float((low + size) * q), float(q)]}
    if kind in ("qrandint", "qlograndint"):
        step = rng.randint(1, 7)
        return {kind: [low * step, (low + size) * step, step]}
    return {kind: [low, low + size]}


def random_distribution(rng: random.Random) -> dict[str, list[Any]]:
    kind = rng.choice(KINDS)
    if kind in ("uniform", "loguniform"):
        low = rng.uniform(1e-6, 1)
        return {kind: [low, low + rng.uniform(0, 3)]}
    if kind in ("choice", "grid_search"):
        values = [0.1, 3, "mae", None, True, [0.9, 0.95], [0.9, 0.999]]
        return {kind: rng.sample(values, rng.randint(1, len(values)))}
    return random_stepped(rng)


def test_a_stepped_distribution_holds_exactly_its_steps() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        given = random_stepped(rng)
        distribution, expected = parse_distribution(given), slow_values(given)
        grid = distribution.grid()
        assert grid == pytest.approx([float(v) for v in expected], rel=1e-12), given
        assert distribution.size == len(grid)
        assert distribution.extremes() == pytest.approx([float(expected[0]), float(expected[-1])], rel=1e-12), given
        assert all(isinstance(v, int) == distribution.is_integer for v in grid), given
        assert all(distribution.contains(v) for v in (*grid, float(rng.choice(expected)))), given
        step = distribution.step or 0
        between = [v + rng.uniform(-0.49, 0.49) * (distribution.step or 0) for v in grid[1:-1]]
        assert [distribution.nearest(v) for v in between] == list(grid[1:-1]) or distribution.is_integer, given
        others = [grid[0] - step, grid[-1] + step, *(v + step / 2 for v in grid)]
        assert not any(distribution.contains(v) for v in others), given
    assert parse_distribution({"quniform": [0, 1, 0.1]}).contains(3 * 0.1)  # 0.30000000000000004


def test_fine_steps_are_counted_without_being_listed() -> None:
    for given, size in (({"quniform": [0, 0.1, 2e-9]}, 50_000_001), ({"randint": [0, 10**15]}, 10**15)):
        distribution = parse_distribution(given)
        assert (distribution.size, distribution.at(size - 1)) == (size, distribution.high)
    assert parse_distribution({"quniform": [0, 1e-9, 1e-11]}).at(7) == 7e-11


def test_a_distribution_survives_its_file() -> None:
    for seed in range(60):
        given = random_distribution(random.Random(seed))
        distribution = parse_distribution(given)
        written = yaml.safe_load(yaml.safe_dump(distribution.to_yaml()))
        assert written == distribution.to_yaml() == given
        assert parse_distribution(written) == distribution, given


def test_bounds_are_ray_tunes() -> None:
    for given, extremes, has_end, log in (
        ({"uniform": [0, 1]}, (0.0, 1.0), False, False),
        ({"loguniform": [1e-4, 1e-2]}, (1e-4, 1e-2), False, True),
        ({"quniform": [0, 1, 0.25]}, (0.0, 1.0), True, False),
        ({"randint": [2, 13]}, (2, 12), True, False),
        ({"lograndint": [16, 257]}, (16, 256), True, True),
        ({"qloguniform": [1e-4, 1e-2, 1e-4]}, (1e-4, 1e-2), True, True),
        ({"qlograndint": [32, 512, 32]}, (32, 512), True, True),
        ({"qrandint": [10, 50, 10]}, (10, 50), True, False),
        ({"choice": [4, 2, 8]}, (4, 2, 8), True, False),
        ({"grid_search": ["a"]}, ("a",), True, False),
        ({"uniform": [0.5, 0.5]}, (0.5, 0.5), False, False),  # one value is enough
        ({"quniform": [0.5, 0.5, 0.25]}, (0.5, 0.5), True, False),
        ({"qrandint": [5, 5, 5]}, (5, 5), True, False),
        ({"randint": [5, 6]}, (5, 5), True, False),
    ):
        found = parse_distribution(given)
        assert (found.extremes(), found.grid() is not None, found.log) == (extremes, has_end, log), given
        assert [type(v) for v in found.extremes()] == [type(v) for v in extremes], given


def test_a_continuous_distribution_holds_its_ends_and_all_between() -> None:
    distribution = parse_distribution({"uniform": [0.25, 0.75]})
    assert all(map(distribution.contains, (0.25, 0.3333, 0.75)))
    for other in (0.2499, 0.7501, math.nan, math.inf, "0.5", None, True, [0.5]):
        assert not distribution.contains(other), other


def test_lists_are_values_like_others() -> None:
    given = {"choice": [[0.9, 0.95], [0.9, 0.999]]}
    distribution = parse_distribution(given)
    assert [distribution.contains(value) for value in ([0.9, 0.95], (0.9, 0.999), [0.9])] == [True, True, False]
    assert distribution.to_yaml() == given
    assert hash(distribution) == hash(parse_distribution(given))


def test_a_mistake_says_what_was_given_and_what_is_allowed() -> None:
    one, numbers = "should be one distribution, such as {uniform: [0, 1]}", "[low, high] in numbers, such as [0, 1]"
    mistakes: list[tuple[Any, str]] = [
        (0.3, f"{one}, got 0.3"),
        (None, f"{one}, got null"),
        ({}, f"{one}, got {{}}"),
        ({"uniform": [0, 1], "choice": [1]}, f'{one}, got {{"uniform": [0, 1], "choice": [1]}}'),
        ({"unifrom": [0, 1]}, f"unknown distribution 'unifrom'; known are {', '.join(KINDS)}; did you mean 'uniform'?"),
        ({"uniform": 0.5}, "uniform should have a list, such as [0, 1], got 0.5"),
        ({"choice": []}, "choice should have a list, such as [2, 4, 8], got []"),
        ({"uniform": [0, 1, 2]}, f"uniform should have {numbers}, got [0, 1, 2]"),
        ({"uniform": ["0", 1]}, f'uniform should have {numbers}, got ["0", 1]'),
        ({"uniform": [False, 1]}, f"uniform should have {numbers}, got [false, 1]"),
        ({"uniform": [0, math.inf]}, f"uniform should have {numbers}, got [0, Infinity]"),
        ({"quniform": [0, 1]}, "quniform should have [low, high, q] in numbers, such as [0, 1, 0.25], got [0, 1]"),
        ({"randint": [1.0, 5]}, "randint should have [low, high] in whole numbers, such as [2, 13], got [1.0, 5]"),
        ({"uniform": [0.9, 0.1]}, "uniform has low 0.9 above high 0.1"),
        ({"lograndint": [5, 5]}, "lograndint [5, 5] is empty: as in Ray Tune its upper bound is exclusive"),
        ({"loguniform": [0, 1]}, "loguniform is logarithmic, so low should be above 0, got 0"),
        ({"qlograndint": [0, 10, 5]}, "qlograndint is logarithmic, so low should be above 0, got 0"),
        ({"qrandint": [5, 12, 5]}, "qrandint has high 12, which is not a multiple of its q 5"),
        ({"quniform": [0.1, 1, 0.25]}, "quniform has low 0.1, which is not a multiple of its q 0.25"),
        ({"qrandint": [10**12 + 1] * 2 + [2]}, f"qrandint has low {10**12 + 1}, which is not a multiple of its q 2"),
        ({"quniform": [0, 1, -0.5]}, "quniform should have a q above 0, got -0.5"),
        ({"choice": [[1, 2], [1, 2]]}, "choice names [1, 2] twice"),
    ]
    for given, message in mistakes:
        with pytest.raises(RequestError) as caught:
            parse_distribution(given)
        assert str(caught.value) == message
    for kind in ("uniform", "randint"):
        with pytest.raises(RequestError, match=f"^{kind} should have "):
            parse_distribution({kind: [1, 10**400]})  # too large for a float
