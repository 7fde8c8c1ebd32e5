"""The nodes of a search: looked at before they take a trial, grouped by speed, and left out once they are lost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import ray
from ray._private.state import available_resources_per_node
from ray._private.state import state as cluster_state
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mixtune.cost.machine import Machine, look_at_machine
from mixtune.errors import RequestError, one_line, suggest
from mixtune.metrics import counted, duration, find_metric
from mixtune.space.space import SearchSpace
from mixtune.training.plan import Phase
from mixtune.training.sources import count_images
from mixtune.tuning.preflight import decode_images, make_visit, versions
from mixtune.tuning.session import POLL_S, answers
from mixtune.tuning.slots import Slots, is_on_gpu, plan_slots, trials_for_a_gpu

ANSWER_S = 30.0  # in which a node should say what it has; a search begins without one that has not
ALIKE = 1.25  # of reference speeds; equal machines drift by 6 to 20 %
NODE_ID = "ray.io/node-id"  # Ray's label
REFERENCE: Phase = "sl"  # the phase whose step every recipe has
MAX_HOLDERS = 3  # named in a line
PENDING_S = 60.0  # after which a search says that no node takes its trials

Say = Callable[[str], None]
Doing = Literal["answering", "decoding", "timing"]


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: Ray's id of it, its host name, where its raylet is, and what Ray may hand out of it."""

    id: str
    name: str
    address: str
    port: int
    cpus: int
    gpus: int

    def answers(self) -> bool:
        """Return whether its raylet can be reached; Ray takes a quarter of a minute to say so."""
        return answers(self.address, self.port)


@dataclass
class Visited:
    """What is known of a node: a task that looks at it, then the machine that it is, or why it takes no trials."""

    node: Node
    task: ray.ObjectRef | None = None
    since: float = field(default_factory=time.monotonic)
    machine: Machine | None = None
    problem: str | None = None
    doing: Doing = "answering"
    is_told: bool = False  # that it decodes
    is_lost: bool = False
    is_said: bool = False  # what came of it

    @property
    def is_late(self) -> bool:
        """Whether the search should not wait for it; decoding may take any time, but all nodes have the same to do."""
        return self.task is not None and self.doing != "decoding" and time.monotonic() - self.since > ANSWER_S

    def begin(self, doing: Doing, task: ray.ObjectRef) -> None:
        """Let the node do something."""
        self.doing, self.task, self.since = doing, task, time.monotonic()


def alive_nodes() -> list[Node]:
    """Return the nodes of the session's cluster."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            name, address, port = (node[f"NodeManager{what}"] for what in ("Hostname", "Address", "Port"))
            found.append(Node(node["NodeID"], name, address, port, int(has.get("CPU", 0)), int(has.get("GPU", 0))))
    return found


def own_node_id() -> str:
    """Return Ray's id of the node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Return the strategy of a task that runs on a node or not at all."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


class Cluster:
    """The nodes that a search's trials may take; ``machine`` is what their group's seconds are of.

    space: the search's; threads: of each trial; say: receives a line for each node; run: the machine that a run to be
    resumed began on; most: slots that it may have, also ones that an autoscaler is still to bring; grows: whether nodes
    may join. Where seconds matter, to an objective or a constraint, one group of nodes of equal device, threads and
    speed is used: that of ``resources.device``, the run's, or the one with the most slots, of equal ones the fastest;
    else all are. Every node is looked at before it takes a trial, one that joins later, too.
    """

    def __init__(
        self,
        space: SearchSpace,
        threads: int,
        say: Say,
        run: Machine | None = None,
        most: int | None = None,
        grows: bool = False,
    ) -> None:
        self.space, self._threads, self._say, self._run, self._most = space, threads, say, run, most
        self._known: dict[str, Visited] = {}
        self._group: set[str] = set()
        self._slots = Slots(space.resources.cpus_per_trial, 0.0, 0)
        self._room: int | None = None  # trials at once at most, once memory was full
        self._polled = 0.0
        self.home = own_node_id()
        alive = alive_nodes()
        self.is_one = not grows and [node.id for node in alive] == [self.home]
        self.on_gpu = is_on_gpu(space.resources, [(node.cpus, node.gpus) for node in alive])
        if self.is_one:  # GPUs that a space asks for are not here: a search says so, and trains on the CPU
            self.on_gpu &= any(node.gpus for node in alive)
        self._images = {} if self.is_one else count_images(space.recipe)
        self.machine: Machine

    def settle(self, wait_s: float | None) -> None:
        """Look at all nodes and choose among them. wait_s: for the first one, None for ever where there may be more.

        Raises RequestError where no node can take a trial.
        """
        if self.is_one:
            return
        self._request(self._most or 0)
        started, told = time.monotonic(), 0.0
        while True:
            self._look()
            known = list(self._known.values())
            for each in known:
                if each.problem is not None and not each.is_said and each.node.cpus:
                    self._say_of(each)
            is_found = any(each.machine is not None for each in known)
            late = [each for each in known if each.is_late]
            if not any(each.task is not None and not each.is_late for each in known):
                if is_found or not (late or self._most):
                    break
                waited = time.monotonic() - started
                if wait_s is not None and waited > wait_s:
                    break
                if waited > max(PENDING_S, 2 * told):
                    told = waited
                    self.tell_waiting(waited)
            time.sleep(0.1)
        self._choose()
        for each in sorted(self._known.values(), key=lambda known: known.node.name):
            if each.node.cpus and not each.is_said:
                self._say_of(each)
        if not self._group:
            raise RequestError(f"none of the {len(self._known)} nodes can take a trial: see above")

    def take(self, machine: Machine) -> None:
        """Use this one machine, as it is."""
        (node,) = alive_nodes()
        self.machine, self._group = machine, {node.id}
        self._known[node.id] = Visited(node, machine=machine)

    def take_fewer(self, active: int) -> int | None:
        """Let fewer trials run at once than did when memory was full; return how many, None where it was one alone.

        active: how many were running.
        """
        count = self.slots.count
        self._room = max(1, min(count, active) - 1)
        return self._room if self._room < count else None

    def renew(self) -> None:
        """Go over to the session that was started on this one machine in place of the one that was lost."""
        self.home = own_node_id()
        self._known.clear()
        self.take(self.machine)

    def close(self) -> None:
        """Let an autoscaler take back what it brought, where Ray is still there."""
        if ray.is_initialized():
            self._request(0)

    def _request(self, slots: int) -> None:
        """Tell an autoscaler, where there is one, for how many trials at once there should be nodes."""
        if self._most is not None:
            gpus = self.space.resources.gpus_per_trial
            trial = {"CPU": self.space.resources.cpus_per_trial}
            request_resources(bundles=slots * [trial | ({"GPU": 1 if gpus == "auto" else gpus} if self.on_gpu else {})])

    @property
    def nodes(self) -> list[Node]:
        """The nodes that may take trials now."""
        return [self._known[node_id].node for node_id in sorted(self._group)]

    @property
    def slots(self) -> Slots:
        """How trials are packed on these nodes, and how many run at once."""
        resources = self.space.resources
        nodes = [(node.cpus, node.gpus if self.on_gpu else 0) for node in self.nodes]
        if not nodes:
            return replace(self._slots, count=0)
        # trials that were handed out keep their share: it is chosen once
        auto = self._slots.gpus or self.machine.auto_fraction(trials_for_a_gpu(resources, nodes))
        planned = plan_slots(resources, nodes, auto)
        least = min(filter(None, (self._most, self._room)), default=planned.count)
        self._slots = replace(planned, count=min(planned.count, least))
        return self._slots

    @property
    def selector(self) -> dict[str, str]:
        """The labels of the nodes that a trial may take, for Ray; empty where there is one node."""
        return {} if self.is_one else {NODE_ID: f"in({','.join(sorted(self._group))})"}

    def holds(self, address: str | None) -> bool:
        """Return whether a node is there, by its address; None is the run directory, which is."""
        there = {known.node.address for known in self._known.values() if not known.is_lost}
        return address is None or address in there

    def is_there(self, address: str) -> bool:
        """Return whether the node at an address answers; on one machine it does."""
        return self.is_one or any(node.answers() for node in alive_nodes() if node.address == address)

    def lose(self) -> list[Node]:
        """Leave the nodes whose raylets do not answer any more; return them."""
        lost = [] if self.is_one else [node for node in self.nodes if not node.answers()]
        for node in lost:
            self._known[node.id].is_lost = True
            self._leave(node.id, "left the cluster")
        return lost

    def _leave(self, node_id: str, why: str) -> None:
        self._group.discard(node_id)
        self._known[node_id].problem = why
        self._say(f"{self._known[node_id].node.name}: {why}")

    def strands(self, selector: Mapping[str, str]) -> bool:
        """Return whether none of the nodes that a selector names may take trials any more."""
        names = selector.get(NODE_ID, "in()").removeprefix("in(").removesuffix(")")
        return bool(selector) and self._group.isdisjoint(names.split(","))

    def poll(self, now: bool = False) -> bool:
        """Take in nodes that have joined, and leave those that are gone; return whether anything changed.

        Every POLL_S alone, unless ``now``.
        """
        if self.is_one or not (now or time.monotonic() - self._polled >= POLL_S):
            return False
        before, were = frozenset(self._group), set(self._known)
        waiting = {node_id for node_id, known in self._known.items() if known.task is not None}
        self._look()
        self._polled = time.monotonic()
        for node_id, known in self._known.items():
            if node_id in self._group or known.task is not None:
                continue
            if known.machine is not None and known.problem is None:
                known.problem = self._why_not(known)
                if known.problem is None:
                    self._group.add(node_id)
                self._say_of(known)
            elif known.problem is not None and not known.is_said and (known.node.cpus or node_id in waiting):
                self._say_of(known)
        return frozenset(self._group) != before or not were <= self._known.keys()

    def describe_waiting(self, seconds: float) -> str:
        """Return a line for a trial that no node takes: what is asked for, and what each node has free."""
        resources = self.space.resources
        gpus = f" and {self._slots.gpus or resources.gpus_per_trial} GPU" if self.on_gpu else ""
        asked = f"{resources.cpus_per_trial:g} CPU{gpus}"
        free = available_resources_per_node()
        has = [
            f"{node.name} {free.get(node.id, {}).get('CPU', 0):g} of {node.cpus} CPUs"
            + (f" and {free.get(node.id, {}).get('GPU', 0):g} of {node.gpus} GPUs" if node.gpus else "")
            for node in alive_nodes()
        ]
        there = f"free: {', '.join(has)}{describe_holders()}"
        if not self._group:
            there = f"no node that may take trials is left; {there}"
        return f"no node has taken a trial for {duration(seconds)}: each asks for {asked}; {there}"

    def tell_waiting(self, seconds: float) -> None:
        """Say for how long no node has taken a trial, what is missing and who holds it."""
        self._say(self.describe_waiting(seconds))

    def _look(self) -> None:
        """Begin to look at new nodes, take what came of it, and forget nodes that are gone."""
        alive = {node.id: node for node in alive_nodes()}
        for gone in self._known.keys() - alive.keys():
            if gone in self._group:
                self._leave(gone, "left the cluster")
            del self._known[gone]
        for leaving in self._group & cluster_state.get_draining_nodes().keys():
            self._leave(leaving, "is being taken away")
        for node_id in alive.keys() - self._known.keys():
            self._known[node_id] = self._begin(alive[node_id])
        for known in self._known.values():
            if known.task is not None:
                self._advance(known)

    def _begin(self, node: Node) -> Visited:
        cpus = self.space.resources.cpus_per_trial
        known = Visited(node)
        if self.on_gpu and not node.gpus:
            known.problem = "it has no GPU"
        elif node.cpus < cpus:
            known.problem = f"{node.cpus} CPUs, and a trial takes {cpus:g}"
        else:
            visit = _task(make_visit(), node)
            known.begin("answering", visit.remote(versions(), self.space.to_dict(), self._images))
        return known

    def _advance(self, known: Visited) -> None:
        ready, _ = ray.wait([known.task], timeout=0)
        if not ready:
            if known.doing == "decoding" and not known.is_told and time.monotonic() - known.since > ANSWER_S:
                known.is_told = True
                self._say(f"{known.node.name}: decoding images, once for all its trials")
            return
        try:
            answer = ray.get(known.task)
        except ray.exceptions.RayError as error:
            known.task, known.problem = None, one_line(getattr(error, "cause", None) or error)
            return
        known.task = None
        if known.doing == "timing":
            known.machine = answer
        elif known.doing == "decoding":
            cpus = self.space.resources.cpus_per_trial
            look = _task(look_at_machine, known.node, cpus, int(self.on_gpu))
            known.begin("timing", look.remote(self.space, self._threads, self.on_gpu))
        elif answer:
            known.problem = answer
        else:
            known.begin("decoding", _task(decode_images, known.node).remote(self.space))

    def _choose(self) -> None:
        """Choose the group of nodes that trials may take, and say of the others why not."""
        machines = {node_id: known.machine for node_id, known in self._known.items() if known.machine is not None}
        groups = group_machines(machines)
        if not groups:
            return
        ours = self._candidates(groups, machines)
        best = max(ours, key=lambda group: (self._count(group), machines[group[0]].speeds[REFERENCE]))
        if self._run is not None and not self.space.resources.device:
            near = self._run.speeds.get(REFERENCE, 0.0)
            best = min(ours, key=lambda group: abs(machines[group[0]].speeds[REFERENCE] - near))
            ratio = near / machines[best[0]].speeds[REFERENCE]
            if near and needs_seconds(self.space) and not 1 / ALIKE <= ratio <= ALIKE:
                self._say(f"a training step takes {ratio:.1f} times as long here as where this run began")
        self.machine = machines[best[0]]
        if self._run is not None:
            same = self._run.device == self.machine.device
            self.machine = self._run if same else replace(self.machine, precision=self._run.precision)
        self._group = set(best if needs_seconds(self.space) else machines)
        for node_id in machines.keys() - self._group:
            self._known[node_id].problem = self._why_not(self._known[node_id])

    def _candidates(self, groups: list[list[str]], machines: Mapping[str, Machine]) -> list[list[str]]:
        """Return the groups of the device that is wanted. Raises RequestError where no node has it."""
        wanted = self.space.resources.device
        if wanted is None and self._run is not None and needs_seconds(self.space):
            wanted = self._run.device
        if wanted is None:
            return groups
        found = [group for group in groups if machines[group[0]].device == wanted]
        if not found:
            devices = sorted({machine.device for machine in machines.values()})
            asked = "resources.device" if self.space.resources.device else "this run's device"
            raise RequestError(f"{asked} {wanted!r}: nodes have {', '.join(devices)}{suggest(wanted, devices)}")
        return found

    def _count(self, group: Sequence[str]) -> int:
        nodes = [self._known[node_id].node for node_id in group]
        counts = [(node.cpus, node.gpus if self.on_gpu else 0) for node in nodes]
        machine = self._known[group[0]].machine
        auto = 1.0 if machine is None else machine.auto_fraction(trials_for_a_gpu(self.space.resources, counts))
        return plan_slots(self.space.resources, counts, auto).count

    def _why_not(self, known: Visited) -> str | None:
        """Return why a node that could train is not of the group, None where it is."""
        assert known.machine is not None
        if not needs_seconds(self.space):
            return None
        if known.machine.device != self.machine.device:
            return f"{known.machine.device}, and seconds of this search are of {self.machine.device}"
        members = [self._known[node_id].machine for node_id in self._group]
        speeds = [machine.speeds[REFERENCE] for machine in members if machine is not None]
        speeds = speeds or [self.machine.speeds[REFERENCE]]
        own = known.machine.speeds[REFERENCE]
        if min(speeds) / ALIKE <= own <= max(speeds) * ALIKE:
            return None
        ratio = max(speeds) / own
        how = f"{ratio:.1f} times as slow as" if ratio > 1 else f"{own / min(speeds):.1f} times as fast as"
        return f"a training step is {how} on nodes of the same name, {self.machine.device}"

    def _say_of(self, known: Visited) -> None:
        known.is_said = known.task is None
        self._say(self._line(known))

    def _line(self, known: Visited) -> str:
        if known.task is not None:
            return f"{known.node.name}: no answer for {ANSWER_S:.0f} s: it takes trials once it has answered"
        if known.problem is not None:
            return f"{known.node.name}: left out: {known.problem}"
        assert known.machine is not None
        count = self._count([known.node.id])
        return f"{known.node.name}: ok, {known.machine.device}, {counted(count, 'slot')}"


def describe_session() -> str:
    """Return a line on the session that is joined: where it is, and what it has."""
    nodes, address = alive_nodes(), ray.get_runtime_context().gcs_address
    has = f"{sum(node.cpus for node in nodes)} CPUs and {sum(node.gpus for node in nodes)} GPUs"
    return f"joined the Ray session at {address}: {len(nodes)} node{'s' * (len(nodes) != 1)} with {has}"


def describe_holders() -> str:
    """Return who may hold what is not free, for a line: actors of others, or else their jobs; nothing where none is."""
    own, jobs = ray.get_runtime_context().get_job_id(), {job["JobID"]: job for job in cluster_state.job_table()}
    actors = [
        f"{actor['ActorClassName']}{f' {name!r}' if (name := actor['Name']) else ''} (process {actor['Pid']}"
        + (")" if actor["JobID"] == own else f" of {jobs.get(actor['JobID'], {}).get('Entrypoint') or 'another job'})")
        for actor in cluster_state.actor_table(None, actor_state_name="ALIVE").values()
        if not (actor["JobID"] == own and actor["ActorClassName"] == "MixTrainable")
    ]
    others = [
        job["Entrypoint"] for name, job in jobs.items() if name != own and not job["IsDead"] and job["Entrypoint"]
    ]
    held = actors or others
    more = f" and {len(held) - MAX_HOLDERS} more" if len(held) > MAX_HOLDERS else ""
    return f"; held by {', '.join(held[:MAX_HOLDERS])}{more}" if held else ""


def group_machines(machines: Mapping[str, Machine]) -> list[list[str]]:
    """Return names of machines whose seconds compare, the fastest of each group first.

    They have one device and as many threads; their reference speeds, sorted, are cut where neighbours differ by more
    than ALIKE.
    """
    kinds: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, machine in machines.items():
        kinds[machine.device, machine.threads].append(name)
    groups = []
    for names in kinds.values():
        names.sort(key=lambda name: -machines[name].speeds[REFERENCE])
        groups.append(names[:1])
        for faster, slower in pairwise(names):
            if machines[faster].speeds[REFERENCE] > ALIKE * machines[slower].speeds[REFERENCE]:
                groups.append([])
            groups[-1].append(slower)
    return groups


def needs_seconds(space: SearchSpace) -> bool:
    """Return whether an objective or a constraint compares seconds, or other figures of a device."""
    return any(find_metric(name).of_device for name in (*space.objectives, *space.constraints))


def _task(function: Callable[..., Any], node: Node, cpus: float = 0, gpus: int = 0) -> Any:
    """Return a remote function that runs on a node; on a GPU once a process, so that none of its memory stays taken."""
    where = on_node(node.id)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=int(gpus > 0), max_retries=0, scheduling_strategy=where)
    return task(function)
