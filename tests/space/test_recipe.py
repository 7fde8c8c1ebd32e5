"""A recipe spells out every value of one trial, refuses what it does not know, and never changes."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mixtune.errors import RequestError
from mixtune.space.recipe import RecipeError, change_recipe, flatten, parse_recipe, with_values

DIGITS = {"data": {"dataset": "digits"}}
KNOWN = "dino, mae, mocov3, simclr"


def mistake(values: dict[str, Any]) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(with_values(DIGITS, values))
    assert "\n" not in str(caught.value)
    return caught.value


ROTATIONS = """
from typing import Annotated
from pydantic import Field, model_validator
from mixtune.space.recipe import SslSettings
class Settings(SslSettings):
    angles: Annotated[int, Field(ge=2)] | None = 4
    scale: float = 1.0
    @model_validator(mode='after')
    def _check(self):
        if self.angles == 3:
            raise ValueError('angles should divide a turn\\ninto even parts')
        return self
class objective:
    Settings = Settings
    build = staticmethod(lambda settings, backbone: None)
"""
DEFAULTS = f"""
data: {{dataset: digits, root: null, train: null, val: null, test: null, download: true, image_size: null, fit: auto,
       background: auto, range: auto, max_megapixels: 178.0, on_bad_file: stop, duplicates: warn, reading: 2,
       fraction: 1.0, val_fraction: 0.1, ssl_dataset: null, ssl_root: null, ssl_fraction: null, partners: auto,
       ssl_epoch: supervised, statistics: auto}}
model: {{name: vit_tiny_patch16_224, patch_size: null, embed_dim: null, depth: null, num_heads: null, pool: token,
        pretrained: false}}
epochs: {{ssl: 100, sl: 100}}
alpha: 0.5
rho: 0.5
lambda: 0.5
ssl: {{objective: mae, encode: visible, loss_on: masked, mask_ratio: 0.75, norm_pix: false, decoder_depth: 2}}
optim:
  batch_size: 256
  mix_schedule: sl
  class_weights: none
  carry_state: true
  ssl: {{base_lr: 0.00015, weight_decay: 0.05, betas: [0.9, 0.95], warmup_epochs: 20,
    warmup_cap: 0.2, schedule: cosine}}
  sl: {{base_lr: 0.001, weight_decay: 0.05, betas: [0.9, 0.95], warmup_epochs: 5, warmup_cap: 0.2, schedule: cosine}}
augment: {{pad: null, flip: null, crop_scale: null, crop_ratio: [0.75, {4 / 3}], randaugment: null, ssl: true}}
representation: []
protocol: search
precision: auto
compile: false
seed: 0
"""


def test_every_default_is_spelled_out() -> None:
    assert parse_recipe(DIGITS).to_dict() == yaml.safe_load(DEFAULTS)


def test_a_recipe_survives_its_values() -> None:
    changes = {"lambda": 0.25, "data.ssl_dataset": "digits", "optim.sl.betas": [0.8, 0.9], "ssl.loss_on": "all"}
    recipe = parse_recipe(with_values(DIGITS, changes))
    assert flatten(recipe.to_dict()).items() >= changes.items()
    assert parse_recipe(recipe.to_dict()) == recipe
    assert parse_recipe(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert parse_recipe(DIGITS) != recipe
    assert recipe.lambda_ == 0.25


def test_a_recipe_never_changes_and_serves_as_a_key() -> None:
    recipe = parse_recipe(DIGITS)
    with pytest.raises(ValidationError):
        recipe.alpha = 0.3
    with pytest.raises(ValidationError):
        recipe.optim.sl.base_lr = 0.1
    assert {recipe: 1}[parse_recipe(recipe.to_dict())] == 1
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_parsing_leaves_the_given_values_alone() -> None:
    given = {"data": {"dataset": "digits"}, "ssl": {"mask_ratio": 0.5}, "epochs": {"sl": 7}}
    before = json.dumps(given)
    recipe = change_recipe(parse_recipe(given), {"epochs.sl": 8, "ssl.mask_ratio": 0.6})
    with_values(given, {"epochs.sl": 9, "ssl.mask_ratio": 0.7})
    assert json.dumps(given) == before
    assert (recipe.epochs.sl, recipe.to_dict()["ssl"]["mask_ratio"]) == (8, 0.6)


def test_flatten_and_with_values_undo_each_other() -> None:
    def nested(depth: int) -> dict[str, Any]:
        keys = rng.sample("abcdefgh", rng.randint(1, 4))
        values = (nested(depth - 1) if depth and rng.random() < 0.5 else rng.choice([0, None, [1], "x"]) for _ in keys)
        return dict(zip(keys, values, strict=True))

    for seed in range(20):
        rng = random.Random(seed)
        values = nested(3)
        flat = flatten(values)
        assert with_values({}, flat) == values, seed
        assert flatten(with_values({}, flat)) == flat, seed
        changed = {path: rng.random() for path in rng.sample(sorted(flat), rng.randint(1, len(flat)))}
        assert flatten(with_values(values, changed)) == flat | changed, seed


def test_a_single_value_has_nothing_below_it() -> None:
    for value in (0, 0.5, None, "text"):
        with pytest.raises(RecipeError, match=r"^alpha: is a single value, so 'alpha\.x' cannot be set$"):
            with_values({"alpha": value}, {"alpha.x": 1})


def test_a_list_of_datasets_is_a_task_each_with_its_own_name_and_folder() -> None:
    def tasks(data: dict[str, Any]) -> tuple[tuple[str, str, str | None], ...]:
        return parse_recipe({"data": data}).data.tasks

    assert tasks({"dataset": "digits"}) == (("digits", "digits", None),)
    assert tasks({"dataset": ["CIFAR10", "SVHN"], "root": "r"}) == (("CIFAR10", "CIFAR10", "r"), ("SVHN", "SVHN", "r"))
    assert tasks({"dataset": ["image_folder", "digits", "image_folder"], "root": ["a", None, "b"]}) == (
        ("image_folder", "image_folder", "a"),
        ("digits", "digits", None),
        ("image_folder_2", "image_folder", "b"),
    )


def test_a_mistake_names_the_key_what_was_given_and_what_is_allowed() -> None:
    sections = "data, model, epochs, alpha, rho, lambda, ssl, optim, augment, representation, protocol"
    sections += ", precision, compile, seed"
    allowed = "base_lr, weight_decay, betas, warmup_epochs, warmup_cap, schedule"
    rates = f"unknown key; allowed are {allowed}; did you mean 'base_lr'?"
    needs = "needs Settings, a subclass of SslSettings, and a function build: see mixtune.objectives"
    without, both = "is given without data.ssl_dataset: add it (image_folder, say)", ["digits", "CIFAR10"]
    folders = "should be one folder, or 2 for the 2 datasets"
    alongside = "has no effect alongside augment.crop_scale: drop one"
    for values, message in (
        ({"lambda_": 0.5}, f"lambda_: unknown key; allowed are {sections}; did you mean 'lambda'?"),
        # of two mistakes the unknown key is told first
        ({"data.dataset": 3, "optim.sl.base_rl": 0.5}, f"optim.sl.base_rl: {rates}"),
        ({"data": {}}, "data.dataset: missing, and it has no default"),
        ({"alpha": True}, "alpha: should be a valid number, got true"),
        ({"alpha": 1.5}, "alpha: should be less than or equal to 1, got 1.5"),
        ({"lambda": float("nan")}, "lambda: should be a finite number, got NaN"),
        ({"epochs.sl": "5"}, 'epochs.sl: should be a valid integer, got "5"'),
        ({"epochs.sl": 5.0}, "epochs.sl: should be a valid integer, got 5.0"),
        ({"epochs": [5, 5]}, "epochs: should be a valid dictionary or instance of Epochs, got [5, 5]"),
        ({"ssl": None}, "ssl: should be a mapping of keys to values, got null"),
        ({"optim.sl.betas": [0.9]}, "optim.sl.betas: should be longer, got [0.9]"),
        ({"optim.sl.betas": [0.9] * 3}, "optim.sl.betas: tuple should have at most 2 items after validation, not 3, "),
        ({"optim.sl.betas": ["0.9", 7]}, 'optim.sl.betas: should be a valid number, got "0.9"'),
        ({"data.dataset": 3}, "data.dataset: should be a valid string or should be a valid tuple, got 3"),
        ({"ssl.encode": "ful"}, "ssl.encode: should be 'visible' or 'full', got \"ful\"; did you mean 'full'?"),
        ({"ssl.objective": "mea"}, f"ssl.objective: unknown objective 'mea': known are {KNOWN}; did you mean 'mae'?"),
        ({"ssl.objective": "json:dumps"}, f"ssl.objective: json:dumps {needs}"),
        ({"data.ssl_root": "/x"}, f"data.ssl_root: {without}"),
        ({"data.statistics": "weights"}, "data.statistics: weights needs model.pretrained: set it, or choose own or "),
        (
            {"data.ssl_dataset": "SVHN", "data.partners": "own"},
            "data.partners: own mixes nothing in, so data.ssl_datas",
        ),
        ({"data.dataset": both, "data.root": ["a"]}, f"data.root: lists 1: {folders}"),
        ({"augment.pad": 2, "augment.crop_scale": [0.6, 1.0]}, f"augment.pad: {alongside}"),
        ({"augment.crop_scale": [1.0, 0.6]}, "augment.crop_scale: its low end 1 is above its high end 0.6"),
    ):
        error = mistake(values)
        assert isinstance(error, RequestError)
        assert str(error).startswith(message)
        assert ".".join(error.path) == message.partition(":")[0]


def test_a_long_value_is_cut_short_and_stays_on_one_line() -> None:
    message = str(mistake({"alpha": "a\nb" * 1000}))
    assert len(message) < 150
    assert message.endswith("...")


def test_an_error_survives_the_way_between_processes() -> None:
    error = mistake({"optim.sl.lr": 1})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is RecipeError
    assert (str(copy), copy.path, copy.message) == (str(error), error.path, error.message)


def test_an_objective_of_ones_own_validates_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rotations.py").write_text(ROTATIONS)
    rotations = "rotations:objective"
    recipe = parse_recipe({**DIGITS, "ssl": {"objective": rotations, "angles": 8}})
    assert recipe.to_dict()["ssl"] == {"objective": rotations, "angles": 8, "scale": 1.0}
    assert parse_recipe(recipe.to_dict()) == recipe
    for settings, message in (
        ({"angels": 8}, "ssl.angels: unknown key; allowed are objective, angles, scale; did you mean 'angles'?"),
        ({"angles": 3}, "ssl: angles should divide a turn into even parts"),
    ):
        assert str(mistake({"ssl": {"objective": rotations, **settings}})) == message


def test_another_objective_keeps_what_the_two_share_and_starts_from_its_own_defaults_otherwise() -> None:
    given = {"objective": "simclr", "temperature": 0.7, "color_jitter": 1.0, "compression": {"token_dropout": 0.5}}
    simclr = parse_recipe({"data": {"dataset": "digits"}, "ssl": given})
    moco = change_recipe(simclr, {"ssl.objective": "mocov3"}).to_dict()["ssl"]
    assert (moco["color_jitter"], moco["compression"]["token_dropout"]) == (1.0, 0.5)
    assert (moco["temperature"], moco["momentum"]) == (0.2, 0.99)
    assert change_recipe(simclr, {"ssl.objective": "mae"}).ssl == parse_recipe({"data": {"dataset": "digits"}}).ssl
