"""How many trials share a GPU, and what each may take of it."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mixtune.cost.flops import Size, largest_recipe, most_expensive_recipe, step_flops
from mixtune.cost.memory import (
    HEADROOM,
    allowed_bytes,
    context_bytes,
    is_out_of_memory,
    largest_packing,
    peak_memory,
    rehearse,
)
from mixtune.errors import TrainingError
from mixtune.space.space import space_from_dict
from mixtune.training.data import load_training_data
from mixtune.training.device import limit_memory

SIZE = Size(image_size=8, channels=1, classes=(10,), images=(1437,))
GIB = 2**30
CPU = torch.device("cpu")

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


def test_the_largest_recipe_is_the_one_that_trying_all_finds(make_recipe):
    for base, space in (
        ({}, {"optim.batch_size": {"choice": [32, 128, 64]}, "epochs.sl": {"randint": [1, 50]}}),
        # 700 is more than all that 0.4 leaves
        ({}, {"optim.batch_size": {"choice": [100, 700]}, "data.fraction": {"choice": [0.4, 1.0]}}),
        ({}, {"model.depth": {"randint": [1, 4]}, "model.patch_size": {"choice": [4, 1, 2]}}),
        ({}, {"ssl.encode": {"choice": ["visible", "full"]}, "rho": {"quniform": [0.0, 1.0, 0.25]}}),
        # only together do they make a mix phase
        (
            {"epochs.ssl": 0, "rho": 0.0, "ssl.encode": "visible", "ssl.decoder_depth": 1},
            {"rho": {"quniform": [0.0, 1.0, 0.5]}, "epochs.ssl": {"choice": [0, 4]}},
        ),
        ({}, {}),
    ):
        searched = space_from_dict({"recipe": make_recipe(base).to_dict(), "space": space})
        grids = [distribution.grid() for distribution in searched.space.values()]
        recipes = [searched.recipe_at(dict(zip(searched.space, point, strict=True))) for point in product(*grids)]
        most = max(step_flops(recipe, SIZE) for recipe in recipes)
        assert step_flops(largest_recipe(searched, SIZE), SIZE) == most, space


def test_a_large_batch_outweighs_a_long_training(make_recipe):
    # an epoch of batches of 1000 has 1000 of the 1293 images, one of batches of 8 has 1288
    values = {
        "recipe": make_recipe({"data.fraction": 1.0}).to_dict(),
        "space": {"optim.batch_size": {"choice": [8, 1000]}},
    }
    assert largest_recipe(space_from_dict(values), SIZE).optim.batch_size == 1000
    assert most_expensive_recipe(space_from_dict(values), SIZE).optim.batch_size == 8


def test_a_step_costs_its_images_in_its_dearest_phase(make_recipe):
    one, two = make_recipe({"optim.batch_size": 32}), make_recipe({"optim.batch_size": 64})
    tasks = Size(image_size=8, channels=1, classes=(10, 10), images=(1437, 1437))
    assert step_flops(two, SIZE) == 2 * step_flops(one, SIZE)
    assert step_flops(one, tasks) == 2 * step_flops(one, SIZE)
    assert step_flops(make_recipe({"rho": 0.0}), SIZE) < step_flops(make_recipe({"rho": 1.0}), SIZE)
    assert step_flops(make_recipe({"optim.batch_size": 5000}), SIZE) == 0.0


def test_a_rehearsal_leaves_the_data_and_the_random_state_alone(make_recipe):
    for changes in ({}, {"epochs.ssl": 0}, {"data.dataset": ["digits", "digits"]}, {"optim.batch_size": 129}):
        recipe = make_recipe(changes)
        data = load_training_data(recipe)
        before, pixels = torch.get_rng_state(), data.tasks[0].train.images.clone()
        rehearse(recipe, data, CPU)
        assert torch.equal(torch.get_rng_state(), before), changes
        assert torch.equal(data.tasks[0].train.images, pixels), changes


def test_a_rehearsal_goes_through_every_phase_and_evaluates(make_recipe, monkeypatch):
    from mixtune.cost import memory

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
    recipe = make_recipe({"optim.batch_size": 64, "rho": 0.5})
    rehearse(recipe, load_training_data(recipe), CPU)
    assert seen == [(phase, 64) for phase in ("ssl", "ssl", "mix", "mix", "sl", "sl")] + [("evaluation", 144)]


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
