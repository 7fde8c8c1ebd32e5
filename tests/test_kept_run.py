"""A run directory of commit 22a46e9, killed in the middle: it loads, resumes, reports and exports ever after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from plain_search import continue_here
from safetensors.torch import load_file

import mixtune
from mixtune.exporting import export
from mixtune.report.page import write_report
from mixtune.run.directory import RunDirectory
from mixtune.run.status import run_status
from mixtune.stages import code
from mixtune.stages.opened import Opened
from mixtune.stages.store import StateStore
from mixtune.training.device import describe_device

KEPT = Path(__file__).parent / "kept" / "run_of_22a46e9"
# what that commit ended with when it resumed its own run: accuracies of the two trials that had begun
FINISHED = {"t0008": 0.22916666666666666, "t0009": 0.22916666666666666}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    shutil.copytree(KEPT, tmp_path / "run")
    return tmp_path / "run"


def bring_here(run: Path) -> None:
    """Let a run be one that this machine began: seconds of two devices do not compare, and it would be refused."""
    here = describe_device(torch.device("cpu")).rpartition(", ")[0]  # without the threads
    for file in (run / "ledger.jsonl", run / "space.yaml"):
        file.write_text(file.read_text().replace("AMD EPYC", here))


def test_it_loads_and_reports_as_it_did(kept: Path) -> None:
    result = mixtune.load(kept)
    assert list(mixtune.pareto_front(result.complete(), result.objectives)["trial"]) == ["t0007", "t0002"]
    assert list(result.searched_front["trial"]) == ["sl", "t0002"]  # baselines are recipes, too
    assert list(result.pareto_front()["trial"]) == ["sl"]  # on its one fresh seed t0002 is with 40 %
    recommended = result.recommendation()
    assert (recommended.trial, recommended.confirmed) == ("sl", True)
    assert recommended.sentence.startswith("Supervised training alone is enough here: use sl (SL, 3 epochs): 20.8 ± ")
    assert json.dumps(result.to_json_dict(), allow_nan=False)
    lines = run_status(result, None).lines()
    assert lines[0].endswith("interrupted, 7 of 9 trials done")
    assert "confirmed: 4 trials with 1 seed each" in lines
    assert "t0002" in write_report(result, None).read_text(encoding="utf-8")


def test_it_resumes_to_the_accuracies_that_its_own_version_found(kept: Path) -> None:
    bring_here(kept)
    before = mixtune.load(kept).trials.set_index("trial")
    told = Opened.of(mixtune.load(kept).space, "a CPU", 1).compare(mixtune.load(kept).state, mixtune.load(kept).space)
    assert [line.rpartition(": ")[2] for line in told] == ["that they are the same cannot be checked"]
    result = continue_here(kept)
    assert result.counts()["complete"] == 9
    found = result.trials.set_index("trial")
    assert {trial: found.loc[trial, "val_accuracy"] for trial in FINISHED} == FINISHED
    ended = before.index[before["state"] == "complete"]
    names = ["alpha", "rho", "epochs.sl", "val_accuracy", "train_latency_s", "train_flops", "epochs_reused"]
    pd.testing.assert_frame_equal(found.loc[ended, names], before.loc[ended, names], check_dtype=False)


def test_its_weights_are_exported_by_their_checkpoint_whatever_the_code_is_now(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "read_source", lambda module: f"edited = {module!r}")  # every module is another one
    code.digest_code.cache_clear()
    lines: list[str] = []
    folder = export(kept, "t0002", on_line=lines.append)
    code.digest_code.cache_clear()
    assert "did not record its data" in lines[0]
    assert lines[1:] == ["t0002: its weights are those that the search has stored"]
    stage = mixtune.load(kept).records["t0002"].stage
    assert stage is not None
    stored = StateStore(RunDirectory(KEPT).stages).load(stage)
    assert stored is not None
    exported = load_file(folder / "model.safetensors")
    for name, weight in stored["backbone"].items():
        assert torch.equal(exported[name.removeprefix("vit.")], weight), name


def test_a_checkpoint_that_is_gone_is_trained_again_and_a_line_says_so(kept: Path) -> None:
    lines: list[str] = []
    export(kept, "t0007", on_line=lines.append)
    assert lines[1].startswith("t0007: 4 of its 4 epochs are not stored any more and are trained again: its weights ar")
