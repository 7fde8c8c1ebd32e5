"""Loggers and other Ray callbacks alongside a search; what its files are to other programs."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import struct
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from ray import tune
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

import mixtune
from mixtune.errors import RequestError
from mixtune.run.directory import RunDirectory
from mixtune.tuning.prepare import find_loggers

LOSSES = {"ssl_loss", "sl_loss"}


class Recorder(tune.Callback):  # type: ignore[misc]
    """Keeps what it is told, as anyone's callback might."""

    def __init__(self) -> None:
        self.hooks: list[str] = []
        self.configs: dict[str, Any] = {}
        self.results: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def setup(self, **info: Any) -> None:
        self.hooks.append("setup")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert trial in trials
        self.configs[str(trial)] = trial.config

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.results[str(trial)].append(result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.hooks.append(f"{trial} complete")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.hooks.append("end")


class Raiser(tune.Callback):  # type: ignore[misc]
    """A logger whose server is gone after a few results."""

    told = 0

    def on_trial_result(self, **info: Any) -> None:
        self.told += 1
        if self.told == 3:
            raise ConnectionError("no route\nto host")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(scope="module")
def searched(small_space_values: dict[str, Any], ray_quietly: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A search of two whole trials and two baselines with three callbacks, and the warnings that it gave."""
    warnings = logging.Handler()
    said: list[str] = []
    warnings.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mixtune.tuning").addHandler(warnings)
    recorder, raiser = Recorder(), Raiser()
    result = mixtune.search(
        small_space_values | {"search": {"trials": 2, "sampler": {"name": "cost_aware", "by_stage": False}}},
        out=tmp_path_factory.mktemp("runs") / "digits",
        log_to=["tensorboard"],
        callbacks=[raiser, recorder],
        console=quiet(),
    )
    logging.getLogger("mixtune.tuning").removeHandler(warnings)
    return result, recorder, raiser, said


def read_events(folder: Path) -> list[Any]:
    """Return the events of a TensorBoard folder: records of a length, its checksum, the event, its checksum."""
    events = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Return each tag's values by step."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for event in read_events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                tag = found[value.tag]
                assert event.step not in tag, (value.tag, event.step)
                tag[event.step] = value.simple_value
    return found


def test_tensorboard_has_the_curves_of_the_ledger_with_the_epoch_as_step(searched: Any) -> None:
    result = searched[0]
    assert sorted(path.name for path in (result.directory / "logs").iterdir()) == sorted(result.records)
    for trial, record in result.records.items():
        drawn = curves(result.directory / "logs" / trial)
        assert list(drawn["compute/train_flops"]) == list(range(1, record.metrics["epochs_asked"] + 1)), trial
        for group, name in (("accuracy", "val_accuracy"), *(("loss", name) for name in LOSSES)):
            kept = {e["epoch"]: e[name] for e in record.epochs if e[name] is not None}
            assert drawn[f"{group}/{name}"] == pytest.approx(kept, rel=1e-5), (trial, name)
        assert drawn["time/train_latency_s"][record.metrics["epochs_asked"]] > 0
        assert {tag.partition("/")[0] for tag in drawn if "/" in tag} == {"accuracy", "loss", "time", "compute"}


def test_a_trial_that_continues_is_in_tensorboard_once(searched: Any, tmp_path: Path) -> None:
    """In another process; after a pause, until which its curves are there to read; after a failure."""
    record = searched[0].records["t0001"]
    epochs = [epoch["epoch"] for epoch in record.epochs]
    for state in ("running", "paused", "failed"):
        run = RunDirectory(tmp_path / state)
        (log,) = find_loggers(["tensorboard"], run)
        log(dataclasses.replace(record, state=state, epochs=record.epochs[:1]))
        if state == "running":
            (log,) = find_loggers(["tensorboard"], run)
        else:
            assert list(curves(run.logs / "t0001")["time/train_latency_s"]) == epochs[:1]
        log(record)
        assert list(curves(run.logs / "t0001")["time/train_latency_s"]) == epochs


def test_tensorboard_has_what_varies_as_hyperparameters(searched: Any) -> None:
    result = searched[0]
    for trial in ("t0001", "sl"):
        params = result.records[trial].params
        found = {}
        for event in read_events(result.directory / "logs" / trial):
            for value in event.summary.value:
                content = value.metadata.plugin_data.content
                if value.tag == "_hparams_/session_start_info":
                    info = HParamsPluginData.FromString(content).session_start_info
                    found = {name: param.number_value for name, param in info.hparams.items()}
        assert found == params


def test_a_callback_sees_our_trials_their_parameters_and_metrics(searched: Any) -> None:
    result, recorder, _, _ = searched
    ends = [f"{trial} complete" for trial in result.records]
    assert (recorder.hooks[0], sorted(recorder.hooks[1:-1]), recorder.hooks[-1]) == ("setup", sorted(ends), "end")
    assert recorder.configs["sl"]["epochs.ssl"] == 0
    assert recorder.configs["t0002"]["alpha"] == result.records["t0002"].params["alpha"]
    assert recorder.configs["t0001"]["recipe"]["optim"]["sl"]["base_lr"] == 0.04
    for trial, results in recorder.results.items():
        epochs = {epoch["epoch"]: epoch for epoch in result.records[trial].epochs}
        for told in results:
            accuracy = epochs[told["epoch"]]["val_accuracy"]
            assert told["val_accuracy"] == (pytest.approx(math.nan, nan_ok=True) if accuracy is None else accuracy)
            assert told["training_s"] == epochs[told["epoch"]]["training_s"]
        assert results[-1]["train_latency_s"] > 0


def test_a_callback_that_raises_costs_a_warning_and_no_trial(searched: Any) -> None:
    result, _, raiser, said = searched
    assert result.counts()["complete"] == 2
    assert raiser.told == 3
    assert said == ["Raiser raised and hears no more of this search: no route to host"]


def test_an_unknown_logger_lists_the_known_ones(small_space: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown logger 'tensorbord': known are tensorboard; did you mean"):
        mixtune.search(small_space(), out=tmp_path / "run", log_to=["tensorbord"])
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(RequestError, match=r"needs tensorboardX: pip install 'mixtune\[tensorboard\]'"):
        find_loggers(["tensorboard"], RunDirectory("run"))


def test_trials_csv_reads_as_numbers(searched: Any) -> None:
    table = pd.read_csv(searched[0].directory / "trials.csv")
    words = {"trial", "state", "reason", "method", "phase", "precision", "device", "protocol"}
    assert {name for name in table if not pd.api.types.is_numeric_dtype(table[name])} == words - {"reason"}
    assert table["epochs_asked"].dtype == table["epochs.sl"].dtype == "int64"


def test_study_db_is_an_optuna_study(searched: Any) -> None:
    result = searched[0]
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{result.directory / 'study.db'}")
    values = {tuple(trial.values) for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])}
    trained = pd.concat([result.trials, result.baselines])[list(result.objectives)]
    assert values == set(trained.itertuples(index=False, name=None))


def test_a_resumed_search_logs_too(searched: Any) -> None:
    """Last, because it changes the run."""
    directory = searched[0].directory
    result = mixtune.resume(directory, trials=3, log_to=["tensorboard"], console=quiet())
    assert (
        len(curves(directory / "logs" / "t0003")["compute/train_flops"])
        == result.records["t0003"].metrics["epochs_asked"]
    )
