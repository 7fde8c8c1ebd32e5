"""Classifiers on held-out images, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mixtune.backbone import Backbone
from mixtune.training.data import ImagePool
from mixtune.training.device import autocast
from mixtune.training.scores import Scores, Tally
from mixtune.training.state import Classifier, TrainState

EVALUATION_BATCH = 1024


def measure_scores(
    state: TrainState, pools: Sequence[ImagePool] | None = None, before_batch: Callable[[], None] = lambda: None
) -> tuple[Scores, ...]:
    """Return each task's figures on its pool, by default on its held-out images; see tally_answers."""
    pools = [task.held_out for task in state.data.tasks] if pools is None else pools
    parts = zip(state.classifiers, pools, strict=True)
    precision = state.recipe.precision
    return tuple(tally_predictions(state.backbone, *part, precision, before_batch).scores() for part in parts)


@torch.no_grad()
def tally_predictions(
    backbone: Backbone,
    classifier: nn.Module,
    pool: ImagePool,
    precision: str,
    before_batch: Callable[[], None] = lambda: None,
) -> Tally:
    """Count what a task's classifier answers on a pool's images, which are not augmented; precision: the recipe's."""
    assert pool.labels is not None
    assert isinstance(classifier, Classifier)
    device = pool.indices.device
    backbone.eval()
    tally = Tally(classifier.head.out_features, device)
    for chosen in torch.split(pool.indices, EVALUATION_BATCH):
        before_batch()
        with autocast(precision, device):
            # forward is not compiled: the last batch is smaller, and each new shape would be compiled again
            logits = classifier(backbone.forward(pool.plain(chosen)))
        tally.add(logits, pool.labels[chosen])
    return tally
