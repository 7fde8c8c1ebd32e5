"""A recipe spells out every value of one trial, refuses what it does not know, and never changes."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mixtune.errors import RequestError
from mixtune.space.recipe import (
    RecipeError,
    baseline_values,
    change_recipe,
    check_path,
    flatten,
    parse_recipe,
    with_values,
)

DIGITS = {"data": {"dataset": "digits"}}
KNOWN = "dino, mae, mocov3, simclr"


def mistake(values: dict[str, Any]) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(with_values(DIGITS, values))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An objective of one's own, with settings that mae does not have."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rotations.py").write_text(
        "from typing import Annotated\n"
        "from pydantic import Field, model_validator\n"
        "from mixtune.space.recipe import SslSettings\n"
        "class Settings(SslSettings):\n"
        "    angles: Annotated[int, Field(ge=2)] | None = 4\n"
        "    scale: float = 1.0\n"
        "    @model_validator(mode='after')\n"
        "    def _check(self):\n"
        "        if self.angles == 3:\n"
        "            raise ValueError('angles should divide a turn\\ninto even parts')\n"
        "        return self\n"
        "class objective:\n"
        "    Settings = Settings\n"
        "    build = staticmethod(lambda settings, backbone: None)\n"
    )
    return "rotations:objective"


DEFAULTS = f"""
data: {{dataset: digits, root: null, download: true, image_size: null, fraction: 1.0, val_fraction: 0.1,
       ssl_dataset: null, ssl_root: null, ssl_fraction: null, statistics: own}}
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
  carry_state: true
  ssl: {{base_lr: 0.00015, weight_decay: 0.05, betas: [0.9, 0.95], warmup_epochs: 20, schedule: cosine}}
  sl: {{base_lr: 0.001, weight_decay: 0.05, betas: [0.9, 0.95], warmup_epochs: 5, schedule: cosine}}
augment: {{pad: null, flip: null, crop_scale: null, crop_ratio: [0.75, {4 / 3}], randaugment: null, ssl: true}}
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


@pytest.mark.parametrize("seed", range(20))
def test_flatten_and_with_values_undo_each_other(seed: int) -> None:
    rng = random.Random(seed)

    def nested(depth: int) -> dict[str, Any]:
        keys = rng.sample("abcdefgh", rng.randint(1, 4))
        return {
            key: nested(depth - 1) if depth and rng.random() < 0.5 else rng.choice([0, None, [1], "x"]) for key in keys
        }

    values = nested(3)
    flat = flatten(values)
    assert with_values({}, flat) == values
    assert flatten(with_values({}, flat)) == flat
    changed = {path: rng.random() for path in rng.sample(sorted(flat), rng.randint(1, len(flat)))}
    assert flatten(with_values(values, changed)) == flat | changed


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lambda_": 0.5},
            "lambda_: unknown key; allowed are data, model, epochs, alpha, rho, lambda, ssl, optim, augment, "
            "protocol, precision, compile, seed; did you mean 'lambda'?",
        ),
        (
            {"data.dataset": 3, "optim.sl.base_rl": 0.5},  # of two mistakes the unknown key is told first
            "optim.sl.base_rl: unknown key; allowed are base_lr, weight_decay, betas, warmup_epochs, schedule; "
            "did you mean 'base_lr'?",
        ),
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
        (
            {"ssl.encode": "visable"},
            "ssl.encode: should be 'visible' or 'full', got \"visable\"; did you mean 'visible'?",
        ),
        ({"ssl.objective": "mea"}, f"ssl.objective: unknown objective 'mea': known are {KNOWN}; did you mean 'mae'?"),
        (
            {"ssl.objective": "json:dumps"},
            "ssl.objective: json:dumps needs Settings, a subclass of SslSettings, and a function build: "
            "see mixtune.objectives",
        ),
        ({"data.ssl_root": "/x"}, "data.ssl_root: is given without data.ssl_dataset: add it (image_folder, say)"),
        (
            {"data.dataset": ["digits", "CIFAR10"], "data.root": ["a"]},
            "data.root: lists 1: should be one folder, or 2 for the 2 datasets",
        ),
        (
            {"augment.pad": 2, "augment.crop_scale": [0.6, 1.0]},
            "augment.pad: has no effect alongside augment.crop_scale: drop one",
        ),
        ({"augment.crop_scale": [1.0, 0.6]}, "augment.crop_scale: its low end 1 is above its high end 0.6"),
    ],
)
def test_a_mistake_names_the_key_what_was_given_and_what_is_allowed(values: dict[str, Any], message: str) -> None:
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


def test_an_objective_of_ones_own_validates_its_settings(rotations: str) -> None:
    recipe = parse_recipe({**DIGITS, "ssl": {"objective": rotations, "angles": 8}})
    assert recipe.to_dict()["ssl"] == {"objective": rotations, "angles": 8, "scale": 1.0}
    assert parse_recipe(recipe.to_dict()) == recipe
    for settings, message in (
        ({"angels": 8}, "ssl.angels: unknown key; allowed are objective, angles, scale; did you mean 'angles'?"),
        ({"angles": 3}, "ssl: angles should divide a turn into even parts"),
    ):
        assert str(mistake({"ssl": {"objective": rotations, **settings}})) == message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("epoch.sl", "epoch.sl: no field of a recipe; did you mean 'epochs.sl'?"),
        ("lambda_", "lambda_: no field of a recipe; did you mean 'lambda'?"),
        ("epochs", "epochs: no field of a recipe (a section: name one of epochs.ssl, epochs.sl)"),
        ("optim.sl.betas.0", "optim.sl.betas.0: no field of a recipe; did you mean 'optim.sl.betas'?"),
    ],
)
def test_a_path_that_is_no_field_gets_the_closest(path: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_path(parse_recipe(DIGITS), path)
    assert str(caught.value) == message


def test_baselines_are_the_corners_of_the_algorithm() -> None:
    recipe = parse_recipe(DIGITS)
    assert change_recipe(recipe, baseline_values("sl")).epochs.ssl == 0
    assert change_recipe(recipe, baseline_values("ssl_sl")).rho == 0
    with pytest.raises(
        RequestError, match=r"^unknown baseline 'ssl-sl': known are sl, ssl_sl; did you mean 'ssl_sl'\?$"
    ):
        baseline_values("ssl-sl")


def test_importing_recipes_and_spaces_imports_neither_ray_nor_optuna_nor_torch() -> None:
    code = (
        "import sys, mixtune.space.recipe, mixtune.space.space; "
        "print([name for name in ('ray', 'optuna', 'torch', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_another_objective_keeps_what_the_two_share_and_starts_from_its_own_defaults_otherwise() -> None:
    given = {"objective": "simclr", "temperature": 0.7, "color_jitter": 1.0, "compression": {"token_dropout": 0.5}}
    simclr = parse_recipe({"data": {"dataset": "digits"}, "ssl": given})
    moco = change_recipe(simclr, {"ssl.objective": "mocov3"}).to_dict()["ssl"]
    assert (moco["color_jitter"], moco["compression"]["token_dropout"]) == (1.0, 0.5)
    assert (moco["temperature"], moco["momentum"]) == (0.2, 0.99)
    assert change_recipe(simclr, {"ssl.objective": "mae"}).ssl == parse_recipe({"data": {"dataset": "digits"}}).ssl
