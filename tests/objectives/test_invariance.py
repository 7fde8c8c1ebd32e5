"""SimCLR, MoCo-v3 and DINO against slow versions, written here with loops in float64; what compression leaves of it."""

from __future__ import annotations

import copy
import functools
import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import nn
from vits import SMALL, VITS, make_backbone, real_images

from mixtune.backbone import build_backbone
from mixtune.errors import RequestError
from mixtune.objectives import _invariance, dino, mocov3, simclr
from mixtune.objectives._invariance import Pass, count_kept, encode, pool
from mixtune.space.compression import Compression
from mixtune.space.recipe import Model, RecipeError, parse_recipe
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy, View

MODULES = {"simclr": simclr, "mocov3": mocov3, "dino": dino}
HEADS = {"hidden_dim": 12}  # small ones
HALF = Strategy(Shortening(0.5), Shortening(0.5))
QUARTER = Strategy(Shortening(0.75), Shortening())  # of the query's patches a quarter is left
each_objective = pytest.mark.parametrize("name", MODULES)
each_vit = pytest.mark.parametrize("vit", VITS)


def make_objective(name, backbone, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = MODULES[name]
        return module.build(module.Settings(objective=name, **{**HEADS, **settings}), backbone)


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def random_rows(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=generator(seed))


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True)) / (
        math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    )


def softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def slow_nt_xent(one, other, temperature):
    """Equation 1 of SimCLR for each of the 2 B projections, numbered 1, 1', 2, 2' ... as there."""
    z = [row for pair in zip(one.tolist(), other.tolist(), strict=True) for row in pair]
    losses = []
    for i in range(len(z)):
        j = i + 1 if i % 2 == 0 else i - 1
        total = sum(math.exp(cosine(z[i], z[k]) / temperature) for k in range(len(z)) if k != i)
        losses.append(-math.log(math.exp(cosine(z[i], z[j]) / temperature) / total))
    return sum(losses) / len(losses)


def slow_contrast(query, key, temperature):
    """Algorithm 1 of MoCo-v3: the key of the query's own image among all, times 2 tau."""
    losses = []
    for i, q in enumerate(query.tolist()):
        shares = softmax([cosine(q, k) / temperature for k in key.tolist()])
        losses.append(-math.log(shares[i]))
    return 2 * temperature * sum(losses) / len(losses)


def slow_distil(student, teacher, center, student_temperature, teacher_temperature):
    """H(t, s) of Algorithm 1 of DINO."""
    losses = []
    for said, taught in zip(student.tolist(), teacher.tolist(), strict=True):
        p = softmax([(t - c) / teacher_temperature for t, c in zip(taught, center.tolist(), strict=True)])
        q = softmax([s / student_temperature for s in said])
        losses.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
    return sum(losses) / len(losses)


def test_nt_xent_is_equation_1():
    for batch, temperature in product((2, 5), (0.1, 0.5, 2.0)):
        one, other = random_rows(batch, 7), random_rows(batch, 7, seed=1)
        expected = slow_nt_xent(one, other, temperature)
        for given in ((one, other), (other, one), (3.0 * one, other)):
            assert simclr.nt_xent(*given, temperature).item() == pytest.approx(expected, rel=1e-5), (batch, temperature)
    at_right_angles = torch.eye(2)
    known = -math.log(math.e / (math.e + 2))
    assert simclr.nt_xent(at_right_angles, at_right_angles, 1.0).item() == pytest.approx(known)


def test_mocos_contrast_is_its_algorithm_1():
    for batch, temperature in product((2, 5), (0.1, 0.5, 2.0)):
        query, key = random_rows(batch, 7), random_rows(batch, 7, seed=1)
        expected = slow_contrast(query, key, temperature)
        for given in (key, 3.0 * key):
            found = mocov3.contrast(query, given, temperature).item()
            assert found == pytest.approx(expected, rel=1e-5), (batch, temperature)
        assert mocov3.contrast(key, query, temperature).item() != pytest.approx(expected, rel=2e-6)  # one-directional


def test_dinos_cross_entropy_is_its_algorithm_1():
    student, teacher, center = 0.2 * random_rows(5, 7), 0.2 * random_rows(5, 7, seed=1), 0.2 * random_rows(1, 7, 2)[0]
    for temperatures in ((0.1, 0.04), (0.5, 0.5), (2.0, 0.1)):
        expected = slow_distil(student, teacher, center, *temperatures)
        for shift in (0.0, 0.7):
            found = dino.distil(student, teacher + shift, center + shift, *temperatures).item()
            assert found == pytest.approx(expected, rel=1e-4 if shift else 1e-5), temperatures


def test_losses_are_taken_in_float32_whatever_the_heads_give():
    one, other = random_rows(5, 7).bfloat16(), random_rows(5, 7, seed=1).bfloat16()
    for loss in (
        simclr.nt_xent(one, other, 0.2),
        mocov3.contrast(one, other, 0.2),
        dino.distil(one, other, torch.zeros(7), 0.1, 0.04),
    ):
        assert loss.dtype == torch.float32


def slow_pool(backbone, tokens):
    """Return the class token of each image, or the mean of its patch tokens where there is none."""
    if backbone.vit.cls_token is not None:
        return torch.stack([image[0] for image in tokens])
    return torch.stack([sum(image[backbone.prefix :]) / backbone.tokens for image in tokens])


def slow_mlp(head, rows):
    """Apply linear layers, norms by the batch at hand and ReLUs, a batch's feature at a time."""
    for layer in head:
        if isinstance(layer, nn.Linear):
            assert layer.bias is None
            rows = rows @ layer.weight.double().T
        elif isinstance(layer, nn.BatchNorm1d):
            mean, variance = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
            rows = (rows - mean) / (variance + layer.eps).sqrt()
            if layer.affine:
                rows = rows * layer.weight.double() + layer.bias.double()
        else:
            rows = rows.clamp(min=0)
    return rows.detach()


@each_vit
def test_simclr_compares_the_projections_of_both_views(vit):
    backbone, images = make_backbone(vit), real_images(vit, 8)
    objective = make_objective("simclr", backbone, output_dim=6, temperature=0.3)
    one, other = (slow_mlp(objective.head, slow_pool(backbone, backbone(v)).double()) for v in (images[:4], images[4:]))
    for joint in (False, True):
        loss, _ = objective(backbone, images, generator(), joint)
        assert loss.item() == pytest.approx(slow_nt_xent(one, other, 0.3), rel=1e-3), joint


@each_vit
def test_moco_asks_the_first_view_for_what_the_momentum_encoder_makes_of_the_second(vit):
    backbone, images = make_backbone(vit), real_images(vit, 8)
    objective = make_objective("mocov3", backbone, output_dim=6, temperature=0.3)
    for parameter in (*objective.key_backbone.parameters(), *objective.key_head.parameters()):
        parameter.mul_(0.9)  # so that it is told from the backbone
    projected = slow_mlp(objective.head, slow_pool(backbone, backbone(images[:4])).double())
    query = slow_mlp(objective.predictor, projected)
    key = slow_mlp(objective.key_head, slow_pool(backbone, objective.key_backbone(images[4:])).double())
    for joint in (False, True):
        loss, _ = objective(backbone, images, generator(), joint)
        assert loss.item() == pytest.approx(slow_contrast(query, key, 0.3), rel=1e-3), joint


@each_vit
def test_dinos_student_says_of_each_view_what_the_teacher_says_of_the_other(vit):
    backbone, images = make_backbone(vit), real_images(vit, 8)
    objective = make_objective("dino", backbone, bottleneck_dim=5, prototypes=9)
    for parameter in (*objective.teacher_backbone.parameters(), *objective.teacher_head.parameters()):
        parameter.mul_(0.9)
    objective.center.copy_(0.01 * random_rows(1, 9)[0])

    def say(encoder, head, view):
        features, scores = head.mlp(slow_pool(backbone, encoder(view))).double(), []
        for row in features.tolist():
            scores.append([cosine(row, prototype) for prototype in head.prototypes.weight.double().tolist()])
        return torch.tensor(scores, dtype=torch.float64)

    student = [say(backbone, objective.head, view) for view in (images[:4], images[4:])]
    teacher = [say(objective.teacher_backbone, objective.teacher_head, view) for view in (images[:4], images[4:])]
    losses = [slow_distil(student[i], teacher[1 - i], objective.center, 0.1, 0.04) for i in (0, 1)]
    for joint in (False, True):
        loss, _ = objective(backbone, images, generator(), joint)
        assert loss.item() == pytest.approx(sum(losses) / 2, rel=1e-3), joint
    objective.after_step(backbone)
    mean = sum(sum(each.tolist()[i][0] for i in range(4)) for each in teacher) / 8
    first = 0.9 * 0.01 * random_rows(1, 9)[0, 0].item() + 0.1 * mean
    assert objective.center[0].item() == pytest.approx(first, abs=1e-6)


def copies(objective, backbone):
    """Return each momentum copy of an objective with the model that it follows, the backbone's first."""
    if isinstance(objective, simclr.SimCLR):
        return []
    if isinstance(objective, mocov3.MoCoV3):
        return [(objective.key_backbone, backbone), (objective.key_head, objective.head)]
    return [(objective.teacher_backbone, backbone), (objective.teacher_head, objective.head)]


@pytest.mark.parametrize("name", ["mocov3", "dino"])
def test_momentum_copies_start_equal_and_follow_by_hand_computed_steps(name):
    backbone = make_backbone()
    objective = make_objective(name, backbone, momentum=0.75)
    for held, model in copies(objective, backbone):
        assert not any(parameter.requires_grad for parameter in held.parameters())
        pairs = list(zip(held.state_dict().values(), model.state_dict().values(), strict=True))
        assert pairs
        assert all(torch.equal(*pair) and pair[0].data_ptr() != pair[1].data_ptr() for pair in pairs)
    started = [[p.clone() for p in held.parameters()] for held, _ in copies(objective, backbone)]
    with torch.no_grad():
        for _, model in copies(objective, backbone):
            for parameter in model.parameters():
                parameter.add_(1.0)
    for step in (1, 2, 3):
        objective.after_step(backbone)
        left = 0.75**step  # of the distance of 1
        for (held, model), start in zip(copies(objective, backbone), started, strict=True):
            for now, before, followed in zip(held.parameters(), start, model.parameters(), strict=True):
                torch.testing.assert_close(followed, before + 1.0)
                torch.testing.assert_close(now, before + (1.0 - left), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mocov3", "dino"])
def test_momentum_copies_get_no_gradient_and_move_after_the_step_alone(name):
    for joint in (False, True):
        backbone, images = make_backbone(), real_images(count=8)
        objective = make_objective(name, backbone, momentum=0.0)
        objective(backbone, images, generator(), joint)[0].backward()
        with torch.no_grad():
            for parameter in (*backbone.parameters(), *objective.parameters()):
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad)
        before = copy.deepcopy(objective.state_dict())
        assert all(p.grad is None for held, _ in copies(objective, backbone) for p in held.parameters())
        objective(backbone, images, generator(), joint)
        assert all(torch.equal(before[n], value) for n, value in objective.state_dict().items())
        objective.after_step(backbone)
        assert not all(torch.equal(before[n], value) for n, value in objective.state_dict().items())
        for held, model in copies(objective, backbone):  # without momentum a copy is the model
            for now, followed in zip(held.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(now, followed)


def test_dinos_center_follows_the_mean_of_what_the_teacher_said():
    backbone, images = make_backbone(), real_images(count=8)
    objective = make_objective("dino", backbone, prototypes=9, center_momentum=0.6, momentum=0.5)
    assert objective.center.tolist() == [0.0] * 9
    center = torch.zeros(9, dtype=torch.float64)
    for step in range(3):
        with torch.no_grad():
            said = [
                objective.teacher_head(pool(backbone, objective.teacher_backbone(image[None])))[0].double()
                for image in images
            ]
        objective(backbone, images.roll(step, dims=0), generator(), joint=False)
        torch.testing.assert_close(objective.center.double(), center, rtol=1e-5, atol=1e-6)  # until after the step
        objective.after_step(backbone)
        center = 0.6 * center + 0.4 * sum(said) / len(said)
        torch.testing.assert_close(objective.center.double(), center, rtol=1e-5, atol=1e-6)
    assert "latest_mean" not in objective.state_dict()
    assert "center" in objective.state_dict()


@each_objective
def test_heads_keep_no_statistics_and_are_the_same_in_training_and_evaluation(name):
    backbone, images = make_backbone(), real_images(count=8)
    objective = make_objective(name, backbone)
    assert not any("running" in key or "tracked" in key for key in objective.state_dict())
    losses = [objective.train(mode)(backbone, images, generator(), joint=False)[0] for mode in (True, False)]
    assert torch.equal(*losses)


def test_moco_and_simclr_heads_have_the_layers_of_moco_v3():
    kinds = [type(layer).__name__ for layer in _invariance.mlp([4, 5, 6, 7])]
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    *_, last = _invariance.mlp([4, 5, 6])
    assert not list(last.parameters())
    backbone = make_backbone()

    def sizes(head):
        return [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]

    assert sizes(make_objective("simclr", backbone, output_dim=6).head) == [(16, 12), (12, 6)]
    moco = make_objective("mocov3", backbone, output_dim=6)
    assert (sizes(moco.head), sizes(moco.predictor)) == ([(16, 12), (12, 12), (12, 6)], [(6, 12), (12, 6)])
    teacher = make_objective("dino", backbone, bottleneck_dim=5, prototypes=9)
    assert sizes(teacher.head) == [(16, 12), (12, 12), (12, 5), (5, 9)]


def recipe_with(compression, name="simclr", **ssl):
    return parse_recipe({"data": {"dataset": "digits"}, "ssl": {"objective": name, "compression": compression, **ssl}})


def test_a_compression_that_cannot_be_is_refused():
    for compression, message in (
        ({"stages": [{"from_epoch": 1}]}, ": stages should begin with from_epoch 0, not 1"),
        (
            {"stages": [{"from_epoch": 0}, {"from_epoch": 5}, {"from_epoch": 5}]},
            ": the stages' from_epoch should ascend, not 0, 5, 5",
        ),
        (
            {"stages": [{"from_epoch": n, "token_dropout": n / 10} for n in range(9)]},
            ": stages should have at most 8 different strategies, not 9",
        ),
        (
            {"token_droput": 0.5},
            ".token_droput: unknown key; allowed are token_dropout, key_token_dropout, patch_size, "
            "key_patch_size, schedule, stages; did you mean 'token_dropout'?",
        ),
        ({"token_dropout": 1.0}, ".token_dropout: should be less than 1, got 1.0"),
        ({"patch_size": 0}, ".patch_size: should be greater than or equal to 1, got 0"),
        (
            {"schedule": "automatic"},
            ".schedule: should be 'none', 'constant' or 'auto', got \"automatic\"; did you mean 'auto'?",
        ),
    ):
        with pytest.raises(RecipeError) as refused:
            recipe_with(compression)
        assert str(refused.value) == f"ssl.compression{message}"
    with pytest.raises(RecipeError, match=r"^ssl\.compression\.stages.*: unknown key; allowed are ") as refused:
        recipe_with({"stages": [{"from_epoch": 0, "dropout": 0.5}]})
    assert "\n" not in str(refused.value)
    stages = [{"from_epoch": n, "token_dropout": n % 8 / 10} for n in range(20)]  # eight strategies, many stages
    assert len(recipe_with({"stages": stages}).ssl.compression.stages) == 20


@each_objective
def test_what_the_images_cannot_have_is_refused(name):
    backbone = make_backbone()
    for compression, field in (
        ({"patch_size": 1}, "patch_size 1"),
        ({"patch_size": 9}, "patch_size 9"),
        ({"key_patch_size": 1}, "key_patch_size 1"),
        ({"stages": [{"from_epoch": 0}, {"from_epoch": 1, "key_patch_size": 16}]}, "key_patch_size 16"),
    ):
        with pytest.raises(RequestError) as refused:
            make_objective(name, backbone, compression=recipe_with(compression).ssl.compression)
        assert str(refused.value) == (
            f"ssl.compression.{field} should be between the backbone's patch size 2 and the image size 8, in pixels"
        )
    for patch_size in (2, 3, 8):
        make_objective(name, backbone, compression=recipe_with({"patch_size": patch_size}).ssl.compression)
    with pytest.raises(RequestError) as refused:
        make_objective(name, backbone, crop_scale=(0.9, 0.2))
    assert str(refused.value) == "ssl.crop_scale: its low end 0.9 is above its high end 0.2"


def test_a_schedule_says_what_holds_in_an_epoch():
    fields = {"token_dropout": 0.5, "key_token_dropout": 0.25, "patch_size": 4, "key_patch_size": 3}
    stages = [
        {"from_epoch": 0, "token_dropout": 0.75, "patch_size": 4},
        {"from_epoch": 3, "token_dropout": 0.5},
        {"from_epoch": 10},
    ]
    given = {"stages": stages, **fields}
    strong, weak = Strategy(Shortening(0.75, 4), Shortening(0.0, 4)), Strategy(Shortening(0.5), Shortening())
    for schedule, expected in {
        "none": [UNCOMPRESSED] * 5,
        "constant": [Strategy(Shortening(0.5, 4), Shortening(0.25, 3))] * 5,
        "auto": [strong, strong, weak, weak, UNCOMPRESSED],
    }.items():
        settings = recipe_with({"schedule": schedule, **given}).ssl
        assert [settings.strategy(epoch) for epoch in (0, 2, 3, 9, 10)] == expected
    assert recipe_with({}).ssl.strategy(0) == UNCOMPRESSED  # none by default


def test_auto_without_stages_names_the_command_that_finds_them():
    settings = recipe_with({"schedule": "auto"}).ssl  # a recipe may say so: the search fills them in
    with pytest.raises(RequestError) as refused:
        settings.strategy(0)
    assert str(refused.value) == (
        "ssl.compression: schedule auto needs stages: `mixtune gradient-error SPACE.yaml` finds and prints them"
    )


def test_the_keys_patches_are_the_querys_unless_said():
    for given, patch_sizes in (
        ({}, (None, None)),
        ({"patch_size": 4}, (4, 4)),
        ({"key_patch_size": 4}, (None, 4)),
        ({"patch_size": 4, "key_patch_size": 2}, (4, 2)),
    ):
        strategy = Compression(schedule="constant", **given).strategy(0)
        assert (strategy.query.patch_size, strategy.key.patch_size) == patch_sizes
        assert Compression(schedule="auto", stages=[{"from_epoch": 0, **given}]).strategy(5) == strategy


@each_objective
def test_settings_hold_in_every_epoch_but_for_the_compression(name):
    one, other = (recipe_with({"schedule": "constant", "token_dropout": rate}, name).ssl for rate in (0.25, 0.5))
    assert one != other
    assert one.constants() == other.constants()
    assert set(one.model_dump()) - set(one.constants()) == {"compression"}
    assert one.constants() != recipe_with({}, name, hidden_dim=7).ssl.constants()


@each_objective
def test_two_views_of_which_the_classifiers_is_not_one_of_these(name):
    settings = recipe_with({}, name, crop_scale=[0.3, 0.9], color_jitter=1.0, grayscale=0.1).ssl
    view = View((0.3, 0.9), 1.0, 0.1)
    assert settings.views(joint=False) == (view, view)
    assert settings.views(joint=True) == (None, view)


def test_the_kept_count_is_exact_for_all_hundredths():
    backbone = make_backbone()
    for patches, patch_size in ((16, 2), (9, 3), (4, 4), (1, 8)):
        for k in range(100):
            exact = max(1, math.floor(patches * (1 - Fraction(k, 100))))
            assert count_kept(backbone, Shortening(k / 100, patch_size)) == exact, (patches, k)
    with torch.device("meta"):
        large = build_backbone(Model(**SMALL, patch_size=2), 200, 1)  # 10000 tokens
    for k in range(100):
        assert count_kept(large, Shortening(k / 100)) == 10_000 - 100 * k
    assert count_kept(large, Shortening(1 - 1e-5)) == 1  # a tenth of a token is one


@each_vit
def test_dropped_patches_are_drawn_without_replacement_and_no_other_token_is_dropped(vit):
    """Each token is marked with its place before it reaches the blocks."""
    backbone = make_backbone(vit)
    seen = []
    marked = torch.arange(backbone.prefix + backbone.tokens).float()[None, :, None]
    backbone.vit._pos_embed = lambda x: marked.expand(len(x), -1, 16)
    backbone.vit.norm_pre.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][..., 0].long()))
    images = real_images(vit, 32)
    encode(backbone, images, Shortening(0.5), generator())
    encode(backbone, images, Shortening(0.5), generator())
    encode(backbone, images, Shortening(0.5), generator(4))
    kept, again, other = (places.tolist() for places in seen)
    assert kept == again != other
    patches = set()
    for row in kept:
        assert row[: backbone.prefix] == list(range(backbone.prefix))
        assert len(row) == len(set(row)) == backbone.prefix + backbone.tokens // 2
        assert set(row) <= set(range(backbone.prefix + backbone.tokens))
        patches |= {frozenset(row)}
    assert len(patches) > 8  # drawn again for each image
    assert set().union(*patches) == set(range(backbone.prefix + backbone.tokens))


@each_vit
def test_a_shortened_sequence_has_class_and_register_tokens_and_the_count_that_is_kept(vit):
    backbone, images = make_backbone(vit), real_images(vit, 8)
    for patch_size, rate in product((None, backbone.patch_size + 1), (0.0, 0.3, 0.75, 0.999)):
        branch = Shortening(rate, patch_size)
        expected = (8, backbone.prefix + count_kept(backbone, branch), 16)
        assert encode(backbone, images, branch, generator()).shape == expected, branch


@each_objective
def test_rate_0_at_the_base_patch_has_the_bits_of_no_compression(name):
    own = Shortening(0.0, VITS["digits"][0].patch_size)
    for joint in (False, True):
        found = []
        for strategy in (None, UNCOMPRESSED, Strategy(own, own)):
            backbone = make_backbone()
            objective, draws = make_objective(name, backbone), generator()
            loss, tokens = objective(backbone, real_images(count=8), draws, joint, strategy)
            loss.backward()
            assert torch.equal(draws.get_state(), generator().get_state())  # nothing is drawn
            trained = [p for m in (backbone, objective) for p in m.parameters() if p.requires_grad]
            found.append([loss, *([] if tokens is None else [tokens]), *(p.grad for p in trained)])
        for other in found[1:]:
            assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True)), joint


@each_objective
def test_each_branch_is_shortened_as_its_own_part_of_the_strategy_says(name):
    """The lengths that reach the first block, of the backbone (True) and of its momentum copy (False)."""
    backbone, images = make_backbone(), real_images(count=8)
    objective = make_objective(name, backbone)
    seen = []
    for encoder, own in ((backbone, True), *((held, False) for held, _ in copies(objective, backbone)[:1])):
        encoder.vit.blocks[0].register_forward_hook(lambda _, inputs, __, own=own: seen.append((own, inputs[0].shape)))
    strategy = Strategy(Shortening(0.75), Shortening(0.25, 3))  # 4 of 16 and 6 of 9 patches
    whole, query, key = 1 + 16, 1 + 4, 1 + 6
    expected = {
        ("simclr", False): [(True, query), (True, key)],
        ("simclr", True): [(True, whole), (True, key)],
        ("mocov3", False): [(True, query), (False, key)],
        ("mocov3", True): [(True, whole), (False, key)],
        ("dino", False): [(True, query), (True, query), (False, key), (False, key)],
        ("dino", True): [(True, whole), (True, query), (False, key), (False, key)],
    }
    for joint in (False, True):
        seen.clear()
        objective(backbone, images, generator(), joint, strategy)
        assert seen == [(own, (4, length, 16)) for own, length in expected[name, joint]]


@each_objective
def test_views_are_not_dropped_alike(name):
    """Equal views of equal images have different tokens left: the draws of a view are its own."""
    backbone = make_backbone()
    objective = make_objective(name, backbone)
    kept = []
    for encoder in (backbone, *(held for held, _ in copies(objective, backbone)[:1])):
        encoder.register_forward_hook(lambda _, inputs, __: kept.append(inputs[1].tolist()))
    objective(backbone, real_images(count=8)[:4].repeat(2, 1, 1, 1), generator(), False, HALF)
    assert len(kept) == len(objective.passes(False, HALF))
    rows = [tuple(row) for places in kept for row in places]
    assert len(set(rows)) == len(rows) == 4 * len(kept)


@functools.cache
def vit_tiny(name="vit_tiny_patch16_224"):
    with torch.device("meta"):
        return build_backbone(Model(name=name, embed_dim=192, depth=12, num_heads=3, pool="avg"), 32, 3)


def on_meta(name, backbone):
    with torch.device("meta"):
        return make_objective(name, backbone)


def test_costs_in_forward_passes_are_the_papers():
    """With c(L) = L / L0, exact without a class token; with one, which is never dropped, they are a little more."""
    without, tiny = vit_tiny("vit_base_patch16_gap_224"), vit_tiny()
    assert without.prefix == 0
    uneven = Strategy(Shortening(0.5, 4), Shortening(0.25))
    for name, strategy, joint, units in (
        ("simclr", UNCOMPRESSED, False, 6),
        ("simclr", UNCOMPRESSED, True, 6),
        ("simclr", QUARTER, False, 6 / 1.6),
        ("simclr", QUARTER, True, 6),
        ("simclr", HALF, False, 3),
        ("simclr", HALF, True, 4.5),
        ("simclr", uneven, False, 3 / 8 + 9 / 4),
        ("mocov3", UNCOMPRESSED, False, 4),
        ("mocov3", UNCOMPRESSED, True, 4),
        ("mocov3", QUARTER, False, 1.75),  # 2.3 times cheaper
        ("mocov3", HALF, False, 2),
        ("mocov3", HALF, True, 3.5),
        ("mocov3", uneven, False, 3 / 8 + 3 / 4),
        ("dino", UNCOMPRESSED, False, 8),
        ("dino", UNCOMPRESSED, True, 8),
        ("dino", QUARTER, False, 3.5),
        ("dino", QUARTER, True, 5.75),
        ("dino", HALF, False, 4),
        ("dino", uneven, False, 2 * 3 / 8 + 2 * 3 / 4),
    ):
        found = on_meta(name, without).forward_units(without, strategy, joint, linear=True)
        assert found == pytest.approx(units, rel=1e-12), (name, strategy, joint)
        objective = on_meta(name, tiny)
        whole = objective.forward_units(tiny, UNCOMPRESSED, linear=True)
        with_token = objective.forward_units(tiny, strategy, joint, linear=True)
        assert with_token == pytest.approx((units * 256 + whole) / 257, rel=1e-12), (name, strategy, joint)


@each_objective
def test_in_operations_costs_are_those_of_blocks_with_attention(name):
    """c(L) is proportional to L * (12 d^2 + 2 L d), alongside the embedding of all patches, a thousandth here."""
    backbone = vit_tiny()
    objective, d = on_meta(name, backbone), 192

    def c(length):
        return length * (12 * d**2 + 2 * length * d)

    assert 2 * 257 * d / (12 * d**2 + 2 * 257 * d) == pytest.approx(0.18, abs=0.005)  # attention's share
    assert objective.forward_units(backbone, UNCOMPRESSED) == {"simclr": 6, "mocov3": 4, "dino": 8}[name]
    for branch, length in (
        (Shortening(0.75), 65),
        (Shortening(0.5), 129),
        (Shortening(0.0, 4), 65),
        (Shortening(0.5, 3), 61),
    ):
        found = objective.forward_units(backbone, Strategy(branch, branch))
        expected = c(length) / c(257) * objective.forward_units(backbone, UNCOMPRESSED)
        assert found == pytest.approx(expected, rel=0.01)
        linear = objective.forward_units(backbone, Strategy(branch, branch), linear=True)
        assert found < linear  # what is dropped was more expensive than the paper says


@each_objective
def test_units_and_operations_say_the_same_of_the_encoders(name):
    backbone = vit_tiny()
    objective = on_meta(name, backbone)
    for joint, strategy in product(
        (False, True), (UNCOMPRESSED, QUARTER, Strategy(Shortening(0.5, 3), Shortening(0.25, 4)))
    ):
        encoders = objective.train_flops(backbone, joint, strategy) - objective.head_flops()
        units = objective.forward_units(backbone, strategy, joint)
        assert units * backbone.forward_flops(256) == pytest.approx(encoders, rel=1e-12), (joint, strategy)
        assert objective.passes(joint, strategy)[0] == Pass(Shortening() if joint else strategy.query, True)
