"""Accuracy of a state's classifier on a split."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixtune.training.state import TrainState

EVALUATION_BATCH = 1024


@torch.no_grad()
def measure_accuracy(state: TrainState, indices: Tensor) -> float:
    """Return the top-1 accuracy, in [0, 1], on the images at ``indices``.

    NaN where there are no images, and where a logit is not finite: such weights classify nothing.
    """
    source = state.data.supervised
    assert source.labels is not None
    state.backbone.eval()
    correct = torch.zeros((), dtype=torch.int64, device=state.device)
    finite = torch.ones((), dtype=torch.bool, device=state.device)
    dtype = state.autocast_dtype
    with torch.autocast(state.device.type, dtype, enabled=dtype != torch.float32):
        for chosen in torch.split(indices, EVALUATION_BATCH):
            logits = state.classifier(state.backbone(source.plain(chosen)))
            finite &= logits.isfinite().all()
            correct += (logits.argmax(dim=1) == source.labels[chosen]).sum()
    return correct.item() / len(indices) if len(indices) and finite else math.nan


def standard_error(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy on ``images`` images."""
    return math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / images) if images else math.nan
