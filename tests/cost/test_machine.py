"""What steps are forecast to take: timed at the ends of a space's batch sizes and models, and a line between."""

from __future__ import annotations

import pytest
import torch
import yaml

from mixtune.cost.flops import Size, fit_steps, sizes_to_time
from mixtune.cost.machine import Machine, look_at_machine
from mixtune.cost.model import CostModel
from mixtune.meter.times import StepTimes
from mixtune.space.space import space_from_dict
from mixtune.training.data import load_training_data
from mixtune.training.plan import PHASES

SIZE = Size(image_size=8, channels=1, classes=(10,), images=(1437,))
CPU = torch.device("cpu")
OLD = {"device": "a CPU", "threads": 1, "precision": "float32", "speeds": dict.fromkeys(PHASES, 1e9), "gpu_bytes": None}


def test_steps_are_fitted_by_what_they_take_anyway_and_what_each_flop_adds():
    assert fit_steps([(flops, 0.005 + 2e-9 * flops) for flops in (1e6, 4e6, 16e6)]) == pytest.approx((0.005, 2e-9))
    assert fit_steps([(1e6, 0.002)]) == pytest.approx((0.0, 2e-9))
    assert fit_steps([(1e6, 0.002), (1e6, 0.002)]) == pytest.approx((0.0, 2e-9))  # models of equal FLOPs
    fixed, each = fit_steps([(1e6, 0.001), (10e6, 0.02)])  # faster than in proportion: noise
    assert fixed == 0.0
    assert 1e-9 < each < 2e-9
    fixed, each = fit_steps([(1e6, 0.003), (10e6, 0.002)])  # a GPU that does not mind how large its steps are
    assert 0.002 < fixed < 0.003
    assert each == 0.0


def test_the_ends_of_batches_and_models_are_timed_and_nothing_else_is(make_recipe):
    def timed(device: str, **space):
        drawn = space_from_dict({"recipe": make_recipe({"rho": 0.5}).to_dict(), "space": space})
        recipes = sizes_to_time(drawn, SIZE, torch.device(device))
        assert all(recipe.epochs == drawn.recipe.epochs for recipe in recipes)
        return [(recipe.model.depth, recipe.model.embed_dim, recipe.optim.batch_size) for recipe in recipes]

    batches = {"optim.batch_size": {"choice": [32, 8, 128]}}
    models = {"model.depth": {"randint": [1, 4]}, "model.embed_dim": {"choice": [32, 16]}}
    assert timed("cpu", **{"epochs.sl": {"randint": [1, 9]}}) == [(2, 16, 32)]
    assert timed("cpu", **batches) == [(2, 16, 8), (2, 16, 64)]
    assert timed("cuda", **batches) == [(2, 16, 8), (2, 16, 128)]
    assert timed("cpu", **{"optim.batch_size": {"choice": [100, 200]}}) == [(2, 16, 64)]
    assert timed("cpu", **models) == [(1, 16, 32), (3, 32, 32)]
    assert timed("cpu", **batches, **models) == [(1, 16, 8), (1, 16, 64), (3, 32, 8), (3, 32, 64)]
    # a width that its heads do not divide is no recipe
    assert timed("cpu", **{"model.num_heads": {"choice": [2, 3]}, "model.embed_dim": {"choice": [16, 24]}}) == [
        (2, 16, 32),
        (2, 24, 32),
    ]


def test_a_machine_knows_small_steps_and_one_of_an_older_run_goes_by_its_speed(make_recipe):
    values = {"recipe": make_recipe().to_dict(), "space": {"optim.batch_size": {"choice": [8, 32]}}}
    space = space_from_dict(values)
    found = look_at_machine(space, 1, on_gpu=False)
    assert Machine(**yaml.safe_load(yaml.safe_dump(found.to_dict()))).step_seconds("sl", 2e6) == found.step_seconds(
        "sl", 2e6
    )
    assert set(found.step_costs) == set(found.speeds) == set(PHASES)
    assert all(found.step_seconds(phase, 0.0) + found.step_seconds(phase, 1e6) > 0.0 for phase in PHASES)

    old, data = Machine(**OLD), load_training_data(space.recipe)
    assert old.step_seconds("mix", 2e6) == 0.002
    known = Machine(**OLD, step_costs={phase: [0.01, 1e-9] for phase in PHASES})
    small = make_recipe({"optim.batch_size": 8})
    bill = CostModel(space, data, old).bill(small)
    steps = sum(bill.steps[phase] for phase, _, _ in bill.epochs)
    seconds = [CostModel(space, data, machine).latency(small, StepTimes()) for machine in (old, known)]
    assert seconds[1] == pytest.approx(seconds[0] + 0.01 * steps)


def test_where_one_size_was_timed_nothing_is_known_of_others(make_recipe):
    space = space_from_dict({"recipe": make_recipe().to_dict(), "space": {"epochs.sl": {"randint": [1, 4]}}})
    found = look_at_machine(space, 1, on_gpu=False)
    assert found.step_costs == {}
    assert found.step_seconds("sl", 2e6) == pytest.approx(2e6 / found.speeds["sl"])
