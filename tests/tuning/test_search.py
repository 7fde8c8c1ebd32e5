"""Whole searches: real images, real Optuna; with Ray where Ray is what is tested."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml
from plain_search import search_here
from rich.console import Console

import mixtune
from mixtune.errors import RequestError
from mixtune.meter import lock
from mixtune.run.accounting import paused_note
from mixtune.run.ledger import read_ledger
from mixtune.run.lock import hold_run
from mixtune.tuning import nodes
from mixtune.tuning.prepare import prepare
from mixtune.tuning.run import SearchError


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(scope="module")
def command(
    small_space_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """A search of six trials in a process of its own, as a user runs it; it is over, in the folder ``args[-1]``."""
    folder = tmp_path_factory.mktemp("runs")
    values = deepcopy(small_space_values)
    values["recipe"]["epochs"]["ssl"] = 1
    (folder / "space.yaml").write_text(yaml.safe_dump(values))
    words = ["search", "space.yaml", "--set", "epochs.ssl=2", "--gpus", "0", "--out", str(folder / "run")]
    return subprocess.run(mixtune_command(*words), cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(command: subprocess.CompletedProcess[str]) -> mixtune.Result:
    assert command.returncode == 0, command.stderr
    return mixtune.load(command.args[-1])


def test_the_budget_is_met_and_each_baseline_is_trained_once(run: mixtune.Result) -> None:
    paused = run.counts()["paused"]  # as seconds have it
    assert run.counts() == dict.fromkeys(run.counts(), 0) | {"complete": 6, "paused": paused}
    assert list(run.trials["trial"]) == [f"t{i:04d}" for i in range(1, 7 + paused)]
    assert sorted(run.baselines["method"]) == ["sl", "ssl_sl"]
    assert set(run.baselines["state"]) == {"complete"}


def test_trials_train_what_their_parameters_say(run: mixtune.Result) -> None:
    for _, row in run.trials[run.trials["state"] == "complete"].iterrows():
        mix = math.floor(row["rho"] * min(2, row["epochs.sl"]))
        assert row["epoch"] == row["epochs_asked"] == 2 + row["epochs.sl"] - mix
        assert row["epochs_trained"] + row["epochs_reused"] == row["epochs_asked"]
        assert row["method"] == ("mixtraining" if mix else "ssl_sl")
        assert row["train_latency_s"] == pytest.approx(
            row["latency_ssl_s"] + row["latency_mix_s"] + row["latency_sl_s"], rel=1e-9
        )


def test_ledger_tables_and_front_agree(run: mixtune.Result) -> None:
    events = read_ledger(run.directory / "ledger.jsonl")
    complete = {e["trial"]: e["metrics"] for e in events if e["event"] == "complete"}
    table = pd.read_csv(run.directory / "trials.csv").set_index("trial")
    assert set(table.index[table["state"] == "complete"]) == set(complete)
    for trial, metrics in complete.items():
        assert table.loc[trial, "val_accuracy"] == metrics["val_accuracy"]
        epochs = [e["metrics"]["epoch"] for e in events if e["event"] == "epoch" and e["trial"] == trial]
        assert epochs == list(range(1, metrics["epochs_asked"] + 1))
    assert list(pd.read_csv(run.directory / "pareto.csv")["trial"]) == list(run.pareto_front()["trial"])
    assert "A finished search: " in (run.directory / "report.html").read_text()


def test_a_run_can_be_loaded_again_and_its_resolved_space_searched_again(run: mixtune.Result) -> None:
    printed = subprocess.run(
        mixtune_command("pareto", str(run.directory), "--format", "json"), capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == run.to_json_dict()
    space = mixtune.load_space(run.directory / "space.yaml")
    assert space.budget == 6
    assert space.recipe.epochs.ssl == 2


def test_a_directory_that_holds_a_run_is_never_overwritten(run: mixtune.Result, small_space: Any) -> None:
    before = (run.directory / "ledger.jsonl").read_bytes()
    with pytest.raises(RequestError, match=f"{run.directory} holds a run already"):
        mixtune.search(small_space(), out=run.directory, console=quiet())
    assert (run.directory / "ledger.jsonl").read_bytes() == before


def test_failing_trials_say_why_and_never_reach_the_front(small_space: Any, tmp_path: Path) -> None:
    values = small_space(
        space={"optim.sl.base_lr": {"choice": [0.02, 1e30]}}, search={"trials": 4, "sampler": "grid"}, baselines=[]
    )
    values["recipe"]["epochs"] = {"ssl": 0, "sl": 2}
    result = search_here(values, tmp_path / "run")
    assert result.counts()["complete"] == 1
    assert result.counts()["failed"] == 1  # the grid holds two recipes, so four trials are not available
    failed = result.trials[result.trials["state"] == "failed"].iloc[0]
    assert failed["optim.sl.base_lr"] == 1e30
    assert failed["reason"].startswith("DivergedError: the loss is nan in epoch 1 (sl phase), step ")
    assert list(result.pareto_front()["optim.sl.base_lr"]) == [0.02]


def test_what_cannot_even_begin_costs_no_trial_and_says_why(small_space: Any, tmp_path: Path) -> None:
    """Each value is right by itself; together, the heads do not share the width."""
    values = small_space(
        space={"model.num_heads": {"choice": [2, 8]}, "model.embed_dim": {"choice": [16, 20]}},
        search={"sampler": "grid", "trials": 4},
        baselines=[],
    )
    result = search_here(values, tmp_path / "run")
    assert result.counts()["complete"] == 3
    rejected = result.trials[result.trials["state"] == "rejected"].iloc[0]
    assert (rejected["model.num_heads"], rejected["model.embed_dim"]) == (8, 20)
    assert rejected["reason"].startswith("model: timm cannot build ")


def test_a_search_whose_every_trial_fails_says_why(small_space: Any, ray_quietly: None, tmp_path: Path) -> None:
    values = small_space(space={"alpha": {"choice": [0.4, 0.6]}}, search={"trials": 2}, baselines=[])
    values["recipe"]["optim"]["ssl"]["base_lr"] = 1e30
    assert search_here(values, tmp_path / "run").pareto_front().empty
    with pytest.raises(SearchError, match=r"no trial completed, and 2 failed; t0001: DivergedError: the loss is nan"):
        mixtune.resume(tmp_path / "run", console=quiet())


class Ears(io.StringIO):
    """A terminal that does something once a word is said, for several words, each once."""

    def __init__(self, acts: dict[str, Callable[[], object]]) -> None:
        super().__init__()
        self._acts = acts

    def write(self, text: str) -> int:
        for word in [word for word in self._acts if word in text]:
            self._acts.pop(word)()
        return super().write(text)


STOPPED = """
import fcntl, os, signal, sys
with open(sys.argv[1], "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_search_that_waits_says_for_whom(
    small_space: Any, ray_quietly: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor of a notebook's own that has all CPUs, then a stopped process that has the device.

    The lines come after a minute and less, here after a second.
    """
    monkeypatch.setattr(nodes, "PENDING_S", 1.0)
    monkeypatch.setattr(lock, "STOPPED_S", 1.0)
    holder = ray.remote(num_cpus=2)(type("Holder", (), {"pid": lambda self: os.getpid()})).options(name="mine").remote()
    process, suspended = ray.get(holder.pid.remote()), list[subprocess.Popen[bytes]]()

    def suspend() -> None:
        device = f"{tempfile.gettempdir()}/mixtune-{os.getuid()}-cpu-{platform.node()}.device"
        suspended.append(subprocess.Popen([sys.executable, "-c", STOPPED, device]))
        while suspended[0].pid not in lock.stopped_holders():
            time.sleep(0.01)
        ray.kill(holder)

    heard = Ears({"held by": suspend, "is stopped": lambda: suspended[0].kill()})
    space = small_space(baselines=[], search={"trials": 1, "sampler": "random"})
    run = mixtune.search(space, out=tmp_path / "run", console=Console(file=heard, width=300))
    assert suspended[0].wait() == -signal.SIGKILL
    assert run.counts()["complete"] == 1
    lines = heard.getvalue().splitlines()
    held = next(line for line in lines if "held by" in line)
    assert held.startswith("no node has taken a trial for 0:0")
    assert ": each asks for 1.5 CPU; free: " in held
    assert held.endswith(f" 0 of 2 CPUs; held by Holder 'mine' (process {process})")
    (said,) = (line for line in lines if "is stopped" in line)
    assert said.startswith(f"process {suspended[0].pid} (python")


def test_one_objective_without_a_clock(small_space: Any, tmp_path: Path) -> None:
    values = small_space(objectives={"train_flops": "min"}, search={"trials": 3, "sampler": "random"}, baselines=["sl"])
    result = search_here(values, tmp_path / "run")
    best = result.best("train_flops")
    assert best["train_flops"] == result.candidates["train_flops"].min()


def test_a_search_may_aim_at_other_figures_of_the_validation_split(small_space: Any, tmp_path: Path) -> None:
    aims = {"val_balanced_accuracy": "max", "train_flops": "min"}
    search = {"trials": 10, "sampler": "cost_aware"}
    values = small_space(objectives=aims, constraints={"val_calibration_error": "<= 0.9"}, baselines=[], search=search)
    result = search_here(values, tmp_path / "run")
    assert result.counts()["complete"] == 10
    assert result.reference_point["val_balanced_accuracy"] == 0.1
    assert result.hypervolume() is not None
    names = [f"val_{name}" for name in ("balanced_accuracy", "macro_f1", "calibration_error")]
    table = pd.read_csv(tmp_path / "run" / "trials.csv").set_index("trial")
    for trial, record in result.records.items():
        assert [table.loc[trial, name] for name in names] == [record.metrics[name] for name in names]
        assert [record.epochs[-1][name] for name in names] == [record.metrics[name] for name in names]


def test_several_tasks_are_searched_by_their_mean_and_each_has_its_column(small_space: Any, tmp_path: Path) -> None:
    values = small_space(search={"trials": 2}, baselines=[])
    values["recipe"]["data"]["dataset"] = ["digits", "digits"]
    trials = search_here(values, tmp_path / "run").trials
    means = (trials["val_accuracy_digits"] + trials["val_accuracy_digits_2"]) / 2
    assert trials["val_accuracy"].tolist() == pytest.approx(means.tolist())


ALPHA = {"alpha": {"uniform": [0.1, 0.9]}}
PROBLEMS = [
    ({"data": {"dataset": "digits"}}, {}, "space is empty: a search needs a distribution"),
    ({"data": {"dataset": "digits", "val_fraction": 0.0}}, ALPHA, "data.val_fraction is 0: a search needs validation"),
    ({"data": {"dataset": "digits"}, "protocol": "paper"}, ALPHA, "protocol: paper measures the test accuracy"),
    (
        {"data": {"dataset": "digits", "fraction": 0.01}},
        ALPHA,
        "optim.batch_size 256 is more than the 13 training images",
    ),
    (
        {"data": {"dataset": "digits"}},
        {"data.dataset": {"choice": ["digits", "CIFAR10"]}},
        "is the same for all trials of a search",
    ),
    (
        {"data": {"dataset": "digits"}},
        {"augment.crop_ratio": {"choice": [[0.5, 2.0], [0.9, 1.1]]}},
        "augment.crop_ratio",
    ),
    ({"data": {"dataset": "digit"}}, ALPHA, "did you mean 'digits'"),
    ({"data": {"dataset": "image_folder", "root": "nowhere"}}, ALPHA, "nowhere"),
    ({"data": {"dataset": "digits"}}, {"model.patch_size": {"randint": [1, 5]}}, "space.model.patch_size at 3: "),
    ({"data": {"dataset": "digits"}}, {"optim.batch_size": {"choice": [64, 4096]}}, "space.optim.batch_size at 4096: "),
    ({"data": {"dataset": "digits"}}, {"model.embed_dim": {"choice": [192, 200]}}, "space.model.embed_dim at 200: "),
]


@pytest.mark.parametrize(("recipe", "space", "message"), PROBLEMS)
def test_what_would_fail_in_a_trial_is_refused_before_anything_is_written(
    recipe: dict[str, Any], space: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message.replace(".", r"\.")):
        mixtune.search({"recipe": recipe, "space": space}, out=tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_place_where_no_directory_can_be_is_refused(small_space: Any, ray_quietly: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="file/run cannot be made: Not a directory"):
        mixtune.search(small_space(), out=tmp_path / "file" / "run", console=quiet())


def test_a_directory_that_another_search_has_claimed_is_refused(
    small_space: Any, ray_quietly: None, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    with hold_run(tmp_path / "run", "search"), pytest.raises(RequestError, match="run is in use by process"):
        mixtune.search(small_space(), out=tmp_path / "run", console=quiet())


def test_relative_data_roots_mean_the_folder_of_the_command(
    small_space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:200], digits.target[:200], strict=True)):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    values = small_space()
    values["recipe"]["data"] = {"dataset": "image_folder", "root": "images"}
    assert prepare(values).space.recipe.data.root == str(tmp_path / "images")


def mixtune_command(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("mixtune")), *words]


def test_the_command_prints_its_own_lines_and_nothing_of_rays(
    command: subprocess.CompletedProcess[str], run: mixtune.Result
) -> None:
    starting, *others = command.stderr.splitlines()
    assert starting == "starting: PyTorch and Ray are being loaded"
    assert [line for line in others if not line.startswith("decoding ")] == []
    lines = command.stdout.splitlines()
    assert lines[0] == "digits: 259 training and 144 validation images, 8x8 grayscale, 10 classes"
    assert lines[1] == "test images from a fifth of the training images"
    assert lines[2].startswith(
        "144 validation images: with one seed they tell recipes apart that differ by about 5 points"
    )
    assert lines[3].startswith("6 trials and 2 baselines, sampler cost_aware: ")
    assert lines[4] == f"run directory: {run.directory}"
    assert lines[5].startswith("trials: ")
    assert lines[13].startswith("[6/6] ")
    ended = [line.split()[1:3] for line in lines[6:14]]
    complete = run.trials["trial"][run.trials["state"] == "complete"]
    assert sorted(ended) == [["baseline", "sl"], ["baseline", "ssl_sl"], *(["trial", trial] for trial in complete)]
    assert lines[14].startswith("epochs: ")
    paused = [f"paused: {note}"] if (note := paused_note(run.counts())) else []
    front = 15 + len(paused)
    assert lines[15:front] == paused
    assert lines[front].startswith("the front: ")
    assert f"report: {run.directory}/report.html" in lines
    assert lines[-1] == f"next: mixtune confirm {run.directory}"
    table = lines[front : lines.index(f"report: {run.directory}/report.html")]
    assert max(len(line) for line in table if line.startswith((" ", "*"))) <= 80
    assert not any(line.endswith(" ") for line in lines)


def test_fractions_of_logical_gpus_pack_trials(small_space: Any, tmp_path: Path) -> None:
    """Ray's GPUs are logical: here halves of one hold two trials. A cluster elsewhere is left alone."""
    script = tmp_path / "packed.py"
    script.write_text(_PACKED)
    values = small_space(space={"optim.sl.base_lr": {"uniform": [0.01, 0.05]}}, search={"trials": 4}, baselines=[])
    values["recipe"]["epochs"] = {"ssl": 0, "sl": 2}
    done = subprocess.run(
        [sys.executable, str(script), yaml.safe_dump(values)],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "1"]  # complete trials, and kinds of device


_PACKED = """
import io
import os
import sys
import yaml
from rich.console import Console
from mixtune.tuning.session import ray_session
from mixtune.tuning.run import search

def variables():
    return {name: value for name, value in os.environ.items() if name.startswith("TUNE_")}

before = variables()
with ray_session(None, cpus=2, gpus=1):
    console = Console(file=io.StringIO())
    values = yaml.safe_load(sys.argv[1])
    result = search(values, cpus_per_trial=0.25, gpus_per_trial=0.5, out="run", console=console)
assert "trials: 2 at once with 0.5 GPU and 0.25 CPUs each" in console.file.getvalue()
assert variables() == before  # a Tuner of one's own works as ever
print(result.counts()["complete"], result.trials["device"].nunique())
"""
