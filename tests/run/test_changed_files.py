"""Whatever bytes a space file or a run directory hold: what is read is right, or a line says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plain_search import search_here

import mixtune


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
