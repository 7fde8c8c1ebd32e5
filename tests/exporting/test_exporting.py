"""`export`, end to end on digits: the weights of a search's trial, a card, and a script that classifies."""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from forgery import forge
from PIL import Image
from safetensors.torch import load_file

import mixtune
from mixtune.datasets._decode import Layout, decode
from mixtune.errors import DataError, RequestError, TrainingError
from mixtune.exporting import export
from mixtune.meter.times import StepTimes
from mixtune.run.ledger import Ledger, describe_damage, finite_or_none
from mixtune.run.lock import hold_folder, hold_run
from mixtune.single import Trained, train_recipe
from mixtune.space.foreign import to_train
from mixtune.space.recipe import change_recipe, parse_recipe
from mixtune.space.space import space_from_dict
from mixtune.stages.keys import stage_keys
from mixtune.stages.resume import train_shared
from mixtune.stages.store import StateStore
from mixtune.training.data import load_training_data
from mixtune.training.measure import measure
from mixtune.training.state import TrainState, start_state

MARKER = ".mixtune-export.json"
FILES = ["README.md", "classify.py", "config.json", "metrics.json", "model.safetensors", "recipe.yaml"]
TRIALS: dict[str, dict[str, Any]] = {
    "t0001": {"alpha": 0.2, "rho": 0.5, "epochs.sl": 3},
    "t0002": {"alpha": 0.5, "rho": 1.0, "epochs.sl": 2},
    "sl": {"epochs.ssl": 0},
}
MACHINE = {"device": "a CPU", "threads": 1, "precision": "float32", "speeds": {}, "gpu_bytes": None}


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, small_space_values: dict[str, Any]
) -> tuple[Path, dict[str, TrainState]]:
    """A run as a search leaves it: two complete trials, a baseline and a failed trial; and what was trained."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    directory.mkdir()
    space = space_from_dict(small_space_values)
    run = {"reference_point": {"val_accuracy": 0.1, "train_latency_s": 9.0}, "machine": MACHINE}
    (directory / "space.yaml").write_text(yaml.safe_dump({**space.to_dict(), "run": run}, sort_keys=False))
    ledger, times, states = Ledger(directory / "ledger.jsonl"), StepTimes(), {}
    for trial, params in TRIALS.items():
        recipe = change_recipe(space.recipe, params)
        state = states[trial] = start_state(recipe, load_training_data(recipe))
        for _ in train_shared(state, directory / "stages", times):
            pass
        for signature in state.bill.signatures():
            ledger.append("step_time", trial=trial, signature=signature, seconds=times.step_time(signature))
        baseline = {"method": trial} if trial == "sl" else {}
        ledger.append("asked", trial=trial, params=params, **({"baseline": trial} if baseline else {}))
        metrics = finite_or_none(measure(state).to_dict())
        stage = stage_keys(recipe, state.data)[-1]
        ledger.append("baseline" if baseline else "complete", trial=trial, metrics=metrics, stage=stage, **baseline)
    ledger.append("asked", trial="t0003", params={"alpha": 0.9})
    ledger.append("failed", trial="t0003", reason="the loss is nan", metrics={})
    return directory, states


@pytest.fixture
def run(searched: tuple[Path, dict[str, TrainState]], tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(searched[0], tmp_path / "digits")
    return tmp_path / "digits"


@pytest.fixture(scope="module")
def states(searched: tuple[Path, dict[str, TrainState]]) -> dict[str, TrainState]:
    return searched[1]


@pytest.fixture
def train_one(small_space_values: dict[str, Any], tmp_path: Path) -> Callable[..., Trained]:
    """Return a function that trains the run's recipe, with dotted values put over it, into ``tmp_path / "one"``."""
    recipe = parse_recipe(small_space_values["recipe"])
    return lambda changes: train_recipe(change_recipe(recipe, changes), out=tmp_path / "one")


@torch.no_grad()
def logits(state: TrainState, task: int = 0) -> Any:
    """Return a trained state's logits on its held-out images."""
    pool = state.data.tasks[task].held_out
    state.backbone.eval()
    return state.classifiers[task](state.backbone(pool.plain(pool.indices)))


@torch.no_grad()
def exported_logits(folder: Path, state: TrainState, task: int = 0) -> Any:
    """Return those of the model that timm reads from a folder."""
    pool = state.data.tasks[task].held_out
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pool.plain(pool.indices))


def figures(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())


UNCHECKED = (  # of a run as an older version left it
    "this run was begun by a version of mixtune that did not record its data: that they are the same cannot be checked"
)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("trial", TRIALS)
def test_a_trials_stored_weights_are_exported_and_classify_as_before(
    run: Path, states: dict[str, TrainState], trial: str
) -> None:
    lines: list[str] = []
    folder = export(run, trial, on_line=lines.append)
    assert folder == run / "models" / trial
    assert visible(folder) == FILES
    assert lines == [UNCHECKED, f"{trial}: its weights are those that the search has stored"]
    assert torch.equal(exported_logits(folder, states[trial]), logits(states[trial]))
    found, measured = figures(folder), measure(states[trial]).to_dict()
    assert found["name"] == trial
    assert {name: found["metrics"][name] for name in measured} == finite_or_none(measured)
    task = found["tasks"]["digits"]
    assert task["accuracy"] == measured["val_accuracy"]
    confusion = np.array(task["confusion"])
    assert confusion.sum() == task["images"] == 144
    assert confusion.trace() / 144 == pytest.approx(task["accuracy"])
    assert np.nanmean(task["recalls"]) == pytest.approx(task["balanced_accuracy"]) == measured["val_balanced_accuracy"]
    assert found["confirmed"] is None
    assert found["remarks"] == []


def test_what_is_not_stored_any_more_is_trained_again_to_the_same_bits(
    run: Path, states: dict[str, TrainState]
) -> None:
    shutil.rmtree(run / "stages")
    lines: list[str] = []
    folder = export(run, "t0001", on_line=lines.append)
    assert lines[0] == UNCHECKED
    (line,) = lines[1:]
    assert line.startswith("t0001: 4 of its 4 epochs are not stored any more and are trained again: its weights are ")
    assert torch.equal(exported_logits(folder, states["t0001"]), logits(states["t0001"]))
    assert figures(folder)["metrics"]["val_accuracy"] == measure(states["t0001"]).val_accuracy

    store = StateStore(run / "stages")
    newest = list(store.sizes())[-1]
    store.remove(newest)
    lines.clear()
    again = export(run, "t0001", run.parent / "again", on_line=lines.append)
    assert re.match("t0001: [12] of its 4 epochs are not stored any more and are trained again", lines[1])
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_its_recipe_trains_it_again(run: Path, states: dict[str, TrainState]) -> None:
    folder = export(run, "t0002")
    again = train_recipe(folder / "recipe.yaml").state
    assert torch.equal(logits(again), logits(states["t0002"]))
    assert again.recipe == change_recipe(states["t0002"].recipe, {"precision": "float32"})


def test_the_recommended_the_knee_and_the_best_are_found_and_said_on_the_card(run: Path) -> None:
    """What fell off on fresh seeds can be had, with a line that says so."""
    before = mixtune.load(run)
    first, knee = str(before.recommendation().trial), str(before.knee())
    assert export(run).name == first
    assert export(run, "knee").name == knee
    for trial in ("sl", "t0001", "t0002"):
        for seed, accuracy in ((1, 0.70), (2, 0.80), (3, 0.70), (4, 0.80)):
            seconds = 2.0 if trial == first else 1.0
            accuracy -= 0.5 * (trial == first)
            metrics = {
                "val_accuracy": accuracy,
                "val_accuracy_se": 0.002,
                "train_latency_s": seconds,
                "device": "a CPU",
            }
            metrics |= {"test_accuracy": accuracy - 0.01, "test_accuracy_se": 0.01}
            Ledger(run / "ledger.jsonl").append("confirmed", trial=trial, seed=seed, metrics=metrics)
    result, lines = mixtune.load(run), list[str]()
    other = str(result.recommendation().trial)
    assert other != first
    folder = export(run)
    assert folder.name == other
    assert f"It is {'the baseline sl' if other == 'sl' else 'what a search recommends'}" in card_of(folder)
    assert "Measured on 144 validation images" in card_of(folder)
    assert "on 4 fresh seeds, the recipe has a test accuracy of 74.0 ± 2.9 %" in card_of(folder)
    row = figures(folder)["confirmed"]
    assert (row["seeds"], row["val_accuracy"]) == (4, pytest.approx(0.75))
    export(run, first, on_line=lines.append)
    assert f"{first} fell off the front on fresh seeds: {other} is recommended" in lines
    fastest = export(run, "best:train_latency_s")
    assert fastest.name == result.best("train_latency_s")["trial"]
    assert "It is the baseline sl of a search." in card_of(export(run, "sl"))


def test_a_wrong_name_is_one_line_with_the_known_ones(run: Path) -> None:
    known = "recommended, knee, best:val_accuracy, best:train_latency_s, t0001, t0002, sl"
    for trial, message in (
        ("knne", f"known are {known}; did you mean 'knee'"),
        ("t0012", "has no trial 't0012': known are .*; did you mean 't0002'"),
        ("best:val_acuracy", "'val_acuracy' is not an objective of this run: .*; did you mean 'val_accuracy'"),
        ("t0003", "t0003 is failed .the loss is nan.: only complete trials and baselines can be exported"),
    ):
        with pytest.raises(RequestError, match=message) as refused:
            export(run, trial)
        assert "\n" not in str(refused.value)
    (run / "ledger.jsonl").write_text("")
    with pytest.raises(RequestError, match="Nothing to recommend: nothing is complete yet"):
        export(run)
    assert not (run / "models").exists()


def test_an_export_replaces_its_own_files_and_no_others(run: Path) -> None:
    folder = export(run, "t0001")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / MARKER).write_text(json.dumps({"../../space.yaml": "", "notes.txt": ""}))  # not read
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("half")
    assert export(run, "t0001") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before | {"notes.txt": b"mine"}
    assert (run / "space.yaml").exists()
    assert export(run, "t0002", folder) == folder
    assert figures(folder)["name"] == "t0002"


def test_a_folder_that_no_export_made_is_refused_and_stays_as_it_was(run: Path) -> None:
    held = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match=r"digits holds ledger\.jsonl, which no export wrote: choose another folder"):
        export(run, "t0001", run)
    for path in (run / "space.yaml", run / "space.yaml" / "below"):
        with pytest.raises(RequestError, match=f"{path} cannot be written to: Not a directory$"):
            export(run, "t0001", path)
    (elsewhere := run.parent / "elsewhere").mkdir()
    (run / "models").symlink_to(elsewhere)
    with pytest.raises(RequestError, match=r"models is a link to .*, and nothing is written through it: remove it$"):
        export(run, "t0001")
    (run / "models").unlink()
    (run / "models").mkdir()
    (run / "models" / "t0001").symlink_to(elsewhere)
    with pytest.raises(RequestError, match=r"models/t0001 is a link to .*, and nothing is written through it: "):
        export(run, "t0001")
    assert list(elsewhere.iterdir()) == []
    assert {path: path.read_bytes() for path in held} == held
    (run / "models" / "t0001").unlink()
    (run / "models").rmdir()
    (run.parent / "link").symlink_to(elsewhere)  # of one's own
    assert visible(export(run, "t0001", run.parent / "link")) == visible(elsewhere) == FILES


def test_a_trial_whose_name_is_a_path_is_not_exported(run: Path) -> None:
    name = "../../elsewhere/model"
    forge(run / "ledger.jsonl", lambda event: event.update(trial=name) if event.get("trial") == "t0001" else None)
    assert "should be a trial's name" in describe_damage(mixtune.load(run).state)
    with pytest.raises(RequestError, match=r"has no trial '\.\./\.\./elsewhere/model': known are "):
        export(run, name)
    assert [path.name for path in run.parent.iterdir()] == ["digits"]


def test_a_run_or_a_folder_that_is_in_use_is_refused(run: Path) -> None:
    with hold_run(run, "search"), pytest.raises(RequestError, match="is in use by process"):
        export(run, "t0001")
    folder = run.parent / "model"
    with hold_folder(folder, "export"), pytest.raises(RequestError, match="model is in use by process"):
        export(run, "t0001", folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system is mounted for reading alone as root only")
def test_a_run_that_can_only_be_read_is_exported_elsewhere(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    script = (
        f"mount --bind {run} {run} && mount -o remount,ro,bind {run} && exec {sys.executable} -m mixtune export {run}"
    )
    command = ["unshare", "-m", "sh", "-c", f"{script} --trial t0001 --out {out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert visible(out) == FILES


def test_code_that_a_run_directory_names_beside_its_recipe_is_not_imported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evilmod.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'RAN')!r})\nx = None")
    monkeypatch.syspath_prepend(tmp_path)
    space = yaml.safe_load((run / "space.yaml").read_text())
    space["search"] |= {"sampler": "evilmod:x", "scheduler": "evilmod:x"}
    (run / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    export(run, "t0001")
    mixtune.confirm(run, seeds=1)
    ledger, whole = run / "ledger.jsonl", (run / "ledger.jsonl").read_text()
    for params in ({"ssl.objective": "evilmod:x"}, {"data.root": "/"}):
        ledger.write_text(whole)
        forge(ledger, lambda event, params=params: event["params"].update(params) if "params" in event else None)
        assert mixtune.load(run).pareto_front().size
        for command in (lambda: export(run, "t0001"), lambda: mixtune.confirm(run, seeds=1)):
            with pytest.raises(RequestError, match=r"has .* in its ledger, which no space of the run varies$"):
                command()
    space["search"]["sampler"] = "random"  # a space that was edited: what the former one varied counts
    del space["search"]["scheduler"], space["space"]["alpha"]
    (run / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    ledger.write_text(whole)
    with pytest.raises(RequestError, match=r"t0001 has alpha 0\.2 in its ledger, which no space of the run varies$"):
        export(run, "t0001")
    Ledger(ledger).append("edited", document=space, kept={}, varied=["alpha"])
    export(run, "t0001")
    assert not (tmp_path / "RAN").exists()


def test_code_that_a_run_directory_names_is_imported_only_where_it_is_trusted(
    run: Path, train_one: Callable[..., Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evilmod.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'RAN')!r})\nx = None")
    monkeypatch.syspath_prepend(tmp_path)
    train_one({})
    one, whole = tmp_path / "one", yaml.safe_load((run / "space.yaml").read_text())
    for path, kind in {
        "recipe.data.dataset": "dataset",
        "recipe.data.ssl_dataset": "dataset",
        "recipe.ssl.objective": "objective",
        "space.ssl.objective": "objective",
        "search.sampler": "sampler",
        "search.scheduler": "scheduler",
    }.items():
        section, name = path.split(".", 1)
        values = copy.deepcopy(whole)
        if path.startswith("recipe."):
            _, below, name = path.split(".")
            values["recipe"].setdefault(below, {})[name] = "evilmod:x"
        else:
            values[section][name] = {"choice": ["mae", "evilmod:x"]} if section == "space" else "evilmod:x"
        (run / "space.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        says = rf"{run} names code that is not mixtune's: evilmod:x \({kind}\): --trust imports and runs it"
        trains = [lambda: mixtune.resume(run), lambda: mixtune.Study(out=run)]
        if section != "search":
            trains += [lambda: mixtune.confirm(run), lambda: export(run, "t0001")]
        for command in trains:
            with pytest.raises(RequestError, match=says):
                command()
        assert to_train(run, mixtune.load(run).space).endswith(" --trust")
    recipe = (one / "recipe.yaml").read_text()
    (one / "recipe.yaml").write_text(recipe.replace("objective: mae", "objective: evilmod:x", 1))
    with pytest.raises(RequestError, match=r"one names code that is not mixtune's: evilmod:x \(objective\): --trust"):
        export(one)
    assert not (tmp_path / "RAN").exists()
    with pytest.raises(RequestError, match="evilmod:x needs Settings"):
        export(one, trust=True)
    assert (tmp_path / "RAN").exists()


def test_another_accuracy_than_the_recorded_one_is_said_and_the_measured_one_written(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    measured = float(mixtune.load(run).records["t0001"].metrics["val_accuracy"])

    def improve(event: dict[str, Any]) -> None:
        if event["event"] == "complete" and event["trial"] == "t0001":
            event["metrics"]["val_accuracy"] = 0.99

    forge(ledger, improve)
    lines: list[str] = []
    folder = export(run, "t0001", on_line=lines.append)
    assert lines[2].startswith(f"t0001: the val_accuracy of these weights is {measured:.4f}, not 0.9900 as after the ")
    assert figures(folder)["metrics"]["val_accuracy"] == measured
    assert lines[2] in card_of(folder)
    assert figures(folder)["remarks"] == lines[2:]


def test_a_recipe_trained_by_itself_is_exported_too(train_one: Callable[..., Trained], tmp_path: Path) -> None:
    trained, one = train_one({"protocol": "paper", "model.pool": "avg"}), tmp_path / "one"
    lines: list[str] = []
    folder = mixtune.export(one, on_line=lines.append)
    assert (folder, lines) == (one / "export", [])
    assert visible(folder) == FILES
    assert torch.equal(exported_logits(folder, trained.state), logits(trained.state))
    found = figures(folder)
    assert (found["split"], found["name"], found["choice"]) == ("test", "one", None)
    assert found["metrics"]["test_accuracy"] == trained.metrics.test_accuracy
    assert "Measured on the 360 test images; one training run, of seed 0." in card_of(folder)
    assert not any(words in card_of(folder) for words in ("validation images", "It is "))
    assert mixtune.export(one) == folder
    with pytest.raises(RequestError, match="one holds no search, so there is no trial 'knee' to choose: drop --trial"):
        export(one, "knee")
    with pytest.raises(RequestError, match=r"there is no folder .*/ones; did you mean 'one'"):
        export(tmp_path / "ones")


def test_images_of_other_classes_than_the_recipe_was_trained_on_are_told(
    train_one: Callable[..., Trained], photos: dict[str, Any], tmp_path: Path
) -> None:
    copied = shutil.copytree(photos["data.root"], tmp_path / "photos")
    train_one({**photos, "data.root": str(copied)})
    (copied / "flower").rename(copied / "blossom")
    with pytest.raises(DataError, match="the images of image_folder/test, image_folder/train are not those that"):
        export(tmp_path / "one")


def test_a_recipe_without_held_out_images_is_exported_unmeasured(
    train_one: Callable[..., Trained], tmp_path: Path
) -> None:
    train_one({"data.val_fraction": 0.0, "epochs.ssl": 0})
    folder = export(tmp_path / "one")
    assert figures(folder)["metrics"]["val_accuracy"] is None
    assert "Not measured: no image was held out." in card_of(folder)
    assert "| macro F1 | - |" in card_of(folder)


def test_several_tasks_have_a_folder_each(train_one: Callable[..., Trained], tmp_path: Path) -> None:
    trained = train_one({"data.dataset": ["digits", "digits"]})
    folder = export(tmp_path / "one")
    assert visible(folder) == ["README.md", "digits", "digits_2", "metrics.json", "recipe.yaml"]
    for number, name in enumerate(("digits", "digits_2")):
        assert visible(folder / name) == ["classify.py", "config.json", "model.safetensors"]
        assert torch.equal(exported_logits(folder / name, trained.state, number), logits(trained.state, number))
    assert figures(folder)["metrics"]["val_accuracy"] == trained.metrics.val_accuracy
    weights = [load_file(folder / name / "model.safetensors") for name in ("digits", "digits_2")]
    assert torch.equal(weights[0]["norm.weight"], weights[1]["norm.weight"])
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
    (elsewhere := tmp_path / "elsewhere").mkdir()
    shutil.rmtree(folder / "digits_2")
    (folder / "digits_2").symlink_to(elsewhere)
    with pytest.raises(RequestError, match=r"digits_2 is a link to .*, and nothing is written through it: "):
        export(tmp_path / "one")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("writes", [1, 5])
def test_an_export_that_is_killed_is_no_model_and_is_made_again(run: Path, writes: int) -> None:
    folder = export(run, "t0001")
    killed = f"""
import os
from pathlib import Path
from mixtune import files
from mixtune.exporting import export
replace, done = os.replace, []
def replace_until_killed(source, target):
    if len(done) == {writes}:
        os._exit(9)
    done.append(target)
    replace(source, target)
files.os.replace = replace_until_killed
export({str(run)!r}, "t0002", {str(folder)!r})
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    assert "config.json" not in os.listdir(folder)
    assert export(run, "t0002", folder) == folder
    assert sorted(os.listdir(folder)) == [MARKER, *FILES]
    assert figures(folder)["name"] == "t0002"


def test_the_script_classifies_a_file_as_we_do(
    train_one: Callable[..., Trained], photos: dict[str, Any], tmp_path: Path
) -> None:
    state = train_one(photos).state
    folder = export(tmp_path / "one", out=tmp_path / "a folder #1?")
    assert "a vision transformer for photos" in card_of(folder)
    pool = state.data.tasks[0].held_out
    first = pool.images[pool.indices[0]].numpy()
    files, layout = sorted(Path(photos["data.root"]).rglob("*.jpg")), Layout(16, 3, state.data.tasks[0].reading)
    (image,) = (f for f in files if np.array_equal(decode(Image.open(f), layout), first))
    command = [sys.executable, folder / "classify.py", image]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    ours = logits(state)[:1].softmax(dim=1)[0]
    names = ("church", "flower")
    expected = [f"{100 * ours[i].item():5.1f} %  {names[i]}" for i in ours.argsort(descending=True).tolist()]
    assert (printed.stdout.splitlines(), printed.stderr) == (expected, "")


def test_the_script_takes_folders_and_goes_on_after_a_bad_file(
    train_one: Callable[..., Trained],
    photos: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_one({**photos, "epochs.ssl": 0, "epochs.sl": 1})
    folder, images = export(tmp_path / "one"), tmp_path / "images"
    spec = importlib.util.spec_from_file_location("exported_script", folder / "classify.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shutil.copytree(photos["data.root"], images)
    bad, notes, empty = images / "church" / "bad.JPG", images / "notes.txt", tmp_path / "empty"
    bad.write_bytes(b"no image")
    notes.write_text("no image either")
    empty.mkdir()
    (images / ".hidden").mkdir()
    shutil.copy(images / "church" / "00.jpg", images / ".hidden" / "00.jpg")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])

    def run(*words: str | Path) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["classify.py", *map(str, words)])
        status = script.main()
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    status, lines, errors = run(images, tmp_path / "moving.gif", tmp_path / "gone.png", empty)
    read = [*sorted(images.rglob("[!.]*/[0-9]*.jpg")), tmp_path / "moving.gif"]
    assert (status, len(lines)) == (1, 121)
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in read]
    assert re.fullmatch(r".*\.jpg: (church|flower) \d+\.\d %, (church|flower) \d+\.\d %", lines[0])
    assert [line.partition(": ")[0] for line in errors] == [str(bad), str(tmp_path / "gone.png"), str(empty)]
    assert errors[1:] == [
        f"{tmp_path}/gone.png: cannot be read: No such file or directory",
        f"{empty}: no image in this folder",
    ]

    status, rows, errors = run("--csv", images / "flower")
    header, *found = csv.reader(rows)
    assert (status, errors, len(found)) == (0, [], 60)
    assert header == ["path", "class", "probability", "class_2", "probability_2"]
    for row, line in zip(found, lines[60:], strict=False):
        assert line == f"{row[0]}: {row[1]} {100 * float(row[2]):.1f} %, {row[3]} {100 * float(row[4]):.1f} %"
        assert float(row[2]) + float(row[4]) == pytest.approx(1.0, abs=1e-5)
    status, lines, _ = run(images / "flower" / "00.jpg")  # in a batch of its own, so a digit may differ
    assert (status, len(lines)) == (0, 2)
    assert lines[0].endswith(f" %  {found[0][1]}")
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    assert "--csv" in capsys.readouterr().out


def test_its_recipe_names_no_folder_of_this_machine_and_trains_where_they_are(
    train_one: Callable[..., Trained], photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos["data.root"], tmp_path / "mine" / "photos")
    monkeypatch.chdir(tmp_path)
    state = train_one({**photos, "data.root": "mine/photos", "epochs.ssl": 0, "epochs.sl": 1}).state
    text = (export(tmp_path / "one") / "recipe.yaml").read_text()
    assert text.startswith("# data.root: set it here, or by --set data.root=PATH, to where that is on your machine\n")
    assert "root: mine/photos\n" in text
    again = train_recipe(tmp_path / "one" / "export" / "recipe.yaml").state
    assert torch.equal(logits(again), logits(state))
    monkeypatch.chdir(tmp_path / "one")  # the images are not below this folder
    text = (export(tmp_path / "one", out="elsewhere") / "recipe.yaml").read_text()
    assert "root: photos\n" in text
    assert str(tmp_path) not in text
    with pytest.raises(RequestError, match=r"data\.root .*/one/photos does not exist"):
        train_recipe("elsewhere/recipe.yaml")
    again = train_recipe("elsewhere/recipe.yaml", {"data.root": str(tmp_path / "mine" / "photos")}).state
    assert torch.equal(logits(again), logits(state))


def test_the_command_needs_neither_ray_nor_optuna(run: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['optuna'] = None\n"
        "from mixtune.cli import main\n"
        "sys.argv = ['mixtune', 'export', *sys.argv[1:]]\n"
        "main()\n"
    )
    words = [str(run), "--trial", "t0001", "--out", str(run.parent / "model")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    model = run.parent / "model"
    assert done.stdout.splitlines()[-2:] == [f"exported to {model}", f"next: python {model / 'classify.py'} IMAGE"]


def test_a_training_that_diverges_now_is_told(run: Path) -> None:
    shutil.rmtree(run / "stages")
    space = yaml.safe_load((run / "space.yaml").read_text())
    space["recipe"]["optim"]["sl"] |= {"base_lr": 1e30, "warmup_epochs": 0}
    (run / "space.yaml").write_text(yaml.safe_dump(space))
    with pytest.raises(TrainingError, match="the loss is "):
        export(run, "t0001")
    assert not (run / "models").exists()
