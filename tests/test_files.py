"""Files are whole or not there, and what a killed writer leaves goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixtune.errors import DataError, RequestError
from mixtune.files import MANIFEST, is_temporary, remove_temporary, write_folder, write_whole

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


FILES = {"a.txt": b"one", "below/b.txt": b"two"}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder that people see."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_folder_is_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    write_folder(folder, FILES)
    assert contents(folder) == FILES
    write_folder(folder, FILES)
    write_folder(folder, {"a.txt": b"other", "c.txt": b"three"})
    assert contents(folder) == {"a.txt": b"other", "c.txt": b"three"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", FILES)
    assert contents(tmp_path / "empty") == FILES


@pytest.mark.parametrize("name", ["notes.txt", "below/notes.txt", "recipe.yaml"])
def test_a_folder_that_holds_something_else_is_refused_and_stays_as_it_was(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "model", FILES)
    for folder in (tmp_path / "model", tmp_path / "other"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
        before = contents(folder)
        with pytest.raises(RequestError, match=f"holds {name}, which no export wrote: choose another folder"):
            write_folder(folder, {"a.txt": b"other"})
        assert contents(folder) == before


def test_what_was_changed_by_hand_is_not_overwritten(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", FILES)
    (tmp_path / "model" / "below" / "b.txt").write_text("better")
    with pytest.raises(RequestError, match=r"below/b\.txt is not as an export wrote it"):
        write_folder(tmp_path / "model", {"a.txt": b"other"})
    assert (tmp_path / "model" / "a.txt").read_text() == "one"
    (tmp_path / "model" / "below" / "b.txt").unlink()
    write_folder(tmp_path / "model", FILES)
    assert contents(tmp_path / "model") == FILES


def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="file is a file: choose another folder"):
        write_folder(tmp_path / "file", FILES)
    with pytest.raises(RequestError, match="cannot be made"):
        write_folder(tmp_path / "file" / "below", FILES)


def test_a_write_that_fails_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "model", FILES)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mixtune.files.os.fsync", full)
    with pytest.raises(DataError, match="cannot be written: No space left"):
        write_folder(tmp_path / "model", {"a.txt": b"other"})
    assert contents(tmp_path) == {f"model/{name}": content for name, content in FILES.items()}
