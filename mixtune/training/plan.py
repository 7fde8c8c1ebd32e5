"""Algorithm 1 before it runs: which phase each epoch belongs to, and the learning rate of each step. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mixtune.space.effective import Method, find_method, longest_warmup, mix_epochs
from mixtune.space.recipe import Recipe, Schedule
from mixtune.space.views import Strategy

Phase = Literal["ssl", "mix", "sl"]
Work = tuple[Phase, Strategy | None]
PHASES: tuple[Phase, ...] = ("ssl", "mix", "sl")

REFERENCE_BATCH = 256  # base learning rates are stated for this batch size
DECAY = 5  # wsd: the last fifth of a budget, in whole epochs, is its decay (Haegele et al. 2024, arXiv 2405.18392)


@dataclass(frozen=True)
class Epoch:
    """One epoch of a trial.

    ``ssl_epoch`` counts the epochs of the SSL budget that came before (None outside SSL and mix), and
    ``sl_epoch`` those of the SL budget (None outside mix and SL). All count from 0. ``strategy``: how the objective's
    token sequences are shortened (None outside SSL and mix, and for an objective that does not shorten them).
    """

    index: int
    phase: Phase
    ssl_epoch: int | None
    sl_epoch: int | None
    strategy: Strategy | None = None

    @property
    def is_first_supervised(self) -> bool:
        """Whether no supervised epoch came before, so that what it begins with comes from the SSL phase alone."""
        return self.sl_epoch == 0

    @property
    def work(self) -> Work:
        """What a step's cost depends on, of all that an epoch says."""
        return self.phase, self.strategy


def make_plan(recipe: Recipe) -> tuple[Epoch, ...]:
    """Return the epochs of Algorithm 1: e_ssl - e_mix of SSL, e_mix of both, e_sl - e_mix of SL.

    Raises RequestError for ``ssl.compression.schedule: auto`` without the stages that resolve it.
    """
    ssl, sl = recipe.epochs.ssl, recipe.epochs.sl
    mix = mix_epochs(recipe.rho, ssl, sl)
    strategy = recipe.ssl.for_budget(ssl).strategy
    phases: list[tuple[Phase, int | None, int | None, Strategy | None]] = [
        *(("ssl", i, None, strategy(i)) for i in range(ssl - mix)),
        *(("mix", ssl - mix + i, i, strategy(ssl - mix + i)) for i in range(mix)),
        *(("sl", None, i, None) for i in range(mix, sl)),
    ]
    return tuple(Epoch(index, *epoch) for index, epoch in enumerate(phases))


def method_of(recipe: Recipe) -> Method:
    """Return a recipe's method."""
    return find_method(recipe.rho, recipe.epochs.ssl, recipe.epochs.sl)


def peak_rate(schedule: Schedule, batch_size: int) -> float:
    """Return the learning rate that is used at the top: base_lr * batch / 256."""
    return schedule.base_lr * batch_size / REFERENCE_BATCH


def warmup_length(schedule: Schedule, budget: int) -> float:
    """Return the epochs of a budget's linear warm-up.

    At most the share ``warmup_cap`` of the budget, by default a fifth: the paper's 20 of 100 epochs, and still a decay
    where a search tries 5. wsd: ``warmup_epochs``, whatever the budget.
    """
    if schedule.schedule == "wsd":
        return schedule.warmup_epochs
    return min(schedule.warmup_epochs, longest_warmup(schedule.warmup_cap, budget))


def cut_warmups(recipe: Recipe) -> list[str]:
    """Return one line on the warm-ups that their budgets cut, or none.

    The default ones are those of long budgets, and meant to be cut, unless the paper's protocol is to be followed.
    """
    cut, defaults = [], type(recipe.optim)()
    for loss in ("ssl", "sl"):
        schedule, budget = getattr(recipe.optim, loss), getattr(recipe.epochs, loss)
        length = warmup_length(schedule, budget)
        is_default = schedule.warmup_epochs == getattr(defaults, loss).warmup_epochs and recipe.protocol != "paper"
        if budget and length < schedule.warmup_epochs and not is_default:
            said = f"optim.{loss}.warmup_cap {schedule.warmup_cap:g}"
            wanted = f"{schedule.warmup_epochs} epoch{'s' * (schedule.warmup_epochs != 1)}"
            cut.append(f"{wanted} to {length:g} of {budget} ({said})")
    return [f"a budget cuts its warm-up: {', '.join(cut)}"] if cut else []


def decay_start(budget: int, mix: int = 0) -> int:
    """Return after how many epochs of a budget its wsd rate goes down: all but the last fifth.

    mix: of an SSL budget the epochs in the mix phase; where there are some, the decay is among them, so that the SSL
    phase is the beginning of every longer one.
    """
    start = budget - math.ceil(budget / DECAY)
    return max(start, budget - mix) if mix else start


def rate_factor(schedule: Schedule, budget: int, progress: float, decays_from: int = 0) -> float:
    """Return the learning rate's share of its peak after ``progress`` epochs of a ``budget`` of epochs.

    cosine: linear warm-up, then half a cosine down to 0 (He et al. 2022). polynomial: linear warm-up, then the square
    of the share that is left (Lin et al. 2024). whole_cosine: the lower one of a linear warm-up and of half a cosine
    over the whole budget, changed once an epoch (as in code of this family: IcarusWizard/MAE). wsd: linear warm-up,
    the peak, and from ``decays_from`` on down to 0 as 1 - sqrt (Haegele et al. 2024); before that nothing depends on
    the budget.
    """
    warmup = warmup_length(schedule, budget)
    if schedule.schedule == "whole_cosine":
        epoch = math.floor(progress)
        whole = 0.5 * (1.0 + math.cos(math.pi * epoch / budget))
        return min(whole, (epoch + 1) / warmup) if warmup else whole
    rise = min(1.0, progress / warmup) if warmup else 1.0
    if schedule.schedule == "wsd":
        return rise * (1.0 - math.sqrt(max(0.0, progress - decays_from) / (budget - decays_from)))
    if progress < warmup:
        return rise
    if schedule.schedule == "polynomial":
        return ((budget - progress) / (budget - warmup)) ** 2
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (budget - warmup)))


class RateCurve(NamedTuple):
    """A loss's learning rate within an epoch, which counts from 0 in the loss's own budget."""

    schedule: Schedule
    peak: float
    budget: int
    epoch: int
    decays_from: int

    def at(self, step: int, steps: int) -> float:
        """Return the rate at a step of an epoch of ``steps`` steps."""
        progress = self.epoch + step / steps
        return self.peak * rate_factor(self.schedule, self.budget, progress, self.decays_from)


def rate_curves(recipe: Recipe, epoch: Epoch) -> dict[str, RateCurve]:
    """Return the rate of each loss, ``{"ssl": ..., "sl": ...}``, in an epoch.

    A loss that the phase does not have is left out. Each schedule spans its own epoch budget, so the SSL rate ends
    and the SL rate begins in the mix phase (ours: the paper does not say).
    """
    budgets, optim, curves = recipe.epochs, recipe.optim, {}
    if epoch.ssl_epoch is not None:
        decays_from = decay_start(budgets.ssl, mix_epochs(recipe.rho, budgets.ssl, budgets.sl))
        peak = peak_rate(optim.ssl, optim.batch_size)
        curves["ssl"] = RateCurve(optim.ssl, peak, budgets.ssl, epoch.ssl_epoch, decays_from)
    if epoch.sl_epoch is not None:
        peak = peak_rate(optim.sl, optim.batch_size)
        curves["sl"] = RateCurve(optim.sl, peak, budgets.sl, epoch.sl_epoch, decay_start(budgets.sl))
    return curves


def learning_rates(recipe: Recipe, epoch: Epoch, step: int, steps: int) -> dict[str, float]:
    """Return the rate of each loss at a step of an epoch of ``steps`` steps; see rate_curves()."""
    return {loss: curve.at(step, steps) for loss, curve in rate_curves(recipe, epoch).items()}
