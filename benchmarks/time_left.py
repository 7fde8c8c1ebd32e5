"""Replay a finished search's ledger: what it said of the time left, against the time that was left.

    python benchmarks/time_left.py runs/digits

Prints, after a share of its wall time, the trials done, the forecast and the truth in seconds, and their ratio; then
the mean of the ratio's distance from 1 over all the run. A search that was continued is replayed from its last start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import COUNTED, RunState, read_ledger
from mixtune.run.remaining import time_left

SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


class Moment(NamedTuple):
    """At a share of the wall time: trials done, seconds left as forecast and as it was."""

    share: float
    done: int
    forecast: float
    truth: float


def replay(directory: Path, steps: int = 100) -> Iterator[Moment]:
    """Yield what a search said of itself at every hundredth of its time."""
    run, state = RunDirectory(directory), RunState()
    events = read_ledger(run.ledger_file)
    start = [event["time"] for event in events if event["event"] == "opened"][-1]
    end = max(event["time"] for event in events if event["event"] in ("complete", "baseline", "stopped", "failed"))
    for step in range(steps):
        now = start + (end - start) * step / steps
        while events and events[0]["time"] <= now:
            state.apply(events.pop(0))
        done = sum(r.state in COUNTED and r.baseline is None for r in state.records.values())
        forecast = time_left(state, run.space, now).search
        yield Moment(step / steps, done, float("nan") if forecast is None else forecast, end - now)


def main() -> None:
    """Print the table."""
    for directory in map(Path, sys.argv[1:]):
        moments = list(replay(directory))
        print(f"{directory}: {moments[0].truth:.0f} s")
        print(f"| after | trials done | forecast (s) | left (s) | ratio |\n|{'---|' * 5}")
        for each in moments:
            if each.share in SHARES:
                ratio = each.forecast / each.truth
                print(f"| {each.share:.0%} | {each.done} | {each.forecast:.0f} | {each.truth:.0f} | {ratio:.2f} |")
        off = [abs(each.forecast / each.truth - 1) for each in moments if each.share < max(SHARES)]
        print(f"mean distance of the ratio from 1, up to {max(SHARES):.0%}: {sum(off) / len(off):.2f}")


if __name__ == "__main__":
    main()
