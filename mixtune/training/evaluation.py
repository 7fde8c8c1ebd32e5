"""Classifiers on held-out images, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mixtune.backbone import Backbone
from mixtune.run.predictions import Classes, HeldOut, encode_classes
from mixtune.training.data import ImagePool, TrainingData
from mixtune.training.device import autocast
from mixtune.training.scores import Scores, Tally
from mixtune.training.state import Classifier, TrainState

EVALUATION_BATCH = 1024


def measure_scores(
    state: TrainState, pools: Sequence[ImagePool] | None = None, before_batch: Callable[[], None] = lambda: None
) -> tuple[Scores, ...]:
    """Return each task's figures on its pool, by default on its held-out images, whose predictions the state keeps."""
    held_out = [task.held_out for task in state.data.tasks]
    parts = zip(state.classifiers, held_out if pools is None else pools, strict=True)
    precision = state.recipe.precision
    tallies = [tally_predictions(state.backbone, *part, precision, before_batch) for part in parts]
    if pools is None:
        state.predictions = tuple(tally.predictions() for tally in tallies)
    return tuple(tally.scores() for tally in tallies)


def describe_held_out(data: TrainingData) -> HeldOut:
    """Return the identity and the true classes of the images that accuracies are of."""
    return HeldOut.of({task.name: (len(task.classes), *_numbers(task.held_out)) for task in data.tasks})


def encode_predictions(state: TrainState) -> dict[str, str]:
    """Return the predicted class of every held-out image by task (encode_classes); empty where none was predicted."""
    if state.predictions is None:
        return {}
    named = zip(state.data.tasks, state.predictions, strict=True)
    return {task.name: encode_classes(predicted.numpy()) for task, predicted in named}


def _numbers(pool: ImagePool) -> tuple[Classes, Classes]:
    assert pool.labels is not None
    return pool.labels[pool.indices].cpu().numpy(), pool.indices.cpu().numpy()


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
