"""Files are whole or not there, and what a killed writer leaves goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixtune.errors import DataError
from mixtune.files import is_temporary, remove_temporary, write_whole

KILLED = """
import os, sys
from pathlib import Path
from mixtune import files
files.os.replace = lambda *_: os._exit(9)
files.write_whole(Path(sys.argv[1]), "new")
"""


def test_a_writer_that_is_killed_leaves_the_old_file_and_what_is_removed_later(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert killed.returncode == 9
    assert path.read_text() == "old"
    (left,) = [item for item in tmp_path.iterdir() if item != path]
    assert is_temporary(left)
    remove_temporary(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_living_writer_writes_and_what_is_nobodys_stays(tmp_path: Path) -> None:
    names = [f".space.yaml.{os.getpid()}.tmp", ".space.yaml.99999999999999999999.tmp", "notes.tmp", ".notes.tmp"]
    for name in names:
        (tmp_path / name).touch()
    remove_temporary(tmp_path)
    assert {item.name for item in tmp_path.iterdir()} == set(names)
    assert [is_temporary(tmp_path / name) for name in names] == [True, True, False, False]


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").mkdir()
    with pytest.raises(DataError, match="cannot be written: Is a directory"):
        write_whole(tmp_path / "space.yaml", "new")
    assert [item.name for item in tmp_path.iterdir()] == ["space.yaml"]


def test_a_name_that_could_be_guessed_is_not_written_through(tmp_path: Path) -> None:
    (victim := tmp_path / "victim").write_text("precious")
    (tmp_path / f".space.yaml.{os.getpid()}.tmp").symlink_to(victim)
    (tmp_path / "space.yaml").symlink_to(victim)
    write_whole(tmp_path / "space.yaml", "new")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "space.yaml").is_symlink()
