"""Expected hypervolume for each second that no stored stage has: what is almost trained already is nearly free.

A Gaussian process over the states that were trained predicts what each recipe would come to; the other objectives are
known before training. Asked is the recipe with the most expected hypervolume improvement for each second of training
that it adds (the idea: expected improvement per second, Snoek et al. 2012, Section 3.2; here the seconds are marginal:
what stages are stored costs nothing). Running trials count as ended at their prediction. Nothing is drawn at random
but the first recipe, a cheap one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import moocore
import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from mixtune.cost.model import Cost
from mixtune.metrics import METRICS, metric_value
from mixtune.run.ledger import TrialRecord
from mixtune.space.space import SearchSpace
from mixtune.tuning.samplers._candidates import Candidate, Candidates
from mixtune.tuning.samplers._gains import count_beaten, step_gains, volume_gains
from mixtune.tuning.samplers._states import States
from mixtune.tuning.samplers._surrogate import QUANTILES, Surrogate
from mixtune.tuning.suggestions import Advice

Floats = npt.NDArray[np.float64]
Params = dict[str, Any]

KNOWN = ("train_latency_s", "train_flops")  # before training
MAX_DATA = 200  # states of one fit
GROWN = 1.1  # the kernel's numbers are fitted again when there are so many times more data
OVERHEAD = 0.02  # of the median recipe's seconds: of a start
BELIEF = 0.1  # of the budget: over how many trials priors fade (Hvarfner et al. 2022, Section 4.1)
CLOSE = 64  # candidates whose gains are computed where there are more objectives than a score and a cost


@dataclass(frozen=True)
class Datum:
    """A state that was trained: its features (width,), its recipe's figures there, and its seconds so far."""

    row: Floats
    figures: Mapping[str, float]
    seconds: float

    @functools.cached_property
    def key(self) -> bytes:
        """What data of one state have in common."""
        return self.row.tobytes()


@dataclass
class _Read:
    """What was taken from a trial's record so far."""

    epochs: int = 0
    data: list[Datum] = field(default_factory=list)


def proposer(space: SearchSpace, advice: Advice, by_stage: bool = True) -> CostAware:
    """Return what proposes the recipes of a search.

    by_stage: whether a trial whose stage has ended makes way for a recipe that promises more.
    """
    return CostAware(space, advice, by_stage)


class CostAware:
    """``memory`` has how many data each kernel was fitted to, and its numbers: ``{"val_accuracy": [21, 0.1, ...]}``."""

    def __init__(self, space: SearchSpace, advice: Advice, by_stage: bool) -> None:
        self.by_stage = by_stage
        self.memory: dict[str, list[float]] = {}
        self._space, self._advice, self._states = space, advice, States(space)
        self._candidates: Candidates | None = None
        self._read: dict[str, _Read] = {}
        goals = dict.fromkeys([*space.objectives, *space.constraints])
        self._learned = [name for name in goals if name not in KNOWN]

    def propose(self, seed: int, staying: str | None = None) -> Params | None:
        """Return the parameters to ask next; None where no candidate is left.

        staying: a trial at the end of a stage; it is chosen like a new one, but its next stage needs no start.
        """
        self._candidates = self._candidates or Candidates(self._space, self._states, self._advice)
        rng = np.random.default_rng(seed)
        records = self._advice.records
        complete = [record for record in records.values() if record.state == "complete"]
        running = [r for r in records.values() if r.state in ("asked", "running") and r.trial != staying]
        members = self._front(complete)
        everyone = self._candidates.near([record.params for record in members], rng)
        costed = [(candidate, self._advice.costs(candidate.params)) for candidate in everyone]
        known = [(candidate, cost) for candidate, cost in costed if cost is not None and self._is_affordable(cost)]
        own = None if staying is None else self._advice.name(records[staying].params)
        left = [each for each in known if each[0].name == own or not self._advice.is_known(each[0].name)]
        if not left:
            return None
        beliefs = np.array([self._space.density(candidate.params) for candidate, _ in left])
        if not complete and not running and not any(record.state == "learned" for record in records.values()):
            cheap = np.argsort([cost.seconds for _, cost in left], kind="stable")[: max(1, len(left) // 4)]
            return left[int(rng.choice(cheap, p=beliefs[cheap] / beliefs[cheap].sum()))][0].params
        seconds = [cost.seconds for _, cost in known]
        gains = self._gains(left, complete, running, max(seconds))
        starts = np.array([each.name != own for each, _ in left])
        added = _added_s(left) + OVERHEAD * float(np.median(seconds)) * starts
        believed = beliefs ** (BELIEF * self._space.budget / (1 + len(complete)))
        return left[int(np.argmax(gains / added * believed))][0].params

    def _front(self, complete: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Return the trials that no other dominates and that keep the constraints."""
        able = [record for record in complete if self._keeps(record.metrics)]
        if not able:
            return []
        return [able[i] for i in np.flatnonzero(moocore.is_nondominated(self._points(able)))]

    def _points(self, records: Sequence[TrialRecord]) -> Floats:
        """Return the objectives of complete trials, all to be small, (trials, objectives)."""
        rows = [[metric_value(record.metrics, name) for name in self._space.objectives] for record in records]
        return np.array(rows).reshape(len(records), len(self._signs)) * self._signs

    @property
    def _signs(self) -> Floats:
        return np.array([-1.0 if mode == "max" else 1.0 for mode in self._space.objectives.values()])

    def _keeps(self, figures: Mapping[str, Any]) -> bool:
        return all(limit.holds(metric_value(figures, name)) for name, limit in self._space.constraints.items())

    def _is_affordable(self, cost: Cost) -> bool:
        limits = self._space.constraints.items()
        return all(limit.holds(cost.objectives[name]) for name, limit in limits if name in cost.objectives)

    def _gains(
        self,
        left: Sequence[tuple[Candidate, Cost]],
        complete: Sequence[TrialRecord],
        running: Sequence[TrialRecord],
        dearest_s: float,
    ) -> Floats:
        """Return what each candidate is expected to add to the hypervolume; where nothing is, how unsure it is."""
        rows = np.array([candidate.row for candidate, _ in left])
        data, candidates = self._data(), self._candidates
        assert candidates is not None
        coming = [each for record in running if (each := candidates.of(record.params)) is not None]
        ends = np.array([each.row for each in coming]).reshape(len(coming), self._states.width)
        found = self._points([record for record in complete if self._keeps(record.metrics)])
        predicted: dict[str, Floats] = {}
        guessed: dict[str, Floats] = {}
        for name in self._learned:
            surrogate = self._surrogate(name, data)
            guessed[name] = surrogate.medians(ends) if len(ends) else np.zeros(0)
            if len(ends):  # what runs counts as if it had ended as predicted
                surrogate = self._surrogate(name, data, ends, guessed[name])
            predicted[name] = surrogate.quantiles(rows)
        costs = [self._advice.costs(each.params) for each in coming]
        soon = [
            [
                guessed[name][i] if name in guessed else math.nan if cost is None else cost.objectives[name]
                for name in self._space.objectives
            ]
            for i, cost in enumerate(costs)
        ]
        found = np.vstack([found, np.array(soon).reshape(len(soon), len(self._signs)) * self._signs])
        found = found[np.isfinite(found).all(axis=1)]
        reference = self._reference(found, dearest_s)
        gains = self._volume(left, predicted, found, reference)
        for name, limit in self._space.constraints.items():
            if name in predicted:  # how likely it is kept
                kept = predicted[name] <= limit.bound if limit.sense == "<=" else predicted[name] >= limit.bound
                gains = gains * (kept.mean(axis=1) + 1e-3)
        if gains.max() <= 0 and predicted:
            return np.asarray(next(iter(predicted.values())).std(axis=1))
        return gains

    def _volume(
        self,
        left: Sequence[tuple[Candidate, Cost]],
        predicted: Mapping[str, Floats],
        found: Floats,
        reference: Floats,
    ) -> Floats:
        names, signs = list(self._space.objectives), self._signs
        scores = [place for place, name in enumerate(names) if name not in KNOWN]
        costs = [place for place, name in enumerate(names) if name in KNOWN]

        def cost_of(place: int) -> Floats:
            return np.array([cost.objectives[names[place]] for _, cost in left])

        gains = np.zeros(len(left))
        if scores:
            score = scores[0]
            steps = [(-point[score], point[costs[0]] if costs else 0.0) for point in found]
            at = cost_of(costs[0]) if costs else np.zeros(len(left))
            bound = -reference[score], float(reference[costs[0]]) if costs else 1.0
            gains = step_gains(-signs[score] * predicted[names[score]], at, steps, bound)
        if len(scores) <= 1 and len(costs) <= 1 and scores:
            return gains
        added = _added_s(left)
        close = np.argsort(-gains / added if scores else added, kind="stable")[:CLOSE]
        # equally likely in each objective, and spread over all of them together
        order = np.argsort(qmc.Sobol(max(1, len(scores)), scramble=False).random(QUANTILES), axis=0)
        points = np.empty((len(close), QUANTILES, len(names)))
        for place in range(len(names)):
            if place in costs:
                points[:, :, place] = signs[place] * cost_of(place)[close, None]
            else:
                samples = predicted[names[place]][close]
                points[:, :, place] = signs[place] * samples[:, order[:, scores.index(place)]]
        gains = np.zeros(len(left))
        gains[close] = volume_gains(points, found, reference)
        return gains

    def _reference(self, found: Floats, dearest_s: float) -> Floats:
        """Return the worst that counts of each objective, all to be small; never a point that no candidate is below."""
        given = self._advice.reference()
        point = []
        for place, (name, sign) in enumerate(zip(self._space.objectives, self._signs, strict=True)):
            bound = given.get(name)
            worst = float(found[:, place].max()) if len(found) else 0.0
            if name == "train_latency_s":
                bound = max(dearest_s, bound or 0.0)
            point.append(worst + 0.1 * abs(worst) if bound is None else sign * bound)
        return np.array(point)

    def _surrogate(
        self, name: str, data: Sequence[Datum], rows: Floats | None = None, values: Floats | None = None
    ) -> Surrogate:
        """Return what is learned of a metric; rows, values: of running trials, which change no kernel's numbers."""
        known = [datum for datum in data if name in datum.figures]
        near = self._nearest(name, known)
        x = np.array([datum.row for datum in near]).reshape(len(near), self._states.width)
        y = np.array([datum.figures[name] for datum in near])
        metric = METRICS[name]
        chance = self._advice.reference().get(name, math.nan)
        guesses = metric.worst == "chance" and metric.known == "epoch"  # untrained, as frozen features do not
        is_chance = guesses and name not in self._space.constraints and math.isfinite(chance)
        anchored = self._states.untrained() if is_chance else x[:0], chance, metric.is_share
        fitted = self.memory.get(name)
        if rows is not None and values is not None:
            assert fitted is not None
            return Surrogate(np.vstack([x, rows]), np.append(y, values), *anchored, fitted[1:])
        is_old = fitted is None or len(known) >= GROWN * fitted[0] or len(fitted) - 1 != self._states.width + 2
        surrogate = Surrogate(x, y, *anchored, None if is_old or fitted is None else fitted[1:])
        if is_old:
            self.memory[name] = [len(known), *surrogate.numbers]
        return surrogate

    def _nearest(self, name: str, data: Sequence[Datum]) -> Sequence[Datum]:
        """Return the data; of many those that the fewest beat in score and seconds, and evenly of the others."""
        if len(data) <= MAX_DATA:
            return data
        sign = -1.0 if METRICS[name].direction == "min" else 1.0
        seconds = np.nan_to_num([datum.seconds for datum in data], nan=np.inf)  # of another device, unknown
        beaten = count_beaten(sign * np.array([datum.figures[name] for datum in data]), seconds)
        order, half = np.argsort(beaten, kind="stable"), MAX_DATA // 2
        others = order[half:][np.linspace(0, len(order) - half - 1, MAX_DATA - half).astype(int)]
        return [data[k] for k in np.sort(np.concatenate([order[:half], others]))]

    def _data(self) -> list[Datum]:
        """Return one datum for each state in which a trial's stage ended, in the order of the trials."""
        data: dict[bytes, Datum] = {}
        for record in self._advice.records.values():
            for datum in self._data_of(record):
                data.setdefault(datum.key, datum)
        return [*data.values()]

    def _data_of(self, record: TrialRecord) -> Iterable[Datum]:
        assert self._candidates is not None
        read = self._read.setdefault(record.trial, _Read())
        if len(record.epochs) > read.epochs:
            read.epochs, read.data = len(record.epochs), []
            candidate = self._candidates.of(record.params)
            ends = self._advice.stage_ends(record.params) if candidate is not None else ()
            for epoch in record.epochs:
                number = epoch.get("epoch") or 0
                if candidate is None or number not in (*ends, candidate.epochs):
                    continue
                told = (
                    {**epoch, **record.metrics} if number == candidate.epochs == record.metrics.get("epoch") else epoch
                )
                figures = {name: metric_value(told, name) for name in self._learned}
                figures = {name: figure for name, figure in figures.items() if math.isfinite(figure)}
                if figures:
                    row = self._states.row(candidate.params, candidate.recipe, number)
                    read.data.append(Datum(row, figures, metric_value(epoch, "train_latency_s")))
        return read.data


def _added_s(left: Sequence[tuple[Candidate, Cost]]) -> Floats:
    """Return the seconds of training that recipes add, (recipes,); those that are wholly stored almost none."""
    return np.array([cost.marginal_s + 1e-9 for _, cost in left])
