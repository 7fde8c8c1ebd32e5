"""MixTrainable as an ordinary Ray Tune trainable."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray import tune

import mixtune
from mixtune.errors import RequestError
from mixtune.tuning.trial import recipe_from_config


@pytest.fixture
def recipe(small_space: Any) -> dict[str, Any]:
    return dict(small_space()["recipe"])


def weights(trainable: mixtune.MixTrainable) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainable.state.backbone.state_dict().items()}


def test_each_result_has_every_metric_and_the_last_says_done(recipe: dict[str, Any]) -> None:
    trainable = mixtune.MixTrainable({"recipe": recipe, "rho": 0.5})
    results = [trainable.train() for _ in range(4)]  # e_ssl 2, e_sl 3, of which one is mixed
    assert [r["phase"] for r in results] == ["ssl", "mix", "sl", "sl"]
    assert [r["done"] for r in results] == [False, False, False, True]
    assert len({frozenset(r) for r in results}) == 1
    assert math.isnan(results[0]["val_accuracy"])
    assert all(0 <= r["val_accuracy"] <= 1 for r in results[1:])
    spent = [r["training_s"] for r in results]  # a later window may lower train_latency_s, but not this
    assert spent == sorted({0.0, *spent})[1:]
    trainable.stop()


def test_a_checkpoint_goes_on_bit_for_bit(recipe: dict[str, Any], tmp_path: Path) -> None:
    config = {"recipe": recipe, "rho": 0.5}
    straight = mixtune.MixTrainable(dict(config))
    for epoch in range(1, 5):
        straight.train()
        folder = tmp_path / str(epoch)
        folder.mkdir()
        straight.save_checkpoint(str(folder))
    for epoch in range(1, 4):
        resumed = mixtune.MixTrainable(dict(config))
        resumed.load_checkpoint(str(tmp_path / str(epoch)))
        while not (result := resumed.train())["done"]:
            pass
        assert (result["epoch"], result["epochs_reused"]) == (4, epoch)
        for name, value in weights(straight).items():
            assert torch.equal(value, weights(resumed)[name]), name
        resumed.stop()
    straight.stop()


def test_a_reused_actor_trains_the_next_recipe_as_a_fresh_one_would(recipe: dict[str, Any]) -> None:
    fresh = mixtune.MixTrainable({"recipe": recipe, "alpha": 0.9})
    fresh.train()
    reused = mixtune.MixTrainable({"recipe": recipe, "alpha": 0.1, "seed": 3})
    reused.train()
    assert reused.reset_config({"recipe": recipe, "alpha": 0.9})
    reused.train()
    for name, value in weights(fresh).items():
        assert torch.equal(value, weights(reused)[name]), name


def test_the_recipe_may_be_values_a_recipe_or_a_file(small_space: Any, tmp_path: Path) -> None:
    values = small_space()
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(values))
    expected = mixtune.parse_recipe({**values["recipe"], "alpha": 0.3, "epochs": {"ssl": 2, "sl": 4}})
    for given in (values["recipe"], mixtune.parse_recipe(values["recipe"]), file, str(file)):
        assert recipe_from_config({"recipe": given, "alpha": 0.3, "epochs.sl": 4, "trial": "t0001"}) == expected
    assert recipe_from_config({"recipe": file, "alpha": 0.3, "epochs": {"sl": 4}}) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config\\['recipe'\\] should be a Recipe, a mapping or a search space's file, got None"),
        ({"recipe": {"data": {"dataset": "digits"}}, "alhpa": 0.5}, "alhpa: .*did you mean 'alpha'"),
        ({"recipe": {"data": {"dataset": "digits"}}, "alpha": 1.5}, "alpha: .*1.5"),
    ],
)
def test_a_config_that_is_no_recipe_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        recipe_from_config(config)


def test_anyone_can_hand_it_to_their_own_tuner(recipe: dict[str, Any], ray_quietly: None, tmp_path: Path) -> None:
    tuner = tune.Tuner(
        tune.with_resources(mixtune.MixTrainable, {"cpu": 0.5}),
        param_space={"recipe": recipe, "alpha": tune.grid_search([0.2, 0.8]), "epochs.sl": 2},
        tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True)
        ),
    )
    results = tuner.fit()
    assert not results.errors
    assert {r.metrics["config"]["alpha"] for r in results} == {0.2, 0.8}
    for result in results:
        assert result.metrics["done"]
        assert result.metrics["epoch"] == result.metrics["epochs_asked"] == 3
        assert result.checkpoint is not None
    assert results.get_best_result().metrics["val_accuracy"] == max(r.metrics["val_accuracy"] for r in results)
