"""Accuracy of a real classifier, and what a trained recipe reports."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from mixtune.single import epoch_line, final_line, train_recipe
from mixtune.training.evaluation import EVALUATION_BATCH, tally_predictions
from mixtune.training.loop import train
from mixtune.training.measure import Metrics, measure
from mixtune.training.scores import SCORES, standard_error

TRAINED = {"data.fraction": 1.0, "epochs.ssl": 0, "epochs.sl": 4, "model.pool": "avg", "optim.sl.base_lr": 0.08}


@pytest.fixture(scope="module")
def trained(make_state):
    state = make_state(TRAINED)
    list(train(state))
    return state


def accuracy_on(state, indices):
    pool = replace(state.data.tasks[0].train, indices=indices)
    return tally_predictions(state.backbone, state.classifiers[0], pool, "float32").scores().accuracy


def test_accuracy_is_the_share_of_images_classified_right(trained):
    source, head = trained.data.tasks[0].train, trained.classifiers[0].head
    for images in (1, 144, EVALUATION_BATCH - 1, EVALUATION_BATCH, EVALUATION_BATCH + 1, 1437):
        indices = torch.randperm(1437, generator=torch.Generator().manual_seed(0))[:images]
        right = []
        with torch.no_grad():
            for chosen in indices.split(100):
                pixels = (source.images[chosen] / 255 - source.mean) / source.std
                tokens = trained.backbone.vit.forward_features(pixels)[:, 1:].mean(dim=1)
                guesses = (tokens @ head.weight.T + head.bias).argmax(dim=1)
                right += [int(g) == int(y) for g, y in zip(guesses, source.labels[chosen], strict=True)]
        assert accuracy_on(trained, indices) == sum(right) / images, images
        if images > 100:
            assert 0.15 < sum(right) / images < 1  # above chance, so that right and wrong are both in it
    assert math.isnan(accuracy_on(trained, torch.zeros(0, dtype=torch.int64)))


@pytest.fixture(scope="module")
def mixed(make_recipe):
    """A recipe of an SSL epoch, a mixed one and two of SL, trained, and the metrics of each epoch."""
    seen: list[Metrics] = []
    return train_recipe(make_recipe({"rho": 0.5, "optim.ssl.base_lr": 0.04}), on_epoch=seen.append), seen


def test_train_recipe_returns_the_final_metrics_and_shows_each_epochs(mixed):
    trained, seen = mixed
    metrics = trained.metrics
    assert repr(metrics) == repr(seen[-1])  # NaN, of what was not measured, included
    assert [m.phase for m in seen] == ["ssl", "mix", "sl", "sl"]
    assert [m.epoch for m in seen] == [m.epochs_trained for m in seen] == [1, 2, 3, 4]
    assert (metrics.method, metrics.epochs_asked, metrics.epochs_reused) == ("mixtraining", 4, 0)
    assert metrics.train_images == 129
    assert (metrics.lr_ssl, metrics.lr_sl) == (0.04 * 32 / 256, 0.02 * 32 / 256)
    assert metrics.val_accuracy == trained.history[-1].accuracies[0]
    assert metrics.val_accuracy_se == standard_error(metrics.val_accuracy, 144)
    assert metrics.train_flops == trained.state.bill.flops
    assert metrics.train_clock_s == sum(result.seconds for result in trained.history)
    assert metrics.validation_s == sum(result.validation_seconds for result in trained.history) > 0


def test_what_a_phase_does_not_measure_is_not_a_number(mixed):
    scores = {f"val_{name}" for name in SCORES}
    missing = {"ssl": {"sl_loss", *scores}, "mix": set(), "sl": {"ssl_loss"}}
    for metrics in mixed[1]:
        found = {name for name in ("ssl_loss", "sl_loss", *scores) if math.isnan(getattr(metrics, name))}
        assert found == missing[metrics.phase]
        assert all(math.isnan(getattr(metrics, f"test_{name}")) for name in SCORES)


def test_the_lines_of_a_report_show_what_was_measured(mixed):
    trained, seen = mixed
    lines = [epoch_line(metrics) for metrics in seen]
    assert lines[0].startswith("epoch 1/4  ssl  ssl loss ")
    assert "accuracy" not in lines[0]
    assert lines[1].startswith("epoch 2/4  mix  ssl loss ")
    assert "  sl loss " in lines[1]
    assert f"validation accuracy {100 * trained.metrics.val_accuracy:.1f} %" in lines[3]
    assert final_line(trained.metrics).startswith("mixtraining: validation accuracy ")


def test_nested_values_and_overrides_are_trained_too():
    values = {"data": {"dataset": "digits", "fraction": 0.1}, "model": {"embed_dim": 16, "depth": 1, "num_heads": 2}}
    overrides = {"epochs.ssl": 0, "epochs.sl": 1, "optim.batch_size": 64, "model.patch_size": 4}
    trained = train_recipe(values, overrides)
    assert (trained.recipe.epochs.sl, trained.recipe.optim.batch_size) == (1, 64)
    assert trained.metrics.method == "sl"
    assert len(trained.history) == 1


def test_an_older_state_has_accuracies_alone_and_goes_on(make_state):
    state = make_state({"rho": 0.5})
    epochs = train(state)
    for _ in range(2):
        next(epochs)
    older = deepcopy(state.state_dict())
    for result in older["history"]:
        scores = result.pop("scores")
        result["accuracies"] = None if scores is None else tuple(each["accuracy"] for each in scores)
    again = make_state({"rho": 0.5})
    again.load_state_dict(older)
    assert [r.accuracies for r in again.history] == [r.accuracies for r in state.history]
    was, is_ = measure(state), measure(again)
    assert (is_.val_accuracy, is_.val_accuracy_se) == (was.val_accuracy, was.val_accuracy_se)
    assert math.isnan(is_.val_macro_f1)
    assert list(epochs)[-1].scores == list(train(again))[-1].scores
    again.load_state_dict(state.state_dict())
    assert again.history == state.history
    assert again.history[0].scores is None
