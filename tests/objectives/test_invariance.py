"""SimCLR, MoCo-v3 and DINO against slow versions, written here with loops in float64; what compression leaves of it."""

from __future__ import annotations

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
from mixtune.objectives._invariance import Pass, count_kept, encode
from mixtune.space.compression import Compression
from mixtune.space.recipe import Model, RecipeError, parse_recipe
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy

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


def make_parts(name, vit="digits", **settings):
    """Return a backbone, an objective for it, and two views of four real images."""
    backbone = make_backbone(vit)
    return backbone, make_objective(name, backbone, **settings), real_images(vit, 8)


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


def test_nt_xent_is_equation_1_of_simclr_and_contrast_algorithm_1_of_moco():
    losses = ((simclr.nt_xent, slow_nt_xent, True), (mocov3.contrast, slow_contrast, False))
    for (loss, slow, symmetric), batch, temperature in product(losses, (2, 5), (0.1, 0.5, 2.0)):
        one, other = random_rows(batch, 7), random_rows(batch, 7, seed=1)
        expected = slow(one, other, temperature)
        for given in (other, 3.0 * other):
            assert loss(one, given, temperature).item() == pytest.approx(expected, rel=1e-5), (slow, batch, temperature)
        turned = loss(other, one, temperature).item()
        assert (turned == pytest.approx(expected, rel=2e-6)) == symmetric, (slow, batch, temperature)
    at_right_angles = torch.eye(2)
    known = -math.log(math.e / (math.e + 2))
    assert simclr.nt_xent(at_right_angles, at_right_angles, 1.0).item() == pytest.approx(known)


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


def slow_pool(encoder, images):
    """Return the class token of each image, in float64, or the mean of its patch tokens where there is none."""
    tokens = encoder(images).double()
    if encoder.vit.cls_token is not None:
        return torch.stack([image[0] for image in tokens])
    return torch.stack([sum(image[encoder.prefix :]) / encoder.tokens for image in tokens])


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


def slow_scores(encoder, head, images):
    """Return the cosines of each image's features with DINO's prototypes, one by one."""
    prototypes = head.prototypes.weight.tolist()
    features = head.mlp(slow_pool(encoder, images).float()).tolist()
    return torch.tensor([[cosine(row, prototype) for prototype in prototypes] for row in features])


def slow_simclr(backbone, objective, views):
    """Compare the projections of both views."""
    return slow_nt_xent(*(slow_mlp(objective.head, slow_pool(backbone, view)) for view in views), 0.3)


def slow_moco(backbone, objective, views):
    """Ask the first view for what the momentum encoder makes of the second."""
    query = slow_mlp(objective.predictor, slow_mlp(objective.head, slow_pool(backbone, views[0])))
    key = slow_mlp(objective.key_head, slow_pool(objective.key_backbone, views[1]))
    return slow_contrast(query, key, 0.3)


def slow_both_ways(backbone, objective, views):
    """Ask each view for what the momentum encoder makes of the other."""
    return slow_moco(backbone, objective, views) + slow_moco(backbone, objective, views[::-1])


def slow_dino(backbone, objective, views):
    """Let the student say of each view what the teacher says of the other."""
    student = [slow_scores(backbone, objective.head, view) for view in views]
    teacher = [slow_scores(objective.teacher_backbone, objective.teacher_head, view) for view in views]
    return sum(slow_distil(student[i], teacher[1 - i], objective.center, 0.1, 0.04) for i in (0, 1)) / 2


@each_vit
@pytest.mark.parametrize(
    ("name", "slow", "settings"),
    [
        ("simclr", slow_simclr, {"output_dim": 6, "temperature": 0.3}),
        ("mocov3", slow_moco, {"output_dim": 6, "temperature": 0.3}),
        ("mocov3", slow_both_ways, {"output_dim": 6, "temperature": 0.3, "symmetric": True}),
        ("dino", slow_dino, {"bottleneck_dim": 5, "prototypes": 9}),
    ],
)
def test_the_whole_objective_is_the_slow_one(name, slow, settings, vit):
    backbone, objective, images = make_parts(name, vit, **settings)
    for held, _ in copies(objective, backbone):
        for parameter in held.parameters():
            parameter.mul_(0.9)  # so that it is told from what it follows
    if name == "dino":
        objective.center.copy_(0.01 * random_rows(1, 9)[0])
    expected = slow(backbone, objective, images.chunk(2))
    for joint in (False, True):
        loss, _ = objective(backbone, images, generator(), joint)
        assert loss.item() == pytest.approx(expected, rel=1e-3), joint


def copies(objective, backbone):
    """Return each momentum copy of an objective with the model that it follows, the backbone's first."""
    if isinstance(objective, simclr.SimCLR):
        return []
    if isinstance(objective, mocov3.MoCoV3):
        return [(objective.key_backbone, backbone), (objective.key_head, objective.head)]
    return [(objective.teacher_backbone, backbone), (objective.teacher_head, objective.head)]


def test_a_symmetric_loss_costs_twice_as_much_and_no_key_knows_of_what_is_off():
    backbone, one_way, _ = make_parts("mocov3")
    both = make_objective("mocov3", backbone, symmetric=True)
    for strategy in (UNCOMPRESSED, HALF):
        assert both.train_flops(backbone, False, strategy) == 2 * one_way.train_flops(backbone, False, strategy)
    assert both.forward_units(backbone, UNCOMPRESSED) == 8.0
    assert both.settings.constants().keys() - one_way.settings.constants().keys() == {"symmetric"}
    assert "frozen_epochs" not in make_objective("dino", backbone).settings.constants()


@pytest.mark.parametrize("name", ["mocov3", "dino"])
def test_momentum_copies_start_equal_and_follow_by_hand_computed_steps(name):
    backbone, objective, _ = make_parts(name, momentum=0.75)
    pairs = [
        pair
        for held, model in copies(objective, backbone)
        for pair in zip(held.parameters(), model.parameters(), strict=True)
    ]
    started = [held.clone() for held, _ in pairs]
    for held, followed in pairs:
        assert torch.equal(held, followed)
        assert not held.requires_grad
        followed.data.add_(1.0)
    for step in (1, 2, 3):
        objective.after_step(backbone)
        left = 0.75**step  # of the distance of 1
        for (held, followed), start in zip(pairs, started, strict=True):
            torch.testing.assert_close(followed, start + 1.0)
            torch.testing.assert_close(held, start + (1.0 - left), rtol=1e-5, atol=1e-5)


def test_dinos_center_follows_the_mean_of_what_the_teacher_said():
    backbone, objective, images = make_parts("dino", prototypes=9, center_momentum=0.6, momentum=0.5)
    assert objective.center.tolist() == [0.0] * 9
    center = torch.zeros(9)
    for step in range(3):
        said = slow_scores(objective.teacher_backbone, objective.teacher_head, images)
        objective(backbone, images.roll(step, dims=0), generator(), joint=False)
        torch.testing.assert_close(objective.center, center, rtol=1e-5, atol=1e-6)  # until after the step
        objective.after_step(backbone)
        center = 0.6 * center + 0.4 * sum(said) / len(said)
        torch.testing.assert_close(objective.center, center, rtol=1e-5, atol=1e-6)
    assert "latest_mean" not in objective.state_dict()
    assert "center" in objective.state_dict()


@each_objective
def test_heads_keep_no_statistics_and_are_the_same_in_training_and_evaluation(name):
    backbone, objective, images = make_parts(name)
    assert not any("running" in key or "tracked" in key for key in objective.state_dict())
    losses = [objective.train(mode)(backbone, images, generator(), joint=False)[0] for mode in (True, False)]
    assert torch.equal(*losses)


def test_moco_and_simclr_heads_have_the_layers_of_moco_v3():
    head = _invariance.mlp([4, 5, 6, 7])
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(layer).__name__ for layer in head] == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    assert not list(head[-1].parameters())
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
        ({"stages": [{"token_dropout": 0.5}]}, ": stages should have a from_epoch each, or a from_share each"),
        (
            {"stages": [{"from_share": 0.0}, {"from_epoch": 1}]},
            ": stages should have a from_epoch each, or a from_share each",
        ),
        ({"stages": [{"from_share": 0.5}]}, ": stages should begin with from_share 0, not 0.5"),
        (
            {"stages": [{"from_share": 0.0}, {"from_share": 0.5}, {"from_share": 0.25}]},
            ": the stages' from_share should ascend, not 0.0, 0.5, 0.25",
        ),
        ({"token_dropout": 1.0}, ".token_dropout: should be less than 1, got 1.0"),
        ({"patch_size": 0}, ".patch_size: should be greater than or equal to 1, got 0"),
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
    assert Compression().strategy(0) == Compression(schedule="none", token_dropout=0.5).strategy(0) == UNCOMPRESSED


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
    for row in kept:
        assert row[: backbone.prefix] == list(range(backbone.prefix))
        assert len(row) == len(set(row)) == backbone.prefix + backbone.tokens // 2
        assert set(row) <= set(range(backbone.prefix + backbone.tokens))
    assert len({frozenset(row) for row in kept}) > 8  # drawn again for each image
    assert set().union(*kept) == set(range(backbone.prefix + backbone.tokens))


@each_objective
def test_rate_0_at_the_base_patch_has_the_bits_of_no_compression(name):
    own = Shortening(0.0, VITS["digits"][0].patch_size)
    for joint in (False, True):
        found = []
        for strategy in (None, UNCOMPRESSED, Strategy(own, own)):
            (backbone, objective, images), draws = make_parts(name), generator()
            loss, tokens = objective(backbone, images, draws, joint, strategy)
            loss.backward()
            assert torch.equal(draws.get_state(), generator().get_state())  # nothing is drawn
            trained = [p for m in (backbone, objective) for p in m.parameters() if p.requires_grad]
            found.append([loss, *([] if tokens is None else [tokens]), *(p.grad for p in trained)])
        for other in found[1:]:
            assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True)), joint


@each_objective
def test_each_branch_is_shortened_as_its_own_part_of_the_strategy_says(name):
    """The lengths that reach the first block, of the backbone (True) and of its momentum copy (False)."""
    backbone, objective, images = make_parts(name)
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
    backbone, objective, images = make_parts(name)
    kept = []
    for encoder in (backbone, *(held for held, _ in copies(objective, backbone)[:1])):
        encoder.register_forward_hook(lambda _, inputs, __: kept.append(inputs[1].tolist()))
    objective(backbone, images[:4].repeat(2, 1, 1, 1), generator(), False, HALF)
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
    for strategy, joint, costs in (
        (UNCOMPRESSED, False, (6, 4, 8)),
        (UNCOMPRESSED, True, (6, 4, 8)),
        (QUARTER, False, (6 / 1.6, 1.75, 3.5)),  # MoCo-v3 is 2.3 times cheaper
        (QUARTER, True, (6, 4, 5.75)),
        (HALF, False, (3, 2, 4)),
        (HALF, True, (4.5, 3.5, 5.5)),
        (uneven, False, (3 / 8 + 9 / 4, 3 / 8 + 3 / 4, 2 * 3 / 8 + 2 * 3 / 4)),
    ):
        for name, units in zip(MODULES, costs, strict=True):
            found = on_meta(name, without).forward_units(without, strategy, joint, linear=True)
            assert found == pytest.approx(units, rel=1e-12), (name, strategy, joint)
            objective = on_meta(name, tiny)
            whole = objective.forward_units(tiny, UNCOMPRESSED, linear=True)
            with_token = objective.forward_units(tiny, strategy, joint, linear=True)
            assert with_token == pytest.approx((units * 256 + whole) / 257, rel=1e-12), (name, strategy, joint)


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
