"""Who builds which stage: the driver's view of the stage tree, so that no stage is trained twice at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mixtune.stages.keys import shared_epochs


@dataclass(frozen=True)
class TrialPath:
    """A trial's path through the tree: a key for each number of epochs, and after which epochs a state is stored.

    ends: these epochs, or what finds them when they are first asked for: most paths are only compared.
    """

    keys: Sequence[str]
    ends: Collection[int] | Callable[[], Collection[int]] = field(default_factory=frozenset)

    @functools.cached_property
    def stored_after(self) -> Collection[int]:
        """After which epochs a state is stored."""
        return self.ends() if callable(self.ends) else self.ends

    def until_none_of(self, passed: Container[str]) -> Sequence[str]:
        """Return the keys up to the first that is none of some, which only grow; no more are computed."""
        rest, walked = self._walked
        while (not walked or walked[-1] in passed) and (key := next(rest, None)) is not None:
            walked.append(key)
        return walked

    @functools.cached_property
    def _walked(self) -> tuple[Iterator[str], list[str]]:
        return iter(self.keys), []

    def shared_with(self, other: TrialPath) -> int:
        """Return how many epochs two paths begin with alike; -1 where not even their first weights are."""
        return shared_epochs(self.keys, other.keys)


Paths = Callable[[Mapping[str, Any]], TrialPath]


class Stored(NamedTuple):
    """A state by its trial's own key, and the node that has it, None for the run directory."""

    key: str
    node: str | None = None


class StageTable:
    """Which stages are stored, and which ones running trials are still to store.

    paths: of dotted parameters; two paths' keys are equal where their states are. What was evicted or damaged since it
    was stored is trained again, and nobody waits for that. Where a state that was due was not stored (a full disk),
    nobody waits for another until one is.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._stored: dict[str, Stored] = {}
        self._passed = set[str]()  # the keys on the way to a stored state: where a path leaves them nothing is stored
        self._stores = True
        self._builders: dict[str, tuple[TrialPath, int]] = {}  # a running trial's path, and how far it is
        self._first: dict[str, str] = {}  # the trial that came first to a key
        self._followed: dict[str, tuple[str, int] | None] = {}

    def note_stored(self, params: Mapping[str, Any], epoch: int, stored: Stored) -> None:
        """A trial's state after so many epochs is stored; one between branches does not stay."""
        path = self._paths(params)
        if epoch in path.stored_after:
            self._stored[path.keys[epoch]] = stored
            self._passed.update(path.keys[: epoch + 1])
            self._stores = True

    def forget(self, holds: Callable[[str | None], bool]) -> None:
        """Forget the states of nodes that are lost; holds: whether a node is there."""
        self._stored = {key: stored for key, stored in self._stored.items() if holds(stored.node)}

    def places(self, params: Mapping[str, Any]) -> dict[str, str | None]:
        """Return the keys of the states that a recipe may continue from, each with the node that has it."""
        keys = self._paths(params).keys
        return {stored.key: stored.node for key in keys if (stored := self._stored.get(key)) is not None}

    def follows(self, trial: str, params: Mapping[str, Any]) -> tuple[str, int] | None:
        """Return the trial whose path a trial's begins with, of those that came before, and for how many epochs."""
        if trial not in self._followed:
            keys = self._paths(params).keys
            epoch = next((epoch for epoch in reversed(range(1, len(keys))) if keys[epoch] in self._first), None)
            self._followed[trial] = None if epoch is None else (self._first[keys[epoch]], epoch)
            for key in keys:
                self._first.setdefault(key, trial)
        return self._followed[trial]

    def ends(self, params: Mapping[str, Any]) -> Collection[int]:
        """Return after how many epochs a recipe's states are stored, for others to continue from."""
        return self._paths(params).stored_after

    def begin(self, trial: str, params: Mapping[str, Any]) -> None:
        """A trial is handed out: it builds what it lacks."""
        path = self._paths(params)
        self._builders[trial] = path, self._stored_epochs(path)

    def advance(self, trial: str, epoch: int) -> None:
        """A running trial has trained so many epochs; what it could store up to there is noted."""
        if trial in self._builders:
            path, before = self._builders[trial]
            self._builders[trial] = path, max(before, epoch)
            due = [e for e in path.stored_after if before < e <= epoch]
            self._stores &= all(path.keys[e] in self._stored for e in due)

    def leave(self, trial: str) -> None:
        """A trial trains no more, whatever ended it."""
        self._builders.pop(trial, None)

    def awaited(self, params: Mapping[str, Any]) -> str | None:
        """Return a running trial that will store more of a recipe's beginning than is stored yet; None: begin now."""
        if not self._stores:
            return None
        path = self._paths(params)
        own = self._stored_epochs(path)
        for trial, (other, done) in self._builders.items():
            shared = path.shared_with(other)
            if any(own < epoch <= shared and epoch > done for epoch in other.stored_after):
                return trial
        return None

    def stored(self, params: Mapping[str, Any]) -> int:
        """Return how many epochs of a recipe's beginning are stored."""
        return self._stored_epochs(self._paths(params))

    def reusable(self, params: Mapping[str, Any]) -> int:
        """Return how many epochs of a recipe cost its slot nothing: those that are stored, or trained by now.

        Of a stage that a running trial will store the recipe waits for the epochs that are left.
        """
        path = self._paths(params)
        coming = [
            done
            for other, done in self._builders.values()
            if (shared := path.shared_with(other)) > done
            and any(done < epoch <= shared for epoch in other.stored_after)
        ]
        return max([self._stored_epochs(path), *coming])

    def _stored_epochs(self, path: TrialPath) -> int:
        keys = path.until_none_of(self._passed)
        return next((epoch for epoch in reversed(range(len(keys))) if keys[epoch] in self._stored), 0)
