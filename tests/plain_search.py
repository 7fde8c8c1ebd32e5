"""A search by a plain loop in this process: mixtune.Study on a CPU, and several of its trials in turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtune.run.result import Result
from mixtune.study import Study
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import EpochReport


def search_here(values: Mapping[str, Any], out: Path, slots: int = 1) -> Result:
    """Search a space on this process's CPU and return the result; ``slots`` trials take turns, epoch by epoch."""
    with Study(values, out=out, overrides={"resources.gpus_per_trial": 0}) as study:
        if slots > 1:
            _take_turns(study, slots)
        _train_all(study)
    return study.result()


def continue_here(out: Path, trials: int | None = None) -> Result:
    """Train what is left of a run's budget."""
    with Study(out=out, trials=trials) as study:
        _train_all(study)
    return study.result()


def open_here(out: Path) -> RunningSearch:
    """Return the search of a run directory, ready to continue; nobody holds the directory."""
    study = Study(out=out)
    study._held.close()
    return study._search


def _train_all(study: Study) -> None:
    while (trial := study.ask()) is not None:
        trial.train()


def _take_turns(study: Study, slots: int) -> None:
    """Drive a study's core as Ray does: a trial waits for a stage that another one trains."""
    search = study._search
    search.slots, search._waits = slots, True
    running: dict[str, Any] = {}
    while running or not search.is_over:
        while len(running) < slots and (trial := study.ask()) is not None:
            search.start(trial.name)
            running[trial.name] = study._reports(trial)
        for name, reports in list(running.items()):
            report: EpochReport = next(reports)
            if not search.report(name, report) or report.is_whole:
                reports.close()
                search.end(name)
                del running[name]
