"""Algorithm 1 as it runs: one backbone pass a step, Eq. 3, divergence, and that it learns."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from mixtune.datasets import hold_dataset
from mixtune.single import final_line
from mixtune.training import loop
from mixtune.training.data import load_training_data
from mixtune.training.loop import DivergedError, phase_losses, train, train_step
from mixtune.training.measure import measure
from mixtune.training.plan import PHASES, make_plan
from mixtune.training.state import balanced_weights, start_state
from mixtune.training.streams import torch_generator


def epoch_of(state, phase):
    return next(epoch for epoch in make_plan(state.recipe) if epoch.phase == phase)


def first_batch(state, phase):
    return next(iter(state.data.batches(state.recipe, epoch_of(state, phase))))


def masks_of(state, phase):
    return torch_generator(state.recipe.seed, "masks", epoch_of(state, phase).index)


def test_every_step_of_every_phase_is_one_forward_and_one_backward_of_the_backbone(make_state):
    for encode in ("visible", "full"):
        state = make_state({"rho": 0.5, "ssl.encode": encode})
        passes: Counter[str] = Counter()

        def count(name, passes=passes):
            def hook(module, *_):
                passes[name] += module.training  # validation is no training step

            return hook

        vit = state.backbone.vit
        vit.patch_embed.register_forward_hook(count("patches embedded"))
        for number, block in enumerate(vit.blocks):
            block.register_forward_hook(count(f"block {number} forward"))
            block.register_full_backward_hook(count(f"block {number} backward"))
        state.optimizer.register_step_post_hook(lambda *_, passes=passes: passes.update(["steps"]))
        blocks = [f"block {i} {way}" for i in (0, 1) for way in ("forward", "backward")]
        for result in train(state):
            assert passes == dict.fromkeys(["steps", "patches embedded", *blocks], state.data.steps_of("sl")), (
                result.phase
            )
            passes.clear()
        assert [result.phase for result in state.history] == ["ssl", "mix", "sl", "sl"]


def test_the_mix_phase_minimises_eq_3(make_state):
    state = make_state({"rho": 0.5})
    images, labels = first_batch(state, "mix")
    parameters = [p for part in (state.backbone, state.objective, state.classifiers) for p in part.parameters()]

    def gradients(loss):
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    ssl_loss, _ = state.objective(state.backbone, images, masks_of(state, "mix"), joint=True)
    features = state.backbone.vit.forward_features(images)[:, 0]  # timm's own pass
    head = state.classifiers[0].head
    sl_loss = F.cross_entropy(features @ head.weight.T + head.bias, labels[0])
    ssl_gradients, sl_gradients = gradients(ssl_loss), gradients(sl_loss)
    assert min(ssl_loss, sl_loss) > 0.1

    for alpha in (0.0, 0.3, 1.0):
        state = make_state({"rho": 0.5, "alpha": alpha})  # the same weights
        parameters = [p for part in (state.backbone, state.objective, state.classifiers) for p in part.parameters()]
        loss, ssl_part, sl_part = phase_losses(state, epoch_of(state, "mix"), images, labels, masks_of(state, "mix"))
        torch.testing.assert_close(ssl_part, ssl_loss)
        torch.testing.assert_close(sl_part, sl_loss)
        torch.testing.assert_close(loss, alpha * ssl_loss + (1 - alpha) * sl_loss)
        for joint, ssl, sl in zip(gradients(loss), ssl_gradients, sl_gradients, strict=True):
            torch.testing.assert_close(joint, alpha * ssl + (1 - alpha) * sl, rtol=1e-4, atol=1e-6)


def test_a_pure_phase_minimises_its_own_loss(make_state):
    state = make_state({"rho": 0.5, "ssl.encode": "visible"})
    images, labels = first_batch(state, "ssl")
    assert labels is None
    loss, ssl_loss, sl_loss = phase_losses(state, epoch_of(state, "ssl"), images, None, masks_of(state, "ssl"))
    expected, _ = state.objective(state.backbone, images, masks_of(state, "ssl"), joint=False)
    assert loss == ssl_loss == expected
    assert sl_loss == 0

    images, labels = first_batch(state, "sl")
    loss, ssl_loss, sl_loss = phase_losses(state, epoch_of(state, "sl"), images, labels, masks_of(state, "sl"))
    assert loss == sl_loss == F.cross_entropy(state.classifiers[0](state.backbone(images)), labels[0])
    assert ssl_loss == 0


def test_a_step_returns_the_losses_before_it_and_leaves_no_gradient(make_state):
    for phase in PHASES:
        state = make_state({"rho": 0.5})
        epoch, (images, labels) = epoch_of(state, phase), first_batch(state, phase)
        _, *expected = phase_losses(state, epoch, images, labels, masks_of(state, phase))
        measured = train_step(state, epoch, images, labels, masks_of(state, phase))
        assert list(measured) == expected, phase
        assert not any(loss.requires_grad for loss in measured), phase
        assert all(p.grad is None for group in state.optimizer.param_groups for p in group["params"]), phase


def test_an_epoch_reports_the_mean_of_its_steps_losses(make_state, monkeypatch):
    state, losses = make_state({"rho": 0.5}), []

    def noted_step(*given):
        losses.append(train_step(*given))
        return losses[-1]

    monkeypatch.setattr(loop, "train_step", noted_step)
    for result in train(state):
        assert len(losses) == state.data.steps_of("sl")
        ssl, sl = (torch.stack(column).mean().item() for column in zip(*losses, strict=True))
        assert result.ssl_loss == (None if result.phase == "sl" else pytest.approx(ssl, rel=1e-5))
        assert result.sl_loss == (None if result.phase == "ssl" else pytest.approx(sl, rel=1e-5))
        assert (result.accuracies is None) == (result.phase == "ssl")
        assert result.seconds > 0
        losses.clear()


def test_a_diverged_loss_is_an_error_that_says_where(make_state):
    short = {"epochs.ssl": 1, "epochs.sl": 1, "optim.ssl.warmup_epochs": 0, "optim.sl.warmup_epochs": 0}
    for rho, rate, where in ((0.0, "ssl", "1 (ssl phase)"), (1.0, "sl", "1 (mix phase)"), (0.0, "sl", "2 (sl phase)")):
        state = make_state({**short, "rho": rho, f"optim.{rate}.base_lr": 1e30})
        with pytest.raises(
            DivergedError, match=r"^the loss is (nan|inf) in epoch " + re.escape(f"{where}, step 2") + "$"
        ):
            list(train(state))
        assert all(math.isfinite(r.ssl_loss or 0) and math.isfinite(r.sl_loss or 0) for r in state.history)


def test_supervised_training_learns_digits(make_state):
    changes = {"data.fraction": 1.0, "model.embed_dim": 32, "model.pool": "avg", "augment.pad": 0}
    state = make_state({**changes, "epochs.ssl": 0, "epochs.sl": 10, "optim.sl.base_lr": 0.05})
    history = list(train(state))
    assert history[-1].accuracies[0] > 0.7  # chance is 0.1
    assert history[-1].sl_loss < 0.5 * history[0].sl_loss


@pytest.mark.parametrize("encode", ["visible", "full"])
def test_masked_autoencoding_learns_to_fill_in_digits(make_state, encode):
    state = make_state({"data.fraction": 1.0, "epochs.ssl": 6, "epochs.sl": 1, "rho": 0.0, "ssl.encode": encode})
    losses = [result.ssl_loss for result in train(state) if result.phase == "ssl"]
    assert len(losses) == 6
    assert losses[-1] < 0.75  # of the pixels' variance, which is 1 where the mean is predicted
    assert losses[-1] < 0.75 * losses[0]


def test_compiled_training_learns_the_same_and_reports_its_compilation_apart(make_state):
    changes = {"epochs.ssl": 2, "epochs.sl": 3, "rho": 0.5, "model.depth": 1, "ssl.decoder_depth": 1}
    plain, compiled = (make_state({**changes, "compile": compile}) for compile in (False, True))
    for one, other in zip(train(plain), train(compiled), strict=True):
        assert (other.ssl_loss or 0.0) == pytest.approx(one.ssl_loss or 0.0, rel=1e-4)
        assert (other.sl_loss or 0.0) == pytest.approx(one.sl_loss or 0.0, rel=1e-4)
        assert (other.compile_seconds > 0) == (other.epoch <= 3)  # SSL, mix, the first of SL, not the second
    metrics = measure(compiled)
    assert metrics.compile_s == sum(r.compile_seconds for r in compiled.history) > metrics.train_latency_s
    assert "s of compilation" in final_line(metrics)


def test_the_precision_is_float32_on_a_cpu_unless_asked_otherwise_and_reported(make_state):
    for precision, dtype in (("auto", "float32"), ("bfloat16", "bfloat16")):
        state = make_state({"precision": precision, "epochs.ssl": 0, "epochs.sl": 1})
        seen = set()
        state.backbone.vit.blocks[0].mlp.fc1.register_forward_hook(lambda *given, seen=seen: seen.add(given[-1].dtype))
        list(train(state))
        assert seen == {getattr(torch, dtype)}
        assert measure(state).precision == dtype
        assert {p.dtype for p in state.backbone.parameters()} == {torch.float32}


def test_balanced_weights_are_those_of_scikit_learn_in_both_losses(make_state):
    for phase in ("mix", "sl"):
        state = make_state({"rho": 0.5, "data.fraction": 0.05, "optim.class_weights": "balanced"})
        task = state.data.tasks[0]
        labels = task.train.labels[task.train.indices].numpy()
        weights = compute_class_weight("balanced", classes=np.arange(10), y=labels)
        images, y = first_batch(state, phase)
        _, _, found = phase_losses(state, epoch_of(state, phase), images, y, masks_of(state, phase))
        _, tokens = state.objective(state.backbone, images, masks_of(state, phase), joint=True)
        logits = state.classifiers[0](tokens if phase == "mix" else state.backbone(images)).double()
        per_image = [-row.log_softmax(0)[label] for row, label in zip(logits, y[0], strict=True)]
        counted = [float(weights[label]) for label in y[0]]
        expected = sum(w * loss for w, loss in zip(counted, per_image, strict=True)) / sum(counted)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    seven = replace(task.train, indices=task.train.indices[task.train.labels[task.train.indices] < 7])
    assert balanced_weights(replace(task, train=seven))[7:].tolist() == [0.0] * 3


def test_balanced_weights_raise_the_recall_of_a_rare_class(make_recipe):
    rng, labels = np.random.default_rng(0), np.arange(1000) % 20 == 0
    brightness = rng.normal(100 + 40 * labels, 25)  # they overlap: the frequent class is the likelier nearly everywhere
    images = np.clip(rng.normal(brightness[:, None, None], 20, (1000, 8, 8)), 0, 255).astype(np.uint8)

    def rare_recall(class_weights):
        changes = {
            "data.fraction": 1.0,
            "data.val_fraction": 0.5,
            "epochs.ssl": 0,
            "epochs.sl": 6,
            "model.patch_size": 4,
        }
        recipe = make_recipe({**changes, "optim.class_weights": class_weights})
        state = start_state(recipe, load_training_data(recipe, given=hold_dataset((images, labels))))
        for _ in train(state):
            pass
        held_out = state.data.tasks[0].held_out
        rare = held_out.labels[held_out.indices] == 1
        return float((state.predictions[0][rare] == 1).double().mean())

    assert rare_recall("balanced") > rare_recall("none") + 0.3
