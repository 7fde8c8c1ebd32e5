"""A run directory has one driver, who comes after the last one's workers; real processes hold and die."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mixtune.errors import RequestError
from mixtune.run.lock import DRIVER_LOCK, TRIALS_LOCK, hold_folder, hold_run, holder, share_run
from mixtune.stages.clean import clean_run

Start = Callable[[str, Path], subprocess.Popen[str]]
HEAD = "import os, subprocess, sys, time; from mixtune.run.lock import hold_run, share_run; directory = sys.argv[1]\n"
REST = "print('here', flush=True); sys.stdin.readline()"

DRIVER = f"{HEAD}with hold_run(directory, doing='search'): {REST}"
WRITER = f"import pathlib; from mixtune.run.lock import hold_folder; {HEAD}"
WRITER += f"with hold_folder(pathlib.Path(directory), 'train'): {REST}"
WORKER = f"{HEAD}assert share_run(directory) is not None; {REST}"
# a program that is started, says who it is and outlives its parent
START = """
program = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'
subprocess.Popen([sys.executable, '-c', program], close_fds=False)
time.sleep(600)
"""
DRIVER_WITH_PROGRAM = f"{HEAD}hold = hold_run(directory, doing='search'); hold.__enter__()\n{START}"
WORKER_WITH_PROGRAM = f"{HEAD}assert share_run(directory) is not None\n{START}"


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a process and returns once it has its lock; what still runs is killed."""
    started = []

    def start_one(code: str, directory: Path) -> subprocess.Popen[str]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-c", code, str(directory)], text=True, **pipes)
        started.append(process)
        if code in (DRIVER, WORKER, WRITER):
            assert read(process) == "here"
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return line.strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_a_second_driver_is_refused_in_one_line_and_told_who_is_there(start: Start, tmp_path: Path) -> None:
    driver = start(DRIVER, tmp_path)
    who = f"process {driver.pid} on {platform.node()}"
    assert holder(tmp_path) == f"search, {who}"
    with pytest.raises(RequestError) as caught, hold_run(tmp_path, doing="resume"):
        pass
    said = re.escape(f"{tmp_path} is in use by {who} (search since ")
    assert re.fullmatch(said + r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\)", str(caught.value))
    assert driver.poll() is None
    driver.communicate("\n", timeout=60)
    assert holder(tmp_path) is None
    with hold_run(tmp_path, doing="resume"):
        assert holder(tmp_path) == f"resume, process {os.getpid()} on {platform.node()}"


def test_one_process_cannot_drive_a_run_twice(tmp_path: Path) -> None:
    with hold_run(tmp_path, doing="search"):
        with pytest.raises(RequestError, match=f"process {os.getpid()} "), hold_run(tmp_path, doing="confirm"):
            pass
        assert str(holder(tmp_path)).startswith("search, ")
    with pytest.raises(KeyError), hold_run(tmp_path, doing="confirm"):
        raise KeyError
    assert holder(tmp_path) is None


def test_a_driver_that_has_not_yet_said_who_it_is_counts(tmp_path: Path) -> None:
    with (tmp_path / DRIVER_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(tmp_path) == "another process"
        with pytest.raises(RequestError, match=r"is in use by another process$"), hold_run(tmp_path, doing="search"):
            pass


def test_a_driver_is_not_refused_because_somebody_looks_who_is_there(tmp_path: Path) -> None:
    look = f"{HEAD}from mixtune.run.lock import holder\nprint('here', flush=True)\nwhile True: holder(directory)"
    (tmp_path / DRIVER_LOCK).touch()
    looker = subprocess.Popen([sys.executable, "-c", look, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert read(looker) == "here"
        for _ in range(20):
            with hold_run(tmp_path, doing="search"):
                pass
    finally:
        looker.kill()
        looker.communicate()


def test_workers_that_live_on_are_waited_for(start: Start, tmp_path: Path) -> None:
    driver = start(DRIVER, tmp_path)
    workers = [start(WORKER, tmp_path) for _ in range(2)]
    kill(driver)
    told: list[str] = []

    def let_end(line: str) -> None:
        told.append(line)
        for worker in workers:
            worker.communicate("\n", timeout=60)

    with hold_run(tmp_path, doing="resume", wait_s=60, on_wait=let_end):
        assert [worker.returncode for worker in workers] == [0, 0]
        own = share_run(tmp_path)  # it need not wait
        assert own is not None
        os.close(own)
    assert told == [f"{tmp_path}: waiting for trials of the driver before to end, at most 60 s"]


def test_workers_that_do_not_end_are_named_and_the_run_is_given_back(start: Start, tmp_path: Path) -> None:
    worker = start(WORKER, tmp_path)
    refused = pytest.raises(RequestError, match=rf"still run after 0 s: end .* fuser {tmp_path}/{TRIALS_LOCK} lists")
    with refused, hold_run(tmp_path, doing="resume", wait_s=0.2):
        pass
    assert worker.poll() is None
    assert holder(tmp_path) is None
    kill(worker)
    with hold_run(tmp_path, doing="resume", wait_s=0):
        pass


@pytest.mark.parametrize("code", [DRIVER_WITH_PROGRAM, WORKER_WITH_PROGRAM])
def test_a_killed_holder_frees_the_run_though_a_program_that_it_started_lives_on(
    start: Start, tmp_path: Path, code: str
) -> None:
    process = start(code, tmp_path)
    program = int(read(process))
    try:
        kill(process)
        with hold_run(tmp_path, doing="resume", wait_s=0, on_wait=pytest.fail):
            os.kill(program, 0)  # alive
    finally:
        os.kill(program, signal.SIGKILL)


def test_a_worker_that_closes_its_descriptor_is_not_waited_for(tmp_path: Path) -> None:
    file = share_run(tmp_path)
    assert file is not None
    with pytest.raises(RequestError, match="still run"), hold_run(tmp_path, doing="resume", wait_s=0):
        pass
    os.close(file)
    with hold_run(tmp_path, doing="resume", wait_s=0):
        pass


def test_a_worker_waits_out_a_driver_that_looks_for_workers(start: Start, tmp_path: Path) -> None:
    with (tmp_path / TRIALS_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code = f"{HEAD}print('soon', flush=True); assert share_run(directory) is not None; print('here', flush=True)"
        worker = start(code, tmp_path)
        assert read(worker) == "soon"
    assert read(worker) == "here"


def test_where_there_is_no_run_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for missing in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(RequestError, match=f"there is no run directory {missing}"), hold_run(missing, "search"):
            pass
        assert share_run(missing) is None
        assert holder(missing) is None
    assert holder(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_lock_that_cannot_be_opened_is_a_line_of_words(tmp_path: Path) -> None:
    (tmp_path / DRIVER_LOCK).mkdir()
    with pytest.raises(RequestError, match=r"\.driver\.lock cannot be opened: Is a directory"):
        hold_run(tmp_path, doing="search").__enter__()
    assert holder(tmp_path) is None


def test_a_file_system_without_locks_gives_one_warning_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)  # no file system here is without
    with caplog.at_level(logging.WARNING), hold_run(tmp_path, doing="search"):
        assert share_run(tmp_path) is None
        assert holder(tmp_path) is None
    assert [record.name for record in caplog.records] == ["mixtune"]
    assert f"{tmp_path} is not protected" in caplog.text


@pytest.mark.parametrize("name", [DRIVER_LOCK, TRIALS_LOCK])
def test_a_lock_is_a_regular_file_and_no_link(tmp_path: Path, name: str) -> None:
    (victim := tmp_path / "victim").write_text("precious")
    (run := tmp_path / "run").mkdir()
    (run / "space.yaml").write_text("objectives: {val_accuracy: max}")
    (run / "ledger.jsonl").touch()
    lock = run / name

    def open_all() -> None:
        with pytest.raises(RequestError, match=rf"run/{re.escape(name)} cannot be opened: \w"):
            hold_run(run, "confirm").__enter__()
        with pytest.raises(RequestError, match=rf"run/{re.escape(name)} cannot be opened: \w"):
            clean_run(run, None)
        assert name == DRIVER_LOCK or share_run(run) is None
        assert holder(run) is None

    for target in (victim, tmp_path / "new"):
        lock.symlink_to(target)
        open_all()
        lock.unlink()
    os.mkfifo(lock)
    open_all()
    lock.unlink()
    lock.mkdir()
    open_all()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()


# --- folders of other commands


def test_a_folder_is_held_by_one_process_and_known_again(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    writer = start(WRITER, folder)
    said = re.escape(f"{folder} is in use by process {writer.pid} on {platform.node()} (train since ")
    with pytest.raises(RequestError, match=said), hold_folder(folder, "train"):
        pass
    with pytest.raises(RequestError, match=r"holds \.mixtune-train\.json, which no export wrote: choose another"):
        hold_folder(folder, "export").__enter__()
    kill(writer)
    (folder / ".recipe.yaml.0123abcd.999999.tmp").touch()
    (folder / "notes.txt").touch()
    for _ in range(2):
        with hold_folder(folder, "train"):
            assert sorted(os.listdir(folder)) == [".mixtune-train.json", "notes.txt"]


def test_a_marker_that_is_no_file_is_not_opened(tmp_path: Path) -> None:
    (victim := tmp_path / "victim").write_text("precious")
    (folder := tmp_path / "folder").mkdir()
    marker = folder / ".mixtune-train.json"
    marker.symlink_to(victim)
    with pytest.raises(RequestError, match=r"mixtune-train\.json cannot be opened: it is a link$"):
        hold_folder(folder, "train").__enter__()
    marker.unlink()
    os.mkfifo(marker)
    with pytest.raises(RequestError, match=r"mixtune-train\.json cannot be opened: it is not a regular file$"):
        hold_folder(folder, "train").__enter__()
    assert victim.read_text() == "precious"
