"""What every objective promises, those added later included: a loss, gradients, tokens, and what they cost."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixtune import plugins
from mixtune.backbone import build_backbone
from mixtune.space.recipe import Model, RecipeError, parse_recipe
from mixtune.space.views import Shortening, Strategy

NAMES = plugins.names("objectives")
BATCH = 4
MODEL = Model(patch_size=2, embed_dim=32, depth=2, num_heads=2)  # 16 patch tokens of a digit, and a class token
STRATEGIES = {
    "whole": Strategy(),
    "query dropout": Strategy(Shortening(0.75), Shortening()),
    "dropout": Strategy(Shortening(0.5), Shortening(0.25)),
    "patches": Strategy(Shortening(0.0, 4), Shortening(0.0, 4)),
    "both": Strategy(Shortening(0.5, 3), Shortening(0.3, 4)),  # patches of 3 do not divide the 8 pixels
}


def settings_of(name):
    return parse_recipe({"data": {"dataset": "digits"}, "ssl": {"objective": name}}).ssl


def shortens(name):
    return settings_of(name).strategy(0) is not None


def cases(*labels):
    """Every objective without a strategy, and those that shorten sequences with the strategies of these names."""
    return [
        pytest.param(name, STRATEGIES.get(label), id=f"{name}, {label}")
        for name in NAMES
        for label in ("none", *(labels if shortens(name) else ()))
    ]


each_objective = pytest.mark.parametrize("name", NAMES)
each_case = pytest.mark.parametrize(("name", "strategy"), cases("both"))
every_strategy = pytest.mark.parametrize(("name", "strategy"), cases(*STRATEGIES))
each_phase = pytest.mark.parametrize("joint", [False, True], ids=["ssl", "mix"])


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


@pytest.fixture
def parts(name, joint):
    """A backbone, the objective, and the digits that it asks for: each view after the first is moved by a pixel."""
    backbone, objective = copy.deepcopy(build(name))
    return (
        backbone,
        objective,
        torch.cat([digits().roll(n, dims=-1) for n in range(len(settings_of(name).views(joint)))]),
    )


def masks():
    return torch.Generator().manual_seed(3)


def states(*modules):
    return [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]


def assert_equal_states(one, other):
    for before, after in zip(one, other, strict=True):
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []


@each_phase
@each_case
def test_the_loss_is_a_finite_scalar(parts, joint, strategy):
    backbone, objective, images = parts
    loss, _ = objective(backbone, images, masks(), joint, strategy)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert loss.requires_grad


@each_phase
@each_case
def test_gradients_reach_all_that_is_trained_and_nothing_else(parts, joint, strategy):
    backbone, objective, images = parts
    objective(backbone, images, masks(), joint, strategy)[0].backward()
    named = {f"{part}.{n}": p for part, m in (("b", backbone), ("o", objective)) for n, p in m.named_parameters()}
    assert all(p.requires_grad for p in backbone.parameters())
    trained = [name for name, p in named.items() if p.requires_grad]
    assert [name for name in trained if named[name].grad is None or not named[name].grad.any()] == []
    assert all(named[name].grad.isfinite().all() for name in trained)
    assert [name for name, p in named.items() if not p.requires_grad and p.grad is not None] == []


@each_objective
@pytest.mark.parametrize("joint", [True])
def test_the_backbone_is_no_part_of_the_objective_and_what_is_trained_is_shared_with_nothing(parts, joint):
    backbone, objective, _ = parts
    own = {id(p) for p in backbone.parameters()}
    assert own.isdisjoint(id(p) for p in objective.parameters())
    storages = [p.data_ptr() for module in (backbone, objective) for p in module.parameters()]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("joint", [True])
@every_strategy
def test_in_the_mix_phase_the_classifier_gets_the_first_view_whole_from_a_single_trained_pass(parts, joint, strategy):
    backbone, objective, images = parts
    seen = []

    def look(module, inputs, output):
        seen.append((inputs[0].detach().clone(), output.requires_grad))

    hook = backbone.vit.blocks[0].register_forward_hook(look)
    whole = backbone(images[:BATCH])
    hook.remove()
    (embedded, _), *_ = seen
    seen.clear()
    backbone.vit.blocks[0].register_forward_hook(look)
    _, tokens = objective(backbone, images, masks(), joint, strategy)
    assert tokens.shape == (BATCH, backbone.prefix + backbone.tokens, backbone.embed_dim)
    assert torch.equal(tokens, whole)
    assert tokens.requires_grad
    assert [trained for tokens, trained in seen if torch.equal(tokens, embedded)] == [True]
    if strategy is not None and strategy.query != Shortening() != strategy.key:
        assert [tokens.shape[1] for tokens, _ in seen].count(embedded.shape[1]) == 1


@pytest.mark.parametrize("joint", [False])
@each_case
def test_outside_of_the_mix_phase_the_classifier_gets_nothing(parts, joint, strategy):
    backbone, objective, images = parts
    assert objective(backbone, images, masks(), joint, strategy)[1] is None


@each_phase
@each_case
def test_a_loss_asked_for_twice_has_equal_bits_and_changes_no_state(parts, joint, strategy):
    backbone, objective, images = parts
    before = states(backbone, objective)
    loss, tokens = objective(backbone, images, masks(), joint, strategy)
    again, tokens_again = objective(backbone, images, masks(), joint, strategy)
    assert torch.equal(loss, again)
    assert (tokens is None) == (tokens_again is None)
    assert tokens is None or torch.equal(tokens, tokens_again)
    assert_equal_states(before, states(backbone, objective))


@each_objective
@each_phase
def test_after_a_step_the_backbone_and_what_is_trained_stay_as_the_optimizer_left_them(parts, joint):
    backbone, objective, images = parts
    objective(backbone, images, masks(), joint, None)[0].backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    before = states(backbone, objective)
    objective.after_step(backbone)
    after = states(backbone, objective)
    assert_equal_states(before[:1], after[:1])
    assert [name for name in trained if not torch.equal(before[1][name], after[1][name])] == []


@pytest.mark.parametrize("joint", [False])
@every_strategy
def test_a_strategy_changes_the_loss_and_the_one_that_shortens_nothing_leaves_its_bits(parts, joint, strategy):
    backbone, objective, images = parts
    plain = objective(backbone, images, masks(), joint)[0]
    given = objective(backbone, images, masks(), joint, strategy)[0]
    assert torch.equal(plain, given) == (strategy in (None, Strategy()))


@each_phase
@every_strategy
def test_the_operations_are_those_that_pytorch_counts(parts, joint, strategy):
    """Forward and backward pass; a backward pass is taken as two forward ones, an image gradient is none in truth."""
    backbone, objective, images = parts
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(backbone, images, masks(), joint, strategy)[0].backward()
    expected = counter.get_total_flops()
    assert BATCH * objective.train_flops(backbone, joint, strategy) == pytest.approx(expected, rel=0.02)


@each_objective
def test_settings_refuse_what_they_do_not_know_and_name_the_key(name):
    with pytest.raises(RecipeError, match=r"^ssl\.colour: unknown key; allowed are objective, "):
        parse_recipe({"data": {"dataset": "digits"}, "ssl": {"objective": name, "colour": 1}})


@each_objective
def test_settings_go_through_plain_values_and_back(name):
    recipe = parse_recipe({"data": {"dataset": "digits"}, "ssl": {"objective": name}})
    assert recipe.ssl.objective == name
    assert parse_recipe(recipe.to_dict()) == recipe
    assert hash(parse_recipe(recipe.to_dict())) == hash(recipe)


@each_objective
def test_only_the_mix_phase_shows_the_classifiers_image_first(name):
    settings = settings_of(name)
    assert settings.views(joint=True)[0] is None
    assert len(settings.views(joint=True)) == len(settings.views(joint=False))
