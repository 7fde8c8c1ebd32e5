"""How certain means over a few seeds are, and how probably a row is on the true front.

A row's mean over n seeds is uncertain by its standard error, the standard deviation / sqrt(n). That standard deviation
is pooled over all rows with fewer than ``FEW_SEEDS`` training runs: of accuracies the squared differences to each row's
own mean, summed and divided by the sum of all n - 1, which are its degrees of freedom; of seconds the same in shares of
each row's mean, because a long training varies by more seconds than a short one. A row with more training runs has its
own standard deviation.

``p_front`` comes from ``DRAWS`` draws with a fixed seed. In each, scores are drawn from their posterior
(mixtune.run.posterior); seconds are their means, moved by their standard errors times a draw of Student's t with the
standard deviation's degrees of freedom (the rows that share a standard deviation share its chi-square); other
objectives stay as the search found them; and rows take part with the share of their seeds that did not diverge, where
they keep the search's constraints. ``p_front`` is how often a row takes part and no other dominates it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.space.constraints import Constraint

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FEW_SEEDS = 10  # below, a row's own standard deviation is too uncertain: by a quarter with 9
DRAWS = 4_000


@dataclass(frozen=True)
class Estimate:
    """Rows' means and how certain they are, each (rows,).

    means: NaN where all diverged; deviations: each row's own standard deviation, NaN below two training runs; errors:
    standard errors of the means; degrees: of freedom of the rows with a standard deviation of their own, NaN for those
    that share the pooled one, whose are ``pooled_degrees``, 0 where there is no spread at all; pooled: that standard
    deviation, a share of the mean for seconds.
    """

    means: Floats
    deviations: Floats
    errors: Floats
    degrees: Floats
    pooled_degrees: int = 0
    pooled: float = 0.0

    def draw(self, rng: np.random.Generator) -> Floats:
        """Return draws of the true means, (DRAWS, rows)."""
        shared = _student_factor(rng, self.pooled_degrees)
        factors = [shared if math.isnan(own) else _student_factor(rng, own) for own in self.degrees]
        normal = rng.standard_normal((DRAWS, len(self.means)))
        return self.means + self.errors * np.reshape(factors, normal.T.shape).T * normal


def estimate(samples: Sequence[Floats], relative: bool) -> Estimate:
    """Return what training runs of each row say of its mean; ``relative``: standard deviations grow with the mean."""
    counts = np.array([len(sample) for sample in samples], dtype=float)
    means = np.array([mean_of(sample) for sample in samples])
    deviations = np.array([sample.std(ddof=1) if len(sample) > 1 else math.nan for sample in samples])
    units = means if relative else np.ones(len(samples))
    shares = [(sample - mean) / unit for sample, mean, unit in zip(samples, means, units, strict=True) if unit > 0]
    degrees = sum(max(0, len(share) - 1) for share in shares)
    pooled = math.sqrt(sum(float(share @ share) for share in shares) / degrees) if degrees else 0.0
    has_own = counts >= FEW_SEEDS
    return Estimate(
        means=means,
        deviations=deviations,
        errors=np.where(has_own, deviations, pooled * units) / np.sqrt(np.maximum(counts, 1)),
        degrees=np.where(has_own, counts - 1, math.nan),
        pooled_degrees=degrees,
        pooled=pooled,
    )


def _student_factor(rng: np.random.Generator, degrees: float) -> Floats:
    """Return, (DRAWS,), what turns normal draws into Student's t; 1 for an error that is known."""
    if not degrees:
        return np.ones(DRAWS)
    return np.sqrt(degrees / rng.chisquare(degrees, DRAWS))


def front_probabilities(
    values: Mapping[str, Any],
    objectives: Mapping[str, str],
    bounds: Mapping[str, Constraint],
    drawn: Mapping[str, Floats],
    finished: Floats,
) -> Floats:
    """Return, (rows,), how often each row takes part and is not dominated.

    drawn: of what the seeds decide, (DRAWS, rows); finished: the shares of a row's seeds that did not diverge.
    """
    rng = np.random.default_rng(0)
    shape = DRAWS, len(finished)
    values = {**values, **drawn}
    takes_part = (rng.random(shape) < finished) & keeps(values, bounds, shape)
    on_front = takes_part & ~dominated_by(costs_of(values, objectives, shape), takes_part)
    return np.asarray(on_front.mean(axis=0), dtype=np.float64)


def costs_of(values: Mapping[str, Any], objectives: Mapping[str, str], shape: tuple[int, int]) -> Floats:
    """Return the objectives, all to be small, (draws, rows, objectives); values: (rows,) or (draws, rows)."""
    signed = [values[name] * (-1.0 if mode == "max" else 1.0) for name, mode in objectives.items()]
    return np.stack([np.broadcast_to(column, shape) for column in signed], axis=-1)


def keeps(values: Mapping[str, Any], bounds: Mapping[str, Constraint], shape: tuple[int, int]) -> Bools:
    """Return, (draws, rows), whether a row keeps every bound; values: (rows,) or (draws, rows), NaN keeps none."""
    kept = np.ones(shape, dtype=bool)
    for name, constraint in bounds.items():
        kept &= values[name] <= constraint.bound if constraint.sense == "<=" else values[name] >= constraint.bound
    return kept


def dominated_by(costs: Floats, takes_part: Bools) -> Bools:
    """Return, (draws, rows), whether a row that takes part dominates this one; costs: (draws, rows, objectives)."""
    dominated = np.zeros(costs.shape[:2], dtype=bool)
    for row in range(costs.shape[1]):  # one row at a time: all pairs of all draws would fill the memory
        other = costs[:, row : row + 1]
        is_better = (other <= costs).all(axis=-1) & (other < costs).any(axis=-1)
        dominated |= is_better & takes_part[:, row : row + 1]
    return dominated


def mean_of(values: Floats) -> float:
    """Return the mean, NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan
