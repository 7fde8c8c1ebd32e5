"""MixTrainable in a Tuner of one's own: Ray's usual ways work, and whatever disturbs a trial costs it nothing."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import yaml
from pyarrow.fs import S3FileSystem
from ray import tune
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch
from sklearn.datasets import load_digits

import mixtune
from mixtune.errors import DataError, RequestError
from mixtune.meter.times import StepTimes

OBJECTIVES = {"val_accuracy": "max", "train_latency_s": "min"}


class KillOnce(tune.Callback):  # type: ignore[misc]
    """Kills a trial's worker, once, after its epoch ``at``."""

    def __init__(self, at: int) -> None:
        self.at, self.killed = at, False

    def on_trial_result(self, result: dict[str, Any], **info: Any) -> None:
        if result["training_iteration"] == self.at and not self.killed:
            self.killed = True
            os.kill(result["pid"], signal.SIGKILL)


@pytest.fixture
def recipe(small_space: Any) -> dict[str, Any]:
    return dict(small_space()["recipe"])


def run(
    storage: str | Path,
    trainable: Any = mixtune.MixTrainable,
    *,
    space: dict[str, Any],
    tuning: tune.TuneConfig | None = None,
    **more: Any,
) -> Any:
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space=space,
        tune_config=tuning,
        run_config=tune.RunConfig(storage_path=str(storage), verbose=0, **more),
    ).fit()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3FileSystem]:
    """A bucket of moto's server, as any object store."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as lines, subprocess.Popen(command, stderr=lines) as server:
        while (found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        port = found[1]
        given = {"access_key": "x", "secret_key": "y", "region": "us-east-1", "allow_bucket_creation": True}
        files = S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", **given)
        files.create_dir("bucket")
        yield files
        server.terminate()


def test_a_lost_worker_costs_a_trial_nothing(
    recipe: dict[str, Any], ray_quietly: None, s3: S3FileSystem, tmp_path: Path
) -> None:
    """With checkpoints in an object store: the same accuracy, a finite latency, one price for equal recipes."""
    results = run(
        "bucket/runs",
        space={"recipe": recipe, "alpha": tune.grid_search([0.5, 0.5])},
        tuning=tune.TuneConfig(max_concurrent_trials=1),
        storage_filesystem=s3,
        callbacks=[KillOnce(3)],
        failure_config=tune.FailureConfig(max_failures=1),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
    )
    assert not results.errors
    disturbed, undisturbed = sorted((result.metrics for result in results), key=lambda m: -m["epochs_reused"])
    assert disturbed["epochs_reused"] >= 1
    assert undisturbed["epochs_reused"] == 0
    assert disturbed["val_accuracy"] == undisturbed["val_accuracy"]
    assert math.isfinite(results.get_best_result("train_latency_s", "min").metrics["train_latency_s"])
    frame = mixtune.latencies(results)
    assert frame["whole"].all()
    for name in ("train_latency_s", "latency_ssl_s", "latency_sl_s", "infer_latency_ms"):
        assert frame[name].nunique() == 1, name
        assert math.isfinite(frame[name].iloc[0])
    assert len(mixtune.pareto_front(frame, OBJECTIVES)) == 2
    folder = mixtune.export(results[0], out=tmp_path / "model")
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 10


def test_population_based_training_over_alpha_and_rates(
    recipe: dict[str, Any], ray_quietly: None, tmp_path: Path
) -> None:
    alphas = [0.05, 0.35, 0.65, 0.95]
    pbt = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        synch=True,
        hyperparam_mutations={"alpha": alphas, "optim.sl.base_lr": tune.loguniform(0.01, 0.1)},
    )
    space = {"recipe": recipe, "rho": 1.0, "epochs.ssl": 4, "epochs.sl": 6, "alpha": tune.choice(alphas)}
    results = run(
        tmp_path,
        space=space | {"optim.sl.base_lr": tune.loguniform(0.01, 0.1)},
        tuning=tune.TuneConfig(metric="val_accuracy", mode="max", num_samples=2, scheduler=pbt, reuse_actors=True),
    )
    assert not results.errors
    assert max(result.metrics["recipes"] for result in results) > 1
    for result in results:
        assert result.metrics["whole"]
        assert math.isfinite(result.metrics["train_latency_s"])


def test_arrays_in_the_object_store_are_trained_on_as_the_same_files_are(
    small_space: Any, ray_quietly: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits as arrays, a param_space from a file, a key of one's own, HyperBand's pauses, and an export at the end."""
    values = small_space()
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(yaml.safe_dump(values))
    digits = load_digits()
    data = (np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target)
    space = mixtune.param_space("space.yaml", rho=0.0, user={"note": "mine"}, **{"epochs.sl": 4, "augment.flip": 0.0})
    assert isinstance(space["alpha"], tune.search.sample.Float)
    monkeypatch.chdir("/")
    results = run(
        tmp_path,
        tune.with_parameters(mixtune.MixTrainable, data=data),
        space=space | {"alpha": tune.grid_search([0.2, 0.8])},
        tuning=tune.TuneConfig(
            metric="sl_progress", mode="max", scheduler=HyperBandScheduler(max_t=6, reduction_factor=2)
        ),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
    )
    assert not results.errors
    (best,) = {r.metrics["val_accuracy"] for r in results if r.metrics["whole"]}  # alpha is idle
    plain = mixtune.train(values["recipe"], {"rho": 0.0, "epochs.sl": 4, "augment.flip": 0.0})
    assert best == plain.metrics.val_accuracy
    whole = next(r for r in results if r.metrics["whole"])
    assert whole.config["user"] == {"note": "mine"}
    folder = mixtune.export(whole, out=tmp_path / "model", data=data)
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(RequestError, match="other images or labels"):
        mixtune.export(whole, out=tmp_path / "other", data=(data[0], np.roll(data[1], 1)))


def test_schedulers_stop_trials_and_searchers_suggest_them(
    recipe: dict[str, Any], ray_quietly: None, tmp_path: Path
) -> None:
    """Two objectives by Optuna, ASHA by supervised progress; reused actors, a stopping criterion, no checkpoints."""
    results = run(
        tmp_path,
        space={"recipe": recipe, "alpha": tune.uniform(0, 1), "epochs.sl": tune.randint(1, 4)},
        tuning=tune.TuneConfig(
            num_samples=3, reuse_actors=True, search_alg=OptunaSearch(metric=[*OBJECTIVES], mode=[*OBJECTIVES.values()])
        ),
    )
    assert not results.errors
    assert all(result.metrics["whole"] for result in results)
    asha = ASHAScheduler(time_attr="sl_progress", max_t=1, grace_period=0.25, reduction_factor=2)
    results = run(
        tmp_path,
        space={"recipe": recipe, "alpha": tune.grid_search([0.2, 0.4, 0.8])},
        tuning=tune.TuneConfig(metric="val_accuracy", mode="max", scheduler=asha, reuse_actors=True),
        stop={"sl_progress": 0.5},
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
    )
    assert not results.errors
    for result in results:
        assert result.metrics["done"]
        assert not result.metrics["whole"]
        assert math.isfinite(result.metrics["train_latency_s"])
    lines: list[str] = []
    mixtune.export(results[0].checkpoint, out=tmp_path / "model", on_line=lines.append)
    assert lines[0].endswith(f"{results[0].metrics['epoch']} of its 4 epochs are trained")


def test_what_is_no_source_of_weights_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="can be exported, not 3"):
        mixtune.export(3)
    (tmp_path / "state.pt").write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match=r"state\.pt"):
        mixtune.export(tmp_path)


def test_a_param_space_has_rays_distributions_and_refuses_what_is_no_field() -> None:
    recipe = {"data": {"dataset": "digits"}, "epochs": {"ssl": 2, "sl": 2}}
    space = {"recipe": recipe, "space": {"alpha": {"grid_search": [0.2, 0.8]}, "epochs.sl": {"randint": [2, 5]}}}
    space["search"] = {"sampler": "grid"}
    made = mixtune.param_space(space, **{"ssl.objective": "simclr", "ssl.temperature": 0.2, "lambda": 0.3})
    assert made["alpha"] == {"grid_search": [0.2, 0.8]}
    assert (made["epochs.sl"].lower, made["epochs.sl"].upper) == (2, 5)  # the upper bound is exclusive, as Ray's
    assert (made["lambda"], made["recipe"]["ssl"]["temperature"]) == (0.3, 0.2)
    for wrong in ("epochs.s", "search", "trial"):
        with pytest.raises(RequestError, match=r"unknown key|no field of a recipe"):
            mixtune.param_space(space, **{wrong: 3})


def test_latencies_pool_windows_and_keep_trials_that_reported_nothing() -> None:
    """Two grids joined: labels repeat, a checkpoint's window comes twice, one trial failed before its first epoch."""
    steps = {"steps": {"sl": {"a": 10}}, "infer": "i", "windows": {"a": [0.1]}, "disturbed": {"i": 0.002}, "fixed": []}
    other = steps | {"steps": {"sl": {"a": 20}}, "windows": {"a": [0.1, 0.3]}, "disturbed": {"i": 0.001}}
    rows = [{"whole": True, "steps": json.dumps(each), "config/alpha": 0.5} for each in (steps, other)]
    frame = mixtune.latencies(pd.concat([pd.DataFrame(rows), pd.DataFrame([{"config/alpha": 0.1}])]))
    assert list(frame["whole"]) == [True, True, False]
    assert list(frame["train_latency_s"][:2]) == pytest.approx([2.0, 4.0])
    assert list(frame["infer_latency_ms"][:2]) == pytest.approx([1.0, 1.0])
    step = StepTimes({"a": [0.1, 0.3]}).error("a")
    assert list(frame["train_latency_se_s"][:2]) == pytest.approx([10 * step, 20 * step])
    assert math.isnan(frame["train_latency_s"][2])
    assert list(frame["alpha"]) == [0.5, 0.5, 0.1]
