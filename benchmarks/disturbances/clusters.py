"""Searches on Ray clusters whose nodes share nothing, and lose, gain or refuse nodes."""

from __future__ import annotations

import argparse
import functools
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from disturbances.checks import (
    BASELINES,
    ENDINGS,
    Row,
    Undisturbed,
    check_budget,
    check_run,
    read_endings,
    read_events,
    run_undisturbed,
    timed,
)
from disturbances.nodes import RAY, Cluster, Command, Node, why_impossible
from disturbances.searches import Events, Harness, Say, Values
from mixtune.cost.model import CostModel
from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import fold
from mixtune.run.reference import derive_reference
from mixtune.stages.paths import RecipePaths
from mixtune.stages.store import StateStore
from mixtune.tuning.prepare import known_machine, prepare
from mixtune.tuning.search import RunningSearch

MIXTUNE = str(Path(sys.executable).with_name("mixtune"))
SITES = Path(__file__).parent / "sites"  # folders of a sitecustomize.py for a node's Python
ALIKE = {"val_accuracy": "max", "train_flops": "min"}  # objectives that no clock has a part in
TIMED = {"val_accuracy": "max", "train_latency_s": "min"}
END_S = 180.0  # for a driver to see that its head is gone
WORD_S = 90.0  # for a driver to say that no node can take a trial
NOTICE_S = 8  # of a preemption


def cluster_space(trials: int = 6, ssl: int = 6, sl: int = 8, **sections: Any) -> Values:
    """Return the values of a space on half of digits; a trial of 14 epochs trains for about two seconds."""
    return {
        "recipe": {
            "data": {"dataset": "digits", "fraction": 0.5},
            "model": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
            "epochs": {"ssl": ssl, "sl": sl},
            "optim": {"batch_size": 32, "ssl": {"base_lr": 0.02}, "sl": {"base_lr": 0.05}},
        },
        "space": {"alpha": {"uniform": [0.05, 0.95]}, "rho": {"choice": [0.0, 0.5]}},
        "objectives": ALIKE,
        "baselines": list(BASELINES),
        "search": {"trials": trials, "sampler": "random"},
        "resources": {"cpus_per_trial": 1},
    } | sections


class Driver:
    """A search that runs on a cluster's head; ``directory`` is its run directory as the outside sees it."""

    def __init__(self, cluster: Cluster, space: Values, name: str = "run") -> None:
        self._cluster, self._name = cluster, name
        self._home = cluster.head.work
        (self._home / f"{name}.yaml").write_text(yaml.safe_dump(space))
        self.directory = self._home / name
        self.command = self._start("search", f"{name}.yaml", "--out", name)

    def resume(self) -> None:
        """Continue the search with a new driver on the cluster's present head."""
        self.command = self._start("resume", self._name)

    def _start(self, *words: str) -> Command:
        return self._cluster.head.popen([MIXTUNE, *words, "--address", self._cluster.address])

    def events(self) -> Events:
        """Return what the ledger holds so far."""
        return read_events(self.directory)

    def wait_for_epochs(self, count: int) -> None:
        """Wait until so many epochs are in the ledger. Raises RuntimeError where the driver ends before."""
        self.command.wait_until(lambda: count_epochs(self.events()) >= count, f"{count} epochs")

    def finish(self) -> list[str]:
        """Wait for the driver's end; return a problem where it fails."""
        status = self.command.finish()
        return [f"ended with status {status}: {last_lines(self.command)}"] if status else []


def count_epochs(events: Events) -> int:
    """Return how many epochs a ledger has."""
    return sum(event["event"] == "epoch" for event in events)


def last_lines(command: Command, count: int = 4) -> str:
    """Return the end of what a command printed, without Ray's lines."""
    return "\n".join([line for line in command.output().splitlines() if not is_of_ray(line)][-count:])


def start_nodes(cluster: Cluster, *workers: str) -> None:
    """Start a head without CPUs and workers of one."""
    cluster.start("n1", cpus=0, head=True)
    cluster.start_all(*workers)


def run_folders(cluster: Cluster, directory: Path) -> list[Path]:
    """Return a run's folders on all nodes, also on those that are gone."""
    return sorted(cluster.folder.glob(f"nodes/*/work/{directory.name}"))


def read_weights(directories: Sequence[Path], events: Events) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of the checkpoint at each trial's end, by trial and name, from wherever it was stored."""
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for trial, ending in read_endings(events).items():
        stores = [StateStore(directory / "stages") for directory in directories]
        states = (state for store in stores if (state := store.load(ending.get("stage", "none"))) is not None)
        weights[trial] = dict(find_tensors(next(states, {})))
    return weights


def find_tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in nested values with the keys that lead to them."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from find_tensors(item, f"{name}.{key}")


def compare_weights(cluster: Cluster, directory: Path, undisturbed: Undisturbed) -> list[str]:
    """Return a line for each trial whose last checkpoint is not that of the undisturbed run."""
    wanted = read_weights([undisturbed.directory], read_events(undisturbed.directory))
    found = read_weights(run_folders(cluster, directory), read_events(directory))
    problems = []
    for trial, tensors in wanted.items():
        other = found.get(trial, {})
        different = [name for name in tensors if name not in other or not torch.equal(tensors[name], other[name])]
        if not tensors or different or tensors.keys() != other.keys():
            problems.append(f"{trial}: {len(different)} of {len(tensors)} tensors differ from the undisturbed run's")
    return problems


def check_equal(cluster: Cluster, driver: Driver, undisturbed: Undisturbed) -> list[str]:
    """Return what a finished run lost or has other than the undisturbed one: recipes, figures, tables, weights."""
    return undisturbed.check(driver.directory) + compare_weights(cluster, driver.directory, undisturbed)


def check_complete(driver: Driver, space: Values) -> list[str]:
    """Return a problem where a finished run has fewer complete trials than requested."""
    endings = read_endings(driver.events())
    failed = [f"{trial} failed: {ending['reason']}" for trial, ending in endings.items() if ending["event"] == "failed"]
    return [*failed, *check_budget(driver.directory, space["search"]["trials"], len(space["baselines"]))]


def count_running(events: Events) -> list[int]:
    """Return how many trials trained after each event."""
    running: set[str] = set()
    counts = []
    for event in events:
        if event["event"] == "opened":  # by another driver
            running.clear()
        elif event["event"] == "started":
            running.add(event["trial"])
        elif event["event"] in (*ENDINGS, "retried"):
            running.discard(event["trial"])
        counts.append(len(running))
    return counts


def left_out(command: Command) -> dict[str, str]:
    """Return the nodes that a driver left out, with its reasons."""
    return dict(re.findall(r"^(\S+): left out: (.+)$", command.output(), re.MULTILINE))


def check_left_out(cluster: Cluster, driver: Driver, names: Sequence[str]) -> list[str]:
    """Return problems unless one node, of these, is left out and trained nothing, and the other worker is accepted."""
    out = left_out(driver.command)
    accepted = set(re.findall(r"^(\S+): ok, .+, 1 slot$", driver.command.output(), re.MULTILINE))
    problems = []
    if len(out) != 1 or not set(out) <= set(names):
        problems.append(f"left out are {out or 'none'}, instead of one of {' and '.join(names)}")
    if accepted != {"n2", "n3"} - set(out):
        problems.append(f"accepted are {', '.join(sorted(accepted)) or 'none'}")
    trained = [name for name in out if name in cluster.nodes and any_state(cluster.nodes[name], driver)]
    return problems + [f"{name} is left out and trained" for name in trained]


def share_nothing(cluster: Cluster, undisturbed: Undisturbed, searches: int = 3) -> list[str]:
    """Search with two workers, until a search has had both train: Ray gives the trials to those that are ready first.

    Raises RuntimeError where so many searches leave a worker without a trial.
    """
    for number in range(1, searches + 1):
        driver = Driver(cluster, undisturbed.space, f"shared-nothing-{number}")
        problems = driver.finish() + check_equal(cluster, driver, undisturbed)
        workers = [node for node in cluster.nodes.values() if node is not cluster.head]
        if problems or all(any_state(node, driver) for node in workers):
            return problems + check_reused(driver, undisturbed)
    raise RuntimeError(f"one of {len(workers)} workers trained nothing in {searches} searches")


def check_reused(driver: Driver, undisturbed: Undisturbed) -> list[str]:
    """Return a problem where more epochs were trained than where all states are on one disk."""
    trained, enough = (count_trained(events) for events in (driver.events(), read_events(undisturbed.directory)))
    return [f"{trained} epochs were trained, and {enough} where all states are on one disk"] if trained > enough else []


def count_trained(events: Events) -> int:
    """Return how many epochs the trials that have ended trained themselves."""
    return sum(ending["metrics"]["epochs_trained"] for ending in read_endings(events).values())


def any_state(node: Node, driver: Driver) -> bool:
    """Return whether a node has stored a checkpoint of a run."""
    return any((node.work / driver.directory.name).rglob("*.state"))


def kill_node(cluster: Cluster, undisturbed: Undisturbed, epochs: int = 40) -> list[str]:
    """Kill one of two workers after so many epochs, while both train."""
    driver = Driver(cluster, undisturbed.space, "node-killed")
    driver.wait_for_epochs(epochs)
    driver.command.wait_until(lambda: count_running(driver.events())[-1] == 2, "two trials at once")
    cluster.nodes["n3"].kill()
    return driver.finish() + check_equal(cluster, driver, undisturbed)


def kill_driver(cluster: Cluster, undisturbed: Undisturbed, epochs: int = 40, also_a_worker: bool = False) -> list[str]:
    """Kill the driver after so many epochs and resume at once; also, if asked, the worker that trains first then."""
    driver = Driver(cluster, undisturbed.space, "driver-killed")
    driver.wait_for_epochs(epochs)
    driver.command.kill()
    ended = read_endings(driver.events())
    before = len(driver.events())
    driver.resume()
    if also_a_worker:
        wait_for_worker(cluster, driver, before).kill()
    problems = driver.finish() + check_equal(cluster, driver, undisturbed)
    now = read_endings(driver.events())
    return problems + [
        f"{trial} had ended, and ends otherwise now" for trial in ended if now.get(trial) != ended[trial]
    ]


def wait_for_worker(cluster: Cluster, driver: Driver, events: int) -> Node:
    """Return the first node to store a state after so many events: Ray gives trials to whoever is ready first."""

    def storing() -> list[str]:
        return [event["node"] for event in driver.events()[events:] if "node" in event]

    driver.command.wait_until(lambda: bool(storing()), "a stored state")
    return next(node for node in cluster.nodes.values() if node.address == storing()[0])


def kill_head(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Kill the head; the driver should end by itself and say how to continue. Resume on a new cluster."""
    driver = Driver(cluster, undisturbed.space)
    driver.wait_for_epochs(40)
    cluster.head.kill()
    problems = []
    try:
        status = driver.command.finish(END_S)
        if not status or "mixtune resume run" not in driver.command.output():
            problems.append(f"the driver ends with status {status} and says: {last_lines(driver.command)}")
    except RuntimeError as error:
        problems.append(f"the driver {error}")
    for name in ("n2", "n3"):
        cluster.nodes[name].kill()
    start_nodes(cluster, "n2", "n3")
    driver.resume()
    return problems + driver.finish() + check_equal(cluster, driver, undisturbed)


def add_node(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Begin with one worker; another one joins."""
    space = cluster_space(trials=6, ssl=20, sl=30)
    driver = Driver(cluster, space)
    driver.wait_for_epochs(10)
    before = max(count_running(driver.events()))
    cluster.start("n3")
    problems = driver.finish() + check_complete(driver, space)
    most = max(count_running(driver.events()))
    problems += [] if (before, most) == (1, 2) else [f"{before} trials trained at once with one node, then {most}"]
    return problems + ([] if any_state(cluster.nodes["n3"], driver) else ["n3 trained nothing"])


def other_cpu(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Search for seconds where one worker has another CPU."""
    name = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    cpuinfo = cluster.folder / "cpuinfo"
    cpuinfo.write_text(Path("/proc/cpuinfo").read_text().replace(name, "model name\t: Another CPU @ 1.00GHz"))
    cluster.start("n3", cpuinfo=cpuinfo)
    space = cluster_space(objectives=TIMED)
    driver = Driver(cluster, space)
    return driver.finish() + check_complete(driver, space) + check_left_out(cluster, driver, ["n2", "n3"])


def slow_node(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Search for seconds where one worker is three times as slow."""
    cluster.start("n3", env=site("slow"))
    space = cluster_space(objectives=TIMED)
    driver = Driver(cluster, space)
    return driver.finish() + check_complete(driver, space) + check_left_out(cluster, driver, ["n3"])


def no_mixtune(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Search where one worker has no mixtune."""
    cluster.start("n3", env=site("no_mixtune"))
    driver = Driver(cluster, undisturbed.space)
    problems = driver.finish() + check_equal(cluster, driver, undisturbed)
    retried = [f"{e['trial']} retried: {e['reason']}" for e in driver.events() if e["event"] == "retried"]
    return problems + retried + check_left_out(cluster, driver, ["n3"])


def site(name: str) -> dict[str, str]:
    """Return the environment of a node whose Python starts with one of SITES."""
    return {"PYTHONPATH": os.pathsep.join([str(SITES / name), *filter(None, [os.environ.get("PYTHONPATH")])])}


def default_sampler(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Search with the default sampler, kill a worker, and compute each suggestion again from the ledger before it."""
    space = cluster_space(trials=16, ssl=3, sl=4, search={"trials": 16})
    driver = Driver(cluster, space)
    driver.wait_for_epochs(40)
    cluster.nodes["n3"].kill()
    problems = driver.finish() + check_complete(driver, space) + check_run(driver.directory)
    return problems + compare_suggestions(driver.directory)


def compare_suggestions(directory: Path) -> list[str]:
    """Return a line for each trial whose parameters the ledger's events before it do not lead to."""
    run = RunDirectory(directory)
    prepared = prepare(run.space, gpus=0)
    costs, paths = CostModel(prepared.space, prepared.data, known_machine(run)), RecipePaths(prepared.space)
    problems, events = [], read_events(directory)
    for count, event in enumerate(events):
        if event["event"] != "asked" or "baseline" in event:
            continue
        search = RunningSearch(
            prepared.space,
            directory / "never-written",
            state=fold(events[:count]),
            paths=paths,
            costs=costs.cost,
            fault=costs.fault,
            reference=functools.partial(derive_reference, prepared.space, run.facts),
        )
        number = search.next_number
        params = search.suggester.ask(event["trial"], number, search.suggester.propose(number))
        if params != event["params"]:
            problems.append(f"{event['trial']} has {event['params']}, from the ledger before it follows {params}")
    return problems


def lose_all_nodes(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Kill the only worker; the driver should say what is missing; then another one joins."""
    driver = Driver(cluster, undisturbed.space)
    driver.wait_for_epochs(20)
    printed = len(driver.command.output())
    cluster.nodes["n2"].kill()

    def new_lines() -> list[str]:
        return [line for line in driver.command.output()[printed:].splitlines() if not is_of_ray(line)]

    def says_so() -> bool:
        return all(word in "\n".join(new_lines()) for word in ("1 CPU", "free", "n1"))

    problems = []
    try:
        driver.command.wait_until(says_so, "what is missing", WORD_S)
    except RuntimeError:
        problems.append(f"in {WORD_S:.0f} s the driver did not say what no node can take, but: {new_lines()}")
    cluster.start("n3")
    return problems + driver.finish() + check_equal(cluster, driver, undisturbed)


def is_of_ray(line: str) -> bool:
    """Return whether a line is Ray's own, which it copies from the log of a raylet that died."""
    return not line.strip() or line[0].isspace() or "(raylet)" in line


def drain_node(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Announce the only worker's preemption, kill it when the time is over, and let another one join."""
    rate = {"optim.sl.base_lr": {"loguniform": [0.01, 0.1]}}
    space = cluster_space(trials=1, ssl=0, sl=150, baselines=[], space=rate)
    space["recipe"]["model"] |= {"embed_dim": 96, "depth": 4}
    driver = Driver(cluster, space)
    driver.wait_for_epochs(10)
    cluster.nodes["n2"].drain(NOTICE_S)
    announced = time.monotonic()
    trained = count_epochs(driver.events())
    driver.command.wait_until(lambda: time.monotonic() > announced + NOTICE_S, "the end of the notice")
    cluster.nodes["n2"].kill()
    cluster.start("n3")
    problems = driver.finish() + check_complete(driver, space)
    events = driver.events()
    ending = read_endings(events).get("t0001", {}).get("metrics", {})
    if (reused := ending.get("epochs_reused", 0)) < trained:
        problems.append(f"{trained} epochs were trained before the notice, and {reused} of them were reused")
    crashes = fold(events).records["t0001"].crashes
    return problems + ([f"{crashes} crashes are counted"] if crashes else [])


def submit_job(cluster: Cluster, undisturbed: Undisturbed) -> list[str]:
    """Search as a Ray job, on the job's cluster without a word of it."""
    folder = cluster.head.work / "job"
    folder.mkdir()
    (folder / "s.yaml").write_text(yaml.safe_dump(undisturbed.space))
    out = cluster.here / "work" / "run"
    search = [MIXTUNE, "search", "s.yaml", "--out", str(out)]
    submit = [*RAY, "job", "submit", f"--address={cluster.dashboard}", "--working-dir=job", "--", *search]
    command = cluster.head.popen(submit)
    if status := command.finish():
        return [f"the job ended with status {status}: {last_lines(command)}"]
    directory = cluster.head.work / "run"
    return undisturbed.check(directory) + compare_weights(cluster, directory, undisturbed)


def why_no_jobs() -> str | None:
    """Return in a line why Ray has no job server here, None where it has."""
    try:
        import ray.dashboard.optional_deps  # noqa: F401
    except ImportError as error:
        return f"Ray's job server needs ray[default]: {error}"
    return None


@dataclass(frozen=True)
class Scenario:
    """What is done with a search on a cluster, with which workers it begins, and what is checked."""

    run: Callable[[Cluster, Undisturbed], list[str]]
    checked: str
    workers: tuple[str, ...] = ("n2", "n3")
    dashboard: bool = False


EQUAL = "recipes, figures, tables and weights of the undisturbed run"
SCENARIOS = {
    "shares nothing": Scenario(share_nothing, EQUAL),
    "node killed": Scenario(kill_node, EQUAL),
    "driver killed": Scenario(kill_driver, f"resumed at once: {EQUAL}"),
    "head killed": Scenario(kill_head, f"the driver ends and says how to continue; on a new cluster: {EQUAL}"),
    "node added": Scenario(add_node, "a trial starts on it before the running one ends", ("n2",)),
    "other CPU": Scenario(other_cpu, "one node is named and left out; all trials complete", ("n2",)),
    "slow node": Scenario(slow_node, "it is named and left out; all trials complete", ("n2",)),
    "no mixtune": Scenario(no_mixtune, f"it is named and left out; no retries; {EQUAL}", ("n2",)),
    "default sampler": Scenario(default_sampler, "each suggestion follows from the ledger before it"),
    "nodes all gone": Scenario(lose_all_nodes, f"the driver says what is missing; a node joins: {EQUAL}", ("n2",)),
    "drained": Scenario(drain_node, "what was trained before the notice is reused; it is no crash", ("n2",)),
    "job": Scenario(submit_job, EQUAL, dashboard=True),
}


def run_scenario(name: str, undisturbed: Undisturbed, say: Say) -> Row:
    """Do one scenario on a cluster of its own."""
    scenario = SCENARIOS[name]
    row = Row("clusters", name, times=1, checked=scenario.checked)
    with timed(row), Cluster() as cluster:
        try:
            cluster.start("n1", cpus=0, head=True, dashboard=scenario.dashboard)
            cluster.start_all(*scenario.workers)
            row.problems += scenario.run(cluster, undisturbed)
        except RuntimeError as error:  # a command or a node that hangs, or ended too early
            row.problems.append(str(error))
    say(f"clusters: {name}, {row.seconds:.0f} s, lost {len(row.problems)}")
    for problem in row.problems:
        say(f"  {problem}")
    return row


def run_clusters(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    if reason := why_impossible():
        say(f"clusters: skipped: {reason}")
        return []
    names = list(options.scenarios)
    if "job" in names and (reason := why_no_jobs()):
        say(f"clusters: job: skipped: {reason}")
        names.remove("job")
    undisturbed = run_undisturbed(harness, cluster_space())
    return [run_scenario(name, undisturbed, say) for name in names]
