"""The test images that a confirmation looks at: the dataset's own, prepared as the training images are."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.datasets import load_dataset
from mixtune.errors import RequestError
from mixtune.training.data import load_test_pools, load_training_data
from mixtune.training.evaluation import measure_scores
from mixtune.training.loop import train


def contents(pool):
    """Return the pixels of each image that the pool may draw."""
    return [image.numpy().tobytes() for image in pool.images[pool.indices]]


@pytest.fixture
def two_tasks(tmp_path):
    """Recipe values: digits, and noise in colour at 12 x 12 pixels with a test part of its own folder."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 6)):
        for name in ("dark", "light"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (12, 12, 3)) + (0 if name == "dark" else 120)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return {
        "data.dataset": ["digits", "image_folder"],
        "data.root": [None, str(tmp_path)],
        "data.fraction": 1.0,
        "model.patch_size": 3,
        "optim.batch_size": 16,
    }


def test_they_are_the_datasets_test_part_whatever_the_split(make_recipe):
    for changes in ({}, {"data.fraction": 1.0}, {"seed": 3}, {"data.image_size": 12}):
        recipe = make_recipe(changes)
        data = load_training_data(recipe)
        (pool,) = load_test_pools(recipe, data)
        test, task = load_dataset("digits", image_size=changes.get("data.image_size")).test, data.tasks[0]
        assert pool.indices.tolist() == list(range(360)), changes
        assert np.array_equal(pool.images.numpy(), test.images), changes
        assert np.array_equal(pool.labels.numpy(), test.labels), changes
        assert pool.images.shape[1:] == task.train.images.shape[1:]
        for seen in (task.train, task.ssl, task.held_out):
            assert not set(contents(pool)) & set(contents(seen)), changes


def test_they_are_normalised_as_the_training_images(make_recipe):
    for statistics in ("own", "imagenet"):
        recipe = make_recipe({"data.statistics": statistics})
        data = load_training_data(recipe)
        (pool,) = load_test_pools(recipe, data)
        train_pool = data.tasks[0].train
        assert torch.equal(pool.mean, train_pool.mean)
        assert torch.equal(pool.std, train_pool.std)
        chosen = torch.arange(5)
        expected = (pool.images[chosen] / 255 - train_pool.mean) / train_pool.std
        torch.testing.assert_close(pool.plain(chosen), expected, rtol=1e-5, atol=1e-5)


def test_every_task_has_its_own_at_the_common_size_and_colours(make_recipe, two_tasks):
    recipe = make_recipe(two_tasks)
    data = load_training_data(recipe)
    pools = load_test_pools(recipe, data)
    assert [len(pool) for pool in pools] == [360, 12]
    for pool, task in zip(pools, data.tasks, strict=True):
        assert pool.images.shape[1:] == task.train.images.shape[1:] == (3, 12, 12)
        assert torch.equal(pool.mean, task.train.mean)
        assert int(pool.labels.max()) < len(task.classes)
        assert not set(contents(pool)) & (set(contents(task.train)) | set(contents(task.held_out)))


def test_they_are_those_of_the_papers_protocol(make_recipe):
    recipe, paper = make_recipe(), make_recipe({"protocol": "paper"})
    (pool,) = load_test_pools(recipe, load_training_data(recipe))
    held_out = load_training_data(paper).tasks[0].held_out
    assert torch.equal(pool.images, held_out.images)
    assert torch.equal(pool.indices, held_out.indices)


def test_a_dataset_without_labels_has_no_test_images(make_recipe, write_crops):
    recipe = make_recipe({"data.dataset": "image_folder", "data.root": write_crops(40)})
    with pytest.raises(RequestError, match="has no classes"):
        load_test_pools(recipe, load_training_data(make_recipe()))


def test_accuracies_are_of_the_pools_that_are_given(make_state):
    state = make_state({"epochs.ssl": 0})
    list(train(state))
    pools = load_test_pools(state.recipe, state.data)
    (scores,) = measure_scores(state, pools)
    assert scores.accuracy * 360 == pytest.approx(round(scores.accuracy * 360))
    assert measure_scores(state) == state.history[-1].scores
    assert measure_scores(state, [state.data.tasks[0].held_out]) == measure_scores(state)
    assert all(map(math.isfinite, asdict(scores).values()))
