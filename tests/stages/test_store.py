"""Stored states come back bit for bit or not at all, whatever happens to files, disks and processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from mixtune.stages import store as store_module
from mixtune.stages.keys import stage_keys
from mixtune.stages.store import KEPT_DAMAGED, StateStore
from mixtune.training.loop import train

KEYS = [f"{number:040x}" for number in range(8)]


def made(number, size=1000):
    """A small state, another for each number."""
    weights = torch.rand(size, generator=torch.Generator().manual_seed(number))
    return {"backbone": {"weights": weights}, "history": [{"epoch": number, "ssl_loss": None, "betas": (0.9, 0.95)}]}


def same_bits(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same_bits, one, other))
    return type(one) is type(other) and one == other


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def age(store, key, seconds):
    """Let a state look as if it was last used so long ago."""
    then = time.time() - seconds
    os.utime(store.folder / f"{key}.state", (then, then))


# --- there and back


def test_a_real_state_comes_back_bit_for_bit_and_alone(make_state, tmp_path):
    state = make_state({"epochs.ssl": 2, "epochs.sl": 2})
    list(train(state))
    store = StateStore(tmp_path / "new" / "states")
    assert KEYS[0] not in store
    assert store.load(KEYS[0]) is None
    assert store.save(KEYS[0], state.state_dict())
    assert KEYS[0] in store
    assert same_bits(state.state_dict(), store.load(KEYS[0]))
    assert names(store.folder) == [f"{KEYS[0]}.state"]
    assert store.sizes() == {KEYS[0]: (store.folder / f"{KEYS[0]}.state").stat().st_size}
    store.remove(KEYS[0])
    store.remove(KEYS[0])
    assert names(store.folder) == []


LONG = {"epochs.ssl": 4, "epochs.sl": 4, "rho": 0.5, "model.depth": 1}  # two epochs of each phase


def test_a_training_goes_on_from_the_longest_stored_prefix_bit_for_bit(make_state, tmp_path):
    store = StateStore(tmp_path)
    first, whole, other = make_state(LONG), make_state({**LONG, "alpha": 0.9}), make_state({**LONG, "alpha": 0.9})
    keys = stage_keys(first.recipe, first.data)
    assert store.longest(keys) is None
    for result in train(first):
        store.save(keys[result.epoch], first.state_dict())
    assert store.longest(keys)[0] == 6

    list(train(whole))
    epochs, held = store.longest(stage_keys(other.recipe, other.data))
    assert epochs == 2  # alpha comes into play with the mix phase
    other.load_state_dict(held)
    assert [result.epoch for result in train(other)] == [3, 4, 5, 6]
    for part in ("backbone", "objective", "classifiers", "optimizer"):
        assert same_bits(whole.state_dict()[part], other.state_dict()[part])
    assert [(r.sl_loss, r.accuracies) for r in whole.history] == [(r.sl_loss, r.accuracies) for r in other.history]

    path = store.folder / f"{keys[6]}.state"
    path.write_bytes(path.read_bytes()[:-1])
    assert store.longest(keys)[0] == 5


def test_a_state_that_is_there_is_not_written_again(tmp_path):
    store = StateStore(tmp_path)
    store.save(KEYS[0], made(0))
    path = tmp_path / f"{KEYS[0]}.state"
    age(store, KEYS[0], 100)
    before = path.stat()
    assert store.save(KEYS[0], made(0))
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime > before.st_mtime + 50  # but it counts as used


# --- damage


def damaged_files(content):
    """Yield (what, bytes): cut at every fiftieth, one bit flipped at as many places, and what else disks do."""
    for part in range(50):
        cut = len(content) * part // 50
        yield f"cut at {cut}", content[:cut]
        flipped = bytearray(content)
        flipped[cut] ^= 1
        yield f"flipped at {cut}", bytes(flipped)
    yield "a byte short", content[:-1]
    yield "longer", content + b"\0"
    yield "zeros", bytes(len(content))
    yield "garbage", bytes(torch.randint(0, 256, (len(content),), dtype=torch.uint8).tolist())


def test_a_damaged_file_is_absent_and_set_aside_with_a_warning(tmp_path, caplog):
    store = StateStore(tmp_path)
    store.save(KEYS[0], made(0))
    path = tmp_path / f"{KEYS[0]}.state"
    for what, content in damaged_files(path.read_bytes()):
        path.write_bytes(content)
        caplog.clear()
        assert store.load(KEYS[0]) is None, what
        assert KEYS[0] not in store, what
        assert (tmp_path / f"{KEYS[0]}.damaged").read_bytes() == content
        [record] = caplog.records
        assert str(path) in record.getMessage()
        assert "digest" in record.getMessage()
        assert store.save(KEYS[0], made(0))
        assert same_bits(store.load(KEYS[0]), made(0))


def test_a_file_under_another_key_is_damaged(tmp_path):
    store = StateStore(tmp_path)
    store.save(KEYS[0], made(0))
    os.rename(tmp_path / f"{KEYS[0]}.state", tmp_path / f"{KEYS[1]}.state")
    assert store.load(KEYS[1]) is None


def test_what_is_neither_tensor_nor_plain_value_does_not_come_back(tmp_path, caplog):
    store = StateStore(tmp_path)
    assert store.save(KEYS[0], {"backbone": Path("anything")})
    assert store.load(KEYS[0]) is None
    assert "tensors and plain values" in caplog.text


def test_the_latest_few_damaged_files_are_kept(tmp_path):
    store = StateStore(tmp_path)
    for number, key in enumerate(KEYS):
        (tmp_path / f"{key}.state").write_bytes(b"")
        store.load(key)
        os.utime(tmp_path / f"{key}.damaged", (number, number))
    assert names(tmp_path) == [f"{key}.damaged" for key in KEYS[-KEPT_DAMAGED:]]


# --- disks


@contextlib.contextmanager
def small_files(folder):
    """No file may become larger than 20 kB: a write breaks off in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only_folder(folder):
    """Nothing may be made in the folder, or touched; whoever may do all becomes nobody for a while."""
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


@contextlib.contextmanager
def no_folder(folder):
    """The folder's name is a file's."""
    folder.rename(folder.with_name("away"))
    folder.write_text("in the way")
    yield
    folder.unlink()
    folder.with_name("away").rename(folder)


@contextlib.contextmanager
def little_room(folder):
    """Less of the disk is free than has to stay free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "KEPT_FREE", 2**62)
        yield


@pytest.fixture
def open_folder():
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "states").mkdir()
        yield Path(name) / "states"


def assert_one_warning(caplog, reason):
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert reason in record.getMessage()


@pytest.mark.parametrize(
    ("trouble", "reason", "readable"),
    [
        (small_files, "File too large", True),
        (read_only_folder, "denied", True),
        (little_room, "No space left", True),
        (no_folder, "File exists", False),
    ],
)
def test_what_cannot_be_written_costs_reuse_and_one_warning(open_folder, caplog, trouble, reason, readable):
    store = StateStore(open_folder)
    assert store.save(KEYS[0], made(0))
    with trouble(open_folder):
        assert [store.save(key, made(0, size=50_000)) for key in KEYS[1:4]] == [False] * 3
        held = store.load(KEYS[0])
        absent = store.load(KEYS[1])
        StateStore(open_folder)
    assert_one_warning(caplog, reason)
    assert same_bits(held, made(0)) if readable else held is None
    assert absent is None
    assert names(open_folder) == [f"{KEYS[0]}.state"]
    assert store.save(KEYS[1], made(1, size=50_000))
    assert same_bits(store.load(KEYS[1]), made(1, size=50_000))


def test_a_disk_that_fills_up_in_the_middle_of_a_write(tmp_path, caplog, monkeypatch):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], stderr=subprocess.DEVNULL
    ).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        monkeypatch.setattr(store_module, "KEPT_FREE", -(2**62))  # or it would not begin
        store = StateStore(tmp_path)
        assert store.save(KEYS[0], made(0))
        assert not store.save(KEYS[1], made(1, size=50_000))
        assert_one_warning(caplog, "No space left")
        assert names(tmp_path) == [f"{KEYS[0]}.state"]
        assert same_bits(store.load(KEYS[0]), made(0))
        assert store.save(KEYS[2], made(2))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- the bound


def test_states_that_were_not_used_for_longest_go_first(tmp_path):
    StateStore(tmp_path).save(KEYS[0], made(0))
    size = StateStore(tmp_path).sizes()[KEYS[0]]
    store = StateStore(tmp_path, max_bytes=3 * size + 500)
    for number in (1, 2):
        store.save(KEYS[number], made(number))
    for number in range(3):
        age(store, KEYS[number], seconds=30 - number)
    assert list(store.sizes()) == KEYS[:3]
    store.load(KEYS[0])
    assert list(store.sizes()) == [KEYS[1], KEYS[2], KEYS[0]]
    store.save(KEYS[3], made(3))
    assert set(store.sizes()) == {KEYS[0], KEYS[2], KEYS[3]}


def test_pinned_states_and_the_one_just_written_stay(tmp_path):
    StateStore(tmp_path).save(KEYS[0], made(0))
    size = StateStore(tmp_path).sizes()[KEYS[0]]
    pins = {KEYS[0]}
    store = StateStore(tmp_path, max_bytes=2 * size + 500, pinned=lambda: pins)
    for number in (1, 2, 3):
        store.save(KEYS[number], made(number))
        age(store, KEYS[0], seconds=1000)
        assert set(store.sizes()) == {KEYS[0], KEYS[number]}
    pins.add(KEYS[3])
    store.save(KEYS[4], made(4))
    assert set(store.sizes()) == {KEYS[0], KEYS[3], KEYS[4]}
    pins.clear()
    store.save(KEYS[5], made(5))
    assert len(store.sizes()) == 2
    assert KEYS[5] in store


def test_damaged_files_count_and_go_before_states(tmp_path):
    StateStore(tmp_path).save(KEYS[0], made(0))
    size = StateStore(tmp_path).sizes()[KEYS[0]]
    store = StateStore(tmp_path, max_bytes=3 * size + 500)
    (tmp_path / f"{KEYS[1]}.state").write_bytes(bytes(size))
    store.load(KEYS[1])
    for number in (2, 3):
        store.save(KEYS[number], made(number))
    assert names(tmp_path) == [f"{KEYS[number]}.state" for number in (0, 2, 3)]


def test_a_state_larger_than_the_bound_evicts_nothing(tmp_path, caplog):
    store = StateStore(tmp_path, max_bytes=50_000)
    store.save(KEYS[0], made(0))
    assert not store.save(KEYS[1], made(1, size=50_000))
    assert_one_warning(caplog, "50,000")
    assert list(store.sizes()) == [KEYS[0]]


# --- processes

WRITER = """
import sys, time
import torch
from mixtune.stages.store import StateStore
folder, size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
states = [torch.rand(size, generator=torch.Generator().manual_seed(number)) for number in range(3)]
print("ready", flush=True)
sys.stdin.readline()
stop = time.monotonic() + seconds
while time.monotonic() < stop:
    for number, weights in enumerate(states):
        store = StateStore(folder, max_bytes=9 * size)  # two states
        assert store.save(f"{number:040x}", {"weights": weights})
        held = store.load(f"{number:040x}")
        assert held is None or torch.equal(held["weights"], weights)
        if number == 2:
            store.remove(f"{number:040x}")
print("done", flush=True)
"""


def start_writer(folder, size, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(size), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def let_write(writers):
    """Let processes begin at the same time."""
    for writer in writers:
        assert writer.stdout.readline() == "ready\n", writer.stderr.read()
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()


def test_processes_that_write_read_and_evict_the_same_keys_do_no_harm(tmp_path):
    writers = [start_writer(tmp_path, size=20_000, seconds=0.7) for _ in range(2)]
    let_write(writers)
    for writer in writers:
        out, errors = writer.communicate(timeout=60)
        assert (out, errors, writer.returncode) == ("done\n", "", 0)  # a warning would be an error here
    assert all(name.endswith(".state") for name in names(tmp_path))


def test_a_killed_writer_leaves_no_half_state_and_its_file_is_removed(tmp_path, caplog):
    writer = start_writer(tmp_path, size=4_000_000, seconds=60)
    let_write([writer])
    begun = []
    while not begun:
        writer.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED)
        begun = [path for path in tmp_path.glob(".*.tmp") if path.stat().st_size]
        if not begun:
            writer.send_signal(signal.SIGCONT)
            time.sleep(0.002)
    writer.kill()
    writer.communicate()
    assert names(tmp_path)[0] == begun[0].name
    store = StateStore(tmp_path)
    assert names(tmp_path) == [f"{key}.state" for key in sorted(store.sizes())]
    for key in store.sizes():
        weights = torch.rand(4_000_000, generator=torch.Generator().manual_seed(int(key)))
        assert torch.equal(store.load(key)["weights"], weights)
    assert not caplog.records


def test_the_files_of_living_writers_stay(tmp_path):
    written, starting, dead = (tmp_path / f".{name}.tmp" for name in ("written", "starting", "dead"))
    for path in (starting, dead):
        path.touch()
    os.utime(dead, (0, 0))
    with written.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"half")
        file.flush()
        StateStore(tmp_path)
        assert names(tmp_path) == [".starting.tmp", ".written.tmp"]
    StateStore(tmp_path)
    assert names(tmp_path) == [".starting.tmp"]
