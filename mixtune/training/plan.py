"""Algorithm 1 before it runs: which phase each epoch belongs to, and the learning rate of each step. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mixtune.recipe import Recipe, Schedule

Phase = Literal["ssl", "mix", "sl"]
Method = Literal["sl", "ssl_sl", "mixtraining"]
PHASES: tuple[Phase, ...] = ("ssl", "mix", "sl")

REFERENCE_BATCH = 256  # base learning rates are stated for this batch size


@dataclass(frozen=True)
class Epoch:
    """One epoch of a trial.

    ``ssl_epoch`` counts the epochs of the SSL budget that came before (None outside SSL and mix), and
    ``sl_epoch`` those of the SL budget (None outside mix and SL). All count from 0.
    """

    index: int
    phase: Phase
    ssl_epoch: int | None
    sl_epoch: int | None


def mix_epochs(rho: float, ssl_epochs: int, sl_epochs: int) -> int:
    """Return e_mix = floor(rho * min(e_ssl, e_sl)) (Eq. 1).

    Exact: a float's floor would make 28 of 0.29 x 100, so rho is read as the nearest fraction with a denominator
    of at most 10**6.
    """
    return math.floor(Fraction(rho).limit_denominator(10**6) * min(ssl_epochs, sl_epochs))


def make_plan(recipe: Recipe) -> tuple[Epoch, ...]:
    """Return the epochs of Algorithm 1: e_ssl - e_mix of SSL, e_mix of both, e_sl - e_mix of SL."""
    ssl, sl = recipe.epochs.ssl, recipe.epochs.sl
    mix = mix_epochs(recipe.rho, ssl, sl)
    phases: list[tuple[Phase, int | None, int | None]] = [
        *(("ssl", i, None) for i in range(ssl - mix)),
        *(("mix", ssl - mix + i, i) for i in range(mix)),
        *(("sl", None, i) for i in range(mix, sl)),
    ]
    return tuple(Epoch(index, *epoch) for index, epoch in enumerate(phases))


def method_of(recipe: Recipe) -> Method:
    """Return the method's name: ``sl`` is e_ssl = 0 and ``ssl_sl`` is e_mix = 0."""
    if recipe.epochs.ssl == 0:
        return "sl"
    return "mixtraining" if mix_epochs(recipe.rho, recipe.epochs.ssl, recipe.epochs.sl) else "ssl_sl"


def peak_rate(schedule: Schedule, batch_size: int) -> float:
    """Return the learning rate that is used at the top: base_lr * batch / 256."""
    return schedule.base_lr * batch_size / REFERENCE_BATCH


def rate_factor(schedule: Schedule, budget: int, progress: float) -> float:
    """Return the learning rate's share of its peak after ``progress`` epochs of a ``budget`` of epochs.

    Linear warm-up, then half a cosine down to 0 (He et al. 2022). The warm-up takes at most a fifth of the
    budget (ours): the paper's 20 of 100 epochs, and still a decay where a search tries 5.
    """
    warmup = min(schedule.warmup_epochs, budget / 5)
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (budget - warmup)))


def learning_rates(recipe: Recipe, epoch: Epoch, step: int, steps: int) -> dict[str, float]:
    """Return the rate of each loss, ``{"ssl": ..., "sl": ...}``, at a step of an epoch of ``steps`` steps.

    A loss that the phase does not have is left out. Each schedule spans its own epoch budget, so the SSL rate ends
    and the SL rate begins in the mix phase (ours: the paper does not say).
    """
    rates = {}
    if epoch.ssl_epoch is not None:
        factor = rate_factor(recipe.optim.ssl, recipe.epochs.ssl, epoch.ssl_epoch + step / steps)
        rates["ssl"] = peak_rate(recipe.optim.ssl, recipe.optim.batch_size) * factor
    if epoch.sl_epoch is not None:
        factor = rate_factor(recipe.optim.sl, recipe.epochs.sl, epoch.sl_epoch + step / steps)
        rates["sl"] = peak_rate(recipe.optim.sl, recipe.optim.batch_size) * factor
    return rates
