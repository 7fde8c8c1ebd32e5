"""Stored states that a run does not need any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixtune.errors import RequestError
from mixtune.run.ledger import ENDED, TrialRecord, apply_event, read_ledger
from mixtune.run.lock import hold_run
from mixtune.stages.store import DAMAGED, StateStore


def clean_run(directory: Path, max_bytes: int | None) -> tuple[int, int]:
    """Remove states that no unfinished trial of a run goes on from; see clean_states.

    Raises RequestError where the directory holds no run, and while somebody drives it.
    """
    if not (directory / "space.yaml").exists():
        raise RequestError(f"{directory} holds no run: space.yaml is missing")
    with hold_run(directory, "clean"):
        ledger = directory / "ledger.jsonl"
        return clean_states(directory, needed_states(read_ledger(ledger) if ledger.exists() else []), max_bytes)


def needed_states(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the keys of the states that unfinished trials go on from: each trial's latest in a ledger's events."""
    records: dict[str, TrialRecord] = {}
    latest: dict[str, str] = {}
    for event in events:
        apply_event(records, event)
        if event["event"] == "epoch" and event.get("trial") is not None and event.get("state") is not None:
            latest[str(event["trial"])] = event["state"]
    return {key for trial, key in latest.items() if records[trial].state not in ENDED}


def clean_states(directory: Path, needed: Collection[str], max_bytes: int | None) -> tuple[int, int]:
    """Remove states of a run that are not ``needed``; return how many files went and their bytes.

    All of them, or with ``max_bytes`` the least recently used ones, until the files that stay are within it.
    Damaged states and what dead writers left go always; what cannot be removed stays.
    """
    folder = directory / "stages"
    before = _sizes(folder)
    store = StateStore(folder)  # which removes what dead writers left
    for path in folder.glob(f"*{DAMAGED}"):
        with suppress(OSError):
            path.unlink()
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
    sizes = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                sizes[path.name] = path.stat().st_size
    return sizes
