"""Whatever bytes a space file or a run directory hold: what is read is right, or a line says what is wrong."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_search import continue_here, search_here

import mixtune
from mixtune.errors import DataError, RequestError
from mixtune.stages import store
from mixtune.training.saved import load_trained


def test_changed_space_files_are_read_or_refused_in_a_line(disturbances: SimpleNamespace) -> None:
    assert disturbances.fuzz.fuzz_spaces(200, seed=1, say=lambda line: None).problems == []


@pytest.fixture(scope="module")
def runs(small_space_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("changed") / "run"
    search_here(small_space_values | {"search": {"trials": 3, "sampler": "random"}}, directory)
    confirmed = Path(shutil.copytree(directory, directory.with_name("confirmed")))
    mixtune.confirm(confirmed, seeds=1)
    return [directory, confirmed]


def test_a_run_with_a_changed_file_has_the_same_front_or_says_what_is_damaged(
    disturbances: SimpleNamespace, runs: list[Path]
) -> None:
    rows = disturbances.fuzz.fuzz_runs(runs, 40, seed=1, say=lambda line: None)
    assert sum(row.times for row in rows) == 40
    assert [problem for row in rows for problem in row.problems] == []


class Trap:
    """What a pickle may hold: reading it makes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return Path.touch, (self.sprung,)


def test_no_file_of_a_run_is_unpickled(disturbances: SimpleNamespace, runs: list[Path], tmp_path: Path) -> None:
    """A trap in a file of each kind in turn, in a state with a right digest too, before all that reads a run."""
    whole = shutil.copytree(runs[0], tmp_path / "whole")
    mixtune.export(whole, "t0001")
    one_a_kind = {path.suffix: path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()}
    assert one_a_kind.keys() >= {".jsonl", ".yaml", ".csv", ".db", ".html", ".state", ".safetensors"}
    front, sprung = mixtune.load(whole).pareto_front()["trial"].tolist(), tmp_path / "sprung"
    for number, name in enumerate(one_a_kind.values()):
        packed = io.BytesIO()
        torch.save({"backbone": Trap(sprung)}, packed)
        trap = packed.getvalue() if name.suffix == ".safetensors" else pickle.dumps(Trap(sprung))
        if name.suffix == ".state":
            trap = store._header(name.stem, packed.getvalue()) + packed.getvalue()
        run = Path(shutil.copytree(whole, tmp_path / str(number)))
        (run / name).write_bytes(trap)
        for read in (
            lambda run: disturbances.fuzz.read_all(run, front, 1),
            lambda run: mixtune.export(run, "t0001"),
            lambda run: continue_here(run, trials=3),
            lambda run: load_trained(run / "models" / "t0001"),
        ):
            with contextlib.suppress(RequestError, DataError):
                read(run)
        assert not sprung.exists(), name
    with contextlib.suppress(AttributeError):
        pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # it is one
