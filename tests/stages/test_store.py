"""Stored states come back bit for bit or not at all, whatever happens to files, disks and processes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from same_bits import assert_equal_bits

from mixtune.stages import store as store_module
from mixtune.stages.store import StateStore
from mixtune.training.loop import train

KEYS = [f"{number:040x}" for number in range(8)]


def made(number, size=1000):
    """A small state, another for each number."""
    weights = torch.rand(size, generator=torch.Generator().manual_seed(number))
    return {"backbone": {"weights": weights}, "history": [{"epoch": number, "ssl_loss": None, "betas": (0.9, 0.95)}]}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def age(store, key, seconds):
    """Let a state look as if it was last used so long ago."""
    then = time.time() - seconds
    os.utime(store.folder / f"{key}.state", (then, then))


def assert_one_warning(caplog, reason):
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert reason in record.getMessage()


# --- there and back


def test_a_real_state_comes_back_bit_for_bit_and_alone(make_state, tmp_path):
    state = make_state({"epochs.ssl": 2, "epochs.sl": 2})
    list(train(state))
    store = StateStore(tmp_path / "new" / "states")
    assert KEYS[0] not in store
    assert store.load(KEYS[0]) is None
    assert store.save(KEYS[0], state.state_dict())
    assert KEYS[0] in store
    assert_equal_bits(state.state_dict(), store.load(KEYS[0]))
    assert names(store.folder) == [f"{KEYS[0]}.state"]
    assert store.sizes() == {KEYS[0]: (store.folder / f"{KEYS[0]}.state").stat().st_size}
    store.remove(KEYS[0])
    store.remove(KEYS[0])
    assert names(store.folder) == []


def test_a_file_of_the_first_version_loads(tmp_path):
    """A line with the digest of key and content, then what torch.save wrote."""
    packed = io.BytesIO()
    torch.save(made(0), packed)
    digest = hashlib.sha256(KEYS[0].encode() + packed.getvalue()).hexdigest()
    (tmp_path / f"{KEYS[0]}.state").write_bytes(f"{digest}\n".encode() + packed.getvalue())
    assert_equal_bits(StateStore(tmp_path).load(KEYS[0]), made(0))


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
    """Yield (what, bytes): cut and flipped at ten places each, and what else disks do."""
    for cut in range(0, len(content), len(content) // 10):
        yield f"cut at {cut}", content[:cut]
        yield f"flipped at {cut}", content[:cut] + bytes([content[cut] ^ 1]) + content[cut + 1 :]
    yield "longer", content + b"\0"
    yield "zeros", bytes(len(content))


def test_a_damaged_file_is_dropped_with_a_warning(tmp_path, caplog):
    store = StateStore(tmp_path)
    store.save(KEYS[0], made(0))
    path = tmp_path / f"{KEYS[0]}.state"
    whole = path.read_bytes()
    for what, content in damaged_files(whole):
        path.write_bytes(content)
        caplog.clear()
        assert store.load(KEYS[0]) is None, what
        assert names(tmp_path) == [], what
        assert_one_warning(caplog, f"{path} was damaged (its digest is not that of its content)")
    path.with_name(f"{KEYS[1]}.state").write_bytes(whole)  # under another's key
    assert store.load(KEYS[1]) is None
    assert store.save(KEYS[0], made(0))
    assert_equal_bits(store.load(KEYS[0]), made(0))


def test_a_state_of_another_kind_or_that_would_grow_in_memory_is_set_aside(tmp_path, caplog):
    store = StateStore(tmp_path)
    for key, content in ((KEYS[1], [1, 2]), (KEYS[2], {"zeros": torch.zeros(10**6)})):
        packed = io.BytesIO()
        torch.save(content, packed)
        if key == KEYS[2]:
            whole, packed = zipfile.ZipFile(packed), io.BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
                for item in whole.infolist():
                    small.writestr(item.filename, whole.read(item))
            assert len(packed.getvalue()) < 10**5
        assert store.receive(key, store_module._header(key, packed.getvalue()) + packed.getvalue())
        assert store.load(key) is None
        assert key not in store
    assert [message.split("(")[1].split(")")[0] for message in caplog.messages] == [
        "it is no state",
        "this PyTorch does not read it as tensors and plain values",
    ]


def test_what_is_neither_tensor_nor_plain_value_does_not_come_back(tmp_path, caplog):
    store = StateStore(tmp_path)
    assert store.save(KEYS[0], {"backbone": Path("anything")})
    assert store.load(KEYS[0]) is None
    assert_one_warning(caplog, "tensors and plain values")


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


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (small_files, "cannot be written: File too large"),
        (little_room, "no space left on the disk"),
        (no_folder, "cannot be made: File exists"),
    ],
)
def test_what_cannot_be_written_costs_reuse_and_one_warning(tmp_path, caplog, trouble, reason):
    folder = tmp_path / "states"
    store = StateStore(folder)
    assert store.save(KEYS[0], made(0))
    with trouble(folder):
        assert [store.save(key, made(0, size=50_000)) for key in KEYS[1:4]] == [False] * 3
        held = store.load(KEYS[0])
        assert store.load(KEYS[1]) is None
        StateStore(folder)
    assert_one_warning(caplog, reason)
    assert_equal_bits(held, None if trouble is no_folder else made(0))
    assert names(folder) == [f"{KEYS[0]}.state"]
    assert store.save(KEYS[1], made(1, size=50_000))
    assert_equal_bits(store.load(KEYS[1]), made(1, size=50_000))


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


def test_a_state_larger_than_the_bound_evicts_nothing(tmp_path, caplog):
    store = StateStore(tmp_path, max_bytes=50_000)
    store.save(KEYS[0], made(0))
    assert not store.save(KEYS[1], made(1, size=50_000))
    assert_one_warning(caplog, "50,000")
    assert list(store.sizes()) == [KEYS[0]]


# --- processes

WRITER = """
import sys
import torch
from mixtune.stages.store import StateStore
states = [torch.rand(20_000, generator=torch.Generator().manual_seed(number)) for number in range(3)]
print("ready", flush=True)
sys.stdin.readline()
for round in range(40):
    for number, weights in enumerate(states):
        store = StateStore(sys.argv[1], max_bytes=180_000)  # two states
        assert store.save(f"{number:040x}", {"weights": weights})
        held = store.load(f"{number:040x}")
        assert held is None or torch.equal(held["weights"], weights)
        if number == 2:
            store.remove(f"{number:040x}")
"""


def test_processes_that_write_read_and_evict_the_same_keys_do_no_harm(tmp_path):
    command, pipe = [sys.executable, "-c", WRITER, str(tmp_path)], subprocess.PIPE
    writers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n", writer.stderr.read()
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        assert (*writer.communicate(), writer.returncode) == ("", "", 0)  # a warning would be an error here
    assert all(name.endswith(".state") for name in names(tmp_path))


def test_what_a_killed_writer_left_goes(tmp_path):
    dead, living = (tmp_path / f".{KEYS[0]}.state.{process}.tmp" for process in (2**22 + 1, os.getpid()))
    dead.touch()
    living.touch()
    StateStore(tmp_path)
    assert names(tmp_path) == [living.name]
