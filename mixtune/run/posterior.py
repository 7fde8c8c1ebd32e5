"""What is known of the true figures of rows that were trained on a few seeds and judged on the same few images.

A hierarchical model of normal distributions (Fay and Herriot, JASA 74, 1979) with a variance for each row. Of row r and
seed s the figure is::

    y[r, s] = theta[r] + g[r] + b[s] + e[r, s]     theta[r] = beta . (1, x[r]) + u[r]

theta: the true figure, over all seeds and all images. g: what the images at hand add, normal with a covariance that the
predictions give (mixtune.run.paired.image_covariance); it is the same in all seeds, so it does not shrink. b: what a
seed adds to all rows. e: the rest, whose variance is each row's own, around one that all have in common (Smyth,
Statistical Applications in Genetics and Molecular Biology 3, 2004, Section 3: variances are moderated). x: the
logarithm of the cost. u: how far rows are off the trend, normal; its standard deviation and the variances' are not
known either, and averaged over (SPREADS, SCALES, STIFFNESS): with few rows that matters.

Draws are independent of each other, and with a fixed seed the same each time. What is said of the rates at which such
statements are true: benchmarks/confirmation.py.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import f as fisher
from scipy.stats import norm

from mixtune.run.estimates import DRAWS

Floats = npt.NDArray[np.float64]

VARIANCES = 64  # different ones among the draws
LEVEL = 0.5  # standard deviation of beta's first number before anything is known
# standard deviations of its second one, the trend, all as likely, and of u, likely as half a Cauchy distribution has it
TRENDS, SPREADS, TYPICAL = np.array([0.001, 0.01, 0.05]), np.geomspace(0.0005, 0.2, 10), 0.02
SCALES = np.geomspace(0.0005, 0.1, 24)  # of e's common standard deviation
EXPECTED = 0.008, 3.0  # of it before anything is known: the median, and the factor of a standard deviation
STIFFNESS = np.array([2.0, 4.0, 8.0, 16.0, 64.0])  # degrees of freedom with which rows' variances are near the common


def draw_truth(figures: Floats, images: Floats, cost: Floats, seed: int = 0, draws: int = DRAWS) -> Floats:
    """Return draws of the true figures, (draws, rows), NaN for a row without a training run.

    figures: shares, (rows, seeds), NaN where a row has no training run with a seed. images: (rows, rows), the
    covariance of g. cost: (rows,), positive.
    """
    known = np.isfinite(figures).any(axis=1)
    truth = np.full((draws, len(figures)), math.nan)
    if known.any():
        here = np.ix_(known, known)
        truth[:, known] = _draw(figures[known], images[here], cost[known], np.random.default_rng(seed), draws)
    return truth


def certainties(lacking: Floats, tolerance: float) -> Floats:
    """Return, (rows,), how probably a row is right: within ``tolerance`` of the best, and no cheaper row is that near.

    Cheaper rows may not be within half of the tolerance, from which on recipes count as equal; what lies between the
    two is right either way, so that enough seeds decide. lacking: what each row lacks of the best in each draw,
    (draws, rows), the cheapest row first.
    """
    is_near = lacking <= tolerance / 2
    is_any_cheaper = np.cumsum(is_near, axis=1) - is_near > 0
    return np.asarray(((lacking <= tolerance) & ~is_any_cheaper).mean(axis=0), dtype=np.float64)


def contenders(lacking: Floats, tolerance: float, chance: float) -> npt.NDArray[np.bool_]:
    """Return, (rows,), whether a row is the best, or the cheapest within half of ``tolerance`` of it, probably enough.

    chance: twice the probability that is enough: for either mistake half of it. lacking: as for certainties().
    """
    answers = (lacking <= tolerance / 2).argmax(axis=1), lacking.argmin(axis=1)
    counts = [np.bincount(places, minlength=lacking.shape[1]) for places in answers]
    return np.asarray(np.maximum(*counts) >= chance / 2 * len(lacking))


def _draw(figures: Floats, images: Floats, cost: Floats, rng: np.random.Generator, draws: int) -> Floats:
    there = np.isfinite(figures)
    level = float(np.nanmean(np.nanmean(figures, axis=1)))
    y = np.where(there, figures - level, 0.0)
    count = min(VARIANCES, draws)
    variances, seeds_variance = _draw_variances(y, there, rng, count)
    rows, seeds = figures.shape
    x = np.log(cost)
    x = (x - x.mean()) / x.std() if np.ptp(x) > 1e-9 else np.zeros(rows)
    trend, spread = (each.ravel()[:, None, None] for each in np.meshgrid(TRENDS, SPREADS))
    theta = LEVEL**2 + trend**2 * np.outer(x, x) + spread**2 * np.eye(rows)  # (cases, rows, rows)
    phi = theta + images + 1e-12 * np.eye(rows)  # of theta + g
    precision = np.zeros((len(theta), 1, rows + seeds, rows + seeds))
    precision[:, 0, :rows, :rows] = np.linalg.inv(phi)
    precision[:, 0, rows:, rows:] = np.eye(seeds) / seeds_variance
    weight = there / variances[:, :, None]  # (count, rows, seeds)
    own = np.zeros((count, rows + seeds, rows + seeds))
    own[:, range(rows), range(rows)] = weight.sum(axis=2)
    own[:, range(rows, rows + seeds), range(rows, rows + seeds)] = weight.sum(axis=1)
    own[:, :rows, rows:], own[:, rows:, :rows] = weight, weight.swapaxes(1, 2)
    toward = np.concatenate([(weight * y).sum(axis=2), (weight * y).sum(axis=1)], axis=1)  # (count, rows + seeds)
    lower = np.linalg.cholesky(precision + own)  # (cases, count, rows + seeds, rows + seeds)
    halved = np.linalg.solve(lower, np.broadcast_to(toward[:, :, None], (*lower.shape[:-1], 1)))[..., 0]
    evidence = (halved**2).sum(axis=-1) / 2 - np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(axis=-1)
    evidence -= np.linalg.slogdet(phi)[1][:, None] / 2
    evidence += np.log(spread / (spread**2 + TYPICAL**2))[:, :, 0]  # on a grid of logarithms
    share = np.exp(evidence - evidence.max(axis=0)).cumsum(axis=0)
    which = np.resize(np.arange(count), draws)
    case = (share[:, which] <= rng.random(draws) * share[-1, which]).sum(axis=0)  # of each draw
    noise = halved[case, which] + rng.standard_normal((draws, rows + seeds))
    at_phi = np.linalg.solve(lower[case, which].swapaxes(1, 2), noise[..., None])[:, :rows, 0]
    kept = theta @ np.linalg.inv(phi)  # theta given phi: (cases, rows, rows)
    rest = theta - kept @ theta
    sizes, axes = np.linalg.eigh((rest + rest.swapaxes(1, 2)) / 2)  # which rounding may make a little negative
    root = axes * np.sqrt(np.maximum(sizes, 0.0))[:, None, :]
    moved = np.einsum("dij,dj->di", root[case], rng.standard_normal((draws, rows)))
    return np.asarray(level + np.einsum("dij,dj->di", kept[case], at_phi) + moved)


def _draw_variances(
    y: Floats, there: npt.NDArray[np.bool_], rng: np.random.Generator, count: int
) -> tuple[Floats, float]:
    """Return draws of each row's variance of e, (count, rows), and the variance of b."""
    rows, seeds = y.shape
    effects = np.zeros(seeds)
    for _ in range(20):  # least squares of rows and seeds, by turns
        means = (there * (y - effects)).sum(axis=1) / there.sum(axis=1)
        effects = (there * (y - means[:, None])).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        effects -= effects.mean()
    squares = (there * (y - means[:, None] - effects) ** 2).sum(axis=1)
    total = there.sum() - rows - (there.any(axis=0).sum() - 1)  # degrees of freedom, shared out by training runs
    own = (there.sum(axis=1) - 1).astype(float)
    degrees = own * max(total, 0) / max(own.sum(), 1)
    if rows == 1:
        degrees = own
        squares = (there * (y - y[there].mean()) ** 2).sum(axis=1)
    scale, stiff = np.meshgrid(SCALES, STIFFNESS, indexing="ij")
    likely = norm.logpdf(np.log(scale / EXPECTED[0]) / math.log(EXPECTED[1]))
    for square, degree in zip(squares, degrees, strict=True):
        if degree > 0:
            ratio = max(square / degree, 1e-12) / scale**2
            likely = likely + fisher.logpdf(ratio, degree, stiff) - 2 * np.log(scale)
    share = np.exp(likely - likely.max()).ravel()
    drawn = rng.choice(len(share), size=count, p=share / share.sum())
    scales, stiffness = scale.ravel()[drawn][:, None], stiff.ravel()[drawn][:, None]
    variances = (stiffness * scales**2 + squares) / rng.chisquare(stiffness + degrees)
    between = float((effects**2).sum()) / max(1, seeds - 1) - float(np.median(variances)) / rows
    return variances, max(between, 1e-8)
