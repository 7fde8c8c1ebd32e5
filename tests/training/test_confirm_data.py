"""The test images that a confirmation looks at: the dataset's own, prepared as the training images are."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from mixtune.datasets import load_dataset
from mixtune.training.data import load_test_pools, load_training_data
from mixtune.training.evaluation import measure_scores
from mixtune.training.loop import train


def contents(pool):
    """Return the pixels of each image that the pool may draw."""
    return {image.numpy().tobytes() for image in pool.images[pool.indices]}


def test_they_are_the_datasets_test_part_whatever_the_split_normalised_as_the_training_images(make_recipe):
    for changes in ({}, {"data.fraction": 1.0}, {"seed": 3}, {"data.image_size": 12}, {"data.statistics": "imagenet"}):
        recipe = make_recipe(changes)
        data = load_training_data(recipe)
        (pool,) = load_test_pools(recipe, data)
        test, task = load_dataset("digits", image_size=changes.get("data.image_size")).test, data.tasks[0]
        assert pool.indices.tolist() == list(range(360)), changes
        assert np.array_equal(pool.images.numpy(), test.images), changes
        assert np.array_equal(pool.labels.numpy(), test.labels), changes
        assert pool.images.shape[1:] == task.train.images.shape[1:]
        assert torch.equal(pool.mean, task.train.mean)
        assert torch.equal(pool.std, task.train.std)
        for seen in (task.train, task.ssl, task.held_out):
            assert not contents(pool) & contents(seen), changes


def test_every_task_has_its_own_at_the_common_size_and_colours(make_recipe, three_tasks):
    recipe = make_recipe(three_tasks)
    data = load_training_data(recipe)
    pools = load_test_pools(recipe, data)
    assert [len(pool) for pool in pools] == [360, 16, 20]
    for pool, task in zip(pools, data.tasks, strict=True):
        assert pool.images.shape[1:] == task.train.images.shape[1:] == (3, 12, 12)
        assert torch.equal(pool.mean, task.train.mean)
        assert int(pool.labels.max()) < len(task.classes)
        assert not contents(pool) & (contents(task.train) | contents(task.held_out))


def test_accuracies_are_of_the_pools_that_are_given(make_state):
    state = make_state({"epochs.ssl": 0})
    list(train(state))
    (scores,) = measure_scores(state, load_test_pools(state.recipe, state.data))
    assert scores.accuracy * 360 == pytest.approx(round(scores.accuracy * 360))
    assert measure_scores(state) == state.history[-1].scores
    assert measure_scores(state, [state.data.tasks[0].held_out]) == measure_scores(state)
    assert all(map(math.isfinite, asdict(scores).values()))
