"""The latency meter: who may use the device when, what a step time belongs to, and that bits stay the same."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import combinations, count, product
from threading import Thread

import numpy as np
import pytest
import torch
from same_bits import assert_equal_bits

from mixtune.errors import TrainingError
from mixtune.meter.lock import DeviceLock, stopped_holders
from mixtune.meter.times import DRIFT, LATER_S, LOOKS, SPREAD, WINDOWS, StepTimes
from mixtune.meter.windows import MAX_DISTURBED, SETTLE_STEPS, WARM_UP_STEPS, WINDOW_STEPS, Meter, Moment, place_windows
from mixtune.training.loop import train

# real processes, each forked from one clean process that has imported what they need
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "mixtune.training.loop", "mixtune.meter.windows"])
LIMIT_S = 120  # a lock that hangs fails the test instead of hanging it
STEP_S = 0.002


@pytest.fixture(autouse=True)
def _limit():
    def fail(*_):
        raise TimeoutError(f"still waiting after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "device")


@contextmanager
def started(target, *args, count=1):
    """Run ``count`` processes, none of which outlives the test, nor the process that runs the test."""
    processes = [PROCESSES.Process(target=run_guarded, args=(target, *args)) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def run_guarded(target, *args):
    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()
    target(*args)


def await_exit(processes):
    for process in processes:
        process.join(LIMIT_S)
        assert process.exitcode == 0


def await_true(condition, what):
    """Wait for a condition, however long a busy machine takes."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"after {LIMIT_S} s: {what}"
        time.sleep(0.001)


def write(log, kind, began):
    """Append (kind, process, began, ended), on the clock that all processes share, in one write."""
    os.write(log, json.dumps([kind, os.getpid(), began, time.monotonic()]).encode() + b"\n")


def has_written(log_path, pid, entries):
    return log_path.read_text().count(f", {pid}, ") >= entries


def step_and_measure(path, log_path, windows, barrier, stop):
    """Step, offering at each boundary, until the windows are measured; where there are none, until told to stop."""
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    lock = DeviceLock(path)
    if barrier is not None:  # not where killed, maybe within it
        barrier.wait(LIMIT_S)
    with lock.shared():
        for offer in count(1):
            lock.offer()
            began = time.monotonic()
            time.sleep(STEP_S)
            write(log, "step", began)
            if windows and offer % 4 == 0:
                with lock.exclusive():
                    began = time.monotonic()
                    time.sleep(STEP_S)
                    write(log, "window", began)
                if offer == 4 * windows:
                    return
            if not windows and stop.is_set():
                return


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """What three steppers that never pause and three measurers of six windows each wrote, by process.

    {pid: [(kind, from, to), ...]} of steppers, of measurers, and of three measurers that were killed amid the others.
    """
    folder = tmp_path_factory.mktemp("crowd")
    paths, (barrier, stop) = (folder / "device", folder / "log"), (PROCESSES.Barrier(7), PROCESSES.Event())
    (folder / "log").touch()
    with (
        started(step_and_measure, *paths, 0, barrier, stop, count=3) as steppers,
        started(step_and_measure, *paths, 6, barrier, stop, count=3) as measurers,
        started(step_and_measure, *paths, 1000, None, None, count=3) as doomed,
    ):
        barrier.wait(LIMIT_S)
        for entries, pid in enumerate((process.pid for process in doomed), start=4):
            await_true(partial(has_written, folder / "log", pid, entries), "it wrote too little")
            os.kill(pid, signal.SIGKILL)
        await_exit(measurers)  # while the steppers continue
        stop.set()
        await_exit(steppers)
    entries = {process.pid: [] for process in (*steppers, *measurers, *doomed)}
    for line in (folder / "log").read_text().splitlines():
        kind, pid, *span = json.loads(line)
        entries[pid].append((kind, *span))
    pids = list(entries)
    return [{pid: entries[pid] for pid in group} for group in (pids[:3], pids[3:6], pids[6:])]


def all_of(kind, *groups):
    """Return (from, to, pid) of all steps or windows, by their time."""
    return sorted((e[1], e[2], pid) for group in groups for pid, own in group.items() for e in own if e[0] == kind)


def overlap(one, other):
    return one[0] < other[1] and other[0] < one[1]


def test_nobody_steps_or_measures_while_somebody_measures(crowd):
    windows, steps = all_of("window", *crowd), all_of("step", *crowd)
    assert not [pair for pair in combinations(windows, 2) if overlap(*pair)]
    assert not [pair for pair in product(windows, steps) if overlap(*pair)]


def test_steppers_step_side_by_side(crowd):
    steppers, _, _ = crowd
    for one, other in combinations(steppers, 2):
        pairs = product(all_of("step", {one: steppers[one]}), all_of("step", {other: steppers[other]}))
        assert any(overlap(*pair) for pair in pairs)


def test_every_measurer_gets_through_and_steppers_go_on_between_the_windows(crowd):
    steppers, measurers, _ = crowd
    assert [len(all_of("window", {pid: own})) for pid, own in measurers.items()] == [6, 6, 6]
    windows = all_of("window", measurers)
    between = {
        pid for began, ended, pid in all_of("step", steppers) if windows[0][1] < began and ended < windows[-1][0]
    }
    assert between == set(steppers)


def hold(path, how, end):
    """Hold the device until killed, or wait for it; a pipe that breaks ends it, and its child."""
    lock = DeviceLock(path)
    with lock.exclusive() if how in ("exclusive", "waiting") else lock.shared():
        child = os.fork() if how == "shared, with a child" else None
        if child != 0:
            end.send(child)
        with suppress(EOFError):
            end.recv()
        os._exit(0)


def test_a_killed_holder_frees_the_device_though_a_child_of_it_lives(path):
    lock = DeviceLock(path)
    for how in ("shared", "exclusive", "shared, with a child"):
        here, there = PROCESSES.Pipe()
        with here, there, started(hold, path, how, there) as (holder,):
            assert here.poll(LIMIT_S)
            child = here.recv()
            try:
                os.kill(holder.pid, signal.SIGKILL)
                with lock.exclusive():
                    assert child is None or os.kill(child, 0) is None  # alive
                with lock.shared():
                    lock.offer()
            finally:
                if child is not None:
                    os.kill(child, signal.SIGKILL)


def test_a_measurer_that_is_killed_while_it_waits_opens_the_gate(path):
    lock = DeviceLock(path)
    here, there = PROCESSES.Pipe()
    with here, there, lock.shared(), started(hold, path, "waiting", there) as (measurer,):
        await_shut_gate(path)
        assert not here.poll(0)  # it waits for this process
        os.kill(measurer.pid, signal.SIGKILL)
        lock.offer()  # would wait for ever behind a gate that stays shut
        with lock.exclusive():
            pass


def test_who_waits_for_a_stopped_process_says_which_it_is(tmp_path, monkeypatch):
    """Suspended by Ctrl-Z, say; it is named once it was waited for, and continued as the line says."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("mixtune.meter.lock.STOPPED_S", 0.1)
    path, said = str(tmp_path / f"mixtune-{os.getuid()}-cpu"), []
    here, there = PROCESSES.Pipe()

    class Terminal(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())
            os.kill(holder.pid, signal.SIGCONT)
            os.kill(holder.pid, signal.SIGKILL)

    terminal = Terminal()
    logging.getLogger("mixtune").addHandler(terminal)
    try:
        with here, there, started(hold, path, "exclusive", there) as (holder,):
            assert here.poll(LIMIT_S)
            os.kill(holder.pid, signal.SIGSTOP)
            await_true(lambda: stopped_holders(), "it does not stop")
            with DeviceLock(path).shared():
                pass
            (line,) = said
            assert f"kill -CONT {holder.pid} lets it continue" in line
    finally:
        logging.getLogger("mixtune").removeHandler(terminal)
    assert stopped_holders() == {}


def await_shut_gate(path):
    """Wait until a measurer has the gate."""
    with open(f"{path}.gate", "r+") as gate:

        def is_shut():
            try:
                fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(gate, fcntl.LOCK_UN)
            return False

        await_true(is_shut, "nobody came to the gate")


def measure_once(path):
    with DeviceLock(path).exclusive():
        time.sleep(0.05)


def test_an_offer_waits_for_the_device_and_the_measurer_only_where_there_is_a_measurer(path):
    synchronised = []
    lock = DeviceLock(path, lambda: synchronised.append(1))
    with lock.shared():
        lock.offer()
        with open(f"{path}.gate") as gate:  # another stepper, that offers or goes in just now
            fcntl.flock(gate, fcntl.LOCK_SH)
            lock.offer()
        assert not synchronised
        before = lock.waited
        with started(measure_once, path) as (measurer,):
            await_shut_gate(path)
            lock.offer()
            await_exit([measurer])
        assert len(synchronised) == 1
        assert lock.waited - before > 0.04
    assert len(synchronised) == 2  # what is queued is done before the device is given back


def try_exclusive(path, answer):
    with closing(answer):
        for end in ("gate", "device"):
            file = os.open(f"{path}.{end}", os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                answer.send("free")
            except BlockingIOError:
                answer.send("held")


def seen_from_outside(path):
    """Return whether (gate, device) are held, as another process sees it."""
    here, there = PROCESSES.Pipe()
    with here, there, started(try_exclusive, path, there) as processes:
        await_exit(processes)
        return here.recv(), here.recv()


def test_a_lock_counts_the_seconds_in_which_the_device_is_used(path):
    lock = DeviceLock(path)
    assert lock.used == 0.0
    began = time.perf_counter()
    with lock.shared():
        inside = time.perf_counter()
        time.sleep(STEP_S)
        least, used, most = time.perf_counter() - inside, lock.used, time.perf_counter() - began
        assert least <= used <= most
    used = lock.used
    assert least <= used <= time.perf_counter() - began
    time.sleep(STEP_S)
    assert lock.used == used


def test_stretches_nest_and_windows_within_them_come_back_to_them(path):
    lock = DeviceLock(path)
    with lock.shared():
        with lock.shared(), pytest.raises(KeyError), lock.exclusive():
            raise KeyError
        assert seen_from_outside(path) == ("free", "held")
    assert seen_from_outside(path) == ("free", "free")
    with lock.exclusive():
        assert seen_from_outside(path) == ("held", "held")


def test_a_device_that_fails_to_synchronise_is_given_back_nevertheless(path):
    def fail():
        raise RuntimeError("CUDA error")

    lock = DeviceLock(path, fail)
    with pytest.raises(RuntimeError, match="CUDA error"), lock.shared(), lock.exclusive():
        pass
    assert seen_from_outside(path) == ("free", "free")


def test_a_lock_that_cannot_be_opened_says_where_and_what_to_do(tmp_path):
    with pytest.raises(TrainingError, match=r"none/cpu\.gate cannot be opened \(No such file.*set TMPDIR"):
        DeviceLock(tmp_path / "none" / "cpu")


def test_the_lock_of_the_cpu_lies_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    DeviceLock.of.__func__.cache_clear()  # one a process otherwise
    with DeviceLock.of(torch.device("cpu")).shared():
        names = sorted(file.name for file in tmp_path.iterdir())
    DeviceLock.of.__func__.cache_clear()
    assert names == [f"mixtune-{os.getuid()}-cpu-{os.uname().nodename}.{end}" for end in ("device", "gate")]


def test_windows_are_whole_apart_past_the_warm_up_and_spread_over_the_epoch():
    for steps, missing in product((1, 2, 3, 4, 7, 8, 12, 13, 17, 18, 19, 100, 175), range(WINDOWS + 1)):
        windows = place_windows(steps, missing)
        covered = [step for window in windows for step in window]
        assert covered == sorted(set(covered)), (steps, missing)
        assert set(covered) <= set(range(steps)), (steps, missing)
        timed = steps - min(WARM_UP_STEPS, steps // 2)
        whole = SETTLE_STEPS + WINDOW_STEPS
        assert len(windows) == min(
            missing, max(1, timed // whole)
        )  # one that is settled, rather than three that are not
        assert all(window.start >= steps - timed for window in windows), (steps, missing)
        assert {len(window) for window in windows} <= {min(whole, timed)}, (steps, missing)
    assert place_windows(103, 3) == [range(16, 22), range(49, 55), range(83, 89)]


def test_a_step_time_is_the_median_of_three_windows_and_then_fixed():
    times = StepTimes()
    assert math.isnan(times.step_time("a"))
    assert times.missing("a") == 3
    for seconds, median in [(3.0, 3.0), (1.0, 2.0), (1.5, 1.5), (0.1, 1.5), (9.0, 1.5)]:
        times.add("a", seconds)
        assert times.step_time("a") == median
    assert times.missing("a") == 0
    assert times.windows == {"a": [3.0, 1.0, 1.5]}


def test_the_error_of_a_step_time_holds_the_drift_and_the_scatter_of_its_windows():
    times = StepTimes({"one": [2.0], "three": [2.0, 2.0, 2.0], "apart": [1.0, 2.0, 3.0]})
    times.add("noisy", 9.0, quiet=False)
    assert times.error("one") == pytest.approx(2.0 * math.hypot(DRIFT, SPREAD))
    assert 2.0 * DRIFT < times.error("three") < times.error("one") < times.error("apart")
    assert math.isnan(times.error("noisy"))  # nobody knows by how much others slowed it
    assert math.isnan(times.error("unknown"))
    assert times.error_of({"one": 3.0, "three": -4.0}) == math.hypot(3 * times.error("one"), 4 * times.error("three"))
    assert times.error_of({"one": 0.0, "noisy": 0.0}) == 0.0  # what two recipes have in common
    assert math.isnan(times.error_of({"one": 3.0, "noisy": 1.0}))


def test_a_stated_error_is_what_measuring_again_minutes_later_differs_by():
    """Windows that scatter within a turn, on a machine that drifts between turns: two of three within one error."""
    draw, within = np.random.default_rng(0), 0
    for _ in range(2000):
        machine = 1.0 + DRIFT * draw.standard_normal()
        times = StepTimes({"a": machine * (1.0 + SPREAD * draw.standard_normal(3))})
        within += abs(times.step_time("a") - 1.0) < times.error("a")
    assert within / 2000 == pytest.approx(0.683, abs=0.04)


def test_the_drift_is_what_step_times_scatter_by_from_moment_to_moment():
    """By hand: the moments of two signatures, and what is known beforehand counts LOOKS times."""
    times = StepTimes({"a": [1.0, 1.0, 1.0], "b": [2.0], "never again": [5.0]})
    assert times.drift == DRIFT
    for signature, seconds in (("a", 1.2), ("b", 2.0), ("a", 0.9), ("unknown", 7.0)):
        times.add_later(signature, seconds)
    times.add_later("a", 50.0, quiet=False)  # others computed: it tells nothing
    moments = np.log([1.0, 1.2, 0.9])
    squares = ((moments - moments.mean()) ** 2).sum() / 2 * 2 + 0.0  # two degrees of freedom; b's two are equal
    assert times.drift == pytest.approx(math.sqrt((LOOKS * DRIFT**2 + squares) / (LOOKS + 3)))
    assert times.step_time("a") == 1.0  # what a latency was computed from stays
    assert StepTimes.from_dict(times.to_dict()).drift == times.drift


@pytest.mark.parametrize("machine", [0.01, 0.3])
def test_a_run_that_looked_often_states_the_drift_of_its_own_machine(machine):
    """The 90 % interval of two runs' errors holds how far they are apart, on a steady machine and on a restless one."""
    draw, held, stated = np.random.default_rng(1), 0, []

    def moment():
        return math.exp(machine * draw.standard_normal())

    def run():
        times = StepTimes({s: [moment() * 0.01] for s in "abcdef"})
        for s in 20 * "abcdef":
            times.add_later(s, moment() * 0.01)
        return times

    for _ in range(200):
        one, two = run(), run()
        apart = abs(one.step_time("a") - two.step_time("a"))
        held += apart <= 1.645 * math.hypot(one.error("a"), two.error("a"))
        stated.append(one.drift)
    assert held / 200 >= 0.85
    assert np.mean(stated) == pytest.approx(math.hypot(machine, DRIFT * math.sqrt(LOOKS / 124)), rel=0.1)


def run_epoch(meter, steps, step=lambda number: None, waited=0.0):
    """Run an epoch whose neighbours made it wait for so many seconds, however long a busy machine takes for a lock."""
    with meter.epoch("a", steps):
        for number in range(steps):
            meter.lock.waited = waited
            meter.boundary(number)
            step(number)


class Clock:
    """The clocks of a Moment, which only a test moves; a device works behind by what is queued."""

    def __init__(self, monkeypatch):
        self.wall = self.thread = self.queued = 0.0
        self.windows = 0
        monkeypatch.setattr(Moment, "now", self.now)

    def now(self):
        self.windows += 0.5  # a window begins, or ends
        return Moment(self.wall, self.thread, 0.0)

    def tick(self, seconds, running=1.0):
        self.wall += seconds
        self.thread += running * seconds

    def synchronise(self):
        self.tick(self.queued)
        self.queued = 0.0


def test_a_window_takes_what_its_own_steps_take_on_a_device_that_works_behind(path, monkeypatch):
    clock, told, times = Clock(monkeypatch), [], StepTimes()

    def step(number):
        clock.queued += 0.5 if number < 3 else 0.25

    meter = Meter(DeviceLock(path, clock.synchronise), times, lambda *window: told.append(window))
    for _ in range(3):
        run_epoch(meter, 6, step)  # one window of the last three
    assert told == [("a", 0.25, True)] * 3
    assert times.windows == {"a": [0.25] * 3}


def test_a_step_time_is_looked_at_again_once_where_that_is_due(path):
    looked = StepTimes({"a": [5.0, 5.0, 5.0]})
    looked.looked_at["a"] = 1000.0
    assert not looked.copy(1000.0 + LATER_S - 1).due
    assert not StepTimes({"a": [5.0]}).copy(1e12).due  # more windows are missing; and nobody knows when it was made
    times, told = looked.copy(1000.0 + LATER_S), []
    meter = Meter(DeviceLock(path), times, lambda *window: told.append(window))
    for _ in range(3):
        run_epoch(meter, 20)
    assert [signature for signature, _, _ in told] == ["a"]
    assert times.later == {"a": [told[0][1]]}
    assert times.step_time("a") == 5.0


def test_windows_are_counted_over_epochs_and_end_after_three(path):
    for steps, epochs in ((1, 3), (2, 3), (4, 3), (9, 3), (15, 2), (18, 2), (21, 1)):
        told = []
        meter = Meter(DeviceLock(path), StepTimes(), lambda *window, told=told: told.append(window))
        per_epoch = []
        for _ in range(epochs + 2):
            run_epoch(meter, steps)
            per_epoch.append(len(told))
        assert per_epoch[0] > 0  # so that there is a step time after any epoch
        assert per_epoch[epochs - 1 :] == [WINDOWS] * 3, steps
        assert per_epoch.index(WINDOWS) == epochs - 1, steps


def test_a_while_is_quiet_where_the_thread_ran_and_others_computed_little():
    began, cores = Moment(10.0, 5.0, 100.0), os.cpu_count() or 1
    for thread, others, quiet in ((1.0, 0.0, True), (0.91, 0.0, True), (0.89, 0.0, False), (1.0, 0.09 * cores, True)):
        assert Moment(11.0, 5.0 + thread, 100.0 + others).was_quiet_since(began) is quiet, (thread, others)
    assert not Moment(11.0, 6.0, 100.03 + 0.1 * cores).was_quiet_since(began)  # beyond what Linux may be off by


def compute(computes):
    """Be a program that knows nothing of the lock."""
    computes.set()
    while True:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what others compute")
def test_the_clocks_are_real():
    began = Moment.now()
    time.sleep(STEP_S)
    slept = Moment.now()
    assert slept.wall - began.wall >= STEP_S
    computes = PROCESSES.Event()
    with started(compute, computes):
        assert computes.wait(LIMIT_S)
        await_true(lambda: Moment.now().others > slept.others + 0.1, "nobody computes")
    await_true(lambda: Moment.now().thread > slept.thread + STEP_S, "this thread does not run")


def test_a_window_that_was_not_quiet_is_made_again(path, monkeypatch):
    clock, told = Clock(monkeypatch), []
    meter = Meter(DeviceLock(path, on_cpu=True), StepTimes(), lambda *window: told.append(window[1:]))
    run_epoch(meter, 100, lambda number: clock.tick(*((2.0, 0.5) if number < 40 else (1.0, 1.0))))
    assert told == [(2.0, False), *[(1.0, True)] * WINDOWS]
    assert meter.times.step_time("a") == 1.0
    assert not meter.times.is_disturbed("a")
    assert clock.windows > WINDOWS + 1


def test_where_no_window_was_quiet_the_shortest_counts(path, monkeypatch):
    clock, told = Clock(monkeypatch), []
    meter = Meter(DeviceLock(path, on_cpu=True), StepTimes(), lambda *window: told.append(window[1:]))
    run_epoch(meter, 300, lambda number: clock.tick(1 + number * 37 % 50, running=0.5))
    seconds, quiet = zip(*told, strict=True)
    assert not any(quiet)
    assert list(seconds) == sorted(seconds, reverse=True)
    assert meter.times.step_time("a") == seconds[-1]
    assert meter.times.missing("a") == WINDOWS
    assert meter.times.is_disturbed("a")
    assert MAX_DISTURBED <= clock.windows <= MAX_DISTURBED + WINDOWS


def test_one_window_is_enough_where_more_would_keep_the_neighbours_waiting(path):
    meter, known = Meter(DeviceLock(path), StepTimes()), []
    for waited in (1e6, 1e6, 0.0):
        run_epoch(meter, 50, waited=waited)
        known.append(len(meter.times.windows["a"]))
    assert known == [1, 1, 3]


def test_what_a_ledger_knows_is_not_measured_again(path):
    synchronised, times = [], StepTimes({"a": [1.0, 2.0, 3.0]})
    meter = Meter(DeviceLock(path, lambda: synchronised.append(1)), times, lambda *_: pytest.fail("measured again"))
    run_epoch(meter, 50)
    assert len(synchronised) == 1  # as it leaves
    assert times.step_time("a") == 2.0


def test_the_device_is_held_alone_in_a_window_and_shared_elsewhere(path):
    seen = []
    run_epoch(Meter(DeviceLock(path), StepTimes()), 11, lambda _: seen.append(seen_from_outside(path)))
    assert seen == [("free", "held")] * 4 + [("held", "held")] * 6 + [("free", "held")]  # one window: 4 to 9
    assert seen_from_outside(path) == ("free", "free")


def test_a_window_that_an_error_cuts_short_does_not_count(path):
    meter = Meter(DeviceLock(path), StepTimes({"a": [1.0, 1.0]}), lambda *_: pytest.fail("counted"))
    with pytest.raises(ZeroDivisionError):
        run_epoch(meter, 8, lambda number: 1 / (7 - number))  # in the last step
    assert meter.times.missing("a") == 1
    assert seen_from_outside(path) == ("free", "free")


def test_metered_training_gives_the_same_bits_and_a_time_for_every_phase(make_state):
    plain, metered = (make_state({"rho": 0.5, "data.fraction": 0.5}) for _ in range(2))  # 20 steps an epoch
    signatures = metered.bill.signatures()
    plain.step_times.fixed |= set(signatures)  # so that no window is missing
    for state in (plain, metered):
        list(train(state))
    assert_equal_bits(plain.state_dict(), metered.state_dict())
    assert not plain.step_times.windows
    assert not plain.step_times.disturbed
    assert all(map(metered.step_times.is_known, signatures))
    assert 0 < sum(metered.bill.price(metered.step_times).values()) < LIMIT_S
