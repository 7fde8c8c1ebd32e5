"""A search over the objective itself and over its compression: trained, continued, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from plain_search import continue_here, search_here
from safetensors.torch import load_file

import mixtune
from mixtune.exporting import export
from mixtune.run.ledger import read_ledger

STAGES = [{"from_epoch": 0, "patch_size": 4}, {"from_epoch": 1, "token_dropout": 0.5}]
SPACE: dict[str, Any] = {
    "recipe": {
        "data": {"dataset": "digits", "fraction": 0.3},
        "model": {"patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "epochs": {"ssl": 3, "sl": 2},
        "ssl": {"objective": "simclr", "compression": {"schedule": "constant", "token_dropout": 0.5, "stages": STAGES}},
        "optim": {"batch_size": 64, "ssl": {"base_lr": 0.004}, "sl": {"base_lr": 0.008}},
        "augment": {"pad": 0},
    },
    "space": {
        "ssl.objective": {"choice": ["simclr", "mocov3", "dino"]},
        "ssl.compression.schedule": {"choice": ["constant", "auto"]},
    },
    "objectives": {"val_accuracy": "max", "train_latency_s": "min"},
    "baselines": [],
    "search": {"sampler": "grid", "trials": 2},
    "resources": {"cpus_per_trial": 1},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of two trials that was continued to the whole grid."""
    out = tmp_path_factory.mktemp("runs") / "objectives"
    search_here(SPACE, out)
    continue_here(out, trials=6)
    return out


def test_every_objective_is_trained_with_every_schedule(directory: Path) -> None:
    run = mixtune.load(directory)
    assert run.counts()["complete"] == 6
    pairs = {tuple(row) for row in run.trials[["ssl.objective", "ssl.compression.schedule"]].to_numpy()}
    assert pairs == {(name, schedule) for name in ("simclr", "mocov3", "dino") for schedule in ("constant", "auto")}
    assert run.trials["ssl_loss"].isna().all()  # after the SL phase
    assert (run.trials["train_latency_s"] > 0).all()


def test_seconds_are_of_the_strategies_that_the_epochs_had(directory: Path) -> None:
    events = read_ledger(directory / "ledger.jsonl")
    ended = {event["trial"]: event for event in events if event["event"] == "complete"}
    params = {event["trial"]: event["params"] for event in events if event["event"] == "asked"}
    for trial, event in ended.items():
        ssl = event["steps"]["ssl"]
        expected = 2 if params[trial]["ssl.compression.schedule"] == "auto" else 1
        assert len(ssl) == expected, "a cost signature a strategy"
        metrics = event["metrics"]
        parts = [metrics.get(f"latency_{phase}_s") or 0.0 for phase in ("ssl", "mix", "sl")]
        assert sum(parts) == pytest.approx(metrics["train_latency_s"])
        assert metrics["forecast_latency_s"] == metrics["train_latency_s"]


def test_the_first_epoch_of_an_objective_is_shared_only_where_the_strategy_is(directory: Path) -> None:
    run = mixtune.load(directory)
    for _, rows in run.trials.groupby("ssl.objective"):
        assert rows["epochs_reused"].max() <= 2  # the stage after 1 epoch differs from constant, the first one, too


@pytest.mark.parametrize("objective", ["simclr", "mocov3", "dino"])
def test_a_trial_of_each_objective_is_exported(directory: Path, objective: str, tmp_path: Path) -> None:
    run = mixtune.load(directory)
    trial = run.trials[run.trials["ssl.objective"] == objective]["trial"].iloc[0]
    folder = export(directory, trial, tmp_path / "model", on_line=lambda _: None)
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    assert objective in (folder / "README.md").read_text()
