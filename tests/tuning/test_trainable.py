"""MixTrainable as an ordinary Ray Tune trainable."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

import mixtune
from mixtune.errors import DataError, RequestError
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
        assert (result["epoch"], result["epochs_reused"], result["recipes"]) == (4, epoch, 1)
        assert 0 < result["latency_ssl_s"] < result["train_latency_s"] < math.inf
        for name, value in weights(straight).items():
            assert torch.equal(value, weights(resumed)[name]), name
        resumed.stop()
    straight.stop()


def checkpoint_after(config: dict[str, Any], epochs: int, folder: Path) -> tuple[str, dict[str, Any]]:
    """Return a checkpoint's folder and the result before it."""
    trainable = mixtune.MixTrainable(config)
    result = [trainable.train() for _ in range(epochs)][-1]
    folder.mkdir()
    trainable.save_checkpoint(str(folder))
    trainable.stop()
    return str(folder), result


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 1, "optim.batch_size": 16}, "optim.batch_size 32, here 16; seed 0, here 1"),
        ({"ssl.mask_ratio": 0.5}, "ssl.mask_ratio 0.75, here 0.5"),
        ({"model.embed_dim": 32}, "model.embed_dim 16, here 32"),
        ({"data.fraction": 0.25}, "data.fraction 0.2, here 0.25"),
        ({"rho": 1.0}, "epoch 1 was trained as SSL epoch 1, here it is SSL epoch 1 and SL epoch 1 (mix)"),
        ({"epochs.ssl": 1}, "epoch 2 was trained as SSL epoch 2, here it is SL epoch 1"),
        ({"epochs.sl": 1}, None),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused_in_one_line(
    recipe: dict[str, Any], tmp_path: Path, changes: dict[str, Any], problem: str | None
) -> None:
    """Of the budgets only what is trained counts: here both SSL epochs and one of SL."""
    config = {"recipe": recipe, "rho": 0.0}
    folder, _ = checkpoint_after(config, 3, tmp_path / "checkpoint")
    other = mixtune.MixTrainable(config | changes)
    if problem is None:
        other.load_checkpoint(folder)
        assert other.train()["whole"]
    else:
        line = f"the checkpoint is another recipe's: {problem}"
        with pytest.raises(RequestError, match=f"^{re.escape(line)}$"):
            other.load_checkpoint(folder)


def test_other_images_under_the_same_recipe_are_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    digits = load_digits()
    pixels = (digits.images * 15).astype(np.uint8)
    folders = {}
    for name, labels in {"right": digits.target, "shifted": np.roll(digits.target, 1)}.items():
        trainable = mixtune.MixTrainable({"recipe": recipe})
        trainable.setup({"recipe": recipe}, data=(pixels, labels))
        trainable.train()
        folders[name] = tmp_path / name
        folders[name].mkdir()
        trainable.save_checkpoint(str(folders[name]))
    trainable.load_checkpoint(str(folders["shifted"]))
    with pytest.raises(RequestError, match="other images or labels \\(digits/train, digits/ssl, digits/held_out\\)"):
        trainable.load_checkpoint(str(folders["right"]))


def test_what_may_change_is_counted_and_keeps_the_seconds_of_what_was_trained(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    """PBT's way: alpha, rates and budgets change; epochs that are trained keep their cost."""
    config = {"recipe": recipe, "rho": 1.0, "epochs.ssl": 2}
    folder, before = checkpoint_after(config, 2, tmp_path / "checkpoint")
    assert before["phase"] == "mix"
    changed = {"alpha": 0.9, "optim.sl.base_lr": 0.01, "optim.sl.weight_decay": 0.2, "epochs.sl": 5}
    clone = mixtune.MixTrainable(config | changed)
    clone.load_checkpoint(folder)
    result = clone.train()
    assert (result["epoch"], result["phase"], result["recipes"]) == (3, "sl", 2)
    assert result["train_latency_s"] > result["latency_mix_s"] == pytest.approx(before["latency_mix_s"])
    assert result["training_s"] > before["training_s"]
    again, _ = str(tmp_path / "again"), (tmp_path / "again").mkdir()
    clone.save_checkpoint(again)
    back = mixtune.MixTrainable(config | {"epochs.sl": 4})
    back.load_checkpoint(again)
    assert back.train()["recipes"] == 3


def test_epochs_of_another_device_keep_its_seconds(recipe: dict[str, Any], tmp_path: Path) -> None:
    """What was timed with one thread is not looked for among steps of two."""
    config = {"recipe": recipe, "rho": 0.0}
    folder, before = checkpoint_after(config, 2, tmp_path / "checkpoint")
    torch.set_num_threads(2)
    elsewhere = mixtune.MixTrainable(config)
    elsewhere.load_checkpoint(folder)
    result = elsewhere.train()
    torch.set_num_threads(1)
    assert result["device"] == f"{before['device']} and {before['device'].replace('1 thread', '2 threads')}"
    assert result["latency_ssl_s"] == before["latency_ssl_s"]
    assert result["train_latency_s"] > result["latency_ssl_s"]


def test_a_checkpoint_from_before_it_knew_its_recipe_loads_as_it_did(recipe: dict[str, Any], tmp_path: Path) -> None:
    trainable = mixtune.MixTrainable({"recipe": recipe})
    trainable.train()
    torch.save({**trainable.state.state_dict(), "training_s": 7.0}, tmp_path / "state.pt")
    old = mixtune.MixTrainable({"recipe": recipe})
    old.load_checkpoint(str(tmp_path))
    assert (result := old.train())["epoch"] == 2
    assert result["epochs_reused"] == 1
    for damaged, error in ((b"", DataError), (None, RequestError)):
        (tmp_path / "state.pt").unlink() if damaged is None else (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(error, match=r"state\.pt"):
            old.load_checkpoint(str(tmp_path))


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


def test_a_tied_field_follows_in_a_worker(small_space: Any, tmp_path: Path) -> None:
    values = small_space()
    values["space"] |= {"epochs.ssl": {"same_as": "epochs.sl"}, "ssl.objective": {"choice": ["mae", "simclr"]}}
    values["space"]["ssl.temperature"] = {"uniform": [0.1, 0.5]}
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(values))
    for params in ({"epochs.sl": 4}, {"epochs.sl": 2, "ssl.objective": "simclr", "ssl.temperature": 0.3}):
        expected = mixtune.load_space(file).recipe_at(params)
        assert expected.epochs.ssl == params["epochs.sl"]
        ties = {"epochs.ssl": {"same_as": "epochs.sl"}}
        assert recipe_from_config({"recipe": file, **params}) == expected
        assert recipe_from_config({"recipe": values["recipe"], "ties": ties, **params}) == expected
    made = mixtune.param_space(file, **{"ssl.objective": "simclr", "epochs.sl": 4, "alpha": 0.5, "rho": 0.5})
    assert recipe_from_config({**made, "ssl.temperature": 0.3}).epochs.ssl == 4
    assert "ssl.temperature" not in mixtune.param_space(file, **{"ssl.objective": "mae"})
    with pytest.raises(RequestError, match=r"ssl\.temperature depends on ssl.objective, and a Tuner of your own"):
        mixtune.param_space(file)


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
