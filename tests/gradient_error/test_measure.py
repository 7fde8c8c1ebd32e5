"""What shortened sequences do to the gradient: estimates against known answers, and the schedule that follows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mixtune.errors import RequestError
from mixtune.gradient_error.measure import (
    GROUPS,
    ErrorSums,
    GradientError,
    default_strategies,
    find_stages,
    find_undecided,
    jackknife_error,
    measure_errors,
    measure_profile,
)
from mixtune.space.compression import Compression
from mixtune.space.recipe import change_recipe, parse_recipe
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy
from mixtune.training.data import load_training_data
from mixtune.training.state import start_state

CPU = torch.device("cpu")
DROPPED = Strategy(query=Shortening(0.5))
LARGER = Strategy(Shortening(0.0, 4), Shortening(0.0, 4))


def recipe_of(objective="simclr", **changes):
    recipe = parse_recipe(
        {
            "data": {"dataset": "digits"},
            "model": {"patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
            "epochs": {"ssl": 4, "sl": 2},
            "ssl": {"objective": objective, "hidden_dim": 16},
            "optim": {"batch_size": 64, "ssl": {"base_lr": 0.004}},
        }
    )
    return change_recipe(recipe, changes)


def state_of(recipe):
    return start_state(recipe, load_training_data(recipe), CPU)


def weights_of(state):
    return {**state.backbone.state_dict(), **state.objective.state_dict()}


def error_of(epoch, consumed, strategy, ca_mse, units=1.0):
    return GradientError(epoch, consumed, strategy, 1.0, units, ca_mse, 0.0, batches=8, batch_size=64)


def synthetic(generator, bias, spread, whole_spread, size=400):
    """Return a batch's uncompressed gradient in two tensors, and one whose difference has that bias and variance."""
    noise = torch.randn(2, size, generator=generator) / math.sqrt(size)
    whole = 1.0 + whole_spread * noise[0]
    shortened = whole + bias / math.sqrt(size) + spread * noise[1]
    return [[gradient[:100], gradient[100:].view(30, 10)] for gradient in (whole, shortened)]


def test_a_known_bias_and_variance_are_found_without_the_bias_of_the_sample():
    batches, repeats = 6, 200
    for bias, spread in ((0.0, 2.0), (0.5, 2.0), (2.0, 0.5), (1.0, 0.0)):
        generator, found = torch.Generator().manual_seed(0), []
        for _ in range(repeats):
            sums = ErrorSums(1)
            for _ in range(batches):
                whole, shortened = synthetic(generator, bias, spread, whole_spread=1.5)
                sums.add(whole, [shortened])
            found.append((sums.squared_bias(0), sums.variance(0)))
        biases, variances = torch.tensor(found, dtype=torch.float64).T
        error = 4 * biases.std() / math.sqrt(repeats) + 1e-5
        assert biases.mean() == pytest.approx(bias**2, abs=error.item()), (bias, spread)
        assert variances.mean() == pytest.approx(1.5**2 + spread**2, rel=0.03), (bias, spread)
        if spread == 2.0:  # the plain estimate |mean d|^2 would be off by the variance over the batches
            assert error < 0.5 * spread**2 / batches


def test_the_sums_are_those_of_the_whole_sample():
    generator = torch.Generator().manual_seed(1)
    pairs = [synthetic(generator, 0.3, 1.0, 1.0) for _ in range(7)]
    sums = ErrorSums(2)
    for whole, shortened in pairs:
        sums.add(whole, iter([whole, shortened]))
    flat = [[torch.cat([part.flatten() for part in each]).double() for each in pair] for pair in pairs]
    differences = torch.stack([shortened - whole for whole, shortened in flat])
    gradients = torch.stack([shortened for _, shortened in flat])
    expected_bias = differences.mean(0).square().sum() - differences.var(0).sum() / 7
    assert sums.squared_bias(0) == 0.0
    assert sums.squared_bias(1) == pytest.approx(expected_bias.item(), rel=1e-4)
    assert sums.variance(1) == pytest.approx(gradients.var(0).sum().item(), rel=1e-4)
    assert sums.variance(0) == pytest.approx(torch.stack([whole for whole, _ in flat]).var(0).sum().item(), rel=1e-4)


def test_memory_does_not_grow_with_the_batches():
    def held(batches):
        sums = ErrorSums(2)
        whole = [torch.ones(100_000)]
        for _ in range(batches):
            sums.add(whole, [[torch.ones(100_000)], [torch.ones(100_000)]])
        totals = [total for group in sums._groups for total in (group.whole, *group.differences)]
        return sum(tensor.numel() for total in totals for tensor in total)

    assert held(8) == held(20) == GROUPS * 3 * 100_000


def test_the_errors_are_those_of_leaving_out_a_group_in_turn_and_of_repetition():
    """CA-MSE computed again without each group; and its standard deviation over many samples."""
    found, errors = [], []
    for repeat in range(60):
        generator = torch.Generator().manual_seed(repeat)
        pairs = [synthetic(generator, 0.5, 1.0, 1.0) for _ in range(4 * GROUPS)]
        sums = ErrorSums(1)
        for whole, shortened in pairs:
            sums.add(whole, [shortened])
        found.append(sums.squared_bias(0) + 0.5 * sums.variance(0))
        errors.append(jackknife_error(sums.replicates(0, cost=0.5)))
    without = ErrorSums(1)
    for number, (whole, shortened) in enumerate(pairs):
        if number % GROUPS != 1:
            without.add(whole, [shortened])
    expected = without.squared_bias(0) + 0.5 * without.variance(0)
    assert sums.replicates(0, cost=0.5)[1] == pytest.approx(expected, rel=1e-5)
    assert torch.tensor(errors).square().mean().sqrt() == pytest.approx(torch.tensor(found).std().item(), rel=0.4)


def test_too_few_batches_decide_nothing():
    """A gain of 0.1 with an error of 0.05 * sqrt(3 / 4 * 4 / 4): two of them are not reached with 0.06 of spread."""

    def point(gain, spread, batches=8):
        plain = replace(error_of(0, 0.0, UNCOMPRESSED, 1.0), replicates=(1.0,) * GROUPS, batches=batches)
        values = [1.0 - gain + sign * spread for sign in (1, -1, 1, -1)]
        return [plain, replace(error_of(0, 0.0, DROPPED, 1.0 - gain), replicates=tuple(values), batches=batches)]

    error = 0.06 * math.sqrt(3.0)
    undecided, needed = find_undecided([point(0.1, 0.06), point(0.5, 0.06)])
    assert undecided.ca_mse == pytest.approx(0.9)
    assert needed == math.ceil(8 * (2 * error / 0.1) ** 2)
    assert find_undecided([point(0.5, 0.06)]) is None
    assert find_undecided([point(-0.1, 0.06)]) is None  # no compression is the least


@pytest.mark.parametrize("objective", ["simclr", "mocov3", "dino"])
def test_no_compression_is_no_error_and_a_state_stays_as_it_was(objective):
    recipe = recipe_of(objective)
    state = state_of(recipe)
    before = {name: value.clone() for name, value in weights_of(state).items()}
    also_none = Strategy(Shortening(0.0, 2), Shortening(0.0, 2))  # the backbone's own patch size, by its number
    whole, same, dropped, larger = measure_errors(state, [also_none, DROPPED, LARGER], batches=3, consumed=0.0)
    assert whole.strategy == UNCOMPRESSED
    assert (whole.squared_bias, whole.cost) == (same.squared_bias, same.cost) == (0.0, 1.0)
    assert whole.variance == same.variance > 0
    for error in (dropped, larger):
        assert error.squared_bias != 0
        assert 0.2 < error.cost < 1.0
        assert error.ca_mse == error.squared_bias + error.cost * error.variance
        assert (error.batches, error.batch_size, error.epoch) == (3, 64, 0)
    after = weights_of(state)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in state.backbone.parameters())


def test_the_profile_is_of_the_uncompressed_training_and_measures_its_start_and_end():
    recipe = recipe_of(**{"ssl.compression.schedule": "constant", "ssl.compression.token_dropout": 0.75, "rho": 1.0})
    profile = list(measure_profile(recipe, CPU, [0.0, 0.5, 1.0], 4, [DROPPED]))
    assert [[(e.epoch, e.consumed) for e in point] for point in profile] == [
        [(0, 0.0)] * 2,
        [(2, 12.0)] * 2,
        [(4, 24.0)] * 2,
    ]
    plain = change_recipe(recipe, {"ssl.compression.schedule": "none"})
    again = list(measure_profile(plain, CPU, [0.5], 4, [DROPPED]))
    assert again == [profile[1]]


def test_what_is_compared_fits_the_images():
    assert LARGER in default_strategies(patch_size=2, image_size=8)
    assert all(s.query.patch_size is None for s in default_strategies(patch_size=4, image_size=8))
    assert len({UNCOMPRESSED, *default_strategies(2, 32)}) == 8
    assert Strategy(Shortening(0.5, 4), Shortening(0.0, 4)) in default_strategies(2, 32)  # both at once


def test_a_profile_that_cannot_be_measured_is_one_line():
    for recipe, batches, strategies, said in (
        (recipe_of(**{"ssl.objective": "mae"}), 2, None, "mae has no ssl.compression"),
        (recipe_of(**{"epochs.ssl": 0}), 2, None, "epochs.ssl is 0"),
        (recipe_of(), 3, None, "at least 4 batches, got 3"),
        (recipe_of(), 4, [Strategy(Shortening(i / 10)) for i in range(1, 9)], "at most 8 strategies"),
        (recipe_of(), 4, [Strategy(Shortening(0.0, 16))], "patch_size 16 should be between .* image size 8"),
    ):
        with pytest.raises(RequestError, match=said):
            next(measure_profile(recipe, CPU, [0.0, 1.0], batches, strategies))


def test_each_strategy_lasts_until_it_has_consumed_what_lies_before_the_next_point():
    def point(epoch, consumed, best):
        others = {UNCOMPRESSED, DROPPED, LARGER} - {best}
        units = {UNCOMPRESSED: 6.0, DROPPED: 4.5, LARGER: 1.5}
        return [
            error_of(epoch, consumed, best, 0.5, units[best]),
            *(error_of(epoch, consumed, other, 1.0, units[other]) for other in others),
        ]

    profile = [point(0, 0, LARGER), point(3, 18, LARGER), point(6, 36, DROPPED), point(9, 54, UNCOMPRESSED)]
    stages, epochs = find_stages(profile)
    assert epochs == 28  # in place of 9
    assert [(stage.from_share, stage.to_strategy()) for stage in stages] == [
        (0.0, LARGER),  # 36 forward passes an image, 1.5 an epoch: 24 epochs
        (round(24 / 28, 6), DROPPED),  # 18, 4.5 an epoch: 4 epochs; what is best at the end has none
    ]
    for budget in (28, 14, 7, 3):  # the same shares of any budget, to half an epoch
        resolved = Compression(schedule="auto", stages=tuple(stages)).for_budget(budget)
        units = {LARGER: 1.5, DROPPED: 4.5}
        spent = [units[resolved.strategy(epoch)] for epoch in range(budget)]
        assert sum(units == 1.5 for units in spent) == pytest.approx(budget * 24 / 28, abs=0.5)
    assert sum(spent) == pytest.approx(54 * budget / 28, abs=1.5)


def test_a_strategy_gives_way_to_one_that_is_better_by_more_than_the_error_alone():
    """Differences to the uncompressed 1.0 in four groups: a mean gain and a spread that is the error or not."""

    def point(consumed, **gains):
        named, replicates = {"plain": UNCOMPRESSED, "dropped": DROPPED, "larger": LARGER}, {}
        for name in named:
            gain, spread = gains.get(name, (0.0, 0.0))
            replicates[name] = (1.0 - gain, tuple(1.0 - gain + sign * spread for sign in (1, -1, 1, -1)))
        return [
            replace(error_of(0, consumed, named[name], value), replicates=parts)
            for name, (value, parts) in replicates.items()
        ]

    error = 0.1 * math.sqrt(3)  # sqrt(3 / 4 * 4 * 0.1 ** 2)
    profile = [
        point(0.0, dropped=(0.9 * error, 0.1)),  # not by more than the error
        point(1.0, dropped=(1.1 * error, 0.1)),
        point(2.0, larger=(0.9 * error, 0.1), dropped=(0.0, 0.0)),  # the present one is not worse by more
        point(3.0, larger=(1.1 * error, 0.1), dropped=(0.0, 0.0)),
        point(4.0),
    ]
    stages, epochs = find_stages(profile)
    found = [(stage.from_share, stage.to_strategy()) for stage in stages]
    assert (found, epochs) == ([(0.0, UNCOMPRESSED), (0.25, DROPPED), (0.75, LARGER)], 4)
