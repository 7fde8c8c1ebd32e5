"""A trained recipe comes back from its folder as it was, and what is not whole is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from sklearn.datasets import load_digits

from mixtune.errors import DataError, RequestError
from mixtune.space.document import read_document
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.measure import measure
from mixtune.training.saved import load_trained, save_trained, saved_metrics
from mixtune.training.state import start_state

FILES = ("recipe.yaml", "model.safetensors", "metrics.json")


def train_and_save(state, folder):
    """Train a state to its end, save it; return its metrics."""
    list(train(state))
    metrics = measure(state)
    save_trained(folder, state, metrics)
    return metrics


@pytest.fixture(scope="module")
def trained(make_state):
    state = make_state({"rho": 0.5, "ssl.encode": "full", "model.pool": "avg"})
    list(train(state))
    return state


@pytest.fixture
def folder(trained, tmp_path):
    """A folder with the trained recipe."""
    save_trained(tmp_path / "run", trained, measure(trained))
    return tmp_path / "run"


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


# --- there and back


def test_a_trained_recipe_comes_back_bit_by_bit_from_float32_weights_without_an_optimizer(trained, folder):
    before = torch.get_rng_state()
    run = load_trained(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert run.recipe == trained.recipe
    assert read_document(folder / "recipe.yaml").values == trained.recipe.to_dict()  # whole, every default spelled out
    assert not any(part.training for part in (run.backbone, run.objective, run.classifiers))
    assert (run.directory, run.image_size, run.channels) == (folder, 8, 1)
    assert run.classes == {"digits": tuple("0123456789")}
    for part in ("backbone", "objective", "classifiers"):
        was, is_ = getattr(trained, part).state_dict(), getattr(run, part).state_dict()
        assert list(was) == list(is_)
        assert all(torch.equal(was[name], is_[name]) for name in was)
    weights = load_file(folder / "model.safetensors")
    assert {name.partition(".")[0] for name in weights} == {"backbone", "objective", "classifiers"}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_metrics_are_those_measured_and_what_is_no_number_is_null(trained, folder):
    metrics = measure(trained).to_dict()
    assert load_trained(folder).metrics == {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in metrics.items()
    }
    assert json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)["ssl_loss"] is None


def test_several_tasks_come_back_with_a_classifier_each(make_state, tmp_path):
    state = make_state({"data.dataset": ["digits", "digits"], "epochs.ssl": 1, "epochs.sl": 1})
    metrics = train_and_save(state, tmp_path)
    run = load_trained(tmp_path)
    assert list(run.classes) == ["digits", "digits_2"]
    assert run.metrics["val_accuracy_digits_2"] == metrics.task_accuracies["digits_2"]
    assert not torch.equal(run.classifiers[0].head.weight, run.classifiers[1].head.weight)
    assert torch.equal(run.classifiers[1].head.weight, state.classifiers[1].head.weight)


def test_a_folder_can_be_used_from_elsewhere(make_recipe, tmp_path, monkeypatch):
    digits = load_digits()
    for label in (0, 1):
        (tmp_path / "data" / f"class {label}").mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:50]):
            pixels = Image.fromarray((image * 15.9).astype(np.uint8))
            pixels.save(tmp_path / "data" / f"class {label}" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe({"data.dataset": "image_folder", "data.root": "data", "data.fraction": 1.0})
    train_and_save(start_state(recipe, load_training_data(recipe)), "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = load_trained("../run")
    assert run.recipe.data.root == str(tmp_path / "data")
    assert run.classes == {"image_folder": ("class 0", "class 1")}
    assert load_training_data(run.recipe).tasks[0].classes == ("class 0", "class 1")


def test_pretrained_weights_are_not_asked_for_again(folder):
    change(folder / "recipe.yaml", "pretrained: false", "pretrained: /gone/weights.safetensors")
    assert load_trained(folder).recipe.model.pretrained == "/gone/weights.safetensors"


def test_a_save_replaces_the_one_before(trained, make_state, folder):
    metrics = train_and_save(make_state({"epochs.ssl": 0, "epochs.sl": 1}), folder)
    run = load_trained(folder)
    assert (run.recipe.epochs.sl, run.metrics["method"]) == (1, "sl")
    assert run.metrics["val_accuracy"] == metrics.val_accuracy


# --- what a folder is known to hold


def test_the_metrics_of_a_recipe_are_known_where_it_was_saved_whole(trained, folder, tmp_path, make_recipe):
    assert saved_metrics(folder, trained.recipe) == load_trained(folder).metrics
    assert saved_metrics(tmp_path / "new", trained.recipe) is None
    with pytest.raises(RequestError, match=r"run holds the training of another recipe \(rho 0\.5, not 0\.0\)"):
        saved_metrics(folder, make_recipe({"rho": 0.0, "ssl.encode": "full", "model.pool": "avg"}))
    (folder / "metrics.json").unlink()
    assert saved_metrics(folder, trained.recipe) is None


# --- interrupted saves


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_save_is_never_mistaken_for_a_whole_one(trained, tmp_path, monkeypatch, writes, earlier):
    if earlier:
        save_trained(tmp_path, trained, measure(trained))
    replace, done = os.replace, []

    def replace_until_killed(source, target):
        if len(done) == writes:
            raise Killed
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_until_killed)
    with pytest.raises(Killed):
        save_trained(tmp_path, trained, measure(trained))
    monkeypatch.undo()
    with pytest.raises((RequestError, DataError), match=r"metrics\.json is missing$"):
        load_trained(tmp_path)
    assert set(os.listdir(tmp_path)) < set(FILES)
    save_trained(tmp_path, trained, measure(trained))
    assert load_trained(tmp_path).recipe == trained.recipe


def test_a_folder_that_cannot_be_written_is_one_line(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"file cannot be made: File exists$"):
        save_trained(tmp_path / "file", trained, measure(trained))
    with pytest.raises(RequestError, match=r"file/run cannot be made: Not a directory$"):
        save_trained(tmp_path / "file" / "run", trained, measure(trained))


# --- what is no saved recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"depth": 1_000_000}}, r"model\.depth is 1000000, and there are \d+ tensors"),
        ({"ssl": {"decoder_depth": 1_000_000}}, r"ssl\.decoder_depth is 1000000, and there are \d+ tensors"),
        ({"model": {"embed_dim": 1_000_000}}, r"backbone\..* should be \(.*1000000,?.*\), and is "),
        ({"image_size": 200_000}, r"backbone\.vit\.pos_embed should be \(1, \d{9,}, 16\), and is \(1, 17, 16\)"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_told_before_memory_is_taken(folder, changes, words):
    """Someone else's folder may ask for any: nothing here would hold it."""
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    for section, own in changes.items():
        if section == "image_size":
            tensors = load_file(folder / "model.safetensors")
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                metadata = file.metadata() | {section: str(own)}
            (folder / "model.safetensors").write_bytes(to_bytes(tensors, metadata))
        else:
            values[section].update(own)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, explicit_end=True))
    with pytest.raises(DataError, match=rf"model\.safetensors is damaged, or was not saved with .*: {words}"):
        load_trained(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_something_is_refused_by_its_name(folder, name):
    with pytest.raises(RequestError, match=r"there is no folder .*/rum; did you mean 'run'\?"):
        load_trained(folder.parent / "rum")
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"run holds no whole trained recipe: {name} is missing$"):
        load_trained(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, None])
def test_a_file_that_breaks_off_or_is_noise_is_named(folder, name, share):
    content = (folder / name).read_bytes()
    noise = np.random.default_rng(0).bytes(2000)
    (folder / name).write_bytes(noise if share is None else content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"{name} (is damaged|cannot be read)") as caught:
        load_trained(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_origin_are_refused_and_a_pickle_is_not_opened(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    for save in (torch.save, save_file):
        save({"backbone": Trap() if save is torch.save else torch.zeros(3)}, folder / "model.safetensors")
        with pytest.raises(DataError, match=r"model\.safetensors is damaged, or was not saved with \S*recipe\.yaml: "):
            load_trained(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("old", "new", "because"),
    [
        ("embed_dim: 16", "embed_dim: 32", r"backbone\.\S+ should be \(32,\), and is \(16,\)"),
        ("decoder_depth: 2", "decoder_depth: 3", r"objective\.blocks\.2\.\S+ should be \(16,\), and is missing"),
        ("patch_size: 2", "patch_size: 3", "model.patch_size 3 does not divide the image size of 8 pixels"),
        ("dataset: digits", "dataset: MNIST", "the recipe's tasks are MNIST, the weights' digits"),
    ],
)
def test_weights_that_do_not_fit_the_recipe_are_refused(folder, old, new, because):
    change(folder / "recipe.yaml", old, new)
    with pytest.raises(DataError, match=rf"model.safetensors is damaged, or was not saved with \S*yaml: .*{because}"):
        load_trained(folder)


def test_a_recipe_of_a_newer_version_is_refused_at_its_line(folder):
    change(folder / "recipe.yaml", "rho: 0.5", "rho: 0.5\nrho_schedule: cosine")
    line = 1 + (folder / "recipe.yaml").read_text().splitlines().index("rho_schedule: cosine")
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "mixtune": "9.9.0"})
    versions = r"\(saved by mixtune 9\.9\.0; this is \d+\.\d+\.\d+\)$"
    with pytest.raises(RequestError, match=rf"recipe\.yaml:{line}: rho_schedule: unknown key; .* {versions}"):
        load_trained(folder)
