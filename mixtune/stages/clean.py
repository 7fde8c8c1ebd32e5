"""Stored states that a run does not need any more."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from mixtune.errors import RequestError
from mixtune.files import refuse_link
from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import ENDED, RunState
from mixtune.run.lock import hold_run
from mixtune.stages.store import StateStore

_LEFT = re.compile(r"[0-9a-f]{40}\.damaged|\.[0-9a-f]{40}[-.].*\.tmp")


def clean_run(directory: Path, max_bytes: int | None) -> tuple[int, int]:
    """Remove states that no unfinished trial of a run continues from; see clean_states.

    Raises RequestError where the directory holds no run or no ledger, which says what is needed, where the folder of
    states is a link, and while somebody drives the run.
    """
    run = RunDirectory(directory)
    if not run.holds_run:
        raise RequestError(f"{directory} holds no run: {run.space_file.name} is missing")
    if not run.ledger_file.exists():
        raise RequestError(f"{directory} holds no {run.ledger_file.name}, which says what its trials need")
    refuse_link(run.stages)
    with hold_run(directory, "clean"):
        return clean_states(run.stages, needed_states(run.state), max_bytes)


def needed_states(state: RunState) -> set[str]:
    """Return the keys of the checkpoints that unfinished trials continue from."""
    records = state.records.values()
    return {[*record.stored.values()][-1] for record in records if record.stored and record.state not in ENDED}


def clean_states(folder: Path, needed: Collection[str], max_bytes: int | None) -> tuple[int, int]:
    """Remove states of a run that are not ``needed``; return how many files went and their bytes.

    All of them, or with ``max_bytes`` the least recently used ones, until the files that stay are within it. What
    killed writers left goes always, and states that earlier versions set aside; what cannot be removed stays, and what
    has another name.
    """
    before = _sizes(folder)
    for name in before:
        if _LEFT.fullmatch(name):
            with suppress(OSError):
                (folder / name).unlink()
    store = StateStore(folder)
    sizes = store.sizes()
    excess = sum(sizes.values()) - (max_bytes or 0)
    for key, size in sizes.items():
        if key not in needed and (max_bytes is None or excess > 0):
            store.remove(key)
            excess -= size
    gone = before.keys() - _sizes(folder).keys()
    return len(gone), sum(before[name] for name in gone)


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file by its name."""
    return {path.name: path.lstat().st_size for path in folder.iterdir()} if folder.is_dir() else {}
