"""What a recipe needs of a GPU's memory, and how many trials share one without running each other out of it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from mixtune.space.recipe import Recipe
from mixtune.training.data import TrainingData
from mixtune.training.evaluation import EVALUATION_BATCH, tally_predictions
from mixtune.training.loop import train_step
from mixtune.training.plan import make_plan
from mixtune.training.state import start_state
from mixtune.training.streams import torch_generator

HEADROOM = 1.15  # ours: fragmentation, and workspaces that cuDNN and cuBLAS choose differently another time
MIN_FRACTION = 0.1  # of a trial's fraction, which the allocator gets however large the context is

_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",  # besides the allocator: a context or a kernel that finds no room
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def peak_memory(recipe: Recipe, data: TrainingData, device: torch.device) -> int:
    """Return the bytes that PyTorch's allocator reserves at most for training a recipe, its images among them.

    data: on the device, which is a GPU. Measured without torch.compile, which saves memory. Raises
    torch.OutOfMemoryError where the recipe does not fit at all.
    """
    assert device.type == "cuda"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    rehearse(recipe, data, device)
    return torch.cuda.max_memory_reserved(device)


def rehearse(recipe: Recipe, data: TrainingData, device: torch.device) -> None:
    """Do what a training run's memory depends on: steps of each phase that it has, and a batch of evaluation."""
    state = start_state(recipe, data, device)
    epochs = {epoch.work: epoch for epoch in make_plan(recipe)}
    for epoch in epochs.values():
        masks = torch_generator(recipe.seed, "masks", epoch.index, device)
        state.backbone.train()
        for _ in range(2):  # only from the second step on are AdamW's moments there during the forward pass
            images, labels = next(data.batches(recipe, epoch))
            train_step(state, epoch, images, labels, masks)
    held_out = data.tasks[0].held_out
    first = replace(held_out, indices=held_out.indices[:EVALUATION_BATCH])
    tally_predictions(state.backbone, state.classifiers[0], first, recipe.precision)


def context_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that this process holds besides the allocator's: the CUDA context, kernels.

    To be asked when no other process uses the GPU, whose memory would count as this one's, and after a step, which
    loads the kernels.
    """
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))


def largest_packing(total_bytes: int, context_bytes: int, peak_bytes: int, most: int = 16) -> int:
    """Return how many processes of ``context_bytes`` and ``peak_bytes`` a GPU holds: 1 to ``most``.

    Each gets HEADROOM over its peak. 1 also where not even one fits: it may still get through.
    """
    need = context_bytes + math.ceil(peak_bytes * HEADROOM)
    return max(1, min(most, total_bytes // need))


def allowed_bytes(fraction: float, total_bytes: int, context_bytes: int) -> int | None:
    """Return what a trial with a fraction of a GPU may allocate besides its context; None for whole GPUs: no limit."""
    if fraction >= 1:
        return None
    own = fraction * total_bytes
    return int(max(own - context_bytes, own * MIN_FRACTION))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a GPU's memory is full; PyTorch and CUDA's libraries say it in several ways."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
