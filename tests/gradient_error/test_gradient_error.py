"""`mixtune gradient-error` as its users meet it: a table, three files, and stages that a space takes."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
import yaml

from mixtune.cli import main
from mixtune.gradient_error import measure_gradient_errors
from mixtune.gradient_error.profile import UNCOMPRESSED, profile_figure, profile_table, relative
from mixtune.space.recipe import parse_recipe
from mixtune.space.views import UNCOMPRESSED as WHOLE
from mixtune.training.plan import make_plan

RECIPE = {
    "data": {"dataset": "digits"},
    "model": {"patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "epochs": {"ssl": 3, "sl": 2},
    "ssl": {"objective": "mocov3", "hidden_dim": 16},
    "optim": {"batch_size": 128, "ssl": {"base_lr": 0.004}},
}

MARKER = ".mixtune-gradient-error.json"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("errors")
    lines = []
    made = measure_gradient_errors(parse_recipe(RECIPE), points=2, batches=32, out=out, on_line=lines.append)
    return made, out, lines


def test_table_csv_and_figure_say_the_same(measured):
    made, out, lines = measured
    frame = pd.read_csv(out / "profile.csv")
    assert len(lines) == frame["epoch"].nunique() == 2
    shown = relative(frame)
    assert (shown[shown["strategy"] == UNCOMPRESSED]["ca_mse"] == 1.0).all()
    assert shown.groupby("epoch")["is_best"].sum().tolist() == [1, 1]
    table = profile_table(frame)
    assert table.row_count == shown["strategy"].nunique() == 8
    assert [cell.count("*") for cell in ("".join(c.cells) for c in table.columns[2:])] == [1, 1]
    at_start = shown[shown["epoch"] == shown["epoch"].min()]
    figures = [f"{mse:.2f} ± {error:.2f}" for mse, error in zip(at_start["ca_mse"], at_start["ca_mse_se"], strict=True)]
    assert [cell.rstrip("* ") for cell in table.columns[2].cells] == figures
    figure = profile_figure(frame, made.about)
    assert {trace.name for trace in figure.data} == set(shown["strategy"])
    for trace in figure.data[2::3]:
        assert list(trace.y) == shown[shown["strategy"] == trace.name]["ca_mse"].tolist()
    assert "Error of the gradient" in (out / "profile.html").read_text()


def test_a_space_takes_the_stages_as_they_are_printed(measured):
    made, out, _ = measured
    written = yaml.safe_load((out / "stages.yaml").read_text())
    assert written == yaml.safe_load(made.to_yaml())
    recipe = parse_recipe({**RECIPE, "ssl": {**RECIPE["ssl"], **written["ssl"]}})
    assert recipe.ssl.compression.stages == made.stages
    spends = parse_recipe({**RECIPE, **{k: {**RECIPE[k], **v} for k, v in written.items()}})
    named = {error.strategy: error.units for point in made.errors for error in point}
    spent = sum(named[epoch.strategy] for epoch in make_plan(spends) if epoch.ssl_epoch is not None)
    assert spent == pytest.approx(3 * named[WHOLE], abs=max(named.values()) / 2)


def test_the_command_measures_and_prints(tmp_path, monkeypatch, capsys):
    objectives = {"val_accuracy": "max", "train_latency_s": "min"}
    values = {"recipe": RECIPE, "space": {"alpha": {"uniform": [0.1, 0.9]}}, "objectives": objectives}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mixtune", "gradient-error", "space.yaml", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    folder = tmp_path / "runs" / "gradient-error-space"
    status, out, err = run("--points", "2", "--batches", "4")
    assert (status, err.count("\n")) == (1, 1)  # so few tell nothing apart
    assert err.startswith("mixtune: no schedule: after ")
    assert "CA-MSE" in out
    assert "schedule: auto" not in out
    assert sorted(path.name for path in folder.iterdir()) == [MARKER, "profile.csv", "profile.html"]
    status, out, _ = run("--points", "2", "--batches", "32")
    assert status == 0
    assert "schedule: auto" in out
    epochs = yaml.safe_load((folder / "stages.yaml").read_text())["epochs"]["ssl"]
    assert f"epochs.ssl {epochs} spends with it what 3 uncompressed epochs do" in out
    names = [MARKER, "profile.csv", "profile.html", "stages.yaml"]
    assert sorted(path.name for path in folder.iterdir()) == names
    (folder / MARKER).unlink()  # as an older version left it, and as that left stages.yaml of an earlier time
    status, out, _ = run("--points", "2", "--batches", "4", "--strategy", "token_dropout=0.75,patch_size=4")
    frame = pd.read_csv(folder / "profile.csv")
    assert frame.groupby("epoch").size().tolist() == [2, 2]
    assert "token dropout 0.75 (key none), patch size 4" in out
    for given, said in (
        ("dropout=0.5", "dropout: unknown key; allowed are token_dropout"),
        ("token_dropout=1.5", "token_dropout: should be less than 1, got 1.5"),
        ("0.5", "--strategy 0.5: should be field=value"),
    ):
        status, _, err = run("--strategy", given)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "stages.yaml").write_text("mine")
    status, _, err = run("--out", "mine")
    assert (status, err) == (
        2,
        "mixtune: mine holds stages.yaml, which no gradient-error wrote: choose another folder\n",
    )
    assert {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()} == {"stages.yaml": "mine"}
    status, _, err = run("--set", "ssl.objective=mae")
    assert (status, err.count("\n")) == (2, 1)
    assert "choose simclr, mocov3 or dino" in err
