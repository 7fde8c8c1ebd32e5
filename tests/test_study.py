"""A search from one's own loop: what is asked, trained here or told, is a search's run, whatever ends the process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from plain_search import search_here

import mixtune
from mixtune.errors import RequestError
from mixtune.meter.times import DRIFT
from mixtune.meter.windows import Moment
from mixtune.run.ledger import read_ledger
from mixtune.run.status import run_status

Space = Callable[..., dict[str, Any]]
OUTCOME = ["trial", "state", "alpha", "rho", "epochs.sl", "val_accuracy", "train_flops", "sl_loss", "epoch"]


@pytest.fixture
def untimed(small_space: Space) -> dict[str, Any]:
    return small_space(objectives={"val_accuracy": "max", "train_flops": "min"}, baselines=["sl"])


def test_what_is_trained_here_and_what_is_told_are_one_search(small_space: Space, tmp_path: Path) -> None:
    run, values = tmp_path / "run", small_space(search={"trials": 4, "sampler": "cost_aware"})
    with mixtune.Study(values, out=run) as study:
        asked = [trial for _ in range(4) if (trial := study.ask()) is not None]  # before any of them has ended
        assert [(trial.name, trial.number, trial.baseline) for trial in asked] == [
            ("sl", None, "sl"),
            ("ssl_sl", None, "ssl_sl"),
            ("t0001", 1, None),
            ("t0002", 2, None),
        ]
        assert asked[0].recipe.epochs.ssl == 0
        told = asked[3]
        assert told.recipe.alpha == told.params["alpha"]
        for trial in asked[:3]:
            metrics = trial.train()
            assert trial.state == "complete"
            assert math.isfinite(metrics["val_accuracy"])
        study.tell(told, {"val_accuracy": np.float32(0.5), "train_latency_s": 12, "test_accuracy": 0.4})
        failing = study.ask()
        assert failing is not None
        study.tell(failing, failed="RuntimeError: the robot fell over")
        last = study.ask()
        assert last is not None
        assert study.ask() is None
        assert study.stop_reason == "these were asked and have not ended: t0004"
        last.train()
        assert study.ask() is None
        assert study.stop_reason == "4 of 4 trials are done; a study with more trials continues"
    result = study.result()
    assert result.counts() | {"known": 0} == dict.fromkeys(result.counts(), 0) | {"complete": 3, "failed": 1}
    row = result.trials.set_index("trial").loc["t0002"]
    assert (row["val_accuracy"], row["train_latency_s"], row["test_accuracy"]) == (0.5, 12.0, 0.4)
    assert row["train_flops"] > 0
    assert len(result.records["t0002"].epochs) == 1  # which the sampler learns from
    assert result.records["t0003"].reason == "RuntimeError: the robot fell over"
    assert "t0002" in set(result.pareto_front()["trial"])
    assert run_status(result, None).state == "finished"
    assert list(pd.read_csv(run / "trials.csv")["trial"]) == list(result.trials["trial"])
    assert "the robot fell over" in (run / "report.html").read_text()
    assert "peak rates: ssl" in (mixtune.export(run, "t0002", out=tmp_path / "model") / "README.md").read_text()
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{run / 'study.db'}")
    assert summary.n_trials == 6
    with mixtune.Study(values, out=run, trials=5) as more:
        added = more.ask()
        assert added is not None
        assert (added.name, more.ask()) == ("t0005", None)
    assert run_status(more.result(), None).budget == 5


def test_later_trials_look_whether_step_times_have_drifted(
    small_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixtune.meter.times.LATER_S", 0.0)  # at once
    monkeypatch.setattr(Moment, "was_quiet_since", lambda *_: True)  # whatever else computes here
    result = search_here(small_space(search={"trials": 3, "sampler": "random"}), tmp_path / "run")
    events = [event for event in read_ledger(tmp_path / "run" / "ledger.jsonl") if event["event"] == "step_time"]
    later = [event for event in events if event.get("later")]
    assert later
    kept, looked = result.state.step_times, {event["signature"] for event in later}
    assert set(kept.later) == looked
    for signature in looked:
        own = [e["seconds"] for e in events if e["signature"] == signature and e["quiet"] and not e.get("later")]
        assert kept.step_time(signature) == pytest.approx(np.median(own))  # and latencies with it
        assert kept.later[signature] == [event["seconds"] for event in later if event["signature"] == signature]
    assert kept.drift != DRIFT


def test_what_cannot_be_told_is_refused_in_one_line_and_nothing_is_lost(small_space: Space, tmp_path: Path) -> None:
    values = small_space(constraints={"infer_latency_ms": "<= 5"}, baselines=[])
    good = {"val_accuracy": 0.9, "train_latency_s": 3.0, "infer_latency_ms": 1.0}
    wrong = {
        r"unknown metric 'val_acuracy'; known are val_accuracy, .*; did you mean 'val_accuracy'\?": {
            "val_acuracy": 0.9
        },
        "infer_latency_ms is a constraint of the space, and it is missing": {"infer_latency_ms": None},
        "train_latency_s is an objective of the space, and it is missing": {"train_latency_s": None},
        r"val_accuracy is nan: tell a finite number, or failed='why'": {"val_accuracy": math.nan},
        "train_latency_s is inf": {"train_latency_s": math.inf},
        "val_accuracy should be a share from 0 to 1, got 93": {"val_accuracy": 93},
        r"train_latency_s should be a number from 0 to 1e\+100, got -1": {"train_latency_s": -1.0},
        r"train_latency_s should be a number from 0 to 1e\+100, got 1e\+308": {"train_latency_s": 1e308},
        'val_accuracy should be a number, got "0.9"': {"val_accuracy": "0.9"},
    }
    with mixtune.Study(values, out=tmp_path / "run") as study:
        trial = study.ask()
        assert trial is not None
        before = (tmp_path / "run" / "ledger.jsonl").read_bytes()
        for message, changes in wrong.items():
            told: Any = {name: value for name, value in {**good, **changes}.items() if value is not None}
            with pytest.raises(RequestError, match=f"^t0001: {message}"):
                study.tell(trial, told)
        with pytest.raises(RequestError, match="t0001: tell its metrics, or failed='why', and not both"):
            study.tell(trial)
        with pytest.raises(RequestError, match='"t0001" is not a trial of this study: give what its'):
            study.tell("t0001", good)  # type: ignore[arg-type]
        assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == before
        study.tell(trial, good)
        for again in (lambda: study.tell(trial, good), lambda: study.tell(trial, failed="no"), trial.train):
            with pytest.raises(RequestError, match=r"^t0001 has ended already: complete$"):
                again()
        with pytest.raises(RequestError, match=r"run is in use by process \d+ .*; it is this process: close\(\)"):
            mixtune.Study(values, out=tmp_path / "run")
    with pytest.raises(RequestError, match=r"^this study is closed: mixtune.Study\(out='.*run'\) continues it$"):
        study.ask()


KILLED = """
import os, signal, sys, json
import mixtune


class AtEpoch:
    def continues(self, trial, metrics):
        if f"{trial} {metrics['epoch']}" == os.environ.get("KILL_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        return True


class at_epoch:
    build = staticmethod(lambda space: AtEpoch())


if __name__ == "__main__":
    study = mixtune.Study(json.loads(sys.argv[1]), out=sys.argv[2])
    asked = [study.ask() for _ in range(4)]  # the last one has not begun
    for trial in asked:
        trial.train()
"""


def test_a_study_that_was_killed_in_mid_training_continues_to_the_same_end(
    untimed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    monkeypatch.syspath_prepend(tmp_path)
    values = untimed | {"search": {"trials": 3, "sampler": "random", "scheduler": "killed:at_epoch"}}
    found = {}
    for name in ("killed", "whole"):
        run = tmp_path / name
        if name == "killed":
            command = [sys.executable, str(script), json.dumps(values), str(run)]
            done = subprocess.run(command, env=os.environ | {"KILL_AT": "t0002 2"}, check=False)
            assert done.returncode == -9
            kept = mixtune.load(run).records
            assert [kept[trial].state for trial in ("sl", "t0001", "t0002", "t0003")] == [
                *["complete"] * 2,
                "running",
                "asked",
            ]
        with mixtune.Study(values, out=run) as study:
            first = study.ask()
            assert first is not None
            assert first.name == ("t0002" if name == "killed" else "sl")
            first.train()
            while (trial := study.ask()) is not None:
                trial.train()
        found[name] = study.result().trials[OUTCOME]
    pd.testing.assert_frame_equal(found["killed"], found["whole"])
    assert kept["t0002"].stored  # from which it continued
    assert mixtune.load(tmp_path / "killed").records["t0002"].metrics["epochs_reused"] > 0


def test_a_run_continues_under_its_own_space_with_its_own_images(small_space: Space, tmp_path: Path) -> None:
    values = small_space(search={"trials": 1, "sampler": "auto"}, baselines=[])
    del values["recipe"]["data"]
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    run, data = tmp_path / "run", (images, np.arange(60) % 3)
    with mixtune.Study(values, data=data, out=run) as study:
        trial = study.ask()
        assert trial is not None
        assert trial.train()["epochs_trained"] > 0
    values["search"]["stop"] = {"after": 3, "gain": "2%"}
    for given in (values, None):
        with mixtune.Study(given, data=data if given else None, out=run) as again:
            assert again.ask() is None
    assert yaml.safe_load((run / "space.yaml").read_text())["search"]["stop"] == {"after": 3, "gain": 0.02}
    other = values | {"space": values["space"] | {"alpha": {"uniform": [0.1, 0.2]}}}
    with pytest.raises(
        RequestError, match=r"run holds a run of another space: space.alpha.uniform is \[0.05, 0.95\] there"
    ):
        mixtune.Study(other, data=data, out=run)
    assert [event["event"] for event in read_ledger(run / "ledger.jsonl")].count("opened") == 1
    with pytest.raises(RequestError, match="a study needs a space"):
        mixtune.Study()
