"""Trials from before a space was edited, and what was learned then: what the sampler is told of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mixtune.run.ledger import TrialRecord
from mixtune.space.placing import Place, place_recipe
from mixtune.space.space import SearchSpace


class EarlierRecords:
    """Where the records are whose parameters are not those of the space as it is now; the others are as they are."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._places: dict[str, Place] = {}

    def place(self, record: TrialRecord) -> Mapping[str, Any] | None:
        """Return a record's recipe by the space's parameters, a new one at the base recipe's value.

        None where the recipe differs from these in what the space does not search.
        """
        space, params = self._space.space, record.params
        if set(params) == set(self._space.active(params)) and all(
            space[path].contains(params[path]) for path in params
        ):
            return params
        place = self._places[record.trial] = place_recipe(self._space, self._space.values_at(params))
        return None if place.other else place.params

    def can_measure(self, record: TrialRecord) -> bool:
        """Return whether the space's scales have a place for a recipe that was placed."""
        place = self._places.get(record.trial)
        space = self._space.space
        return place is None or (
            not place.other and all(space[path].can_measure(value) for path, value in place.params.items())
        )

    def views(self, record: TrialRecord) -> Iterator[tuple[str, TrialRecord]]:
        """Yield a record, by its name, as a sampler sees it that suggests neighbours of the front.

        A trial outside of the space is on the front still: as its closest recipe, of which nothing was measured; what
        was measured is data.
        """
        place = self._places.get(record.trial)
        if place is None:
            yield record.trial, record
            return
        if record.state != "learned":
            closest = {path: self._space.space[path].closest(value) for path, value in place.params.items()}
            epochs = record.epochs if place.is_inside else []
            yield record.trial, replace(record, params=closest, epochs=epochs)
            if place.is_inside:
                return
        if self.can_measure(record):
            name = f"{record.trial} as it was"
            yield name, replace(record, trial=name, state="learned", params=place.params)
