"""Searches on data from Python, and on plug-ins that a script brings along."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

import mixtune
from mixtune.errors import DataError, RequestError
from mixtune.stages.clean import clean_run


@pytest.fixture
def bands() -> tuple[np.ndarray, list[str]]:
    """Digits in five bands, channels first, float64 from 0 to 1; labels are text."""
    digits = load_digits()
    images = np.stack([np.roll(digits.images, shift, 2) for shift in range(5)], axis=1) / 16
    return images, [f"digit {label}" for label in digits.target]


@pytest.fixture
def space(small_space: Any) -> dict[str, Any]:
    """Two trials of one epoch; the recipe names no dataset."""
    values: dict[str, Any] = small_space(
        space={"optim.sl.base_lr": {"choice": [0.01, 0.02, 0.03]}}, search={"trials": 2}, baselines=[]
    )
    values["recipe"] |= {"data": {"fraction": 0.2}, "epochs": {"ssl": 1, "sl": 1}, "augment": {"randaugment": [1, 9]}}
    return values


def command(*words: object) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mixtune")), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_search_on_bands_continues_by_commands_wherever_its_folder_is(
    space: dict[str, Any], bands: Any, ray_quietly: None, tmp_path: Path
) -> None:
    printed = io.StringIO()
    result = mixtune.search(space, data=bands, out=tmp_path / "run", console=Console(file=printed, width=200))
    assert result.counts()["complete"] == 2
    assert "8x8 5 channels, 10 classes" in printed.getvalue()
    assert result.space.recipe.data.fraction == 0.2
    moved = Path(shutil.move(tmp_path / "run", tmp_path / "moved"))
    before = sorted((moved / "data").iterdir())
    command("resume", moved, "--trials", 3, "--gpus", 0)
    assert mixtune.load(moved).counts()["complete"] == 3
    clean_run(moved, None)
    assert sorted((moved / "data").iterdir()) == before
    assert len(mixtune.confirm(moved, seeds=1).frame)
    command("export", moved, "--out", tmp_path / "model")
    script = [sys.executable, str(tmp_path / "model" / "classify.py"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "this model reads uint8 tensors (5, 8, 8), which no image file holds" in done.stderr


def test_data_of_a_search_that_does_not_begin_are_gone_again(space: dict[str, Any], bands: Any, tmp_path: Path) -> None:
    images, labels = bands
    out, console = tmp_path / "run", Console(file=io.StringIO())
    for wrong, data, error in (
        ({"overrides": {"alhpa": 1}}, bands, RequestError),
        ({"overrides": {"data.root": "/x"}}, bands, RequestError),
        ({}, (images, labels[:-1]), RequestError),
        ({"overrides": {"optim.batch_size": 9999}}, bands, RequestError),
        ({}, (images * np.nan, labels), DataError),
    ):
        with pytest.raises(error):
            mixtune.search(space, data=data, out=out, console=console, **wrong)  # type: ignore[arg-type]
        assert not out.exists()


SCRIPT = """
import sys
import mixtune
from mixtune.datasets import digits
from mixtune.errors import RequestError

class Mine:
    fingerprint, read = staticmethod(digits.fingerprint), staticmethod(digits.read)

if __name__ == "__main__":
    space = eval(sys.argv[1])
    space["recipe"]["data"]["dataset"] = "__main__:Mine"
    try:
        mixtune.search(space, out="refused", gpus=0)
    except RequestError as error:
        print(error)
    sys.path.insert(0, sys.argv[2])
    space["recipe"]["data"]["dataset"] = "mine:Mine"
    print(mixtune.search(space, out="run", gpus=0).counts())
"""


def test_a_plugin_of_the_script_itself_is_refused_and_one_on_its_path_is_found_by_the_trials(
    space: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(SCRIPT)
    words = [sys.executable, "script.py", repr(space), str(tmp_path / "elsewhere")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("data.dataset __main__:Mine: trials run in other processes, which cannot import from this")
    assert "'complete': 2" in last
    assert not (tmp_path / "refused").exists()
