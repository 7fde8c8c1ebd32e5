"""Which recipe is next: what the sampler suggests, where that is possible, affordable and not known yet."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mixtune.cost.model import Cost
from mixtune.errors import RequestError
from mixtune.run.ledger import TrialRecord, finite_or_none
from mixtune.space.effective import effective
from mixtune.space.placing import complete_params
from mixtune.space.points import points
from mixtune.space.space import SearchSpace
from mixtune.tuning.suggestions import draw

if TYPE_CHECKING:
    from mixtune.tuning.search import RunningSearch

Params = Mapping[str, Any]
Fault = Callable[[Params], str | None]
Event = tuple[str, dict[str, Any]]

MAX_IN_A_ROW = 20  # suggestions that came to nothing; then a recipe that is possible and not known is drawn at random
MAX_COUNTED = 10_000  # recipes of a space; of a larger one DRAWS decide whether any is left
DRAWS = 1_000
OPTIMISM = 0.5  # of a forecast by FLOPs: before anything was timed a constraint rejects only what is far too expensive

_log = logging.getLogger("mixtune.tuning")


class KnownRecipes:
    """The trials and baselines by what they train: recipes that differ in idle settings alone are one."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._trials: dict[str, list[str]] = {}

    def name(self, params: Params) -> str:
        """Return what is equal for dotted parameters whose recipes train the same."""
        return json.dumps(effective(self._space.values_at(params)), sort_keys=True, default=str)

    def add(self, record: TrialRecord) -> None:
        """Take a trial or baseline that is asked."""
        self._trials.setdefault(self.name(record.params), []).append(record.trial)

    def paused(self, params: Params, records: Mapping[str, TrialRecord]) -> str | None:
        """Return the paused trial of a recipe."""
        trials = self._trials.get(self.name(params), ())
        return next((trial for trial in trials if records[trial].state == "paused"), None)

    def same_as(self, params: Params, records: Mapping[str, TrialRecord]) -> str | None:
        """Return the trial that answers for a recipe, or will; what crashed or was stopped is trained again."""
        return self.same_named(self.name(params), records)

    def same_named(self, name: str, records: Mapping[str, TrialRecord]) -> str | None:
        """Return the same by what the recipe is known by; see name()."""
        for trial in self._trials.get(name, ()):
            record = records[trial]
            if record.state in ("asked", "running", "complete") or (
                record.state == "failed" and record.cause == "permanent"
            ):
                return trial
        return None


class Asking:
    """Asks the sampler of a search; ``known`` is what need not be trained again."""

    def __init__(self, search: RunningSearch, fault: Fault) -> None:
        self.known = KnownRecipes(search.space)
        self._fault, self._search = fault, search
        self._warned = set[str]()

    def fault(self, params: Params) -> str | None:
        """Return why dotted parameters make no recipe that can be trained; None where they do."""
        return self._search.space.broken(params) or self._fault(params)

    def events(self) -> Iterator[Event]:
        """Yield what to note of one suggestion after the other: (event, fields), the last one ``asked`` if any is.

        Each has to be noted before the next is requested: ``known`` and ``rejected`` recipes come before; a paused
        trial that is ``continued``, an ``exhausted`` space, or ``hopeless`` constraints may be the last in place of it.
        """
        search = self._search
        while (given := self.next_given()) is not None:
            yield (event := self._judged(given, is_given=True))
            if event[0] in ("asked", "continued"):
                return
        is_grid = search.space.search.sampler == "grid"
        fruitless = 0
        while is_grid or fruitless < MAX_IN_A_ROW:
            number = search.next_number
            proposed = search.suggester.propose(number)
            yield (event := self._judged(proposed))
            if event[0] in ("asked", "continued"):
                return
            fruitless += 1
        yield self._drawn()

    def next_given(self) -> Params | None:
        """Return the parameters of the next recipe of ``search.first`` or ``--try``, None where all have had a turn."""
        space, state = self._search.space, self._search.state
        if not (space.search.first or state.given):
            return None
        had = Counter[str]()
        for record in state.records.values():
            if record.given:
                had[self.known.name(record.params)] += record.given
        for given in (*space.search.first, *state.given):
            try:
                params = complete_params(space, given)
            except RequestError as error:  # the space was edited since
                if str(error) not in self._warned:
                    self._warned.add(str(error))
                    _log.warning("a recipe that was to be tried is left out: %s", error)
                continue
            if not had[name := self.known.name(params)]:
                return params
            had[name] -= 1
        return None

    def _judged(self, proposed: Params | None, is_given: bool = False) -> Event:
        """Return the event of what was proposed, None for what Optuna's sampler suggests."""
        search, number = self._search, self._search.next_number
        noted = {"given": True} if is_given else {}
        if proposed is not None and (paused := self.known.paused(proposed, search.records)) is not None:
            return "continued", {"trial": paused, "sampler": search.suggester.notes(), **noted}
        params = search.suggester.ask(f"t{number:04d}", number, proposed)
        fields = {"params": params, "sampler": search.suggester.notes(f"t{number:04d}"), **noted}
        if (same := self.known.same_as(params, search.records)) is not None:
            return "known", {**fields, "same_as": same}
        if (broken := self._broken(params)) is not None:
            reason, forecast = broken
            return "rejected", {**fields, "reason": reason, "metrics": finite_or_none(forecast)}
        return "asked", {**fields, **forecast_fields(search.cost(params))}

    def _broken(self, params: Params) -> tuple[str, Mapping[str, float]] | None:
        """Return why a recipe cannot be, or breaks a constraint, and its forecast; None for one that may be trained."""
        if (fault := self.fault(params)) is not None:
            return fault, {}
        constraints = self._search.space.constraints
        cost = self._search.cost(params, OPTIMISM) if constraints else None
        forecast = {} if cost is None else cost.objectives
        for name, constraint in constraints.items():
            if name in forecast and not constraint.holds(forecast[name]):
                return f"{name} would be {forecast[name]:.4g}, not {constraint.to_yaml()}", forecast
        return None

    def _drawn(self) -> Event:
        """Return the event of a recipe drawn from those that are left, or of none."""
        search, number = self._search, self._search.next_number
        space, size = search.space, search.space.grid_size()
        if size is not None and size <= MAX_COUNTED:
            drawn = list(points(space))
            random.Random(f"{space.search.seed}/{number}").shuffle(drawn)
            among = f"the {size:,} recipes of the space"
        else:
            drawn = draw(space, number, DRAWS)
            among = f"{DRAWS:,} recipes drawn from the space"
        names, reason = set[str](), None
        for params in drawn:
            if self.known.same_as(params, search.records) is not None:
                names.add(self.known.name(params))
            elif (broken := self._broken(params)) is None:
                return self._judged(params)
            else:
                reason = reason or broken[0]
        if not names:
            return "hopeless", {"reason": f"of {among} not one may be trained: {reason}"}
        cannot = f", and the others cannot be trained ({reason})" if reason else ""
        said = f"nothing is left to try: {among} come to {len(names):,} different ones, which are known{cannot}"
        return "exhausted", {"reason": said}


def forecast_fields(cost: Cost | None) -> dict[str, Any]:
    """Return what an ``asked`` event holds of a recipe's cost."""
    return {} if cost is None else {"forecast_s": cost.seconds, "epochs": cost.epochs}
