"""Keys are equal where states are: every recipe field is changed in real training runs and the bits are compared."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import shutil
import sys
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from mixtune.errors import RequestError
from mixtune.space.effective import effective
from mixtune.space.recipe import flatten
from mixtune.stages import code
from mixtune.stages.keys import stage_keys
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.state import start_state

# an epoch of each phase, 4 tokens, one block
BASE = {"epochs.ssl": 2, "epochs.sl": 2, "rho": 0.5, "model.patch_size": 4, "model.depth": 1}
NONE, START, SSL, ALL = -1, 0, 1, 99  # epochs after which two training runs are still the same
FOLDER = {"data.dataset": "image_folder", "data.root": "<labelled>", "data.fraction": 1.0}
MORE_IMAGES = {"data.ssl_fraction": 0.2}
AT_ONE_RATE = {"optim.ssl.schedule": "wsd", "optim.ssl.warmup_epochs": 0}
VIEWS = {"ssl.objective": "simclr"}
PARTNERS = {"data.ssl_dataset": "image_folder", "data.ssl_root": "<images>"}


@dataclass(frozen=True)
class Case:
    """Two recipes that differ in one field, and for how many epochs their states agree."""

    path: str
    value: Any
    shared: int
    alongside: dict[str, Any] = field(default_factory=dict)  # values that both have

    def __str__(self) -> str:
        alongside = "".join(f" alongside {path} {value}" for path, value in self.alongside.items())
        return f"{self.path} {self.value}{alongside}"


CASES = [
    Case("data.dataset", ["digits", "digits"], NONE),
    Case("data.root", "<empty>", ALL),  # digits come with scikit-learn
    Case("data.root", "<labelled copy>", ALL, FOLDER),
    Case("data.root", "<labelled darker>", START, FOLDER),
    Case("data.train", "<labelled copy>", ALL, FOLDER),
    Case("data.val", "<labelled copy>", START, FOLDER),
    Case("data.test", "<labelled copy>", START, FOLDER),
    Case("data.download", False, ALL),
    Case("data.image_size", 12, NONE),
    Case("data.fit", "stretch", ALL),  # digits are square, opaque and of 8 bits
    Case("data.background", "black", ALL),
    Case("data.range", "full", ALL),
    Case("data.max_megapixels", 1.0, ALL),
    Case("data.on_bad_file", "skip", ALL),
    Case("data.duplicates", "drop", ALL),
    Case("data.reading", 1, ALL),
    Case("data.fraction", 0.12, START),
    Case("data.fraction", 0.12, SSL, {"data.ssl_fraction": 0.1}),  # as many steps
    Case("data.fraction", 0.2, START, {"data.ssl_fraction": 0.1}),
    Case("data.val_fraction", 0.2, START),
    Case("data.ssl_dataset", "digits", ALL),  # the supervised set itself
    Case("data.ssl_dataset", "digits", START, FOLDER),
    Case("data.ssl_root", "<images copy>", ALL, PARTNERS),
    Case("data.ssl_root", "<images darker>", START, PARTNERS),
    Case("data.ssl_fraction", 0.2, START),
    Case("data.ssl_fraction", 0.2, START, {"rho": 1.0}),  # no SSL phase, and x_mix has partners
    Case("data.ssl_fraction", 0.2, ALL, {"rho": 1.0, "data.partners": "own"}),  # nor that
    Case("data.ssl_fraction", 0.05, ALL, {"rho": 1.0}),  # no others than the labelled ones
    Case("data.ssl_fraction", 0.5, START, {**PARTNERS, "rho": 1.0}),
    Case("data.partners", "own", ALL),
    Case("data.partners", "pool", SSL),  # each other's
    Case("data.partners", "own", SSL, MORE_IMAGES),
    Case("data.partners", "pool", ALL, MORE_IMAGES),
    Case("data.partners", "ssl_dataset", SSL, MORE_IMAGES),
    Case("data.partners", "pool", ALL, PARTNERS),
    Case("data.partners", "ssl_dataset", ALL, PARTNERS),
    Case("data.partners", "own", ALL, {**MORE_IMAGES, "rho": 0.0}),
    Case("data.ssl_epoch", "pool", ALL),  # the labelled images
    Case("data.ssl_epoch", "pool", START, MORE_IMAGES),
    Case("data.ssl_epoch", "pool", ALL, {**MORE_IMAGES, "rho": 1.0}),  # no SSL phase
    Case("data.ssl_epoch", "pool", START, {**MORE_IMAGES, **AT_ONE_RATE}),
    Case("data.statistics", "imagenet", START),
    Case("data.statistics", "own", ALL),
    Case("data.statistics", "train", START),
    Case("data.statistics", "own", START, {"model.pretrained": "<weights>"}),
    Case("data.statistics", "weights", ALL, {"model.pretrained": "<weights>"}),
    Case("model.name", "vit_base_patch16_clip_224", NONE),
    Case("model.patch_size", 2, NONE),
    Case("model.embed_dim", 32, NONE),
    Case("model.depth", 2, NONE),
    Case("model.num_heads", 4, START),
    Case("model.pool", "avg", SSL),
    Case("model.pretrained", "<weights>", NONE),
    Case("model.pretrained", "<weights copy>", ALL, {"model.pretrained": "<weights>"}),
    Case("model.pretrained", "<weights other>", NONE, {"model.pretrained": "<weights>"}),
    Case("epochs.ssl", 3, START),
    Case("epochs.ssl", 0, NONE),
    Case("epochs.sl", 3, SSL),
    Case("alpha", 0.9, SSL),
    Case("alpha", 0.9, ALL, {"rho": 0.0}),
    Case("rho", 0.75, ALL),  # the same plan
    Case("rho", 0.0, SSL),
    Case("rho", 1.0, START),
    Case("lambda", 0.9, ALL),
    Case("lambda", 0.9, SSL, PARTNERS),
    Case("lambda", 0.9, SSL, MORE_IMAGES),
    Case("lambda", 0.9, ALL, {**MORE_IMAGES, "data.partners": "own"}),
    Case("ssl.objective", "<objective>", NONE),
    Case("ssl.encode", "full", START),
    Case("ssl.loss_on", "all", START),
    Case("ssl.mask_ratio", 0.5, START),
    Case("ssl.norm_pix", True, START),
    Case("ssl.decoder_depth", 1, NONE),
    Case("ssl.decoder_depth", 1, ALL, {"epochs.ssl": 0}),  # nothing is self-supervised
    Case("ssl.objective", "<objective>", ALL, {"epochs.ssl": 0}),
    Case("optim.batch_size", 16, START),
    Case("optim.mix_schedule", "ssl", SSL),
    Case("optim.mix_schedule", "blend", SSL),
    Case("optim.class_weights", "balanced", SSL),
    Case("optim.carry_state", False, SSL),
    Case("optim.carry_state", False, ALL, {"epochs.ssl": 0}),  # no boundary
    Case("optim.ssl.base_lr", 0.03, START),
    Case("optim.ssl.weight_decay", 0.5, START),
    Case("optim.ssl.betas", [0.8, 0.95], START),
    Case("optim.ssl.warmup_epochs", 0, START),
    Case("optim.ssl.warmup_epochs", 10, ALL),  # a fifth of the budget in either case
    Case("optim.ssl.warmup_cap", 0.5, START),
    Case("optim.ssl.warmup_cap", 0.5, ALL, {"optim.ssl.warmup_epochs": 0}),
    Case("optim.ssl.warmup_cap", 0.5, ALL, {"optim.ssl.schedule": "wsd"}),
    Case("optim.sl.warmup_cap", 0.5, SSL),
    Case("optim.ssl.schedule", "whole_cosine", START),
    Case("optim.ssl.schedule", "polynomial", START),
    Case("optim.sl.schedule", "polynomial", SSL),
    Case("optim.ssl.base_lr", 0.03, ALL, {"epochs.ssl": 0}),
    Case("optim.sl.base_lr", 0.03, SSL),
    Case("optim.sl.weight_decay", 0.5, SSL),
    Case("optim.sl.betas", [0.9, 0.99], SSL),
    Case("optim.sl.warmup_epochs", 0, SSL),
    Case("optim.ssl.schedule", "wsd", START),
    Case("optim.sl.schedule", "wsd", SSL),
    Case("epochs.ssl", 4, SSL, {"optim.ssl.schedule": "wsd"}),  # the shorter one decays in its mix phase
    Case("epochs.ssl", 6, 3, {"optim.ssl.schedule": "wsd", "epochs.ssl": 4, "rho": 0.0}),  # or in its last epoch
    Case("epochs.sl", 6, 5, {"optim.sl.schedule": "wsd", "epochs.sl": 4, "rho": 0.0}),
    Case("optim.ssl.warmup_epochs", 10, START, {"optim.ssl.schedule": "wsd"}),
    Case("augment.pad", 1, ALL),  # the default, said
    Case("augment.pad", 2, START),
    Case("augment.pad", 2, SSL, {"augment.ssl": False}),
    Case("augment.flip", 0.5, START),
    Case("augment.crop_scale", [0.5, 1.0], START),
    Case("augment.crop_ratio", [0.9, 1.1], START, {"augment.crop_scale": [0.5, 1.0]}),
    Case("augment.randaugment", [2, 9], START),
    Case("augment.ssl", False, START),
    Case("augment.pad", 2, SSL, VIEWS),  # what the classifier sees alone
    Case("augment.crop_scale", [0.5, 1.0], SSL, VIEWS),
    Case("augment.randaugment", [2, 9], SSL, VIEWS),
    Case("augment.flip", 0.5, START, VIEWS),
    Case("protocol", "paper", START),
    Case("precision", "float32", ALL),  # auto's choice on a CPU
    Case("precision", "bfloat16", START),
    Case("seed", 1, NONE),
]
# what is found there decides whether another value is another recipe
OF_DATA_OR_DEVICE = {
    *(
        f"data.{name}"
        for name in ("root", "train", "ssl_dataset", "ssl_root", "fit", "background", "range", "max_megapixels")
    ),
    *("data.on_bad_file", "data.duplicates", "data.reading", "model.pretrained", "augment.pad", "precision"),
}
NOT_TRAINED = {
    "compile",  # it takes a compiler and a minute
    "representation",  # in tests/training/test_representation.py
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, make_state):
    """The paths that <names> in a case stand for."""
    folder = tmp_path_factory.mktemp("places")
    sys.path.append(str(folder))
    (folder / "empty").mkdir()
    digits = load_digits()
    for kind, brightest in (("", 255), (" darker", 128)):
        for number in range(60):
            image = Image.fromarray((digits.images[number] * brightest / 16).astype(np.uint8))
            for into in (folder / f"labelled{kind}" / str(digits.target[number] % 2), folder / f"images{kind}"):
                into.mkdir(parents=True, exist_ok=True)
                image.save(into / f"{number:02d}.png")
    for name in ("labelled", "images"):
        shutil.copytree(folder / name, folder / f"{name} copy")
    for name, seed in (("weights", 5), ("weights other", 6)):
        torch.save(make_state({**BASE, "seed": seed}).backbone.vit.state_dict(), folder / name)
    shutil.copy(folder / "weights", folder / "weights copy")
    write_objective(folder / "own_objective.py", start=0.5)
    paths = {f"<{path.name}>": str(path) for path in folder.iterdir()}
    yield paths | {"<objective>": "own_objective:Own"}
    sys.path.remove(str(folder))


def write_objective(path, start):
    path.write_text(
        "from mixtune.objectives import mae\n"
        "class Own:\n"
        "    class Settings(mae.Settings): pass\n"
        "    @staticmethod\n"
        "    def build(settings, backbone):\n"
        "        made = mae.build(settings, backbone)\n"
        f"        made.mask_token.data.fill_({start})\n"
        "        return made\n"
    )


@pytest.fixture(scope="module")
def recipe_with(make_recipe, places):
    """The base recipe with changes over it, <names> in them replaced."""

    def make(*changes):
        merged = {path: value for each in (BASE, *changes) for path, value in each.items()}
        return make_recipe({p: places.get(v, v) if isinstance(v, str) else v for p, v in merged.items()})

    return make


def fingerprint(state):
    """Return a digest of every bit of a state, seconds excepted."""
    held = state.state_dict()
    held["history"] = [{k: v for k, v in result.items() if "seconds" not in k} for result in held["history"]]

    def bits_of(tensor):
        return [str(tensor.dtype), list(tensor.shape), tensor.numpy().tobytes().hex()]

    return hashlib.sha256(json.dumps(held, default=bits_of).encode()).hexdigest()


def train_data(recipe, data):
    """Return (keys, fingerprints) after 0, 1, ... epochs."""
    state = start_state(recipe, data)
    prints = [fingerprint(state), *(fingerprint(state) for _ in train(state))]
    keys = stage_keys(recipe, data)
    assert len(keys) == len(prints) == len(set(keys)) == len(set(prints))
    return keys, prints


@pytest.fixture(scope="module")
def trained(recipe_with):
    """train_data() of a recipe; each is trained once."""
    once = functools.cache(lambda recipe: train_data(recipe, load_training_data(recipe)))
    return lambda *changes: once(recipe_with(*changes))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_keys_are_equal_where_states_are_bit_for_bit(trained, case):
    """What changes the training but not the initial weights, as the batch size does, may change the initial key."""
    one, other = trained(case.alongside), trained(case.alongside, {case.path: case.value})
    pairs = zip(one, other, strict=True)
    keys, states = ([n for n, (a, b) in enumerate(zip(*pair, strict=False)) if a == b] for pair in pairs)
    assert states == list(range(min(case.shared + 1, len(one[1]))))
    assert keys == states or (keys == [] and states == [0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recipes_without_their_idle_settings_are_equal_where_outcomes_are(recipe_with, case):
    """But for what only the data or the device can say."""
    one, other = (
        effective(flatten(recipe.to_dict()))
        for recipe in (recipe_with(case.alongside), recipe_with(case.alongside, {case.path: case.value}))
    )
    assert (one == other) == (case.shared == ALL and case.path not in OF_DATA_OR_DEVICE)


def test_every_field_of_a_recipe_is_classified(make_recipe):
    fields = set(flatten(make_recipe().to_dict()))
    assert fields == {case.path for case in CASES} | NOT_TRAINED


def test_compilation_changes_every_key(recipe_with):
    recipes = recipe_with(), recipe_with({"compile": True})
    one, other = (stage_keys(recipe, load_training_data(recipe)) for recipe in recipes)
    assert not set(one) & set(other)


@pytest.mark.parametrize(("name", "part"), [("ssl", "images"), *product(("train", "held_out"), ("images", "labels"))])
def test_what_is_read_counts_and_not_its_name(trained, recipe_with, name, part):
    recipe = recipe_with()
    data = load_training_data(recipe)
    pool = getattr(data.tasks[0], name)
    content = getattr(pool, part).clone()
    content[pool.indices] = 0
    task = replace(data.tasks[0], **{name: replace(pool, **{part: content})})
    one, other = trained(), train_data(recipe, replace(data, tasks=(task,)))
    shared = START if name == "ssl" else SSL
    assert [a == b for a, b in zip(one[0], other[0], strict=True)] == [epochs <= shared for epochs in range(4)]
    assert one[1][: shared + 1] == other[1][: shared + 1]
    assert one[1][-1] != other[1][-1]  # between these a poor classifier's accuracies may be equal by chance


def test_an_objective_whose_file_has_changed_has_other_keys(recipe_with, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def keys_with(start):
        write_objective(tmp_path / "edited_objective.py", start)
        sys.modules.pop("edited_objective", None)
        importlib.invalidate_caches()
        code.digest_code.cache_clear()
        recipe = recipe_with({"ssl.objective": "edited_objective:Own"})
        return stage_keys(recipe, load_training_data(recipe))

    one, again, other = (keys_with(start) for start in (0.25, 0.25, 0.375))
    assert one == again
    assert not set(one) & set(other)
    sys.modules.pop("edited_objective")


def test_weights_that_are_gone_are_a_wrong_request(recipe_with, tmp_path):
    recipe = recipe_with({"model.pretrained": str(tmp_path / "gone.pt")})
    with pytest.raises(RequestError, match=r"model\.pretrained: .*gone\.pt cannot be read: No such file"):
        stage_keys(recipe, load_training_data(recipe))


def test_threads_change_every_key_on_a_cpu(recipe_with):
    recipe = recipe_with()
    data = load_training_data(recipe)
    one = stage_keys(recipe, data)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert not set(one) & set(stage_keys(recipe, data))
    finally:
        torch.set_num_threads(threads)
