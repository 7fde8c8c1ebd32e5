"""What a space will cost at most, in all and in a step, and how fast this machine is."""

from __future__ import annotations

from itertools import product

import torch

from mixtune.cost.flops import (
    Size,
    largest_recipe,
    measure_speeds,
    most_expensive_recipe,
    recipe_bill,
    recipe_flops,
    step_flops,
)
from mixtune.cost.machine import Machine
from mixtune.cost.model import CostModel
from mixtune.meter.times import StepTimes
from mixtune.space.space import space_from_dict
from mixtune.training.data import load_training_data
from mixtune.training.device import describe_device
from mixtune.training.plan import PHASES
from mixtune.training.state import start_state

SIZE = Size(image_size=8, channels=1, classes=(10,), images=(1437,))


def total(recipe):
    return sum(recipe_flops(recipe, SIZE).values())


def test_the_most_expensive_and_the_largest_recipe_are_those_that_trying_all_finds(make_recipe):
    rho, masked = {"rho": {"quniform": [0.0, 1.0, 0.25]}}, {"ssl.mask_ratio": {"choice": [0.9, 0.5]}}
    for base, space in (
        ({}, {"epochs.ssl": {"randint": [0, 4]}, "epochs.sl": {"qrandint": [2, 6, 2]}, **rho}),
        ({}, {"epochs.sl": {"randint": [1, 20]}, "optim.batch_size": {"choice": [32, 128, 64]}}),
        ({}, {"ssl.encode": {"choice": ["visible", "full"]}, **rho}),
        ({}, {"model.depth": {"randint": [1, 4]}, "model.patch_size": {"choice": [4, 1, 2]}, **masked}),
        ({}, {"alpha": {"quniform": [0.0, 1.0, 0.5]}}),
        # 700 is more than all that 0.4 leaves
        ({}, {"optim.batch_size": {"choice": [100, 32, 700]}, "data.fraction": {"choice": [0.4, 1.0]}}),
        # only together do they make a mix phase
        ({"epochs.ssl": 0, "rho": 0.0, "ssl.decoder_depth": 1}, {**rho, "epochs.ssl": {"choice": [0, 4]}}),
        # the base recipe's budgets and depth are none of the space's
        (
            {"epochs.ssl": 50, "epochs.sl": 50, "model.depth": 6},
            {"epochs.ssl": {"choice": [2, 4]}, "epochs.sl": {"choice": [3, 6]}, "model.depth": {"choice": [1, 2]}},
        ),
        ({}, {}),
    ):
        searched = space_from_dict({"recipe": make_recipe(base).to_dict(), "space": space})
        grids = [distribution.grid() for distribution in searched.space.values()]
        recipes = [searched.recipe_at(dict(zip(searched.space, point, strict=True))) for point in product(*grids)]
        assert total(most_expensive_recipe(searched, SIZE)) == max(map(total, recipes)), space
        most = max(step_flops(recipe, SIZE) for recipe in (*recipes, searched.recipe))  # which baselines train
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


def test_measuring_speeds_gives_every_phases_and_leaves_the_data_and_the_random_state_alone(make_state):
    stages = [{"from_epoch": 0, "token_dropout": 0.5}, {"from_epoch": 1}]
    for changes in (
        {"rho": 0.0},  # it has no mix phase of its own
        {"ssl.objective": "dino", "ssl.compression": {"schedule": "auto", "stages": stages}},
        {"data.dataset": ["digits", "digits"]},
    ):
        state = make_state(changes)
        before, pixels = torch.get_rng_state(), state.data.tasks[0].train.images.clone()
        speeds = measure_speeds(state.recipe, state.data, torch.device("cpu"))
        assert set(speeds) == set(PHASES), changes
        assert min(speeds.values()) > 1e6, changes
        assert torch.equal(torch.get_rng_state(), before), changes
        assert torch.equal(state.data.tasks[0].train.images, pixels), changes
        assert state.data.batch_size == 32


def test_a_forecast_has_the_bill_that_the_trial_will_have(make_recipe):
    """Its steps and cost signatures, whatever is mixed in and however long an SSL epoch is."""
    choices = {
        "data.partners": ["own", "pool", "auto"],
        "data.ssl_fraction": [None, 0.5, 1.0],
        "data.ssl_epoch": ["supervised", "pool"],
    }
    drawn = {path: {"choice": values} for path, values in choices.items()}
    space = space_from_dict({"recipe": make_recipe({"rho": 0.5}).to_dict(), "space": drawn})
    device = torch.device("cpu")
    machine = Machine(describe_device(device), torch.get_num_threads(), "float32", dict.fromkeys(PHASES, 1.0))
    costs = CostModel(space, load_training_data(space.recipe), machine)
    for point in product(*choices.values()):
        recipe = space.recipe_at(dict(zip(choices, point, strict=True)))
        bill, forecast = start_state(recipe, load_training_data(recipe)).bill, costs.bill(recipe)
        assert (forecast.steps, forecast.epochs) == (bill.steps, bill.epochs), point


def test_a_sampler_that_prices_its_candidates_again_computes_no_bill_again(make_recipe, monkeypatch):
    space = space_from_dict({"recipe": make_recipe().to_dict(), "space": {"alpha": {"choice": [0.2, 0.8]}}})
    machine = Machine("a CPU", 1, "float32", dict.fromkeys(PHASES, 1e9))
    costs, computed = CostModel(space, load_training_data(space.recipe), machine), []
    monkeypatch.setattr("mixtune.cost.model.recipe_bill", lambda *given: computed.append(1) or recipe_bill(*given))
    for alpha in (0.2, 0.8, 0.2, 0.8):
        assert costs.cost({"alpha": alpha}, StepTimes()) is not None
        assert costs.fault({"alpha": alpha}) is None
    assert len(computed) == 2
