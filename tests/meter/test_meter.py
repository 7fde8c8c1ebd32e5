"""The latency meter: who may use the device when, what a step time belongs to, and that bits stay the same."""

from __future__ import annotations

import fcntl
import io
import json
import math
import multiprocessing
import os
import signal
import time
from contextlib import closing, contextmanager
from itertools import combinations, product

import pytest
import torch

from mixtune.errors import TrainingError
from mixtune.meter.lock import DeviceLock
from mixtune.meter.times import WINDOWS, StepTimes
from mixtune.meter.windows import MOST_DISTURBED, SETTLE_STEPS, WARM_UP_STEPS, WINDOW_STEPS, Meter, place_windows
from mixtune.training.bill import cost_factors, cost_signature, data_shape
from mixtune.training.data import load_training_data
from mixtune.training.loop import train_step
from mixtune.training.optimizer import set_rates
from mixtune.training.plan import PHASES, make_plan
from mixtune.training.state import start_state
from mixtune.training.streams import torch_generator

# real processes, each forked from one clean process that has imported what they need
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "mixtune.training.loop", "mixtune.meter.windows"])
LIMIT_S = 60  # a lock that hangs fails the test instead of hanging it
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
    """Run ``count`` processes, none of which outlives the test."""
    processes = [PROCESSES.Process(target=target, args=args) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def await_exit(processes):
    for process in processes:
        process.join(LIMIT_S)
        assert process.exitcode == 0


def write(log, kind, began):
    """Append (kind, process, began, ended), on the clock that all processes share, in one write."""
    os.write(log, json.dumps([kind, os.getpid(), began, time.monotonic()]).encode() + b"\n")


def await_entry(log_path, pid):
    """Wait until a process has stepped or measured."""
    for _ in range(LIMIT_S * 1000):
        if f", {pid}, " in log_path.read_text():
            return
        time.sleep(0.001)
    raise AssertionError(f"{pid} wrote nothing")


def step_and_measure(path, log_path, windows, barrier, stop):
    """Step, offering at each border, until the windows are measured; where there are none, until told to stop."""
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    lock = DeviceLock(path)
    if barrier is not None:  # not where killed, maybe within it
        barrier.wait(LIMIT_S)
    with lock.shared():
        for border in range(1, 1_000_000):
            lock.offer()
            began = time.monotonic()
            time.sleep(STEP_S)
            write(log, "step", began)
            if windows and border % 4 == 0:
                with lock.exclusive():
                    began = time.monotonic()
                    time.sleep(STEP_S)
                    write(log, "window", began)
                if border == 4 * windows:
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
        for process in doomed:
            await_entry(folder / "log", process.pid)
            time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
        await_exit(measurers)  # while the steppers go on
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


def hold(path, how, ready):
    """Hold the device until killed, or wait for it."""
    lock = DeviceLock(path)
    if how == "shared, with a child":
        with lock.shared():
            child = os.fork()
            if child == 0:
                time.sleep(LIMIT_S)
                os._exit(0)
            ready.send(child)
            time.sleep(LIMIT_S)
    with lock.shared() if how == "shared" else lock.exclusive():
        ready.send(None)
        time.sleep(LIMIT_S)


@pytest.mark.parametrize("how", ["shared", "exclusive"])
def test_a_killed_holder_frees_the_device(path, how):
    lock = DeviceLock(path)
    here, there = PROCESSES.Pipe()
    with here, there, started(hold, path, how, there) as (holder,):
        assert here.poll(LIMIT_S)
        os.kill(holder.pid, signal.SIGKILL)
        with lock.exclusive():
            pass
        with lock.shared():
            lock.offer()


def test_a_killed_holder_frees_the_device_though_its_child_lives(path):
    here, there = PROCESSES.Pipe()
    with here, there, started(hold, path, "shared, with a child", there) as (holder,):
        assert here.poll(LIMIT_S)
        child = here.recv()
        try:
            os.kill(holder.pid, signal.SIGKILL)
            with DeviceLock(path).exclusive():
                os.kill(child, 0)  # alive
        finally:
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


def await_shut_gate(path):
    """Wait until a measurer has the gate."""
    gate = os.open(f"{path}.gate", os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(LIMIT_S * 1000):
            try:
                fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(gate, fcntl.LOCK_UN)
            time.sleep(0.001)
        raise AssertionError("nobody came to the gate")
    finally:
        os.close(gate)


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
    time.sleep(0.05)
    with lock.shared():
        time.sleep(0.05)
        assert 0.05 <= lock.used < 0.09
    used = lock.used
    time.sleep(0.05)
    assert lock.used == used < 0.09


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


MACHINE = {"device": "x86_64 CPU, 1 thread", "threads": 1, "precision": "float32"}
SHAPE = {"image_size": 8, "channels": 1, "two_datasets": False, "classes": [10], "images_on": "cpu"}


def signature(recipe, phase="mix", **changes):
    machine, shape = ({k: changes.get(k, v) for k, v in part.items()} for part in (MACHINE, SHAPE))
    return cost_signature(cost_factors(recipe, phase, shape=shape, **machine))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.1, "lambda": 0.9, "rho": 0.25, "seed": 3},
        {"epochs.ssl": 9, "epochs.sl": 9, "data.fraction": 0.7, "data.val_fraction": 0.3},
        {"optim.sl.base_lr": 0.1, "optim.ssl.base_lr": 0.1, "optim.ssl.warmup_epochs": 1},
    ],
)
def test_what_does_not_change_the_work_of_a_step_leaves_its_signature(make_recipe, phase, changes):
    assert signature(make_recipe(changes), phase) == signature(make_recipe(), phase)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "changes",
    [
        {"model.depth": 3},
        {"optim.batch_size": 16},
        {"augment.randaugment": (2, 9)},
        {"compile": True},
        {"ssl.mask_ratio": 0.5},
        {"ssl.encode": "full"},
    ],
)
def test_what_changes_the_work_of_a_step_changes_its_signature(make_recipe, phase, changes):
    same = phase == "sl" and next(iter(changes)).startswith("ssl.")
    assert (signature(make_recipe(changes), phase) == signature(make_recipe(), phase)) == same


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "NVIDIA H200"},
        {"threads": 2},
        {"precision": "bfloat16"},
        {"image_size": 16},
        {"channels": 3},
        {"classes": [10, 10]},
        {"classes": [100]},
        {"two_datasets": True},
    ],
    ids=str,
)
def test_machines_and_data_have_signatures_of_their_own(make_recipe, changes):
    assert signature(make_recipe(), **changes) != signature(make_recipe())


def test_phases_have_signatures_of_their_own_which_a_ledger_keeps(make_state):
    state = make_state()
    factors = [state.factors(phase) for phase in PHASES]
    assert len({cost_signature(f) for f in factors}) == 3
    assert [cost_signature(json.loads(json.dumps(f))) for f in factors] == [cost_signature(f) for f in factors]
    assert data_shape(state.data) == SHAPE
    assert cost_signature(factors[1]) == signature(state.recipe, **{**MACHINE, "device": factors[1]["device"]})


@pytest.mark.parametrize("missing", range(WINDOWS + 1))
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 12, 13, 17, 18, 19, 100, 175])
def test_windows_are_whole_apart_and_past_the_warm_up(steps, missing):
    windows = place_windows(steps, missing)
    covered = [step for window in windows for step in window]
    assert covered == sorted(set(covered))
    assert set(covered) <= set(range(steps))
    timed = steps - min(WARM_UP_STEPS, steps // 2)
    assert len(windows) == min(missing, timed)  # the shortest epochs alone have fewer than are missing
    assert all(window.start >= steps - timed for window in windows)
    assert {len(window) for window in windows} <= {min(SETTLE_STEPS + WINDOW_STEPS, max(1, timed // max(missing, 1)))}


def test_windows_are_spread_over_the_epoch():
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


def test_a_window_takes_what_its_own_steps_take_on_a_device_that_works_behind(path):
    queued = []

    def synchronise():
        time.sleep(sum(queued))
        queued.clear()

    told, times = [], StepTimes()
    meter = Meter(DeviceLock(path, synchronise), times, lambda *window: told.append(window[:2]))
    for _ in range(3):
        with meter.epoch("a", 6):  # one window of the last three
            for step in range(6):
                meter.border(step)
                queued.append(0.05 if step < 3 else 0.005)
    assert [name for name, _ in told] == ["a"] * 3
    assert times.windows["a"] == [seconds for _, seconds in told]
    assert 0.005 <= times.step_time("a") < 0.05


@pytest.mark.parametrize(("steps", "epochs"), [(1, 3), (2, 3), (4, 2), (6, 1), (18, 1)])
def test_windows_are_counted_over_epochs_and_end_after_three(path, steps, epochs):
    told = []
    meter = Meter(DeviceLock(path), StepTimes(), lambda *window: told.append(window))
    per_epoch = []
    for _ in range(epochs + 2):
        with meter.epoch("a", steps):
            for step in range(steps):
                meter.border(step)
                time.sleep(STEP_S)
        per_epoch.append(len(told))
    assert per_epoch[0] > 0  # so that there is a step time after any epoch
    assert per_epoch[epochs - 1 :] == [WINDOWS] * 3
    assert per_epoch.index(WINDOWS) == epochs - 1


def busy(seconds):
    """Compute for some time, as a step on a CPU does."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_window_in_which_the_thread_waited_for_a_core_is_made_again(path):
    """Sleep stands for a core that someone else has: the thread does not run, and the clock does."""
    told = []
    meter = Meter(DeviceLock(path, on_cpu=True), StepTimes(), lambda *window: told.append(window[1:]))
    with meter.epoch("a", 100):
        for step in range(100):
            meter.border(step)
            busy(STEP_S)
            if step < 40:
                time.sleep(STEP_S)
    quiet = [seconds for seconds, quiet in told if quiet]
    assert quiet
    assert max(quiet) < 1.5 * STEP_S
    assert meter.times.step_time("a") < 1.5 * STEP_S


def compute(computes):
    """Be a program that knows nothing of the lock."""
    computes.set()
    while True:
        pass


def test_a_window_beside_a_program_that_knows_no_lock_is_made_again(path):
    meter, windows, computes = Meter(DeviceLock(path, on_cpu=True), StepTimes()), 0, PROCESSES.Event()
    with started(compute, computes):
        assert computes.wait(LIMIT_S)
        with meter.epoch("a", 300):
            for step in range(300):
                meter.border(step)
                windows += bool(meter._due) and step == meter._due[0].start
                busy(0.01)
    assert MOST_DISTURBED <= windows <= MOST_DISTURBED + WINDOWS
    assert meter.times.missing("a") == WINDOWS  # none was quiet
    assert meter.times.is_known("a")


def test_where_no_window_was_quiet_the_shortest_counts(path):
    told = []
    meter = Meter(DeviceLock(path, on_cpu=True), StepTimes(), lambda *window: told.append(window[1:]))
    windows = 0
    with meter.epoch("a", 300):
        for step in range(300):
            meter.border(step)
            windows += bool(meter._due) and step == meter._due[0].start
            time.sleep(STEP_S)
    seconds, quiet = zip(*told, strict=True)
    assert not any(quiet)
    assert list(seconds) == sorted(seconds, reverse=True)
    assert meter.times.step_time("a") == seconds[-1]
    assert MOST_DISTURBED <= windows <= MOST_DISTURBED + WINDOWS


def test_one_window_is_enough_where_more_would_keep_the_neighbours_waiting(path):
    lock = DeviceLock(path)
    meter = Meter(lock, StepTimes())
    known = []
    for waited in (1.0, 1.0, 0.0):  # seconds, of about 0.1 s on the device
        lock.waited = waited
        with meter.epoch("a", 50):
            for step in range(50):
                meter.border(step)
                time.sleep(STEP_S)
        known.append(len(meter.times.windows["a"]))
    assert known == [1, 1, 3]


def test_what_a_ledger_knows_is_not_measured_again(path):
    times = StepTimes()
    for seconds in (1.0, 2.0, 3.0):
        times.add("known", seconds)
    synchronised = []
    meter = Meter(DeviceLock(path, lambda: synchronised.append(1)), times, lambda *_: pytest.fail("measured again"))
    with meter.epoch("known", 50):
        for step in range(50):
            meter.border(step)
    assert len(synchronised) == 1  # as it leaves
    assert times.step_time("known") == 2.0


def test_the_device_is_held_alone_in_a_window_and_shared_elsewhere(path):
    meter = Meter(DeviceLock(path), StepTimes())
    seen = {}
    with meter.epoch("a", 7):
        for step in range(7):
            meter.border(step)
            if step in (2, 3, 6):
                seen[step] = seen_from_outside(path)
    assert seen == {2: ("free", "held"), 3: ("held", "held"), 6: ("free", "held")}  # windows of one step: 3, 4, 5
    assert seen_from_outside(path) == ("free", "free")


def test_a_window_that_an_error_cuts_short_does_not_count(path):
    meter = Meter(DeviceLock(path), StepTimes({"a": [1.0, 1.0]}), lambda *_: pytest.fail("counted"))

    def fail_in_the_last_step():
        with meter.epoch("a", 8):
            for step in range(8):
                meter.border(step)
                if step == 7:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_last_step()
    assert meter.times.missing("a") == 1
    assert seen_from_outside(path) == ("free", "free")


def train_metered(state, meter):
    """Train as the loop does, with the meter at its borders."""
    data, steps = state.data, state.data.steps
    for epoch in make_plan(state.recipe):
        masks = torch_generator(state.recipe.seed, "masks", epoch.index)
        batches = data.batches(state.recipe, epoch)
        state.backbone.train()
        with meter.epoch(cost_signature(state.factors(epoch.phase)), steps):
            for step in range(steps):
                meter.border(step)
                images, labels = next(batches)
                set_rates(state.optimizer, state.recipe, epoch, step, steps)
                train_step(state, epoch, images, labels, masks)


class Unmetered:
    @contextmanager
    def epoch(self, signature, steps):
        yield

    def border(self, step):
        pass


def test_metered_training_gives_the_same_bits_and_a_time_for_every_phase(make_recipe, path):
    recipe = make_recipe({"rho": 0.5, "data.fraction": 0.5})  # 20 steps an epoch
    data = load_training_data(recipe)
    plain, metered = start_state(recipe, data), start_state(recipe, data)
    meter = Meter(DeviceLock(path), StepTimes())
    train_metered(plain, Unmetered())
    train_metered(metered, meter)
    saved = []
    for state in (plain, metered):
        file = io.BytesIO()
        torch.save(state.state_dict(), file)
        saved.append(file.getvalue())
    assert saved[0] == saved[1]
    signatures = {phase: cost_signature(metered.factors(phase)) for phase in PHASES}
    assert {s: len(w) for s, w in meter.times.windows.items()} == dict.fromkeys(signatures.values(), WINDOWS)
    assert 0 < sum(metered.bill.price(meter.times).values()) < 60
