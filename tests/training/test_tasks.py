"""Several tasks (Section 2.2.3): gray digits, photographs in colour and in gray; one backbone, three heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from same_bits import assert_equal_bits, boundaries
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixtune.cost.flops import Size, recipe_flops
from mixtune.errors import RequestError
from mixtune.objectives import TRAINED
from mixtune.single import final_line, train_recipe
from mixtune.training.bill import phase_flops
from mixtune.training.data import load_test_pools, load_training_data
from mixtune.training.loop import phase_losses, train
from mixtune.training.measure import measure
from mixtune.training.plan import PHASES, make_plan
from mixtune.training.scores import mean_scores, standard_error
from mixtune.training.streams import torch_generator

COUNTS = {"digits": 1437, "image_folder": 64, "image_folder_2": 80}  # training images; the folders hold out a fifth


def epoch_of(recipe, phase):
    return next(epoch for epoch in make_plan(recipe) if epoch.phase == phase)


def batch_of(state, phase):
    return next(iter(state.data.batches(state.recipe, epoch_of(state.recipe, phase))))


def test_all_images_have_the_largest_size_and_colour_where_any_has_it(make_recipe, three_tasks):
    data = load_training_data(make_recipe(three_tasks))
    assert [task.name for task in data.tasks] == list(COUNTS)
    assert [len(task.train) + len(task.held_out) for task in data.tasks] == list(COUNTS.values())
    assert [task.train.images.shape[1:] for task in data.tasks] == [(3, 12, 12)] * 3
    assert (data.image_size, data.channels) == (12, 3)
    assert [len(task.classes) for task in data.tasks] == [10, 2, 2]
    colours = [np.ptp(task.train.images.numpy(), axis=1).max() for task in data.tasks]
    assert colours[1] > 0 == colours[0] == colours[2]


def test_an_epoch_is_one_pass_over_the_smallest_task_with_a_batch_of_each_a_step(make_recipe, three_tasks):
    recipe = make_recipe(three_tasks)
    data = load_training_data(recipe)
    smallest = len(data.tasks[1].train)
    assert data.steps_of("sl") == smallest // 16 == 3
    for phase in PHASES:
        batches = list(data.batches(recipe, epoch_of(recipe, phase)))
        assert [images.shape for images, _ in batches] == [(48, 3, 12, 12)] * 3
        assert [labels is None or labels.shape == (3, 16) for _, labels in batches] == [True] * 3
        assert (batches[0][1] is None) == (phase == "ssl")


def test_every_task_trains_on_its_own_training_images_alone(make_recipe, three_tasks):
    recipe = make_recipe({**three_tasks, "augment.pad": 0, "augment.flip": 0.0})
    data = load_training_data(recipe)
    own = []
    for task in data.tasks:
        pixels = (image.numpy().tobytes() for image in task.train.plain(task.train.indices))
        own.append(dict(zip(pixels, task.train.indices.tolist(), strict=True)))
    for phase in PHASES:
        for images, labels in data.batches(recipe, epoch_of(recipe, phase)):
            for number, (task, part) in enumerate(zip(data.tasks, images.chunk(3), strict=True)):
                shown = [own[number][image.numpy().tobytes()] for image in part]  # a KeyError: a held-out image
                if labels is not None:
                    assert task.train.labels[shown].tolist() == labels[number].tolist()


def test_the_joint_loss_is_the_sum_of_the_tasks_joint_losses(make_state, three_tasks):
    state = make_state({**three_tasks, "alpha": 0.3})
    images, labels = batch_of(state, "mix")
    drawn = state.objective.draw_kept(48, state.backbone.tokens, torch_generator(0, "masks"))
    total = 0.0
    for number, (part, y, keep) in enumerate(zip(images.chunk(3), labels, drawn.chunk(3), strict=True)):
        tokens = state.backbone(part)
        kept = tokens[:, 1:].gather(1, keep[:, :, None].expand(-1, -1, 16))
        features = torch.cat([tokens[:, :1], kept], dim=1)
        ssl = state.objective.loss(state.objective.decode(features, keep, state.backbone), part, keep)
        total += 0.3 * ssl + 0.7 * F.cross_entropy(state.classifiers[number](tokens), y)
    loss, *_ = phase_losses(state, epoch_of(state.recipe, "mix"), images, labels, torch_generator(0, "masks"))
    torch.testing.assert_close(loss, total)


def test_the_pure_losses_are_sums_over_the_tasks_and_their_means_are_reported(make_state, three_tasks):
    state = make_state(three_tasks)
    for phase in ("ssl", "sl"):
        images, labels = batch_of(state, phase)
        loss, ssl, sl = phase_losses(state, epoch_of(state.recipe, phase), images, labels, torch_generator(0, "masks"))
        torch.testing.assert_close(loss, 3 * (ssl + sl))
    heads = zip(state.classifiers, images.chunk(3), labels, strict=True)
    torch.testing.assert_close(loss, sum(F.cross_entropy(head(state.backbone(x)), y) for head, x, y in heads))


def test_accuracies_are_reported_by_task_with_their_mean(make_recipe, three_tasks):
    trained = train_recipe(make_recipe(three_tasks))
    metrics, tasks = trained.metrics, trained.state.data.tasks
    accuracies = metrics.task_accuracies
    assert list(accuracies) == list(COUNTS)
    assert metrics.val_accuracy == pytest.approx(sum(accuracies.values()) / 3)
    errors = [standard_error(accuracies[task.name], len(task.held_out)) for task in tasks]
    assert metrics.val_accuracy_se == pytest.approx(math.sqrt(sum(e * e for e in errors)) / 3)
    means = mean_scores(trained.history[-1].scores)
    found = metrics.val_balanced_accuracy, metrics.val_macro_f1, metrics.val_calibration_error
    assert found == (means.balanced_accuracy, means.macro_f1, means.calibration_error)
    assert metrics.train_clock_s == pytest.approx(sum(r.seconds for r in trained.history))
    values = metrics.to_dict()
    assert values["val_accuracy_image_folder_2"] == accuracies["image_folder_2"]
    assert "task_accuracies" not in values
    assert f"image_folder_2 {100 * accuracies['image_folder_2']:.1f} %" in final_line(metrics)


def test_three_tasks_are_learnt_by_one_backbone(make_recipe, three_tasks):
    """Far above chance (10, 50 and 50 %) on every task, on held-out images."""
    changes = {"epochs.ssl": 0, "epochs.sl": 100, "model.pool": "avg", "model.embed_dim": 32, "augment.pad": 0}
    changes["optim.sl.base_lr"] = 0.05
    accuracies = train_recipe(make_recipe({**three_tasks, **changes})).metrics.task_accuracies
    assert accuracies["digits"] > 0.4
    assert min(accuracies["image_folder"], accuracies["image_folder_2"]) > 0.7


def test_an_interrupted_training_of_three_tasks_goes_on_bit_for_bit(make_state, three_tasks):
    changes = {**three_tasks, "optim.carry_state": False}
    *before, last = boundaries(make_state(changes))
    for boundary in before:
        resumed = make_state(changes)
        resumed.load_state_dict(boundary)
        list(train(resumed))
        assert_equal_bits(resumed.state_dict(), last)


def test_each_tasks_images_are_mixed_with_another_sets_by_eq_2(make_recipe, three_tasks, write_crops):
    changes = {"data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(40), "lambda": 0.3}
    still = {**three_tasks, "augment.pad": 0, "augment.flip": 0.0}
    own, recipe = make_recipe(still), make_recipe({**still, **changes})
    data, epoch = load_training_data(recipe), epoch_of(recipe, "mix")
    plain, _ = next(iter(load_training_data(own).batches(own, epoch)))
    mixed, _ = next(iter(data.batches(recipe, epoch)))
    partners = data.tasks[0].ssl.plain(torch.arange(40))
    for x_sl, x_mix in zip(plain, mixed, strict=True):
        x_ssl = (x_mix - 0.3 * x_sl) / 0.7
        assert (partners - x_ssl).abs().amax(dim=(1, 2, 3)).min() < 1e-4
    images, labels = next(iter(data.batches(recipe, epoch_of(recipe, "ssl"))))
    assert (len(images), labels) == (48, None)


def test_an_ssl_set_that_is_one_of_the_tasks_and_a_batch_larger_than_one_are_refused(make_recipe, three_tasks):
    with pytest.raises(RequestError, match=r"^data\.ssl_dataset digits is one of the tasks, whose held-out images"):
        load_training_data(make_recipe({**three_tasks, "data.ssl_dataset": "digits"}))
    with pytest.raises(RequestError, match=r"is more than the \d+ training images of image_folder \(of 64,"):
        load_training_data(make_recipe({**three_tasks, "optim.batch_size": 100}))


def test_the_operations_of_three_tasks_are_known_before_and_agree_with_pytorchs_counter(make_state, three_tasks):
    state = make_state(three_tasks)
    assert sum(recipe_flops(state.recipe, Size.of(state.data)).values()) == state.bill.flops
    images, labels = batch_of(state, "mix")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        phase_losses(state, epoch_of(state.recipe, "mix"), images, labels, torch_generator(0, "masks"))
    per_image = phase_flops(state.backbone, state.objective, [10, 2, 2])["mix"]
    assert per_image * len(images) / TRAINED == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("several", [False, True])
def test_the_papers_protocol_trains_on_all_and_reports_the_last_test_and_the_best(make_recipe, three_tasks, several):
    recipe = make_recipe({"rho": 0.5, "protocol": "paper", **(three_tasks if several else {})})
    seen = []
    trained = train_recipe(recipe, on_epoch=seen.append)
    tasks = trained.state.data.tasks
    assert len(tasks) == (3 if several else 1)
    for task, tested in zip(tasks, load_test_pools(recipe, trained.state.data), strict=True):
        assert len(task.train) == round(recipe.data.fraction * len(task.train.images))
        assert len(tested) == {"digits": 360, "image_folder": 16}.get(task.name, 20)
        for part in ("images", "labels", "indices", "mean", "std"):
            assert torch.equal(getattr(task.held_out, part), getattr(tested, part)), part
    assert all(math.isnan(m.val_accuracy) for m in seen)
    tests = [sum(result.accuracies) / len(tasks) for result in trained.history if result.phase != "ssl"]
    assert (trained.metrics.test_accuracy, trained.metrics.best_accuracy) == (tests[-1], max(tests))
    metrics = trained.metrics
    assert math.isnan(metrics.val_accuracy)
    assert (metrics.split, metrics.accuracy) == ("test", metrics.test_accuracy)
    assert metrics.test_accuracy == sum(trained.history[-1].accuracies) / len(tasks)
    assert 0 < metrics.test_accuracy_se < 0.2
    assert 0 < metrics.test_balanced_accuracy < 1
    assert math.isnan(metrics.val_balanced_accuracy)
    assert final_line(measure(trained.state)).startswith("mixtraining: test accuracy ")
