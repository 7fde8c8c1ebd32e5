"""Commands that are killed while they write: nothing is lost, nothing half counts, and they finish the next time."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plain_search import search_here

import mixtune
from mixtune.report.page import write_report
from mixtune.stages.clean import clean_run


@pytest.fixture(scope="module")
def harness(disturbances: SimpleNamespace) -> Iterator[Any]:
    with disturbances.searches.make_harness() as harness:
        yield harness


@pytest.fixture(scope="module")
def run(small_space_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    search_here(small_space_values | {"search": {"trials": 3, "sampler": "random"}}, directory)
    return directory


HERE: dict[str, Callable[[Path], Any]] = {  # the same in this process, which has imported everything
    "confirm": lambda run: mixtune.confirm(run, seeds=1),
    "report": lambda run: write_report(mixtune.load(run), None),
    "export": mixtune.export,
    "clean": lambda run: clean_run(run, None),
}


@pytest.mark.parametrize(("name", "change"), [("confirm", 20), ("report", 2), ("export", 12), ("clean", 5)])
def test_a_killed_command_loses_nothing_and_is_finished_by_the_next(
    disturbances: SimpleNamespace, harness: Any, run: Path, name: str, change: int
) -> None:
    commands = disturbances.commands
    (command,) = (each for each in commands.COMMANDS if str(each) == name)
    alone, folder = commands.make_folder(harness, run), commands.make_folder(harness, run)
    HERE[name](alone / "run")
    status, said = commands.finish(commands.start(harness, folder, command, change))
    assert status == -signal.SIGKILL, said
    assert commands.is_part(command.outcome(folder), command.outcome(alone))
    assert commands.check_kept(folder, run) == []
    HERE[name](folder / "run")
    assert command.outcome(folder) == command.outcome(alone)
    assert commands.check_kept(folder, run) == []
    assert disturbances.checks.litter(folder / "run") == []


def test_of_two_commands_at_once_one_waits_or_says_who_is_there(
    disturbances: SimpleNamespace, harness: Any, run: Path
) -> None:
    commands = disturbances.commands
    folder = commands.make_folder(harness, run)
    named = {str(command): command for command in commands.COMMANDS}
    both: list[subprocess.Popen[str]] = [commands.start(harness, folder, named[name]) for name in ("export", "export")]
    for status, said in map(commands.finish, both):
        assert status == 0 or "run is in use by process" in said
    assert named["export"].outcome(folder) is not None
