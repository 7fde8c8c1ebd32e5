"""Learning rates: the pure schedule against a slow one, and what the real optimizer had at each step."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from mixtune.space.effective import longest_warmup
from mixtune.training.loop import train
from mixtune.training.optimizer import set_rates
from mixtune.training.plan import cut_warmups, learning_rates, make_plan


def slow_rates(recipe, loss, steps, decay=None):
    """Return the rate of a loss at each step of its own budget; wsd goes down in its last ``decay`` epochs."""
    optim, whole = getattr(recipe.optim, loss), getattr(recipe.epochs, loss) * steps
    peak, warmup, rates = optim.base_lr * recipe.optim.batch_size / 256, optim.warmup_epochs * steps, []
    short = min(warmup, whole * optim.warmup_cap)
    for step in range(whole):
        if optim.schedule == "wsd":
            rise, left = min(1.0, step / warmup) if warmup else 1.0, whole - decay * steps
            rates.append(peak * rise * (1.0 if step < left else 1 - math.sqrt((step - left) / (decay * steps))))
        elif optim.schedule == "whole_cosine":
            epoch, budget = step // steps, whole // steps
            rise = (epoch + 1) / (short / steps + 1e-12)
            rates.append(peak * min(rise, 0.5 * (math.cos(epoch / budget * math.pi) + 1)))
        elif step < short:
            rates.append(peak * step / short)
        else:
            decayed = (step - short) / (whole - short)
            fallen = (1 - decayed) ** 2 if optim.schedule == "polynomial" else (1 + math.cos(decayed * math.pi)) / 2
            rates.append(peak * fallen)
    return rates


def used_rates(recipe, steps):
    """Return each loss's rates, of the epochs that have this loss and of no others, step by step."""
    found = {"ssl": [], "sl": []}
    for epoch in make_plan(recipe):
        for step in range(steps):
            rates = learning_rates(recipe, epoch, step, steps)
            assert set(rates) == {"mix": {"ssl", "sl"}}.get(epoch.phase, {epoch.phase})
            for loss, rate in rates.items():
                found[loss].append(rate)
    return found


def test_each_schedule_spans_its_own_budget_across_the_mix_phase_and_wsd_decays_in_its_last_fifth(make_recipe):
    for schedule, warmup, cap, (ssl, sl, rho, *decays) in product(
        ("cosine", "whole_cosine", "polynomial", "wsd"),
        (0, 1, 2, 20),
        (0.2, 0.45, 1.0),
        (
            (10, 10, 0.5, 2, 2),
            (10, 10, 0.0, 2, 2),
            (10, 10, 0.1, 1, 2),  # the SSL rate in its mix phase, though that is shorter
            (12, 4, 1.0, 3, 1),
            (0, 1, 0.5, 0, 1),
            (6, 11, 1.0, 2, 3),
        ),
    ):
        changes = {"epochs.ssl": ssl, "epochs.sl": sl, "rho": rho, "optim.batch_size": 48, "optim.sl.base_lr": 0.003}
        for loss in ("ssl", "sl"):
            changes |= {f"optim.{loss}.schedule": schedule, f"optim.{loss}.warmup_epochs": warmup}
            changes |= {f"optim.{loss}.warmup_cap": cap}
        recipe = make_recipe(changes)
        used = used_rates(recipe, 3)
        for loss, decay in zip(("ssl", "sl"), decays, strict=True):
            expected = slow_rates(recipe, loss, 3, decay)
            assert used[loss] == pytest.approx(expected, rel=1e-9, abs=1e-15), changes


def test_a_warm_up_that_its_budget_cuts_is_said_and_the_papers_20_of_50_epochs_can_be_had(make_recipe):
    base = {"epochs.ssl": 50, "epochs.sl": 50, "optim.ssl.warmup_epochs": 20, "optim.sl.warmup_epochs": 10}
    assert cut_warmups(make_recipe(base)) == []  # the default
    assert cut_warmups(make_recipe({**base, "protocol": "paper", "data.val_fraction": 0})) == [
        "a budget cuts its warm-up: 20 epochs to 10 of 50 (optim.ssl.warmup_cap 0.2)"
    ]
    assert cut_warmups(make_recipe({**base, "optim.ssl.warmup_epochs": 21})) == [
        "a budget cuts its warm-up: 21 epochs to 10 of 50 (optim.ssl.warmup_cap 0.2)"
    ]
    uncut = make_recipe({**base, "optim.ssl.warmup_cap": 1.0})
    assert cut_warmups(uncut) == []
    rates = used_rates(uncut, 3)["ssl"]
    assert rates.index(max(rates)) == 20 * 3
    assert cut_warmups(make_recipe({**base, "optim.ssl.schedule": "wsd"})) == []
    assert cut_warmups(make_recipe({**base, "epochs.ssl": 0, "epochs.sl": 100})) == []
    for budget in range(1, 300):  # as it was before there was a cap, to the last bit
        assert longest_warmup(0.2, budget) == budget / 5


@pytest.fixture(scope="module")
def trained(make_state):
    """A real training of phases ssl, mix, sl, sl: the optimizer's groups at each step, weights at each boundary."""
    state = make_state(
        {
            "rho": 0.5,
            "optim.ssl.betas": (0.9, 0.95),
            "optim.ssl.weight_decay": 0.15,
            "optim.sl.betas": (0.8, 0.999),
            "optim.sl.weight_decay": 0.05,
        }
    )
    groups, weights = [], [snapshot(state)]
    state.optimizer.register_step_pre_hook(
        lambda optimizer, *_: groups.append(
            [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        )
    )
    for _ in train(state):
        weights.append(snapshot(state))
    return state, groups, weights


def snapshot(state):
    parts = {"backbone": state.backbone, "objective": state.objective, "classifiers": state.classifiers}
    return {name: {n: p.detach().clone() for n, p in part.named_parameters()} for name, part in parts.items()}


def test_the_optimizer_had_each_losss_rates_betas_and_weight_decay(trained):
    state, groups, _ = trained
    n = state.data.steps_of("sl")
    ssl, sl = (slow_rates(state.recipe, loss, n) for loss in ("ssl", "sl"))
    of_ssl, of_sl = [(rate, 0.15, (0.9, 0.95)) for rate in ssl], [(rate, 0.05, (0.8, 0.999)) for rate in sl]
    wanted = {
        "backbone": of_ssl[:n] + of_sl,  # ours: in the mix phase the backbone follows the supervised schedule
        "objective": of_ssl + [None] * 2 * n,
        "classifiers": [None] * n + of_sl,
    }
    for part, expected in wanted.items():
        for step, values in zip(groups, expected, strict=True):
            for group in (group for group in step if group["part"] == part and values):
                rate, decay, betas = values
                assert group["lr"] == pytest.approx(rate), part
                assert group["weight_decay"] == (decay if group["decays"] else 0.0), part
                assert tuple(group["betas"]) == betas, part


def test_only_matrices_decay_and_no_token_or_position_does(trained):
    state, _, _ = trained
    names = {p: n for part in (state.backbone, state.objective, state.classifiers) for n, p in part.named_parameters()}
    decaying = [names[p] for group in state.optimizer.param_groups if group["decays"] for p in group["params"]]
    others = [names[p] for group in state.optimizer.param_groups if not group["decays"] for p in group["params"]]
    assert sorted(decaying + others) == sorted(names.values())  # every parameter, once
    assert {"vit.cls_token", "vit.pos_embed", "mask_token"} <= set(others)
    assert all(name.endswith("weight") and "norm" not in name for name in decaying)
    assert all(
        name.endswith("bias") or "norm" in name
        for name in set(others) - {"vit.cls_token", "vit.pos_embed", "mask_token"}
    )


def test_a_phase_changes_every_weight_of_its_parts_and_no_bit_of_the_others(trained):
    state, _, weights = trained
    learning = {
        "ssl": {"backbone", "objective"},
        "mix": {"backbone", "objective", "classifiers"},
        "sl": {"backbone", "classifiers"},
    }
    for result, before, after in zip(state.history, weights, weights[1:], strict=False):
        for part, held in before.items():
            changed = {name for name in held if not torch.equal(held[name], after[part][name])}
            assert changed == (set(held) if part in learning[result.phase] else set()), (result.phase, part)


def test_a_step_is_adamws(make_state):
    state = make_state({"epochs.ssl": 0, "optim.sl.warmup_epochs": 0, "epochs.sl": 1, "data.fraction": 0.03})
    assert state.data.steps_of("sl") == 1
    before = snapshot(state)
    list(train(state))
    rate, decay, eps = 0.02 * 32 / 256, 0.05, 1e-8
    moments = state.optimizer.state
    for part in ("backbone", "classifiers"):
        for name, parameter in getattr(state, part).named_parameters():
            gradient = moments[parameter]["exp_avg"] / (1 - 0.9)  # the first step's moment
            kept = 1 - rate * decay * (parameter.ndim > 1 and name not in ("vit.cls_token", "vit.pos_embed"))
            expected = before[part][name] * kept - rate * gradient / (gradient.abs() + eps)
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def test_in_the_mix_phase_the_backbone_follows_the_schedule_that_is_named(make_state):
    for mix_schedule, ssl_share in (("sl", 0.0), ("ssl", 1.0), ("blend", 0.3)):
        changes = {"optim.mix_schedule": mix_schedule, "optim.ssl.base_lr": 0.01}
        state = make_state({"rho": 1.0, "alpha": 0.3, **changes})
        n, recipe = state.data.steps_of("sl"), state.recipe
        ssl, sl = (slow_rates(recipe, loss, n) for loss in ("ssl", "sl"))
        plan = make_plan(recipe)
        assert [epoch.phase for epoch in plan] == ["mix", "mix", "sl"]
        for epoch, step in product(plan, range(n)):
            set_rates(state.optimizer, recipe, epoch, step, n)
            rates = {group["part"]: group["lr"] for group in state.optimizer.param_groups}
            expected = supervised = sl[epoch.sl_epoch * n + step]
            if epoch.phase == "mix":
                expected = ssl_share * ssl[epoch.ssl_epoch * n + step] + (1 - ssl_share) * supervised
            assert rates["backbone"] == pytest.approx(expected), mix_schedule
            assert rates["classifiers"] == pytest.approx(supervised), mix_schedule


def test_optimizer_state_is_carried_over_phase_boundaries_or_starts_anew(make_state):
    for carry_state, steps_seen in ((True, [1, 2, 3, 4]), (False, [1, 1, 1, 2])):
        state = make_state({"rho": 0.5, "optim.carry_state": carry_state})  # phases: ssl, mix, sl, sl
        moments, weight = state.optimizer.state, state.backbone.vit.patch_embed.proj.weight
        assert [int(moments[weight]["step"]) // state.data.steps_of("sl") for _ in train(state)] == steps_seen
