"""`mixtune compare`, `train --out` and `reconstruct`, end to end on digits."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

import mixtune
from mixtune.cli import main
from mixtune.comparison import Comparison, _with_paper, compare, compared_recipes
from mixtune.report.paper import PROTOCOL, PROTOCOL_OF_MAE, NoPaperRowsError, paper_rows_of
from mixtune.space.recipe import change_recipe, flatten, parse_recipe, with_values
from mixtune.training.plan import method_of
from mixtune.training.saved import load_trained

ROOT = Path(__file__).parents[2]
NAMES = ["sl", "ssl_sl-visible", "mixtraining-visible", "ssl_sl-full", "mixtraining-full"]
Command = Callable[..., tuple[int, str, str]]
Compared = tuple[Path, Comparison, list[str]]
LABELS = ["SL", "SSL+SL (visible)", "MixTraining (visible)", "SSL+SL (full)", "MixTraining (full)"]


@pytest.fixture(scope="module")
def small_recipe(small_space_values: dict[str, Any]) -> mixtune.Recipe:
    return parse_recipe({**small_space_values["recipe"], "epochs": {"ssl": 2, "sl": 2}})


MARKER = ".mixtune-compare.json"


@pytest.fixture
def run_mixtune(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_recipe: mixtune.Recipe
) -> Command:
    """Return a function: the command with these words where small.yaml is; its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"recipe": small_recipe.to_dict()}))

    def run(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtune", *words.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def compared(small_recipe: mixtune.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A comparison of two seeds: its folder, what it returned, and the lines that it told."""
    folder, lines = tmp_path_factory.mktemp("comparison") / "out", []
    return folder, compare(small_recipe, seeds=2, out=folder, on_line=lines.append), lines


@pytest.fixture
def copied(compared: Compared, tmp_path: Path) -> Path:
    """A copy of its folder, to be changed."""
    return shutil.copytree(compared[0], tmp_path / "copy")


def test_five_methods_are_compared_that_differ_in_nothing_else(small_recipe: mixtune.Recipe) -> None:
    recipes = dict(compared_recipes(small_recipe, seed=3))
    assert list(recipes) == NAMES
    assert [method_of(recipe) for recipe in recipes.values()] == ["sl", *["ssl_sl", "mixtraining"] * 2]
    for name, recipe in recipes.items():
        assert recipe.seed == 3
        undone = {"seed": 0, "rho": small_recipe.rho, "epochs.ssl": small_recipe.epochs.ssl, "ssl.encode": "visible"}
        assert change_recipe(recipe, undone) == small_recipe, name


def test_the_table_has_five_rows_over_the_seeds(compared: Compared) -> None:
    folder, comparison, lines = compared
    frame = comparison.frame
    assert frame.label.tolist() == LABELS
    assert frame.seeds.tolist() == [2] * 5
    assert [run.seed for run in comparison.runs] == [0] * 5 + [1] * 5  # in turn
    assert frame.accuracy_mean.between(0, 1).all()
    assert (frame.latency_mean_s > 0).all()
    assert frame.speedup_same_encoding.notna().tolist() == [False, False, True, False, True]
    assert len(lines) == 11
    assert lines[1].startswith("[1/10] sl, seed 0: accuracy 0.")
    assert "left" in lines[1]
    assert "left" not in lines[-1]
    assert (folder / "compare.md").read_text() == comparison.to_markdown()
    read = pd.read_csv(folder / "compare.csv")
    assert read.accuracy_mean.tolist() == pytest.approx(frame.accuracy_mean.tolist())


def test_what_methods_have_in_common_is_trained_once_and_ends_in_the_same_bits(
    compared: Compared, small_recipe: mixtune.Recipe
) -> None:
    folder = compared[0]
    for seed in (0, 1):
        metrics = {name: json.loads((folder / f"{name}-seed{seed}" / "metrics.json").read_text()) for name in NAMES}
        # MixTraining has the first of two epochs of SSL
        assert [metrics[name]["epochs_reused"] for name in NAMES] == [0, 0, 1, 0, 1]
    alone = mixtune.train(dict(compared_recipes(small_recipe, 1))["mixtraining-full"]).metrics
    assert metrics["mixtraining-full"]["val_accuracy"] == alone.val_accuracy
    assert metrics["mixtraining-full"]["sl_loss"] == alone.sl_loss
    assert not (folder / "stages").exists()


def test_what_is_trained_is_kept_and_not_trained_again(
    compared: Compared, copied: Path, small_recipe: mixtune.Recipe
) -> None:
    (copied / "sl-seed1" / "metrics.json").unlink()  # as if the run had been killed while it was saved
    lines: list[str] = []
    again = compare(small_recipe, seeds=2, out=copied, on_line=lines.append)
    (trained,) = (line for line in lines[1:] if "(already trained)" not in line)
    assert "sl, seed 1" in trained
    for before, after in zip(compared[1].runs, again.runs, strict=True):
        assert (before.accuracy, before.flops) == (after.accuracy, after.flops)
        assert before.latency_s == after.latency_s or (after.method, after.seed) == ("sl", 1)
    assert {path.name for path in copied.iterdir() if path.is_dir()} == {f"{n}-seed{s}" for n in NAMES for s in (0, 1)}


def test_a_folder_of_another_comparison_is_refused(compared: Compared, small_recipe: mixtune.Recipe) -> None:
    with pytest.raises(mixtune.RequestError, match=r"sl-seed0 holds .*another") as refused:
        compare(small_recipe, seeds=1, out=compared[0], overrides={"epochs.sl": 3})
    assert "\n" not in str(refused.value)


def test_a_recipe_that_mixes_nothing_is_refused(small_recipe: mixtune.Recipe) -> None:
    for changes in ({"rho": 0.0}, {"epochs.ssl": 0}, {"rho": 0.1}):
        with pytest.raises(mixtune.RequestError, match="mix no epoch, so there is no MixTraining to compare"):
            compare(small_recipe, overrides=changes)
    with pytest.raises(mixtune.RequestError, match="seeds: should be at least 1, got 0"):
        compare(small_recipe, seeds=0)


def test_a_diverged_training_is_told_spoils_its_mean_and_is_not_repeated(
    small_recipe: mixtune.Recipe, tmp_path: Path
) -> None:
    changes = {"optim.sl.base_lr": 1e30, "optim.sl.warmup_epochs": 0}
    for held in (False, True):
        lines: list[str] = []
        comparison = compare(small_recipe, seeds=1, overrides=changes, out=tmp_path, on_line=lines.append)
        assert all("diverged" in line and ("(already trained)" in line) == held for line in lines[1:])
        assert all(math.isnan(accuracy) for accuracy in comparison.frame.accuracy_mean)
    with pytest.raises(mixtune.DataError, match="sl-seed0"):
        load_trained(tmp_path / "sl-seed0")


def test_seconds_of_another_machine_are_not_mixed_with_ours(copied: Path, small_recipe: mixtune.Recipe) -> None:
    metrics = copied / "sl-seed0" / "metrics.json"
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "device": "NVIDIA H200"}))
    with pytest.raises(mixtune.RequestError, match=r"sl-seed0 was trained on NVIDIA H200, not on .*, 1 thread"):
        compare(small_recipe, seeds=1, out=copied)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["stages/deep/thesis.txt", "notes.txt", "space.yaml", "sl-seed0/recipe.yaml"])
def test_a_folder_that_no_comparison_wrote_is_refused_and_stays_as_it_was(
    small_recipe: mixtune.Recipe, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("three years of work")
    with pytest.raises(mixtune.RequestError, match=r"holds a search|which no compare wrote: choose another folder"):
        compare(small_recipe, seeds=1, out=tmp_path)
    assert contents(tmp_path) == {name: b"three years of work"}


def test_a_comparison_removes_its_own_states_alone_and_writes_through_no_link(
    copied: Path, small_recipe: mixtune.Recipe, tmp_path: Path
) -> None:
    (copied / MARKER).unlink()  # as an older version left it
    (copied / "sl-seed0" / "metrics.json").unlink()
    mine = {"stages/deep/thesis.txt": b"work", "stages/thesis.tmp": b"work", "stages/georgia.state": b"work"}
    for name, content in mine.items():
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes(content)
    compare(small_recipe, seeds=1, out=copied)
    assert mine.items() <= contents(copied).items()
    assert len(contents(copied / "stages")) == len(mine)
    assert load_trained(copied / "sl-seed0").recipe.epochs.ssl == 0

    (elsewhere := tmp_path / "elsewhere").mkdir()
    for name in ("stages", "sl-seed0"):
        shutil.rmtree(copied / name)
        (copied / name).symlink_to(elsewhere)
        with pytest.raises(mixtune.RequestError, match=f"{name} is a link to .*, and nothing is written through it"):
            compare(small_recipe, seeds=1, out=copied)
        (copied / name).unlink()
    assert contents(elsewhere) == {}


def test_training_into_the_folder_of_something_else_is_refused_before_it_begins(
    compared: Compared, small_recipe: mixtune.Recipe, tmp_path: Path
) -> None:
    with pytest.raises(mixtune.RequestError, match="holds the training of another recipe"):
        mixtune.train(small_recipe, {"alpha": 0.1}, out=compared[0] / "sl-seed0")
    (tmp_path / "space.yaml").write_text("")
    with pytest.raises(mixtune.RequestError, match="holds a search"):
        mixtune.train(small_recipe, out=tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("of another tool")
    with pytest.raises(mixtune.RequestError, match=r"holds model\.safetensors, which no train wrote: choose another"):
        mixtune.train(small_recipe, out=tmp_path / "model")
    assert contents(tmp_path / "model") == {"model.safetensors": b"of another tool"}


def test_the_papers_rows_stand_beside_its_settings_and_say_what_differs(small_recipe: mixtune.Recipe) -> None:
    def papers(**changes: Any) -> Comparison:
        recipe = parse_recipe(with_values({"data": {"dataset": "CIFAR10", "fraction": 0.1}}, changes))
        return _with_paper(Comparison((), split="test"), recipe)

    protocol = {**PROTOCOL, **PROTOCOL_OF_MAE}
    exact = papers(**{"model.patch_size": 2, "augment.pad": 4, **protocol})
    assert exact.paper is not None
    assert exact.paper.accuracy.tolist() == [0.5340, 0.5679, 0.6045]
    assert exact.remarks == ()
    other = papers(**{"model.embed_dim": 64, "optim.sl.base_lr": 0.1, **protocol, "ssl.loss_on": "masked"})
    assert other.remarks == (
        "the paper's rows have other values: model.embed_dim 192 (here 64), "
        'ssl.loss_on "unmasked" (here "masked"), optim.sl.base_lr 0.001 (here 0.1)',
    )
    short = {"epochs.ssl": 50, "epochs.sl": 50}
    assert papers(**short, **protocol).remarks == ()
    (cut,) = papers(**short, **{**protocol, "optim.ssl.warmup_cap": 0.2}).remarks
    assert cut == "the paper's rows have other values: optim.ssl.warmup_epochs 20 (here 10)"
    for path in sorted((ROOT / "search_spaces").glob("*.yaml")):
        recipe = change_recipe(mixtune.load_space(path).recipe, {"data.fraction": 1.0, **PROTOCOL})
        try:
            paper_rows_of(recipe.to_dict())
        except NoPaperRowsError:
            continue
        for changes in (
            {},
            {"ssl.loss_on": "masked"},
            {"optim.ssl.weight_decay": 0.1, "augment.flip": 0.1},
            {"model.pool": "avg", "optim.ssl.schedule": "polynomial"},
        ):
            compared = _with_paper(Comparison((), "test"), change_recipe(recipe, {**PROTOCOL_OF_MAE, **changes}))
            found = re.findall(r"([a-z.]+\.[a-z_]+) ", " ".join(compared.remarks))
            assert sorted(found) == sorted(changes), path
    few_labels = papers(**{"data.ssl_fraction": 1.0})
    assert few_labels.paper is None
    assert few_labels.remarks == ("the paper's SSL sees the labelled images alone",)


def test_mixing_every_ssl_epoch_makes_the_encodings_one_recipe(small_recipe: mixtune.Recipe) -> None:
    notes = compare(small_recipe, seeds=1, overrides={"rho": 1.0}).notes()
    assert any("are one recipe, trained twice" in note for note in notes)


def test_the_papers_protocol_is_of_test_images_and_says_what_the_paper_lacks(
    small_recipe: mixtune.Recipe, tmp_path: Path
) -> None:
    short = {"epochs.ssl": 1, "epochs.sl": 1, "rho": 1.0}
    comparison = compare(small_recipe, seeds=1, paper=True, overrides=short, out=tmp_path)
    assert comparison.split == "test"
    assert comparison.paper is None
    assert any("the paper has no training on digits" in note for note in comparison.notes())
    recipe = load_trained(tmp_path / "mixtraining-full-seed0").recipe
    assert {**PROTOCOL, **PROTOCOL_OF_MAE}.items() <= flatten(recipe.to_dict()).items()
    assert any(note.startswith("accuracy of the best epoch in place") for note in comparison.notes())
    correct = comparison.runs[0].accuracy * 360
    assert correct == pytest.approx(round(correct))  # of 360 test images


def test_the_commands_compare_train_and_reconstruct(run_mixtune: Command, tmp_path: Path) -> None:
    status, out, _ = run_mixtune("compare small.yaml --seeds 1")
    assert status == 0
    assert all(label in out for label in LABELS)
    assert "tables and trained recipes: runs/compare-small" in out
    status, out, err = run_mixtune("compare small.yaml --seeds 1 --format csv")
    assert (status, len(out.splitlines()), err.count("(already trained)")) == (0, 6, 5)

    status, out, _ = run_mixtune("train small.yaml --set rho=0 --out one")
    assert (status, out.splitlines()[-1]) == (0, "saved to one")
    status, out, _ = run_mixtune("reconstruct one runs/compare-small/mixtraining-full-seed0 --out x.png")
    assert (status, out.splitlines()[-1]) == (0, "picture: x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 8 * 90


def test_a_mistake_is_one_line(run_mixtune: Command, compared: Compared) -> None:
    for words, message in (
        ("reconstruct nowhere", "there is no folder nowhere"),
        ("reconstruct nowhere --out .", "--out . is a folder: give the name of a PNG file"),
        (f"reconstruct {compared[0]}/sl-seed0", ""),  # which learnt no decoder
        ("compare small.yaml --format html", "--format html: should be table, markdown or csv"),
        ("compare small.yaml --set rho=0", "mix no epoch"),
        ("compare small.yaml --set data.val_fraction=0", "data.val_fraction is 0"),
        ("compare small.yaml --out small.yaml", "small.yaml cannot be written to: Not a directory"),
        ("train small.yaml --out small.yaml", "small.yaml cannot be written to: Not a directory"),
    ):
        status, _, err = run_mixtune(words)
        assert (status, len(err.splitlines())) == (2, 1), words
        assert err.startswith("mixtune: ")
        assert message in err
