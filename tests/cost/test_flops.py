"""What a space will cost at most, and how fast this machine is."""

from __future__ import annotations

from itertools import product

import torch

from mixtune.cost.flops import Size, measure_speeds, most_expensive_recipe, recipe_flops
from mixtune.space.space import space_from_dict
from mixtune.training.plan import PHASES

SIZE = Size(image_size=8, channels=1, classes=(10,), images=(1437,))


def test_the_most_expensive_recipe_is_the_one_that_trying_all_finds(make_recipe):
    def cost(recipe):
        return sum(recipe_flops(recipe, SIZE).values())

    for space in (
        {"epochs.ssl": {"randint": [0, 4]}, "epochs.sl": {"qrandint": [2, 6, 2]}, "rho": {"quniform": [0.0, 1.0, 0.5]}},
        {"ssl.encode": {"choice": ["visible", "full"]}, "rho": {"quniform": [0.0, 1.0, 0.25]}},
        {
            "model.depth": {"randint": [1, 3]},
            "model.patch_size": {"choice": [4, 1, 2]},
            "ssl.mask_ratio": {"choice": [0.9, 0.5]},
        },
        {"optim.batch_size": {"choice": [100, 32, 700]}, "data.fraction": {"choice": [0.55, 1.0]}},
        {"alpha": {"quniform": [0.0, 1.0, 0.5]}},
        {},
    ):
        searched = space_from_dict({"recipe": make_recipe().to_dict(), "space": space})
        grids = [distribution.grid() for distribution in searched.space.values()]
        costs = [cost(searched.recipe_at(dict(zip(searched.space, point, strict=True)))) for point in product(*grids)]
        assert cost(most_expensive_recipe(searched, SIZE)) == max(costs), space


def test_measuring_speeds_gives_every_phases_and_leaves_the_data_and_the_random_state_alone(make_state):
    state = make_state({"rho": 0.0})  # it has no mix phase of its own
    before, pixels = torch.get_rng_state(), state.data.tasks[0].train.images.clone()
    speeds = measure_speeds(state.recipe, state.data, torch.device("cpu"))
    assert set(speeds) == set(PHASES)
    assert min(speeds.values()) > 1e6
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(state.data.tasks[0].train.images, pixels)
    assert state.data.batch_size == 32
