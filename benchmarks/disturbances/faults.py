"""Faults in trials: NaN, exceptions, dead workers, no memory, no images."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mixtune
from disturbances.checks import (
    ENDINGS,
    Row,
    check_budget,
    check_run,
    exact_figures,
    first_difference,
    read_endings,
    read_events,
    read_params,
    run_undisturbed,
    timed,
)
from disturbances.searches import FAULTS, Events, Harness, Say, Values, one_thread, small_space, to_resume, to_search
from mixtune.space.recipe import change_recipe
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.state import start_state


@dataclass(frozen=True)
class Fault:
    """What happens to a trial at a step of an epoch, once or every time that it comes there."""

    kind: str  # nan, inf, exception, exit, kill, oom (a GPU's), full (the machine's)
    always: bool = True

    def __str__(self) -> str:
        return self.kind if self.kind in ("nan", "inf") else f"{self.kind}, {'always' if self.always else 'once'}"


CRASHES = ("exception", "exit", "kill", "full")
REASONS = {
    "nan": "DivergedError: the loss is nan in epoch ",
    "inf": "DivergedError: the loss is ",
    "exception": "ArithmeticError: injected",
    "exit": "the worker process died",
    "kill": "the worker process died",
    "oom": "OutOfMemoryError: CUDA out of memory: injected",
    "full": "the machine's memory is full: the system ended the worker process",
}
FEWER = "the machine's memory is full: 1 trial at once from now on"  # where two ran
GROUPS, GROUP, GROUP_BYTES = Path("/sys/fs/cgroup"), "mixtune-full", 50_000_000
SIX_FAULTS: tuple[Fault | None, ...] = (
    None,
    Fault("nan"),
    Fault("inf"),
    *(Fault(kind, always) for kind in ("exception", "exit", "kill", "oom") for always in (False, True)),
    None,
)
MAX_RETRIES = 2  # search.max_failures
EPOCHS, STEPS = 6, 8  # two epochs of each phase; epoch 0 stands for the time before the first


def install_faults() -> None:
    """Wrap the training step of this worker process: what a plan says for a trial's SSL rate happens to it.

    A fault of epoch 0 strikes while the trial is set up.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    from mixtune.training import loop
    from mixtune.tuning import trial

    plan_file = Path(os.environ[FAULTS])
    plan = json.loads(plan_file.read_text())
    train_step, start_state = loop.train_step, trial.start_state
    last = {"epoch": -1, "step": -1}

    def start(*given: Any) -> Any:
        state = start_state(*given)
        last["epoch"] = -1
        reach(state, 0, 0)
        return state

    def step(state: Any, epoch: Any, *batch: Any) -> Any:
        last["step"] = last["step"] + 1 if last["epoch"] == epoch.index else 0
        last["epoch"] = epoch.index
        reach(state, epoch.index + 1, last["step"])
        return train_step(state, epoch, *batch)

    def reach(state: Any, epoch: int, number: int) -> None:
        rate = str(state.recipe.optim.ssl.base_lr)
        fault = plan.get(rate)
        if fault and (epoch, number) == (fault["epoch"], fault["step"]):
            fired = plan_file.with_name(f"{plan_file.stem}.{rate}.fired")
            if fault["always"] or not fired.exists():
                with fired.open("a") as file:
                    print(os.getpid(), file=file)
                strike(fault["kind"], state)

    loop.train_step, trial.start_state = step, start


def strike(kind: str, state: Any) -> None:
    """Let a fault happen."""
    if kind == "exception":
        raise ArithmeticError("injected")
    if kind == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory: injected")
    if kind == "exit":
        os._exit(1)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "full":
        with memory_group() as group:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            bytearray(4 * GROUP_BYTES)
    with torch.no_grad():
        for weight in state.backbone.parameters():
            weight.fill_(math.nan if kind == "nan" else math.inf)


@contextmanager
def memory_group() -> Iterator[Path]:
    """Make a control group whose processes the kernel kills once they take GROUP_BYTES more; root may, on Linux.

    The group of a process that was killed stays until remove_groups(). Raises OSError where none can be made.
    """
    old = (GROUPS / "memory").is_dir()
    group = (GROUPS / "memory" if old else GROUPS) / f"{GROUP}-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(GROUP_BYTES))
        yield group
    finally:
        group.rmdir()


def remove_groups() -> None:
    """Remove the control groups that killed processes have left."""
    for group in [*GROUPS.glob(f"{GROUP}-*"), *GROUPS.glob(f"memory/{GROUP}-*")]:
        with suppress(OSError):  # someone else's, whose process still runs
            group.rmdir()


def fault_space(faults: Sequence[Fault | None]) -> tuple[Values, dict[float, Fault | None]]:
    """Return a space that has a trial for each fault, told apart by the SSL rate, and which rate has which."""
    by_rate = {round(0.02 + 0.001 * i, 3): fault for i, fault in enumerate(faults)}
    space = small_space(trials=len(by_rate), baselines=[], space={"optim.ssl.base_lr": {"choice": list(by_rate)}})
    space["recipe"]["epochs"] = {"ssl": 4, "sl": 4}
    space["recipe"]["rho"] = 0.5
    space["search"] = {"sampler": "grid", "max_failures": MAX_RETRIES}
    space["resources"] = {"cpus_per_trial": 0.5, "gpus_per_trial": 0.25}  # two at once
    return space, by_rate


def train_undisturbed(space: Values) -> dict[float, Values]:
    """Train every recipe of a fault_space() in this process, without Ray; return exact figures by SSL rate."""
    with one_thread():
        return {
            rate: exact_figures(finish_alone(space["recipe"], rate))
            for rate in space["space"]["optim.ssl.base_lr"]["choice"]
        }


def finish_alone(recipe: Values, rate: float) -> Values:
    """Return the metrics of a recipe that is trained by itself, on a CPU."""
    from mixtune.training.measure import measure

    changed = change_recipe(mixtune.parse_recipe(recipe), {"optim.ssl.base_lr": rate})
    state = start_state(changed, load_training_data(changed))
    for _ in train(state):
        pass
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in measure(state).to_dict().items()}


def inject(
    harness: Harness, faults: Sequence[Fault | None], epoch: int, wanted: Mapping[float, Values], rng: random.Random
) -> list[str]:
    """Search while faults strike in one epoch; return a line for each trial that did not end as it should."""
    space, by_rate = fault_space(faults)
    plan = {
        str(rate): {
            "kind": fault.kind,
            "always": fault.always,
            "epoch": epoch,
            "step": rng.randrange(STEPS) if epoch else 0,
        }
        for rate, fault in by_rate.items()
        if fault is not None
    }
    directory = harness.new_run("faults")
    plan_file = harness.folder / f"plan-{directory.name}.json"
    plan_file.write_text(json.dumps(plan))
    driver = harness.start(to_search(space, directory), faults=plan_file, gpus=1)
    problems = [str(answer) for answer in driver.finish() if answer.error is not None]
    remove_groups()
    if any(fault is not None and fault.kind == "full" for fault in faults) != (FEWER in driver.log()):
        problems.append(f"of memory it says {driver.log()}")
    events = read_events(directory)
    endings, params = read_endings(events), read_params(events)
    for trial, given in params.items():
        rate = given["optim.ssl.base_lr"]
        fired = plan_file.with_name(f"{plan_file.stem}.{rate}.fired")
        struck = len(fired.read_text().splitlines()) if fired.exists() else 0
        retries = [e for e in events if e["event"] == "retried" and e["trial"] == trial]
        where = f"{by_rate[rate] or 'undisturbed'}, epoch {epoch}"
        problems += check_fault(by_rate[rate], endings.get(trial), retries, struck, wanted[rate], where)
    return problems + check_budget(directory, len(faults), baselines=0) + check_run(directory) + harness.left_behind()


def check_fault(
    fault: Fault | None, ending: Values | None, retries: Events, struck: int, wanted: Values, where: str
) -> list[str]:
    """Return a line where a trial did not end as its fault demands."""
    if ending is None:
        return [f"{where}: never ended"]
    shares: list[Any] = []
    if fault is not None and fault.kind == "oom":
        shares = [0.5, 1.0] if fault.always else [0.5]
    elif fault is not None and fault.kind in CRASHES:
        shares = [None] * (MAX_RETRIES if fault.always else 1)
    fails = fault is not None and fault.always
    found = {
        "state": ENDINGS[ending["event"]],
        "fraction of a GPU for each retry": [e.get("gpus_per_trial") for e in retries],
        "strikes": struck,
        "figures": None if fails else exact_figures(ending["metrics"]),
    }
    expected = {
        "state": "failed" if fails else "complete",
        "fraction of a GPU for each retry": shares,
        "strikes": 0 if fault is None else len(shares) + fault.always,
        "figures": None if fails else wanted,
    }
    problems = [f"{where}: {first_difference(expected, found)}"] if found != expected else []
    told = [e["reason"] for e in retries] + ([ending["reason"]] if ending["event"] == "failed" else [])
    wrong = [reason for reason in told if fault is None or not reason.startswith(REASONS[fault.kind])]
    return problems + [f"{where}: the reason is {reason!r}" for reason in wrong]


def inject_all(harness: Harness, epochs: Sequence[int], rng: random.Random, say: Say) -> list[Row]:
    """Inject every fault in every epoch."""
    row = Row("injections", "NaN, inf, exception, exit, SIGKILL, out of memory, in set-up and at a step of each epoch")
    row.checked = "failed with its reason, or retried to an undisturbed training's figures; the others as ever"
    with timed(row):
        wanted = train_undisturbed(fault_space(SIX_FAULTS)[0])
    for epoch in epochs:
        with timed(row):
            row.times += sum(fault is not None for fault in SIX_FAULTS)
            row.problems += inject(harness, SIX_FAULTS, epoch, wanted, rng)
        say(f"injections: epoch {epoch}, {row.times} faults, lost {len(row.problems)}")
    return [row]


def fail_all(harness: Harness, rng: random.Random, say: Say) -> Row:
    """Let every trial raise: the search stops and says why, and once the cause is gone it can be continued."""
    row = Row("injections", "every trial raises", times=1, checked="the search stops early, says why, and can continue")
    faults = [Fault("exception")] * 8
    space, by_rate = fault_space(faults)
    plan = {str(rate): {"kind": "exception", "always": True, "epoch": 2, "step": 0} for rate in by_rate}
    with timed(row):
        directory = harness.new_run("hopeless")
        plan_file = harness.folder / f"plan-{directory.name}.json"
        plan_file.write_text(json.dumps(plan))
        answer = harness.call(to_search(space, directory), faults=plan_file, gpus=1)
        told = "4 of 4 trials failed for one reason: ArithmeticError: injected"
        if "SearchError" not in (answer.error or ()) or told not in answer.message:
            row.problems.append(f"{answer} instead of {told}")
        row.problems += check_run(directory)
        plan_file.write_text("{}")
        answer = harness.call(to_resume(directory, retry_failed=True), faults=plan_file, gpus=1)
        row.problems += [] if answer.error is None else [str(answer)]
        wanted = train_undisturbed(space)
        events = read_events(directory)
        params = read_params(events)
        for trial, ending in read_endings(events).items():
            if exact_figures(ending["metrics"]) != wanted[params[trial]["optim.ssl.base_lr"]]:
                row.problems.append(f"{trial} differs from an undisturbed training")
        row.problems += check_budget(directory, len(faults), baselines=0) + check_run(directory)
        row.problems += harness.left_behind()
    say(f"injections: every trial raises, lost {len(row.problems)}")
    return row


def lose_images(harness: Harness, say: Say) -> Row:
    """Remove the folder of images in mid-search, and kill a worker, so that a new one has to look for them."""
    row = Row("injections", "the folder of images removed in mid-search", times=1)
    row.checked = "it continues, or says what is missing; with the images back it ends as an undisturbed search"
    with timed(row):
        images = harness.folder / "images"
        write_images(images)
        space = small_space(trials=6, epochs=4, space={"optim.ssl.base_lr": {"choice": [0.02, 0.03, 0.04]}})
        space["space"]["alpha"] = {"uniform": [0.05, 0.95]}
        space["recipe"]["data"] = {"dataset": "image_folder", "root": str(images)}
        undisturbed = run_undisturbed(harness, space)
        directory = harness.new_run("imageless")
        plan_file = harness.folder / f"plan-{directory.name}.json"
        strikes = {"kind": "exit", "always": False, "epoch": 3, "step": 1}
        plan_file.write_text(json.dumps(dict.fromkeys(["0.02", "0.03", "0.04"], strikes)))
        driver = harness.start(to_search(space, directory), faults=plan_file)
        driver.wait_until(lambda: len(read_endings(read_events(directory))) >= 2)
        images.rename(harness.folder / "elsewhere")
        answer = driver.finish()[-1]
        ended = read_endings(read_events(directory))
        lacking = [e["reason"] for e in ended.values() if e["event"] == "failed"]
        row.problems += [f"the reason is {reason!r}" for reason in lacking if str(images) not in reason]
        if answer.error is not None and not {"SearchError", "DataError", "RequestError"} & set(answer.error):
            row.problems.append(f"{answer} {answer.trace}")
        answer = harness.call(to_resume(directory))  # still without them
        row.problems += [str(answer)] if answer.error and not answer.is_refusal() else []
        (harness.folder / "elsewhere").rename(images)
        answer = harness.call(to_resume(directory, retry_failed=bool(lacking)))
        row.problems += [str(answer)] if answer.error else []
        row.problems += undisturbed.check(directory) + harness.left_behind()
    say(f"injections: the images removed ({len(lacking)} trials failed of it), lost {len(row.problems)}")
    return row


def write_images(folder: Path, count: int = 400) -> None:
    """Write some of digits as files, a class a folder."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(place / f"{i}.png")


def run_injections(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    rows = inject_all(harness, options.epochs, rng, say)
    return [*rows, fail_all(harness, rng, say), lose_images(harness, say)]
