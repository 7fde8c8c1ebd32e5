"""What a metric will be: a Gaussian process over training states, with priors on its kernel's numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

Floats = npt.NDArray[np.float64]

QUANTILES = 16  # of a prediction
ITERATIONS = 25  # of a fit
TREND = 0.5  # deviation of the slopes, in deviations of a score over a feature's range
LEAST, MOST = 0.02, 0.995  # of a share: its logit is clipped there
_NORMAL = norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)


class Surrogate:
    """A posterior over states.

    rows: features (states, features) in [0, 1]; values: what the metric was there, (states,); anchors: features of
    states whose value ``at_anchors`` is known beforehand; is_share: whether it is learned as a logit, else as a
    logarithm; numbers: the kernel's, by an earlier fit; None fits them: the mode of a posterior whose prior is
    log-normal around 1 (lengths and signal, deviation 1) and around 0.01 (the noise's variance, deviation 1.4).
    """

    def __init__(
        self,
        rows: Floats,
        values: Floats,
        anchors: Floats,
        at_anchors: float,
        is_share: bool = True,
        numbers: Sequence[float] | None = None,
    ) -> None:
        self._is_share = is_share
        y = self._scaled(values)
        anchored = self._scaled(np.full(len(anchors), at_anchors))
        width = anchors.shape[1] if len(anchors) else rows.shape[1]
        middle = 0.0 if is_share else float(y.mean()) if len(y) else 0.0
        self._mean = (y.sum() + middle) / (len(y) + 1)  # one datum more, in the middle
        self._scale = math.sqrt((((y - self._mean) ** 2).sum() + 3.0) / (len(y) + 3))  # three more, a deviation of 1
        x = np.vstack([rows.reshape(len(y), width), anchors]) if len(anchors) else rows
        kernel = ConstantKernel(1.0, (0.02, 50.0)) * Matern(np.ones(width), (0.05, 50.0), nu=2.5)
        kernel += ConstantKernel(TREND**2, "fixed") * DotProduct(0.0, "fixed") + WhiteKernel(0.01, (1e-4, 1.0))
        if numbers is not None:
            kernel.theta = np.array(numbers)
        fit = _maximum_a_posteriori(kernel.theta) if numbers is None else None
        self._process = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=fit)
        if len(x):  # without data it is its prior
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a number is at its bound
                self._process.fit(x - 0.5, (np.concatenate([y, anchored]) - self._mean) / self._scale)
        self.numbers = [float(number) for number in (self._process.kernel_ if len(x) else kernel).theta]

    def quantiles(self, rows: Floats) -> Floats:
        """Return 16 equally likely values of each state, (states, 16)."""
        predicted = self._process.predict(rows - 0.5, return_std=True)
        mean, deviation = (each.reshape(len(rows)) for each in predicted)  # a prior's prediction of one has no axis
        return self._unscaled(mean[:, None] + deviation[:, None] * _NORMAL)

    def medians(self, rows: Floats) -> Floats:
        """Return the median value of each state, (states,)."""
        return self._unscaled(self._process.predict(rows - 0.5).reshape(len(rows)))

    def _scaled(self, values: Floats) -> Floats:
        scaled: Floats = logit(np.clip(values, LEAST, MOST)) if self._is_share else np.log(np.maximum(values, 1e-12))
        return scaled

    def _unscaled(self, scaled: Floats) -> Floats:
        values: Floats = (expit if self._is_share else np.exp)(self._mean + self._scale * scaled)
        return values


def _maximum_a_posteriori(prior: Floats) -> Callable[..., tuple[Floats, float]]:
    """Return scikit-learn's ``optimizer``: it minimizes the loss plus a normal prior on the logarithms."""
    prior, deviations = prior.copy(), np.array([1.0] * (len(prior) - 1) + [1.4])

    def optimizer(loss: Callable[[Floats], tuple[float, Floats]], start: Floats, bounds: Any) -> tuple[Floats, float]:
        def posterior(theta: Floats) -> tuple[float, Floats]:
            value, slope = loss(theta)
            far = (theta - prior) / deviations
            return value + 0.5 * float((far**2).sum()), slope + far / deviations

        options = {"maxiter": ITERATIONS}
        found = minimize(posterior, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return found.x, float(found.fun)

    return optimizer
