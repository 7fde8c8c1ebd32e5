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

_APART = 10**6  # epoch numbers from here on: streams that no training draws from


@dataclass(frozen=True)
class GradientError:
    """How a strategy's gradient differs from the uncompressed one, after ``epoch`` epochs.

    consumed: the budget spent until then, in forward passes of the whole backbone for each image; cost: of the
    strategy's training step, relative to an uncompressed one's, in FLOPs; units: forward passes that an epoch of
    the strategy costs for each image; squared_bias: of the mean over batches,
    its sampling bias taken off, so it may come out below 0; variance: of one batch's gradient; batches: how many pairs
    were compared; batch_size: images of each.
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

    @property
    def settings(self) -> dict[str, Any]:
        """The strategy by the names of ``ssl.compression``."""
        query, key = self.strategy
        dropout = {"token_dropout": query.token_dropout, "key_token_dropout": key.token_dropout}
        return {**dropout, "patch_size": query.patch_size, "key_patch_size": key.patch_size}

    @property
    def adjusted_variance(self) -> float:
        """The variance at equal compute, which buys 1 / cost as many images."""
        return self.cost * self.variance

    @property
    def ca_mse(self) -> float:
        """Squared bias and cost-adjusted variance: the cost-adjusted mean squared error."""
        return self.squared_bias + self.adjusted_variance


class ErrorSums:
    """Running sums over paired batches, whose memory does not grow with their number: a vector a strategy, and two."""

    def __init__(self, strategies: int) -> None:
        self.batches = 0
        self._whole: list[Tensor] = []
        self._differences: list[list[Tensor]] = [[] for _ in range(strategies)]
        self._squared_differences = [0.0] * strategies
        self._squares = [0.0] * strategies

    def add(self, whole: Sequence[Tensor], shortened: Iterable[Sequence[Tensor]]) -> None:
        """Take in a batch: its uncompressed gradient, and that of each strategy in turn."""
        self.batches += 1
        self._whole = _add(self._whole, whole)
        for number, gradient in enumerate(shortened):
            difference = torch._foreach_sub(list(gradient), list(whole))
            self._squares[number] += _squared_norm(gradient)
            self._squared_differences[number] += _squared_norm(difference)
            self._differences[number] = _add(self._differences[number], difference)

    def squared_bias(self, strategy: int) -> float:
        """Return |mean d|^2 - s^2 / M of the differences d to the uncompressed gradient; s^2: their sample variance."""
        squared_mean = _squared_norm(self._differences[strategy]) / self.batches**2
        spread = self._squared_differences[strategy] - self.batches * squared_mean
        return squared_mean - spread / (self.batches - 1) / self.batches

    def variance(self, strategy: int) -> float:
        """Return the sample variance of a strategy's gradient, E |g - E g|^2, summed over the parameters."""
        total = torch._foreach_add(self._whole, self._differences[strategy])
        return (self._squares[strategy] - _squared_norm(total) / self.batches) / (self.batches - 1)


def _add(total: list[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    if not total:
        return [value.clone() for value in values]
    torch._foreach_add_(total, list(values))
    return total


def _squared_norm(values: Sequence[Tensor]) -> float:
    return math.fsum(value.double().square().sum().item() for value in values)


def default_strategies(patch_size: int, image_size: int) -> list[Strategy]:
    """Return what is compared with the uncompressed gradient: token dropout of one branch, of both, larger patches."""
    query = [Strategy(query=Shortening(rate)) for rate in (0.25, 0.5, 0.75)]
    both = [Strategy(Shortening(rate), Shortening(rate)) for rate in (0.5, 0.75)]
    larger = 2 * patch_size
    patches = [Strategy(Shortening(0.0, larger), Shortening(0.0, larger))] if 2 * larger <= image_size else []
    return [*query, *both, *patches]


def measure_errors(
    state: TrainState, strategies: Sequence[Strategy], batches: int, consumed: float
) -> list[GradientError]:
    """Compare each strategy's gradient with the uncompressed one in a state, which stays as it is.

    A batch's images, views, weights and, for MoCo-v3 and DINO, the momentum encoder are the same for all; the gradient
    is of all parameters that the objective trains. The uncompressed one comes first, its bias exactly 0.
    """
    objective, epoch = state.objective, len(state.history)
    assert isinstance(objective, InvarianceObjective)
    parameters = [p for part in (state.backbone, objective) for p in part.parameters() if p.requires_grad]
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
    cost = objective.train_flops(state.backbone, False, UNCOMPRESSED)
    return [
        GradientError(
            epoch=epoch,
            consumed=consumed,
            strategy=strategy,
            cost=objective.train_flops(state.backbone, False, strategy) / cost,
            units=objective.forward_units(state.backbone, strategy),
            squared_bias=sums.squared_bias(number),
            variance=sums.variance(number),
            batches=sums.batches,
            batch_size=state.data.batch_size * len(state.data.tasks),
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
    if batches < 2:
        raise RequestError(f"a variance needs at least 2 batches, got {batches}")
    plain = change_recipe(recipe, {"rho": 0.0, "ssl.compression.schedule": "none"})
    state = start_state(plain, load_training_data(plain, device), device)
    backbone, objective = state.backbone, state.objective
    assert isinstance(objective, InvarianceObjective)
    if strategies is None:
        strategies = default_strategies(backbone.patch_size, backbone.image_size)
    if len({UNCOMPRESSED, *strategies}) > MAX_SHAPES:
        raise RequestError(f"at most {MAX_SHAPES} strategies can be compared, the uncompressed one included")
    whole = objective.forward_units(backbone, UNCOMPRESSED)
    due = sorted({round(share * plain.epochs.ssl) for share in shares})
    training = train(state)
    for epochs in due:
        while len(state.history) < epochs:
            next(training)
        yield measure_errors(state, strategies, batches, consumed=epochs * whole)


def find_stages(profile: Sequence[Sequence[GradientError]]) -> list[Period]:
    """Return the schedule of a profile: from each of its points on the strategy with the least CA-MSE there.

    A strategy lasts until its epochs have consumed what lies between its point and the next one; the last point's goes
    on for ever.
    """
    best = [min(errors, key=lambda error: error.ca_mse) for errors in profile]
    starts, epoch = [0], 0
    for here, following in pairwise(best):
        epoch += max(1, round((following.consumed - here.consumed) / here.units))
        starts.append(epoch)
    stages: list[Period] = []
    for start, error in zip(starts, best, strict=True):
        stage = Period(from_epoch=start, **error.settings)
        if not stages or stages[-1].to_strategy() != stage.to_strategy():
            stages.append(stage)
    return stages
