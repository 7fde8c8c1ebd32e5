"""A search by a plain loop in this process: the core that tuning/ray.py drives, without Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mixtune import plugins
from mixtune.cost.machine import look_at_machine
from mixtune.cost.model import CostModel
from mixtune.errors import RequestError
from mixtune.run.directory import RunDirectory, space_document, space_text
from mixtune.run.reference import derive_reference
from mixtune.run.result import Result, result_of
from mixtune.stages.paths import RecipePaths
from mixtune.training.loop import DivergedError
from mixtune.tuning.learning import learn, read_sources, trial_keys
from mixtune.tuning.prepare import facts_of, known_machine, prepare
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import SearchContext, train_trial


def search_here(values: Mapping[str, Any], out: Path, slots: int = 1) -> Result:
    """Search a space on this process's CPU and return the result; ``slots`` trials take turns, epoch by epoch."""
    prepared = prepare(values, gpus=0)
    out.mkdir(parents=True)
    run = RunDirectory(out)
    machine = look_at_machine(prepared.space, 1, on_gpu=False)
    run.space_file.write_text(space_text(space_document(prepared.space, facts_of(prepared, machine))))
    return continue_here(out, slots=slots)


def open_here(out: Path, slots: int = 1, **options: Any) -> RunningSearch:
    """Return the search of a run directory, ready to continue."""
    run = RunDirectory(out)
    prepared = prepare(run.space, gpus=0)
    costs = CostModel(prepared.space, prepared.data, known_machine(run))
    scheduler = plugins.find("tuning.schedulers", prepared.space.search.scheduler, "scheduler").build(prepared.space)
    reference = functools.partial(derive_reference, prepared.space, run.facts)
    defaults = {"paths": RecipePaths(prepared.space), "costs": costs.cost, "fault": costs.fault, "reference": reference}
    search = RunningSearch(
        prepared.space, run.ledger_file, slots=slots, **{**defaults, "scheduler": scheduler, **options}
    )
    machine = known_machine(run)
    for source in read_sources(prepared.space, search.state.sources):
        learn(search, source, machine, run.stages, lambda recipes: trial_keys(machine, recipes, False))
    return search


def continue_here(
    out: Path,
    trials: int | None = None,
    slots: int = 1,
    stop_when: Callable[[RunningSearch], bool] = lambda search: False,
    **options: Any,
) -> Result:
    """Train what is left of a run's budget, until ``stop_when`` says so after an epoch, as a killed driver would."""
    search = open_here(out, slots, **options)
    if trials is not None:
        search.extend(trials)
    running: dict[str, Any] = {}
    while running or not search.is_over:
        while len(running) < slots and (asked := search.ask()) is not None:
            paths = search.stages._paths
            context = SearchContext(
                directory=str(out.resolve()),
                step_times=search.step_times.copy(),
                deadline=search.deadline,
                branches=tuple(paths(asked.params).stored_after),
            )
            config = {"recipe": search.space.recipe.to_dict(), "trial": asked.trial, "search": context, **asked.params}
            config |= search.space.tied(asked.params)
            search.start(asked.trial)
            running[asked.trial] = train_trial(config, torch.device("cpu"))
        for trial, reports in list(running.items()):
            try:
                report = next(reports)
            except (RequestError, DivergedError) as error:
                search.fail(trial, f"{type(error).__name__}: {error}")
                del running[trial]
                continue
            continues = search.report(trial, report)
            if stop_when(search):
                return result_of(RunDirectory(out))
            if report.is_whole or not continues:
                reports.close()
                search.end(trial)
                del running[trial]
    result = result_of(RunDirectory(out))
    result.write_tables()
    return result
