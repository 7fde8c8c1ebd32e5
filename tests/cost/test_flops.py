"""What a space will cost at most, and how fast this machine is."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mixtune.cost.flops import Size, forecast_latency, measure_speeds, most_expensive_recipe, recipe_flops
from mixtune.space.space import space_from_dict
from mixtune.training.plan import PHASES

SIZE = Size(image_size=8, channels=1, classes=(10,), images=(1437,))


@pytest.mark.parametrize(
    "space",
    [
        {"epochs.ssl": {"randint": [0, 4]}, "epochs.sl": {"qrandint": [2, 6, 2]}, "rho": {"quniform": [0.0, 1.0, 0.5]}},
        {"ssl.encode": {"choice": ["visible", "full"]}, "rho": {"quniform": [0.0, 1.0, 0.25]}},
        {
            "model.depth": {"randint": [1, 4]},
            "model.patch_size": {"choice": [4, 1, 2]},
            "ssl.mask_ratio": {"choice": [0.9, 0.5]},
        },
        {"optim.batch_size": {"choice": [100, 32, 700]}, "data.fraction": {"choice": [0.55, 1.0]}},
        {"alpha": {"quniform": [0.0, 1.0, 0.5]}},
        {},
    ],
)
def test_the_most_expensive_recipe_is_the_one_that_trying_all_finds(make_recipe, space):
    searched = space_from_dict({"recipe": make_recipe().to_dict(), "space": space})

    def cost(recipe):
        return sum(recipe_flops(recipe, SIZE).values())

    grids = [distribution.grid() for distribution in searched.space.values()]
    costs = [cost(searched.recipe_at(dict(zip(searched.space, point, strict=True)))) for point in product(*grids)]
    assert cost(most_expensive_recipe(searched, SIZE)) == max(costs)


def test_every_phase_has_a_measured_speed(make_state):
    state = make_state({"rho": 0.0})  # it has no mix phase of its own
    speeds = measure_speeds(state.recipe, state.data, torch.device("cpu"))
    assert set(speeds) == set(PHASES)
    assert min(speeds.values()) > 1e6


def test_measuring_speeds_leaves_the_data_and_the_random_state_alone(make_state):
    state = make_state()
    before, pixels = torch.get_rng_state(), state.data.tasks[0].train.images.clone()
    measure_speeds(state.recipe, state.data, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(state.data.tasks[0].train.images, pixels)
    assert state.data.batch_size == 32


def test_latency_is_operations_over_speed_summed_over_the_phases():
    flops = {"ssl": 6e9, "mix": 0.0, "sl": 8e9}
    assert forecast_latency(flops, {"ssl": 2e9, "mix": 1e9, "sl": 4e9}) == 5.0
