"""Two views and shortened sequences in training runs: phases, bits after a stop, shared stages, costs by strategy."""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from same_bits import assert_equal_bits, boundaries

from mixtune.cost.flops import Size, recipe_flops, step_flops
from mixtune.errors import RequestError
from mixtune.space.effective import effective
from mixtune.space.recipe import flatten
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy
from mixtune.stages.keys import shared_epochs, stage_keys
from mixtune.training.bill import phase_flops
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.measure import measure
from mixtune.training.plan import PHASES, make_plan
from mixtune.training.state import start_state

NAMES = ("simclr", "mocov3", "dino")
EPOCHS = {"epochs.ssl": 4, "epochs.sl": 3, "rho": 0.5}  # three of SSL, one of both, two of SL
HEADS = {"simclr": {}, "mocov3": {}, "dino": {"ssl.bottleneck_dim": 8, "ssl.prototypes": 16}}
STAGES = [
    {"from_epoch": 0, "token_dropout": 0.75, "patch_size": 3},
    {"from_epoch": 1, "token_dropout": 0.5, "key_token_dropout": 0.25},
    {"from_epoch": 3, "patch_size": 4},
]
STRATEGIES = [Strategy(Shortening(0.75, 3), Shortening(0.0, 3)), Strategy(Shortening(0.5), Shortening(0.25))]
STRATEGIES += [STRATEGIES[1], Strategy(Shortening(0.0, 4), Shortening(0.0, 4))]  # of the four epochs
CONSTANT = {"schedule": "constant", "token_dropout": 0.5, "key_token_dropout": 0.25}
AUTO = {"schedule": "auto", "stages": STAGES}
COMPRESSIONS = {
    "constant": CONSTANT,
    "auto": AUTO,
    "two stages": {"schedule": "auto", "stages": STAGES[:2]},
    "first stage": {"schedule": "constant", "token_dropout": 0.75, "patch_size": 3},
}
PLANNED = {"constant": [Strategy(Shortening(0.5), Shortening(0.25))] * 4, "auto": STRATEGIES}
each_objective = pytest.mark.parametrize("name", NAMES)


def values(name, compression=None, **others):
    """Return dotted values of a small recipe."""
    small = {"model.depth": 1, "ssl.objective": name, "ssl.hidden_dim": 16, **HEADS[name]}
    return {**EPOCHS, **small, "ssl.compression": compression or {}, **others}


@pytest.fixture(scope="module")
def start(make_recipe):
    """Return a function: the start of a recipe of these values, whose steps nobody times."""
    loaded = functools.cache(lambda dataset: load_training_data(make_recipe({"data.dataset": dataset})))

    def new(changes):
        recipe = make_recipe(changes)
        state = start_state(recipe, loaded(recipe.data.dataset))
        works = {epoch.work for epoch in make_plan(state.recipe)}
        state.step_times.fixed |= {state.signature(*work) for work in works} | {state.signature("infer")}
        return state

    return new


@pytest.fixture(scope="module")
def trained(start):
    """boundaries() of an objective with a compression of COMPRESSIONS; each is trained once."""
    return functools.cache(lambda name, label: boundaries(start(values(name, COMPRESSIONS[label]))))


def keys_of(recipe):
    return stage_keys(recipe, load_training_data(recipe))


def equal_weights(one, other):
    """Return whether two saved states have the same backbone, objective and classifiers, bit for bit."""
    parts = ("backbone", "objective", "classifiers")
    return all(torch.equal(value, other[part][name]) for part in parts for name, value in one[part].items())


@each_objective
def test_a_training_stopped_after_each_epoch_goes_on_bit_for_bit(start, trained, name):
    for label, strategies in PLANNED.items():
        for before, after in pairwise(trained(name, label)):
            state = start(values(name, COMPRESSIONS[label]))
            state.load_state_dict(copy.deepcopy(before))
            assert_equal_bits(state.state_dict(), before)
            next(train(state))
            assert_equal_bits(state.state_dict(), after)
        assert [epoch.strategy for epoch in make_plan(state.recipe)] == [*strategies, None, None]
        assert [result.phase for result in state.history] == ["ssl", "ssl", "ssl", "mix", "sl", "sl"]
        for result in state.history:
            assert (result.ssl_loss is None) == (result.phase == "sl")
            assert (result.sl_loss is None) == (result.accuracies is None) == (result.phase == "ssl")
            assert math.isfinite(result.ssl_loss or 0.0)
            assert math.isfinite(result.sl_loss or 0.0)


@each_objective
def test_every_step_shortens_what_its_epoch_says(start, name):
    """The lengths at the backbone's first block: a class token, and 16 patches of 2, 9 of 3 or 4 of 4 pixels."""
    state = start(values(name, AUTO))
    lengths = Counter()

    def count(module, inputs):
        if module.training:
            lengths[inputs[0].shape[1]] += 1

    state.backbone.vit.blocks[0].register_forward_pre_hook(count)
    student = {
        "simclr": [[1 + 2, 1 + 9], [1 + 8, 1 + 12], [1 + 8, 1 + 12], [17, 1 + 4], [17], [17]],
        "mocov3": [[1 + 2], [1 + 8], [1 + 8], [17], [17], [17]],
        "dino": [[1 + 2, 1 + 2], [1 + 8, 1 + 8], [1 + 8, 1 + 8], [17, 1 + 4], [17], [17]],
    }[name]
    for _, expected in zip(train(state), student, strict=True):
        assert lengths == Counter({n: expected.count(n) * state.data.steps_of("sl") for n in expected})
        lengths.clear()


@each_objective
def test_momentum_copies_are_left_to_momentum(start, trained, name):
    state = start(values(name, AUTO))
    frozen = {n: p for n, p in state.objective.named_parameters() if not p.requires_grad}
    assert {n.split(".")[0] for n in frozen} == {
        "simclr": set(),
        "mocov3": {"key_backbone", "key_head"},
        "dino": {"teacher_backbone", "teacher_head"},
    }[name]
    optimized = [p for group in state.optimizer.param_groups for p in group["params"]]
    assert not {id(p) for p in optimized} & {id(p) for p in frozen.values()}
    every = [p for m in (state.backbone, state.objective, state.classifiers) for p in m.parameters()]
    assert {id(p) for p in optimized} == {id(p) for p in every if p.requires_grad}
    phases = [epoch.phase for epoch in make_plan(state.recipe)]
    for (before, after), phase in zip(pairwise(trained(name, "auto")), phases, strict=True):
        moved = {n for n in frozen if not torch.equal(before["objective"][n], after["objective"][n])}
        assert moved == (set() if phase == "sl" else set(frozen))


@pytest.mark.parametrize(
    ("name", "field", "value", "weights", "still"),
    [
        ("mocov3", "frozen_patches", True, {"vit.patch_embed.proj.weight", "vit.patch_embed.proj.bias"}, 4),
        ("dino", "frozen_epochs", 2, {"head.prototypes.weight"}, 2),
    ],
)
def test_what_is_frozen_stays_as_it_is_drawn_and_nothing_else_does(start, name, field, value, weights, still):
    for given, epochs in ((value, still), (0 if name == "dino" else False, 0)):
        state = start(values(name, {}, **{f"ssl.{field}": given}))
        parts = [part for each in (state.backbone, state.objective) for part in each.named_parameters()]
        trained = {n: p for n, p in parts if p.requires_grad}
        before = {n: p.detach().clone() for n, p in trained.items()}
        for result in train(state):
            same = {n for n, p in trained.items() if torch.equal(p, before[n])}
            before = {n: p.detach().clone() for n, p in trained.items()}
            if result.phase != "sl":
                assert same == (weights if result.epoch <= epochs else set()), (given, result.epoch)
            else:
                assert not same & {n for n in weights if n.startswith("vit.")}


def test_the_backbones_own_patch_size_in_a_stage_is_in_no_key(make_recipe, start):
    own = {"schedule": "auto", "stages": [{"from_epoch": 0, "patch_size": 2}, {"from_epoch": 1, "token_dropout": 0.5}]}
    none = {**own, "stages": [{"from_epoch": 0}, own["stages"][1]]}
    pair = [values("mocov3", compression) for compression in (own, none)]
    keys = [keys_of(make_recipe(each)) for each in pair]
    assert keys[0] == keys[1]
    assert_equal_bits(*(boundaries(start(each)) for each in pair))
    constant = [values("mocov3", {"patch_size": size}, **{"model.patch_size": 2}) for size in (None, 2, 4)]
    found = [effective(flatten(make_recipe(each).to_dict())) for each in constant]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", ["mocov3", "dino"])
def test_a_momentum_encoder_is_a_moving_mean_of_the_backbones_weights(start, name):
    """After each step it goes a tenth of the way, by hand in float64 from the weights that the steps leave."""
    state = start(values(name, CONSTANT, **{"ssl.momentum": 0.9, "epochs.ssl": 1, "rho": 0.0}))
    weight = state.backbone.vit.blocks[0].mlp.fc1.weight
    mean = [weight.detach().double().clone()]

    def follow(*_):
        mean[0] = 0.9 * mean[0] + 0.1 * weight.detach().double()

    state.optimizer.register_step_post_hook(follow)
    next(train(state))
    held = state.objective.key_backbone if name == "mocov3" else state.objective.teacher_backbone
    torch.testing.assert_close(held.vit.blocks[0].mlp.fc1.weight.double(), mean[0], rtol=1e-5, atol=1e-7)
    assert (mean[0] - weight).abs().max() > 1e-4


@each_objective
def test_two_tasks_are_trained_together(start, name):
    state = start(values(name, AUTO, **{"data.dataset": ["digits", "digits"]}))
    results = list(train(state))
    assert [result.phase for result in results] == ["ssl", "ssl", "ssl", "mix", "sl", "sl"]
    assert all(len(result.scores) == 2 for result in results[3:])
    assert all(math.isfinite(result.ssl_loss) for result in results[:4])


def test_the_loss_goes_down(start):
    """DINO's does not say how far it is: its targets become harder as the center follows."""
    for name in ("simclr", "mocov3"):
        state = start(values(name, CONSTANT, **{"epochs.ssl": 15, "epochs.sl": 1, "rho": 0.0}))
        losses = [result.ssl_loss for result in train(state)][:15]
        assert sum(losses[-5:]) < sum(losses[:5]) - 0.04, name


def test_recipes_share_the_epochs_whose_strategies_agree(make_recipe):
    for one, other, shared in (
        ({}, {"schedule": "constant"}, 6),  # which shortens nothing
        ({}, {"schedule": "none", "token_dropout": 0.5}, 6),  # none, whatever else is said
        ({}, {"token_dropout": 0.5}, 0),
        ({}, CONSTANT, 0),
        (CONSTANT, {"schedule": "auto", "stages": [{"from_epoch": 0, **dict(list(CONSTANT.items())[1:])}]}, 6),
        (CONSTANT, {**CONSTANT, "key_token_dropout": 0.0}, 0),
        (AUTO, {**AUTO, "token_dropout": 0.3}, 6),  # auto: the stages alone count
        (AUTO, {**AUTO, "stages": STAGES[:2]}, 3),
        (AUTO, {**AUTO, "stages": STAGES[:1]}, 1),
        (AUTO, {**AUTO, "stages": [{**s, "from_epoch": None, "from_share": s["from_epoch"] / 4} for s in STAGES]}, 6),
        (AUTO, {**AUTO, "stages": [*STAGES, {"from_epoch": 4, "token_dropout": 0.9}]}, 6),  # beyond the budget
        (AUTO, {**AUTO, "stages": [STAGES[0], {**STAGES[1], "from_epoch": 2}, STAGES[2]]}, 1),
    ):
        recipes = [make_recipe(values("simclr", compression)) for compression in (one, other)]
        keys = list(map(keys_of, recipes))
        assert [len(each) for each in keys] == [7, 7]
        assert shared_epochs(*keys) == shared, (one, other)
        agree = [a.strategy == b.strategy for a, b in zip(*map(make_plan, recipes), strict=True)]
        assert agree[:shared] == [True] * shared, (one, other)
        assert shared == 6 or not agree[shared], (one, other)


@each_objective
def test_where_keys_are_equal_states_are_and_no_longer(make_recipe, trained, name):
    for other, shared in (("two stages", 3), ("first stage", 1), ("constant", 0)):
        recipes = (make_recipe(values(name, COMPRESSIONS[label])) for label in ("auto", other))
        assert shared_epochs(*map(keys_of, recipes)) == shared
        one, two = trained(name, "auto"), trained(name, other)
        for epochs in range(shared + 1):
            assert_equal_bits(one[epochs], two[epochs])
        assert not equal_weights(one[shared + 1], two[shared + 1])


def test_what_changes_the_views_changes_every_epoch(make_recipe):
    def shared(*changes):
        return shared_epochs(*map(keys_of, map(make_recipe, changes)))

    for changes, expected in (
        ({"ssl.temperature": 0.3}, -1),  # an objective's settings are the first weights' too
        ({"ssl.crop_scale": [0.5, 1.0]}, -1),
        ({"ssl.color_jitter": 0.7}, -1),
        ({"ssl.grayscale": 0.5}, -1),
        ({"alpha": 0.9}, 3),
        ({"augment.flip": 0.5}, 0),
        ({"augment.ssl": False}, 3),  # digits are not mirrored, and views have no more of `augment`
    ):
        assert shared(values("simclr", AUTO), values("simclr", AUTO, **changes)) == expected, changes
    mirrored = values("simclr", AUTO, **{"augment.flip": 0.5})
    assert shared(mirrored, {**mirrored, "augment.ssl": False}) == 0
    for name, expected in (("simclr", 0), ("mae", 4)):  # which has views of its own in the mix phase, and which has not
        mixed = {"ssl.objective": name, "rho": 1.0, "epochs.sl": 4}
        assert shared(mixed, {**mixed, "augment.ssl": False}) == expected, name


def test_auto_without_stages_cannot_be_planned_and_names_the_command_that_finds_them(make_recipe):
    recipe = make_recipe(values("simclr", {"schedule": "auto"}))  # a recipe may say so: the search fills them in
    with pytest.raises(RequestError) as refused:
        make_plan(recipe)
    assert str(refused.value) == (
        "ssl.compression: schedule auto needs stages: `mixtune gradient-error SPACE.yaml` finds and prints them"
    )
    assert len(make_plan(make_recipe(values("simclr", {"schedule": "auto"}, **{"epochs.ssl": 0})))) == 3


def test_a_steps_cost_is_told_apart_by_its_strategy_alone(start):
    state, constant, plain = (start(values("simclr", each)) for each in (AUTO, CONSTANT, {}))
    one, other = STRATEGIES[:2]
    for phase in ("ssl", "mix"):
        signatures = {state.signature(phase, each) for each in (one, other, UNCOMPRESSED)}
        assert len(signatures) == 3
        assert state.signature(phase, one) == constant.signature(phase, one)
        assert plain.signature(phase, UNCOMPRESSED) in signatures
    assert state.signature("sl") == plain.signature("sl")
    assert state.signature("ssl", one) != start(values("mocov3", AUTO)).signature("ssl", one)


def test_each_strategys_steps_are_timed_by_themselves_and_a_latency_is_their_sum(make_state):
    state = make_state(values("mocov3", AUTO))
    list(train(state))
    works = [("ssl", STRATEGIES[0]), ("ssl", STRATEGIES[1]), ("mix", STRATEGIES[3]), ("sl", None)]
    signatures = [state.signature(*work) for work in works]
    assert state.bill.signatures(len(state.history)) == [*signatures, state.signature("infer")]
    assert all(state.step_times.is_known(signature) for signature in signatures)
    times = [state.step_times.step_time(signature) for signature in signatures]
    metrics, steps = measure(state), state.data.steps_of("sl")
    assert metrics.latency_ssl_s == pytest.approx(steps * (times[0] + 2 * times[1]))
    assert metrics.latency_mix_s == pytest.approx(steps * times[2])
    assert metrics.train_latency_s == pytest.approx(steps * (times[0] + 2 * times[1] + times[2] + 2 * times[3]))
    assert metrics.forecast_latency_s == pytest.approx(metrics.train_latency_s)


@each_objective
def test_a_recipes_operations_are_the_sum_over_its_epochs_strategies(start, name):
    costs = []
    for compression in ({}, CONSTANT, AUTO):
        state = start(values(name, compression))
        size, images = Size.of(state.data), 32 * state.data.steps_of("sl")
        expected, steps = dict.fromkeys(PHASES, 0.0), []
        for epoch in make_plan(state.recipe):
            per_image = phase_flops(state.backbone, state.objective, [10], epoch.strategy)[epoch.phase]
            expected[epoch.phase] += images * per_image
            steps.append(32 * per_image)
            assert state.step_flops(epoch) == 32 * per_image
        found = recipe_flops(state.recipe, size)
        assert found == pytest.approx(expected, rel=1e-12), compression
        assert step_flops(state.recipe, size) == max(steps)
        costs.append(state.bill.flops)
        assert costs[-1] == pytest.approx(sum(found.values()), rel=1e-12)
    assert costs[0] > costs[1] > costs[2]
    two = start(values(name, AUTO, **{"data.dataset": ["digits", "digits"]}))
    assert two.bill.flops == pytest.approx(2 * costs[-1])
    assert sum(recipe_flops(two.recipe, Size.of(two.data)).values()) == pytest.approx(two.bill.flops)


def test_each_strategys_first_step_is_compiled_apart(start, trained, monkeypatch):
    """Without a compiler here: what counts is when a step is made ahead of the timed ones."""
    state = start(values("simclr", AUTO, compile=True))
    for part in (state.backbone, state.objective):
        monkeypatch.setattr(part, "compile", lambda: None)
    assert [result.compile_seconds > 0 for result in train(state)] == [True, True, False, True, True, False]
    assert_equal_bits(state.state_dict(), trained("simclr", "auto")[-1])
