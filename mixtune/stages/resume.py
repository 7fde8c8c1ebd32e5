"""A training run that continues from its last checkpoint, whatever ended the process before."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from mixtune.meter.times import StepTimes
from mixtune.stages.fits import why_unfit
from mixtune.stages.keys import shared_epochs, stage_keys
from mixtune.stages.store import MAX_BYTES, StateStore
from mixtune.training.loop import train
from mixtune.training.state import EpochResult, TrainState

SAVE_EVERY_S = 60.0  # the most that a crash costs, between the states at phase boundaries
SAVE_SHARE = 0.05  # of the time that storing may take, between phase boundaries


def train_shared(
    state: TrainState, folder: Path, step_times: StepTimes, others: Iterable[Sequence[str]] = ()
) -> Iterator[EpochResult]:
    """Train a fresh state as train() does, from what a folder of states has of its beginning, and store there.

    step_times: what is known of training runs whose seconds belong together; it grows. others: keys (stage_keys) of the
    recipes that may continue from this one's states. The epochs of a stored beginning are not yielded.
    """
    state.step_times = step_times
    stored = Recovery(state, folder, MAX_BYTES)
    stored.branches.update(shared_epochs(stored.keys, keys) for keys in others)
    for result in train(state):
        stored.save_if_due()
        yield result


class Recovery:
    """Brings a fresh state to the longest stored beginning of its recipe, and stores it as training continues.

    States are stored at phase boundaries, after ``branches`` epochs, since others may continue from there, and at the
    end; and every SAVE_EVERY_S seconds between, where the one before is then removed; after ``deadline``, by
    time.monotonic(), at each epoch's end: ``after_deadline`` says whether the latest epoch was one of these; where
    ``is_leaving()``, too, since this machine will be taken away. folder, max_bytes: see StateStore; fetch: see its
    longest().
    """

    def __init__(
        self,
        state: TrainState,
        folder: Path,
        max_bytes: int | None = None,
        deadline: float | None = None,
        branches: Collection[int] = (),
        fetch: Callable[[str], bool] = lambda key: False,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_leaving = is_leaving
        self._state, self._deadline, self.after_deadline = state, deadline, False
        self.branches = set(branches)
        self._store = StateStore(folder, max_bytes)
        self._plan = state.plan
        self.keys = stage_keys(state.recipe, state.data, state.device)
        keys = self.keys[1 : self._most_reusable() + 1]
        found = self._store.longest(keys, fetch, lambda epochs, saved: why_unfit(state, saved, epochs + 1))
        if found is not None:
            state.load_state_dict(found[1])
        self._rolling: str | None = None
        self._saved_at = time.monotonic()
        self._took = 0.0

    def take_warnings(self) -> list[str]:
        """Return what the store has warned of since the last call."""
        warnings, self._store.warnings = self._store.warnings, []
        return warnings

    def save_if_due(self) -> str | None:
        """Store the state where that is due; return its key if it is stored now."""
        done = len(self._state.history)
        is_boundary = done == len(self._plan) or self._plan[done].phase != self._plan[done - 1].phase
        is_boundary |= done in self.branches
        now = time.monotonic()
        due = now - self._saved_at > max(SAVE_EVERY_S, self._took / SAVE_SHARE)
        self.after_deadline = self._deadline is not None and now > self._deadline
        if not (is_boundary or due or self.after_deadline or self._is_leaving()):
            return None
        is_shared = is_boundary or self.keys[done] in self._store  # another trial's boundary, perhaps
        if not self._store.save(self.keys[done], self._state.state_dict()):
            return None
        if self._rolling is not None:
            self._store.remove(self._rolling)
        self._rolling = None if is_shared else self.keys[done]
        self._saved_at = time.monotonic()
        self._took = self._saved_at - now
        return self.keys[done]

    def _most_reusable(self) -> int:
        """Return how many epochs may come from a store: steps that were never timed need an epoch trained here.

        The seconds of a step come from training it; a crash may lose them and keep the state.
        """
        times = self._state.step_times
        latest = {signature: index for index, (_, signature, _) in enumerate(self._state.bill.epochs)}
        return min((index for each, index in latest.items() if not times.is_known(each)), default=len(self._plan))
