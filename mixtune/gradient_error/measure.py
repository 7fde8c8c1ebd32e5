"""What shortening the sequences does to the gradient: bias and variance at points of a training run.

After *Accelerating Augmentation Invariance Pretraining* (Lin et al., NeurIPS 2024, arXiv 2410.22364); the estimators,
the strategies compared and the rule that makes a schedule of them are a reconstruction (ours).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any

import torch
from torch import Tensor

from mixtune.errors import RequestError
from mixtune.objectives._invariance import InvarianceObjective
from mixtune.space.compression import MAX_SHAPES, Period
from mixtune.space.objectives import InvarianceSettings
from mixtune.space.recipe import Recipe, change_recipe
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.plan import Epoch
from mixtune.training.state import TrainState, start_state
from mixtune.training.streams import torch_generator

GROUPS = 4  # of batches, for the error of what is measured
_APART = 10**6  # epoch numbers from here on: streams that no training draws from


def settings_of(strategy: Strategy) -> dict[str, Any]:
    """Return a strategy by the names of ``ssl.compression``."""
    query, key = strategy
    dropout = {"token_dropout": query.token_dropout, "key_token_dropout": key.token_dropout}
    return {**dropout, "patch_size": query.patch_size, "key_patch_size": key.patch_size}


@dataclass(frozen=True)
class GradientError:
    """How a strategy's gradient differs from the uncompressed one, after ``epoch`` epochs.

    consumed: the budget spent until then, in forward passes of the whole backbone for each image; cost: of the
    strategy's training step, relative to an uncompressed one's, in FLOPs; units: forward passes that an epoch of
    the strategy costs for each image; squared_bias: of the mean over batches,
    its sampling bias taken off, so it may come out below 0; variance: of one batch's gradient; batches: how many pairs
    were compared; batch_size: images of each; replicates: the CA-MSE without each group of batches in turn.
    """

    epoch: int
    consumed: float
    strategy: Strategy
    cost: float
    units: float
    squared_bias: float
    variance: float
    batches: int
    batch_size: int
    replicates: tuple[float, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The strategy by the names of ``ssl.compression``."""
        return settings_of(self.strategy)

    @property
    def adjusted_variance(self) -> float:
        """The variance at equal compute, which buys 1 / cost as many images."""
        return self.cost * self.variance

    @property
    def ca_mse(self) -> float:
        """Squared bias and cost-adjusted variance: the cost-adjusted mean squared error."""
        return self.squared_bias + self.adjusted_variance

    @property
    def ca_mse_se(self) -> float:
        """The standard error of ca_mse."""
        return jackknife_error(self.replicates) if self.replicates else math.nan


class ErrorSums:
    """Running sums over paired batches, in GROUPS groups: memory does not grow with the batches' number.

    Each group has a vector a strategy, and one more. ``without``: a group that is left out, for the jackknife.
    """

    def __init__(self, strategies: int) -> None:
        self.batches = 0
        self._groups = [_Sums(strategies) for _ in range(GROUPS)]

    def add(self, whole: Sequence[Tensor], shortened: Iterable[Sequence[Tensor]]) -> None:
        """Take in a batch: its uncompressed gradient, and that of each strategy in turn."""
        self._groups[self.batches % GROUPS].add(whole, shortened)
        self.batches += 1

    def squared_bias(self, strategy: int, without: int | None = None) -> float:
        """Return |mean d|^2 - s^2 / M of the differences d to the uncompressed gradient; s^2: their sample variance."""
        groups = self._kept(without)
        batches = sum(group.batches for group in groups)
        squared_mean = _squared_norm(_total(group.differences[strategy] for group in groups)) / batches**2
        spread = math.fsum(group.squared_differences[strategy] for group in groups) - batches * squared_mean
        return squared_mean - spread / (batches - 1) / batches

    def variance(self, strategy: int, without: int | None = None) -> float:
        """Return the sample variance of a strategy's gradient, E |g - E g|^2, summed over the parameters."""
        groups = self._kept(without)
        batches = sum(group.batches for group in groups)
        total = _total(part for group in groups for part in (group.whole, group.differences[strategy]))
        squares = math.fsum(group.squares[strategy] for group in groups)
        return (squares - _squared_norm(total) / batches) / (batches - 1)

    def replicates(self, strategy: int, cost: float) -> tuple[float, ...]:
        """Return a strategy's CA-MSE without each of the groups in turn."""
        return tuple(self.squared_bias(strategy, g) + cost * self.variance(strategy, g) for g in range(GROUPS))

    def _kept(self, without: int | None) -> list[_Sums]:
        return [group for number, group in enumerate(self._groups) if number != without and group.batches]


class _Sums:
    """What ErrorSums keeps of a group of batches."""

    def __init__(self, strategies: int) -> None:
        self.batches = 0
        self.whole: list[Tensor] = []
        self.differences: list[list[Tensor]] = [[] for _ in range(strategies)]
        self.squared_differences = [0.0] * strategies
        self.squares = [0.0] * strategies

    def add(self, whole: Sequence[Tensor], shortened: Iterable[Sequence[Tensor]]) -> None:
        self.batches += 1
        self.whole = _add(self.whole, whole)
        for number, gradient in enumerate(shortened):
            difference = torch._foreach_sub(list(gradient), list(whole))
            self.squares[number] += _squared_norm(gradient)
            self.squared_differences[number] += _squared_norm(difference)
            self.differences[number] = _add(self.differences[number], difference)


def _total(parts: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    total: list[Tensor] = []
    for part in parts:
        total = _add(total, part)
    return total


def _add(total: list[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    if not total:
        return [value.clone() for value in values]
    torch._foreach_add_(total, list(values))
    return total


def _squared_norm(values: Sequence[Tensor]) -> float:
    return math.fsum(value.double().square().sum().item() for value in values)


def default_strategies(patch_size: int, image_size: int) -> list[Strategy]:
    """Return what is compared with the uncompressed gradient.

    Token dropout of one branch, of both, larger patches, and these with the query's tokens dropped besides.
    """
    query = [Strategy(query=Shortening(rate)) for rate in (0.25, 0.5, 0.75)]
    both = [Strategy(Shortening(rate), Shortening(rate)) for rate in (0.5, 0.75)]
    larger = 2 * patch_size
    patches = [Strategy(Shortening(rate, larger), Shortening(0.0, larger)) for rate in (0.0, 0.5)]
    return [*query, *both, *(patches if 2 * larger <= image_size else [])]


def measure_errors(
    state: TrainState, strategies: Sequence[Strategy], batches: int, consumed: float
) -> list[GradientError]:
    """Compare each strategy's gradient with the uncompressed one in a state, which stays as it is.

    A batch's images, views, weights and, for MoCo-v3 and DINO, the momentum encoder are the same for all; the gradient
    is of all parameters that the objective trains. The uncompressed one comes first, its bias exactly 0.
    """
    objective, epoch = state.objective, len(state.history)
    assert isinstance(objective, InvarianceObjective)
    frozen = set(objective.frozen(state.backbone, epoch))
    trained = (p for part in (state.backbone, objective) for p in part.parameters() if p.requires_grad)
    parameters = [p for p in trained if p not in frozen]
    compared = [UNCOMPRESSED, *(strategy for strategy in strategies if strategy != UNCOMPRESSED)]
    state.backbone.train()

    def gradient(images: Tensor, number: int, strategy: Strategy) -> list[Tensor]:
        draws = torch_generator(state.recipe.seed, "masks", _APART + number, state.device)
        with state.autocast():
            loss, _ = objective(state.backbone, images, draws, joint=False, strategy=strategy)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    sums = ErrorSums(len(compared))
    for number, images in enumerate(islice(_batches(state), batches)):
        gradients = (gradient(images, number, strategy) for strategy in compared)
        whole = next(gradients)
        sums.add(whole, chain([whole], gradients))
    whole_flops = objective.train_flops(state.backbone, False, UNCOMPRESSED)
    costs = [objective.train_flops(state.backbone, False, strategy) / whole_flops for strategy in compared]
    return [
        GradientError(
            epoch=epoch,
            consumed=consumed,
            strategy=strategy,
            cost=costs[number],
            units=objective.forward_units(state.backbone, strategy),
            squared_bias=sums.squared_bias(number),
            variance=sums.variance(number),
            batches=sums.batches,
            batch_size=state.data.batch_size * len(state.data.tasks),
            replicates=sums.replicates(number, costs[number]),
        )
        for number, strategy in enumerate(compared)
    ]


def _batches(state: TrainState) -> Iterator[Tensor]:
    """Yield batches of SSL views without end, by streams of their own."""
    number = _APART
    while True:
        yield from (images for images, _ in state.data.batches(state.recipe, Epoch(number, "ssl", 0, None)))
        number += 1


def measure_profile(
    recipe: Recipe,
    device: torch.device,
    shares: Sequence[float],
    batches: int,
    strategies: Sequence[Strategy] | None = None,
) -> Iterator[list[GradientError]]:
    """Train a recipe's SSL budget without compression, and yield the errors at shares of it.

    Raises RequestError for an objective that does not shorten sequences and for a recipe without SSL epochs.
    """
    settings = recipe.ssl
    if not isinstance(settings, InvarianceSettings):
        raise RequestError(f"ssl.objective {settings.objective} has no ssl.compression: choose simclr, mocov3 or dino")
    if not recipe.epochs.ssl:
        raise RequestError("epochs.ssl is 0, so there is no gradient of the SSL loss: raise it")
    if batches < GROUPS:
        raise RequestError(f"the error of a variance needs at least {GROUPS} batches, got {batches}")
    compared = [{"from_epoch": number, **settings_of(each)} for number, each in enumerate(strategies or ())]
    if len({UNCOMPRESSED, *(strategies or ())}) > MAX_SHAPES:
        raise RequestError(f"at most {MAX_SHAPES} strategies can be compared, the uncompressed one included")
    untrained = {"rho": 0.0, "ssl.compression.schedule": "none"}
    plain = change_recipe(recipe, {**untrained, "ssl.compression.stages": compared})  # which have to go with the images
    state = start_state(plain, load_training_data(plain, device), device)
    backbone, objective = state.backbone, state.objective
    assert isinstance(objective, InvarianceObjective)
    if strategies is None:
        strategies = default_strategies(backbone.patch_size, backbone.image_size)
    whole = objective.forward_units(backbone, UNCOMPRESSED)
    due = sorted({round(share * plain.epochs.ssl) for share in shares})
    training = train(state)
    for epochs in due:
        while len(state.history) < epochs:
            next(training)
        yield measure_errors(state, strategies, batches, consumed=epochs * whole)


def jackknife_error(replicates: Sequence[float]) -> float:
    """Return the standard error of a figure from its values without each group in turn (Efron and Stein 1981)."""
    groups, mean = len(replicates), math.fsum(replicates) / len(replicates)
    return math.sqrt((groups - 1) / groups * math.fsum((value - mean) ** 2 for value in replicates))


def difference_error(one: GradientError, other: GradientError) -> float:
    """Return the standard error of the difference of two strategies' CA-MSE at a point, over the same batches."""
    pairs = zip(one.replicates, other.replicates, strict=True)
    return jackknife_error([own - others for own, others in pairs]) if one.replicates else 0.0


def find_undecided(profile: Sequence[Sequence[GradientError]]) -> tuple[GradientError, int] | None:
    """Return a point's least CA-MSE that its batches do not tell from no compression, and how many would; or None.

    That is where the difference is less than two of its standard errors; of several points the one that needs most.
    """
    needed: list[tuple[GradientError, int]] = []
    for plain, *others in profile:
        best = min(others, key=lambda error: error.ca_mse, default=plain)
        gap = plain.ca_mse - best.ca_mse
        error = difference_error(plain, best)
        if 0 < gap < 2 * error:
            needed.append((best, math.ceil(best.batches * (2 * error / gap) ** 2)))
    return max(needed, key=lambda each: each[1], default=None)


def find_stages(profile: Sequence[Sequence[GradientError]]) -> tuple[list[Period], int]:
    """Return the schedule of a profile, its points from the start to the end of a budget, and the epochs that spend it.

    It begins uncompressed, and at each point goes over to the strategy with the least CA-MSE there where that is less
    than the present one's by more than the standard error of the difference. A strategy lasts until its epochs have
    consumed what lies between its point and the next one; stages begin at shares of those epochs, so that they spend
    the same shares of any budget.
    """
    chosen: list[GradientError] = []
    for errors in profile:
        present = next(e for e in errors if e.strategy == (chosen[-1].strategy if chosen else UNCOMPRESSED))
        best = min(errors, key=lambda error: error.ca_mse)
        is_better = present.ca_mse - best.ca_mse > difference_error(present, best)
        chosen.append(best if is_better else present)
    lengths = [(after.consumed - here.consumed) / here.units for here, after in pairwise(chosen)]
    epochs, begun, stages = math.fsum(lengths), 0.0, list[Period]()
    for error, length in zip(chosen, lengths, strict=False):  # the end has none
        stage = Period(from_share=round(begun / epochs, 6), **error.settings)
        if not stages or stages[-1].to_strategy() != stage.to_strategy():
            stages.append(stage)
        begun += length
    return stages, max(1, round(epochs))
