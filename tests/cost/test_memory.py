"""How many trials share a GPU, and what each may take of it."""

from __future__ import annotations

import pytest
import torch

from mixtune.cost import memory
from mixtune.cost.memory import (
    HEADROOM,
    allowed_bytes,
    context_bytes,
    is_out_of_memory,
    largest_packing,
    peak_memory,
)
from mixtune.errors import TrainingError
from mixtune.training.data import load_training_data
from mixtune.training.device import limit_memory
from mixtune.training.plan import PHASES

GIB = 2**30

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a GPU's memory, and there is none")


def test_as_many_are_packed_as_fit_with_their_contexts_and_may_allocate_what_they_were_packed_for():
    assert HEADROOM == 1.15  # what the numbers are made with
    for total, peak, packed in (
        (80 * GIB, 10 * GIB, 6),  # 80 / (0.5 + 11.5) = 6.67
        (24 * GIB, 10 * GIB, 2),  # exactly
        (24 * GIB - 1, 10 * GIB, 1),
        (8 * GIB, 10 * GIB, 1),  # not even one
        (80 * GIB, GIB // 10, 16),  # no more than requested
    ):
        assert largest_packing(total, GIB // 2, peak) == packed, (total, peak)
    assert largest_packing(80 * GIB, GIB // 2, GIB // 10, most=4) == 4
    for peak in (GIB // 3, GIB, 3 * GIB, 7 * GIB):
        share = 1 / largest_packing(80 * GIB, GIB // 2, peak)
        assert allowed_bytes(share, 80 * GIB, GIB // 2) >= peak * HEADROOM - 1, peak


def test_a_trial_may_allocate_its_share_less_its_context():
    assert allowed_bytes(0.25, 80 * GIB, GIB) == 19 * GIB
    assert allowed_bytes(0.25, 4 * GIB, GIB) == GIB // 10  # the context takes it all
    assert allowed_bytes(1.0, 80 * GIB, GIB) is None
    assert allowed_bytes(2.0, 80 * GIB, GIB) is None


def test_a_full_gpu_is_told_from_other_failures():
    for error, expected in (
        (torch.OutOfMemoryError("Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (TrainingError("the loss is nan in epoch 1 (ssl phase), step 2"), False),
        (MemoryError("CUDA out of memory"), False),  # the host's
    ):
        assert is_out_of_memory(error) is expected, error


def test_a_limit_is_set_as_a_fraction_of_the_gpu_and_none_where_there_is_none(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *values: given.append(values))
    for device, limit in (("cpu", 1), ("cpu", None), ("cuda", None)):
        limit_memory(torch.device(device), limit)
    assert given == []
    for limit in (GIB, 9 * GIB, 0):
        limit_memory(torch.device("cuda"), limit)
    assert given == [(0.125, None), (1.0, None), (1 / (8 * GIB), None)]


def test_a_rehearsal_goes_through_every_phase_and_evaluates_and_leaves_data_and_random_state_alone(
    make_recipe, monkeypatch
):
    seen = []
    step, evaluate = memory.train_step, memory.tally_predictions

    def watched_step(state, epoch, images, *others):
        seen.append((epoch.phase, len(images)))
        return step(state, epoch, images, *others)

    def watched_evaluation(backbone, classifier, pool, precision):
        seen.append(("evaluation", len(pool)))
        return evaluate(backbone, classifier, pool, precision)

    monkeypatch.setattr(memory, "train_step", watched_step)
    monkeypatch.setattr(memory, "tally_predictions", watched_evaluation)
    for changes, batch, phases in (
        ({"optim.batch_size": 64}, 64, PHASES),
        ({"epochs.ssl": 0}, 32, ("sl",)),
        ({"data.dataset": ["digits", "digits"]}, 64, PHASES),
        ({"optim.batch_size": 129}, 129, PHASES),
    ):
        recipe = make_recipe({"rho": 0.5, **changes})
        data = load_training_data(recipe)
        before, pixels = torch.get_rng_state(), data.tasks[0].train.images.clone()
        seen.clear()
        memory.rehearse(recipe, data, torch.device("cpu"))
        assert seen == [(phase, batch) for phase in phases for _ in range(2)] + [("evaluation", 144)], changes
        assert torch.equal(torch.get_rng_state(), before), changes
        assert torch.equal(data.tasks[0].train.images, pixels), changes


@needs_gpu
def test_a_larger_batch_and_model_need_more_memory(make_recipe):
    device = torch.device("cuda")
    peaks = []
    for changes in ({}, {"optim.batch_size": 128, "model.embed_dim": 256, "model.depth": 8}):
        recipe = make_recipe(changes)
        peaks.append(peak_memory(recipe, load_training_data(recipe, device), device))
    assert 0 < peaks[0] < peaks[1] < torch.cuda.mem_get_info(device)[1]
    assert 0 <= context_bytes(device) < torch.cuda.mem_get_info(device)[1]


@needs_gpu
def test_a_limited_trial_runs_itself_out_of_memory():
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    try:
        limit_memory(device, torch.cuda.memory_reserved(device) + 64 * 2**20)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(128 * 2**20, dtype=torch.uint8, device=device)
        assert is_out_of_memory(caught.value)
    finally:
        limit_memory(device, torch.cuda.mem_get_info(device)[1])
    torch.empty(128 * 2**20, dtype=torch.uint8, device=device)
