"""What every objective promises, those added later included: a loss, gradients, tokens, and what they cost."""

from __future__ import annotations

import copy
import functools
from itertools import product

import pytest
import torch
from same_bits import assert_equal_bits
from sklearn.datasets import load_digits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixtune import plugins
from mixtune.backbone import build_backbone
from mixtune.space.recipe import Model, RecipeError, parse_recipe
from mixtune.space.views import Shortening, Strategy

BATCH = 4
MODEL = Model(patch_size=2, embed_dim=32, depth=2, num_heads=2)  # 16 patch tokens of a digit, and a class token
STRATEGIES = (
    Strategy(),
    Strategy(Shortening(0.75), Shortening()),
    Strategy(Shortening(0.5), Shortening(0.25)),
    Strategy(Shortening(0.0, 4), Shortening(0.0, 4)),
    Strategy(Shortening(0.5, 3), Shortening(0.3, 4)),  # patches of 3 do not divide the 8 pixels
)
PHASES = (False, True)  # whether SSL is joined by the classifier
each_objective = pytest.mark.parametrize("name", plugins.names("objectives"))


def settings_of(name):
    return parse_recipe({"data": {"dataset": "digits"}, "ssl": {"objective": name}}).ssl


def strategies(name):
    """None, and all strategies where the objective shortens sequences."""
    return (None, *STRATEGIES) if settings_of(name).strategy(0) is not None else (None,)


def each_case(name):
    """Both phases, each without a strategy and, where the objective shortens sequences, with one that does all."""
    return product(PHASES, strategies(name)[:: len(STRATEGIES)])


@functools.cache
def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(MODEL, 8, 1)
        return backbone, plugins.find("objectives", name, "objective").build(settings_of(name), backbone)


@functools.cache
def digits():
    pixels = torch.from_numpy(load_digits().images[:BATCH, None]).float()
    return (pixels - pixels.mean()) / pixels.std()


def parts(name, joint=True):
    """A backbone, the objective, and the digits that it asks for: each view after the first is moved by a pixel."""
    views = len(settings_of(name).views(joint))
    return *copy.deepcopy(build(name)), torch.cat([digits().roll(n, dims=-1) for n in range(views)])


def masks():
    return torch.Generator().manual_seed(3)


@each_objective
def test_the_loss_is_a_finite_scalar_whose_gradients_reach_all_that_is_trained_and_nothing_else(name):
    for joint, strategy in each_case(name):
        backbone, objective, images = parts(name, joint)
        loss, tokens = objective(backbone, images, masks(), joint, strategy)
        assert (loss.shape, loss.dtype) == ((), torch.float32)
        assert loss.isfinite()
        assert joint or tokens is None  # outside of the mix phase there is nothing to classify
        loss.backward()
        named = {f"{part}.{n}": p for part, m in (("b", backbone), ("o", objective)) for n, p in m.named_parameters()}
        assert all(p.requires_grad for p in backbone.parameters())
        trained = [n for n, p in named.items() if p.requires_grad]
        assert [n for n in trained if named[n].grad is None or not named[n].grad.any()] == [], (joint, strategy)
        assert all(named[n].grad.isfinite().all() for n in trained)
        assert [n for n, p in named.items() if not p.requires_grad and p.grad is not None] == []


@each_objective
def test_the_backbone_is_no_part_of_the_objective_and_what_is_trained_is_shared_with_nothing(name):
    backbone, objective, _ = parts(name)
    own = {id(p) for p in backbone.parameters()}
    assert own.isdisjoint(id(p) for p in objective.parameters())
    storages = [p.data_ptr() for module in (backbone, objective) for p in module.parameters()]
    assert len(set(storages)) == len(storages)


@each_objective
def test_in_the_mix_phase_the_classifier_gets_the_first_view_whole_from_a_single_trained_pass(name):
    for strategy in strategies(name):
        backbone, objective, images = parts(name)
        seen = []

        def look(module, inputs, output, seen=seen):
            seen.append((inputs[0].detach().clone(), output.requires_grad))

        backbone.vit.blocks[0].register_forward_hook(look)
        whole = backbone(images[:BATCH])
        embedded, _ = seen.pop()
        _, tokens = objective(backbone, images, masks(), True, strategy)
        assert tokens.shape == (BATCH, backbone.prefix + backbone.tokens, backbone.embed_dim)
        assert torch.equal(tokens, whole), strategy
        assert tokens.requires_grad
        assert [trained for tokens, trained in seen if torch.equal(tokens, embedded)] == [True], strategy
        if strategy is not None and strategy.query != Shortening() != strategy.key:
            assert [tokens.shape[1] for tokens, _ in seen].count(embedded.shape[1]) == 1


@each_objective
def test_a_loss_asked_for_twice_has_equal_bits_and_changes_no_state(name):
    for joint, strategy in each_case(name):
        backbone, objective, images = parts(name, joint)
        for parameter in backbone.parameters():
            parameter.data.mul_(0.9)  # so that a copy that followed too early would be told
        before = copy.deepcopy([module.state_dict() for module in (backbone, objective)])
        loss, tokens = objective(backbone, images, masks(), joint, strategy)
        again, tokens_again = objective(backbone, images, masks(), joint, strategy)
        assert torch.equal(loss, again), (joint, strategy)
        assert tokens is tokens_again is None or torch.equal(tokens, tokens_again), (joint, strategy)
        assert_equal_bits(before, [module.state_dict() for module in (backbone, objective)])


@each_objective
def test_after_a_step_the_backbone_and_what_is_trained_stay_as_the_optimizer_left_them(name):
    for joint in PHASES:
        backbone, objective, images = parts(name, joint)
        objective(backbone, images, masks(), joint, None)[0].backward()
        trained = [*backbone.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
        before = [p.detach().clone() for p in trained]
        objective.after_step(backbone)
        assert all(map(torch.equal, before, trained)), joint


@each_objective
def test_a_strategy_changes_the_loss_and_the_one_that_shortens_nothing_leaves_its_bits(name):
    backbone, objective, images = parts(name, False)
    plain = objective(backbone, images, masks(), False)[0]
    for strategy in strategies(name):
        given = objective(backbone, images, masks(), False, strategy)[0]
        assert torch.equal(plain, given) == (strategy in (None, Strategy())), strategy


@each_objective
def test_the_operations_are_those_that_pytorch_counts(name):
    """Forward and backward pass; a backward pass is taken as two forward ones, an image gradient is none in truth."""
    for joint, strategy in product(PHASES, strategies(name)):
        backbone, objective, images = parts(name, joint)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            objective(backbone, images, masks(), joint, strategy)[0].backward()
        found = BATCH * objective.train_flops(backbone, joint, strategy)
        assert found == pytest.approx(counter.get_total_flops(), rel=0.02), (joint, strategy)


@each_objective
def test_settings_go_through_plain_values_and_refuse_an_unknown_key(name):
    recipe = parse_recipe({"data": {"dataset": "digits"}, "ssl": {"objective": name}})
    assert recipe.ssl.objective == name
    assert parse_recipe(recipe.to_dict()) == recipe
    assert hash(parse_recipe(recipe.to_dict())) == hash(recipe)
    with pytest.raises(RecipeError, match=r"^ssl\.colour: unknown key; allowed are objective, "):
        parse_recipe({"data": {"dataset": "digits"}, "ssl": {"objective": name, "colour": 1}})


@each_objective
def test_only_the_mix_phase_shows_the_classifiers_image_first(name):
    settings = settings_of(name)
    assert settings.views(joint=True)[0] is None
    assert len(settings.views(joint=True)) == len(settings.views(joint=False))
