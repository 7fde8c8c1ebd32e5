"""What seeds and images say of true figures, against the same model computed by brute force, and simulated rates."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mixtune.run import posterior
from mixtune.run.posterior import certainties, contenders, draw_truth

FIGURES = np.array(
    [
        [0.800, 0.812, 0.805],
        [0.822, 0.815, 0.826],
        [0.818, 0.834, np.nan],
    ]
)
COST = np.array([10.0, 20.0, 40.0])
IMAGES = 1e-4 * np.array([[0.4, 0.3, 0.2], [0.3, 0.5, 0.3], [0.2, 0.3, 0.6]])


def brute_force(seeds_variance: float, count: int = 10_000) -> np.ndarray:
    """Return draws of theta, weighted ones of the prior: every number of the model is drawn, and none is on a grid."""
    rng = np.random.default_rng(0)
    here = np.isfinite(FIGURES)
    rows, seeds = np.nonzero(here)
    level = np.nanmean(np.nanmean(FIGURES, axis=1))
    y = FIGURES[here] - level
    x = np.log(COST)
    x = (x - x.mean()) / x.std()
    same_seed = seeds[:, None] == seeds
    weights, draws = [], []
    for _ in range(count):
        scale = posterior.EXPECTED[0] * posterior.EXPECTED[1] ** rng.standard_normal()
        stiff = rng.choice(posterior.STIFFNESS)
        variances = stiff * scale**2 / rng.chisquare(stiff, 3)
        trend, spread = rng.choice(posterior.TRENDS), min(0.2, abs(posterior.TYPICAL * rng.standard_cauchy()))
        theta = posterior.LEVEL**2 + trend**2 * np.outer(x, x) + spread**2 * np.eye(3)
        of_y = (theta + IMAGES)[np.ix_(rows, rows)] + same_seed * seeds_variance
        of_y = of_y + np.diag(variances[rows])
        weights.append(multivariate_normal.logpdf(y, cov=of_y, allow_singular=True))
        toward = theta[:, rows] @ np.linalg.inv(of_y)
        rest = theta - toward @ theta[:, rows].T
        sizes, axes = np.linalg.eigh(rest)
        moved = axes @ (np.sqrt(np.maximum(sizes, 0.0)) * rng.standard_normal(3))
        draws.append(level + toward @ y + moved)
    share = np.exp(np.array(weights) - max(weights))
    return np.array(draws)[rng.choice(count, size=4_000, p=share / share.sum())]


def test_draws_are_of_the_model() -> None:
    found = draw_truth(FIGURES, IMAGES, COST)
    slow = brute_force(seeds_variance=1e-5)
    assert found.mean(axis=0) == pytest.approx(slow.mean(axis=0), abs=0.002)
    assert found.std(axis=0) == pytest.approx(slow.std(axis=0), rel=0.2)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (found[:, one] < found[:, other]).mean() == pytest.approx(
            (slow[:, one] < slow[:, other]).mean(), abs=0.05
        )
    assert (draw_truth(FIGURES, IMAGES, COST) == found).all()


def test_luck_of_images_does_not_shrink_with_seeds_and_what_rows_share_does_not_part_them() -> None:
    rng = np.random.default_rng(0)
    figures = np.array([[0.80], [0.81]]) + 0.001 * rng.standard_normal((2, 30))
    own, shared = 0.01**2 * np.eye(2), 0.01**2 * np.ones((2, 2))
    apart = [(draw_truth(figures, images, COST[:2]) @ [-1, 1] > 0).mean() for images in (own, shared)]
    assert 0.6 < apart[0] < 0.85  # of one standard error of a difference, 0.76
    assert apart[1] > 0.99


def test_a_row_that_varies_is_less_certain_than_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    deviations = np.array([[0.03], [0.003], [0.003], [0.003]])
    figures = 0.8 + deviations * rng.standard_normal((4, 10))
    spread = draw_truth(figures, np.zeros((4, 4)), np.arange(1.0, 5.0)).std(axis=0)
    assert spread[0] > 1.5 * spread[1:].max()


def test_unlucky_seeds_that_a_row_alone_has_trained_are_not_held_against_it() -> None:
    rng, luck = np.random.default_rng(2), np.array([0.03, 0.02, -0.02, -0.01, -0.01, -0.01])
    figures = 0.8 + luck + 0.002 * rng.standard_normal((4, 6))
    figures[0, 2:] = np.nan  # trained on the two lucky seeds alone
    found = draw_truth(figures, np.zeros((4, 4)), np.arange(1.0, 5.0))
    assert np.nanmean(figures[0]) > figures[1].mean() + 0.02
    assert 0.2 < (found[:, 0] > found[:, 1]).mean() < 0.8


def test_the_right_row_is_near_the_best_and_none_cheaper_is() -> None:
    lacking = np.array([[0.02, 0.004, 0.0], [0.004, 0.0, 0.02], [0.007, 0.009, 0.0], [0.02, 0.02, 0.0]])
    assert certainties(lacking, 0.01).tolist() == [0.5, 0.5, 0.5]
    likely = contenders(lacking, 0.01, chance=0.6)
    assert likely.tolist() == [False, False, True]  # the second is right in one draw, and the best in one


def test_what_is_said_of_a_front_is_true_at_about_that_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short version of benchmarks/confirmation.py, whose table is on file."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    bench: Any = importlib.import_module("confirmation")
    rng = np.random.default_rng(0)
    said, true = [], []
    for number in range(60):
        field = bench.make_field(bench.KINDS[number % 3], 300, 3, rng)
        drawn = bench.posterior(field, [3] * len(field.front))
        said.append(bench.on_front(drawn).mean(axis=0)[1:])
        true.append(bench.on_front(field.truth[field.front][None])[0, 1:])
    chances, happened = np.concatenate(said), np.concatenate(true)
    for low, high in ((0.0, 0.4), (0.4, 0.7), (0.7, 1.01)):
        those = (chances >= low) & (chances < high)
        error = np.sqrt(0.25 / those.sum())
        assert abs(chances[those].mean() - happened[those].mean()) < 0.07 + 2 * error
