"""Whatever ends a search, it continues; a short version of benchmarks/reliability.py: faults, damage, a cut ledger."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from plain_search import search_here

import mixtune
from mixtune.run.status import run_status


@pytest.fixture(scope="module")
def harness(disturbances: SimpleNamespace) -> Iterator[Any]:
    with disturbances.searches.make_harness() as harness:
        yield harness


@pytest.fixture(scope="module")
def undisturbed(disturbances: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished search of four trials, by a plain loop in this process, with its figures."""
    options = {"search": {"trials": 4, "sampler": "random"}, "resources": {"cpus_per_trial": 1.5}}
    space = disturbances.searches.small_space(epochs=6, **options)
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    search_here(space, run)
    return disturbances.checks.Undisturbed(space, run, disturbances.checks.read_figures(run), startup=0.0, seconds=0.0)


JOB = -signal.SIGTERM  # to all processes, as a batch system sends it


def test_a_search_continues_whatever_ended_it(disturbances: SimpleNamespace, harness: Any, undisturbed: Any) -> None:
    """SIGKILL, then every checkpoint and table damaged; Ctrl-C; SIGTERM, and to the whole job; SIGUSR1: at its end it
    is what the plain loop finds.

    SIGTERM has a grace period, in which the running trial's epoch is stored. The last start goes round again by itself:
    two of Ray's own processes are killed under it.
    """
    folder = harness.new_run("ended")
    folder.mkdir()
    (folder / "space.yaml").write_text(yaml.safe_dump(undisturbed.space, sort_keys=False))
    run, words = folder / "run", ["search", "space.yaml", "--gpus", "0", "--out", "run"]
    for starts, end in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, JOB, None), start=1):
        driver = subprocess.Popen(
            [str(Path(sys.executable).with_name("mixtune")), *words, "--grace", "4m"],
            cwd=folder,
            env=harness.environment | {"CUDA_VISIBLE_DEVICES": ""},
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run by nohup
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        words = ["resume", "run"]
        wait_for_an_epoch(driver, run / "ledger.jsonl", starts)
        if end is JOB:  # Ray's processes get it, too
            for process in harness.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
        elif end is not None:
            driver.send_signal(end)
        else:
            for number, name in enumerate(("gcs_server", "raylet"), start=1):
                (process,) = (pid for pid, command in harness.processes().items() if f"/{name} " in command)
                os.kill(process, signal.SIGKILL)
                wait_for_an_epoch(driver, run / "ledger.jsonl", number, ' has ended", "cause"')
        out, err = driver.communicate(timeout=240)
        if end is signal.SIGKILL:
            disturbances.damage.damage_states(run / "stages", random.Random(3))
            for name in ("study.db", "trials.csv", "pareto.csv"):
                (run / name).write_bytes(b"half")
        elif end is not None:
            assert driver.returncode == 130, (end, out, err)
            assert err.strip().splitlines()[-1] == "mixtune: interrupted; to continue: mixtune resume run"
            assert "Traceback" not in out + err
            assert "SIGTERM" not in out + err
            assert (run / "trials.csv").exists()  # of an earlier start, where Ray's head was gone first
            if end is signal.SIGTERM:  # every epoch that an unfinished trial has trained
                records = [
                    r for r in mixtune.load(run).records.values() if r.state in ("asked", "running") and r.epochs
                ]
                assert [max(r.stored) for r in records] == [r.epochs[-1]["epoch"] for r in records]
            status = run_status(mixtune.load(run), None)
            assert status.state == "interrupted"
            assert f"mixtune resume {run}" in status.commands()
    assert driver.returncode == 0, err
    for words in ("Ray's head process (gcs_server)", "Ray's process for this machine (raylet)"):
        assert f"{words} has ended: the search goes round again from what is stored\n" in out
    assert undisturbed.check(run) == []
    assert disturbances.checks.litter(run) == []
    assert harness.left_behind() == []


def wait_for_an_epoch(driver: subprocess.Popen[str], ledger: Path, starts: int, start: str = '"opened"') -> None:
    """Wait until a driver's search has begun, the so manyth of its run, and has trained an epoch."""
    deadline = time.monotonic() + 240
    while True:
        text = ledger.read_text() if ledger.exists() else ""
        if text.count(start) == starts and '"epoch"' in text.rpartition(start)[2]:
            return
        assert time.monotonic() < deadline
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)


def test_damaged_states_are_never_taken_for_whole_ones(disturbances: SimpleNamespace, undisturbed: Any) -> None:
    rows = disturbances.damage.check_damaged_store(undisturbed, 30, random.Random(1), print)
    assert [problem for row in rows for problem in row.problems] == []
    assert [row.times for row in rows] == [30, 4]


def test_readers_of_a_cut_ledger_see_a_prefix(disturbances: SimpleNamespace, undisturbed: Any) -> None:
    assert disturbances.damage.cut_ledger(undisturbed, 10, random.Random(1), print).problems == []


def test_faults_end_as_they_should(disturbances: SimpleNamespace, harness: Any) -> None:
    """A GPU's memory that is full, a killed worker, and the machine's memory: then fewer trials run at once."""
    fault = disturbances.faults.Fault
    faults = [fault("full", always=False), fault("oom", always=False), fault("kill", always=False)]
    try:
        with disturbances.faults.memory_group():
            pass
    except OSError:  # not root, say
        del faults[0]
    wanted = disturbances.faults.train_undisturbed(disturbances.faults.fault_space(faults)[0])
    assert disturbances.faults.inject(harness, faults, 3, wanted, random.Random(1)) == []


@pytest.mark.parametrize(
    ("found", "words"), [({"t0001": {"figures": 1}}, "differs from the undisturbed run"), ({}, "is lost")]
)
def test_what_is_lost_or_other_is_said(disturbances: SimpleNamespace, found: dict[str, Any], words: str) -> None:
    (line,) = disturbances.checks.differences({"t0001": {"figures": 2}}, found)
    assert words in line
