"""Accuracy of a state's classifiers on held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from mixtune.training.data import ImagePool
from mixtune.training.state import TrainState

EVALUATION_BATCH = 1024


def measure_accuracies(
    state: TrainState, pools: Sequence[ImagePool] | None = None, before_batch: Callable[[], None] = lambda: None
) -> tuple[float, ...]:
    """Return each task's top-1 accuracy on its pool, by default on its held-out images; see measure_accuracy."""
    pools = [task.held_out for task in state.data.tasks] if pools is None else pools
    parts = zip(state.classifiers, pools, strict=True)
    return tuple(measure_accuracy(state, classifier, pool, before_batch) for classifier, pool in parts)


@torch.no_grad()
def measure_accuracy(
    state: TrainState, classifier: nn.Module, pool: ImagePool, before_batch: Callable[[], None] = lambda: None
) -> float:
    """Return the top-1 accuracy, in [0, 1], of one task's classifier on a pool's images, not augmented.

    NaN where there are no images, and where a logit is not finite: such weights classify nothing.
    """
    assert pool.labels is not None
    state.backbone.eval()
    correct = torch.zeros((), dtype=torch.int64, device=state.device)
    finite = torch.ones((), dtype=torch.bool, device=state.device)
    with state.autocast():
        for chosen in torch.split(pool.indices, EVALUATION_BATCH):
            before_batch()
            # forward is not compiled: the last batch is smaller, and each new shape would be compiled anew
            logits = classifier(state.backbone.forward(pool.plain(chosen)))
            finite &= logits.isfinite().all()
            correct += (logits.argmax(dim=1) == pool.labels[chosen]).sum()
    return correct.item() / len(pool) if len(pool) and finite else math.nan


def standard_error(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy on ``images`` images."""
    return math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / images) if images else math.nan
