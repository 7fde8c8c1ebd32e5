"""Nearest neighbours and linear probes of frozen features: against slow computations, and in real training runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from same_bits import assert_equal_bits

from mixtune.meter.times import StepTimes
from mixtune.space.space import space_from_dict
from mixtune.stages.keys import stage_keys
from mixtune.stages.resume import Recovery
from mixtune.stages.store import StateStore
from mixtune.training import representation
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.measure import measure
from mixtune.training.representation import knn_classes, measure_representation, probe_classes
from mixtune.training.state import start_state

BOTH = {"representation": ["knn", "probe"]}
NAMES = [f"{moment}{judge}_accuracy" for moment in ("ssl_", "") for judge in ("knn", "probe")]


def clouds(images: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(images)
    labels = torch.randint(classes, (images,), generator=generator)
    centres = torch.randn(classes, 5, generator=torch.Generator().manual_seed(1))
    return centres[labels] + 0.7 * torch.randn(images, 5, generator=generator), labels


def test_neighbours_are_those_of_a_slow_computation(monkeypatch):
    monkeypatch.setattr(representation, "QUERIES", 32)
    for images in (7, 300):  # fewer than the neighbours, and more
        features, labels = clouds(images, 4)
        queries, truth = clouds(100, 4)
        slow = []
        for query in queries.double().numpy():
            cosines = []
            for feature, label in zip(features.double().numpy(), labels.tolist(), strict=True):
                cosines.append((feature @ query / math.sqrt((feature @ feature) * (query @ query)), label))
            votes = np.zeros(4)
            for cosine, label in sorted(cosines, reverse=True)[:20]:
                votes[label] += math.exp(cosine / 0.07)
            slow.append(int(votes.argmax()))
        assert knn_classes(features, labels, queries).tolist() == slow
        assert np.mean(np.array(slow) == truth.numpy()) > 0.5


def test_a_probe_is_the_minimum_of_the_penalised_loss():
    (features, labels), (queries, _) = clouds(60, 3), clouds(40, 3)
    mean, deviation = features.double().numpy().mean(axis=0), features.double().numpy().std(axis=0)
    known, asked = ((each.double().numpy() - mean) / deviation for each in (features, queries))
    weights, bias, wanted = np.zeros((3, 5)), np.zeros(3), np.eye(3)[labels.numpy()]
    for _ in range(4000):  # plain gradient descent on sum of cross-entropies + |weights|^2 / 2
        logits = known @ weights.T + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = shares / shares.sum(axis=1, keepdims=True) - wanted
        weights -= 0.01 * (error.T @ known + weights)
        bias -= 0.01 * error.sum(axis=0)
    assert probe_classes(features, labels, queries).tolist() == (asked @ weights.T + bias).argmax(axis=1).tolist()
    assert probe_classes(features, torch.full_like(labels, 2), queries).tolist() == [2] * 40


@pytest.fixture(scope="module")
def trained(make_state):
    """Both judges, and none, of one recipe: the states, trained to their end."""
    states = [make_state({"epochs.ssl": 3, "epochs.sl": 3, "rho": 0.34, **changes}) for changes in (BOTH, {})]
    for state in states:
        list(train(state))
    return states


def test_judging_features_changes_no_bit_and_is_not_on_the_clock(trained):
    judged, plain = trained
    for one, other in zip((judged.backbone, judged.classifiers), (plain.backbone, plain.classifiers), strict=True):
        assert_equal_bits(one.state_dict(), other.state_dict())
    assert judged.bill == plain.bill  # signatures, steps and FLOPs
    both, none = measure(judged), measure(plain)
    assert {name for name in both if name not in none} == {*NAMES, *(f"{name}_se" for name in NAMES)}
    images = len(judged.data.tasks[0].held_out)
    for name in NAMES:
        share = both[name]
        assert share * images == pytest.approx(round(share * images))
        assert both[f"{name}_se"] == pytest.approx(math.sqrt(share * (1 - share) / images))
    assert judged.representation[len(judged.plan)] == measure_representation(judged)  # as often as it is asked


def test_features_after_ssl_beat_untrained_ones(make_recipe):
    recipe = make_recipe({
        "data.fraction": 1.0, "epochs.ssl": 12, "epochs.sl": 1, "rho": 0.0, "ssl": {"objective": "simclr"},
        "model.embed_dim": 32, "optim.batch_size": 128, "optim.ssl.base_lr": 0.01, **BOTH,
    })  # fmt: skip
    state = start_state(recipe, load_training_data(recipe))
    untrained = measure_representation(state)
    for result in train(state):
        known = measure(state)
        assert math.isnan(known["ssl_knn_accuracy"]) == (result.phase == "ssl")
    for judge in ("knn", "probe"):
        assert known[f"ssl_{judge}_accuracy"] > untrained[judge][0] + 0.05
    without = make_recipe({"data.fraction": 1.0, "epochs.ssl": 0, "epochs.sl": 1, "model.embed_dim": 32, **BOTH})
    state = start_state(without, load_training_data(without))
    next(train(state))
    assert state.representation[0] == untrained  # no SSL phase: what the supervised epochs begin with


def test_a_shared_state_has_the_figures_of_its_path(make_state, tmp_path):
    recipe = {"epochs.ssl": 2, "epochs.sl": 3, "rho": 0.0, **BOTH}

    def run(epochs: int, **changes: object):
        state = make_state({**recipe, **changes})
        state.step_times = times
        stored = Recovery(state, tmp_path, branches=(1, 3))
        begun = len(state.history)
        for result in train(state):
            stored.save_if_due()
            if result.epoch == epochs:
                break
        return state, begun

    times = StepTimes()
    whole, _ = run(5)
    again, begun = run(5)
    assert begun == 5
    assert again.representation == whole.representation
    StateStore(tmp_path).remove(stage_keys(whole.recipe, whole.data)[5])
    later, begun = run(5)
    assert begun == 3  # after the first supervised epoch: its figures come from the checkpoint
    assert later.representation == whole.representation
    alone = make_state({**recipe, "model.pool": "avg"})
    alone.step_times = times
    list(train(alone))
    pooled, begun = run(5, **{"model.pool": "avg"})
    assert begun == 2  # the SSL phase is shared, and what another classifier would read is measured
    assert pooled.representation == alone.representation
    assert pooled.representation[2] != whole.representation[2]
    asking = [make_state({**recipe, "representation": judges}).recipe for judges in ([], ["knn"])]
    plain, judged = (stage_keys(each, whole.data) for each in asking)
    assert [one == other for one, other in zip(plain, judged, strict=True)] == [True] * 3 + [False] * 3


def test_an_objective_or_a_constraint_asks_for_its_figure(small_space):
    def asked(**sections):
        return space_from_dict(small_space(**sections)).recipe.representation

    assert asked() == ()
    assert asked(objectives={"ssl_knn_accuracy": "max"}) == ("knn",)
    assert asked(constraints={"probe_accuracy": ">= 0.5", "knn_accuracy": ">= 0.1"}) == ("knn", "probe")
    space = space_from_dict(small_space(objectives={"probe_accuracy": "max"}))
    assert space_from_dict(space.to_dict()).to_dict() == space.to_dict()


def test_several_tasks_have_the_mean(make_state):
    state = make_state({"data.dataset": ["digits", "digits"], "epochs.ssl": 0, "epochs.sl": 1, **BOTH})
    list(train(state))
    metrics, found = measure(state), state.representation[1]["knn"]
    assert len(found) == 2
    assert metrics["knn_accuracy"] == pytest.approx(sum(found) / 2)


def test_more_images_than_are_compared_are_drawn_by_the_seed(make_state, monkeypatch):
    state = make_state({**BOTH})
    everything = measure_representation(state)
    monkeypatch.setattr(representation, "MAX_IMAGES", 40)
    few = measure_representation(state)
    assert few == measure_representation(state) != everything
