"""A run's space, edited between two starts: what may change, and how the ledger knows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixtune.errors import RequestError, show
from mixtune.files import write_whole
from mixtune.run.directory import RunDirectory, space_document, space_text
from mixtune.run.ledger import Ledger
from mixtune.space.recipe import flatten
from mixtune.space.space import SearchSpace, space_on_arrays
from mixtune.tuning.prepare import AnySpace, resolve_space

EDITABLE = ("space", "constraints", "search", "resources")

_log = logging.getLogger("mixtune.tuning")


def current_run(path: Path, space: AnySpace | None = None) -> RunDirectory:
    """Return a run whose space.yaml is that of its latest edit; it is written where that was interrupted.

    space: what the run's space is to be from now on. Where that is its own space.yaml, which was edited by hand, the
    run's is what the file held before. Raises RequestError where it was edited by hand, and is not ``space``.
    """
    run = RunDirectory(path)
    if run.holds_run and run.is_edited_by_hand:
        if not _is_own(space, run):
            run.refuse_edited_by_hand()
        run.document = replace(run.document, values=dict(run.state.documents[-1]))
        run.is_edited_by_hand = False
        return run
    if run.holds_run and (edited := run.state.edited) is not None and run.document.values != edited:
        _log.warning("%s was not as the run was edited last: it is written again", run.space_file)
        write_whole(run.space_file, space_text(edited))
    return RunDirectory(path)


def _is_own(space: AnySpace | None, run: RunDirectory) -> bool:
    return isinstance(space, str | os.PathLike) and Path(space).resolve() == run.space_file.resolve()


def read_edited(space: AnySpace, run: RunDirectory) -> SearchSpace:
    """Return the edited space of a run. Raises RequestError."""
    on_arrays = (run.data / "meta.json").is_file()
    edited = space_on_arrays(space, os.path.abspath(run.data), {}) if on_arrays else resolve_space(space, {})
    return with_settled_sampler(edited, run.space)


def with_settled_sampler(given: SearchSpace, own: SearchSpace) -> SearchSpace:
    """Return a space given for a run, ``auto`` in it settled as it was when the run began."""
    if given.search.sampler != "auto":
        return given
    options = {**own.search.sampler_options, **given.search.sampler_options}
    return given.with_search(sampler=own.search.sampler, sampler_options=options)


def refuse_other_recipe(name: str, run: RunDirectory, edited: SearchSpace) -> None:
    """Raise RequestError where a prepared space differs from its run's in more than may be edited."""
    before = run.space
    was, now = flatten(before.recipe.to_dict()), flatten(edited.recipe.to_dict())
    follow = {*before.ties, *edited.ties}
    different = {
        f"recipe.{path}": (now.get(path), was.get(path))
        for path in (*was, *now)
        if path not in follow and was.get(path) != now.get(path)
    }
    if before.objectives != edited.objectives:
        different["objectives"] = (edited.objectives, before.objectives)
    if set(before.baselines) != set(edited.baselines):
        different["baselines"] = (list(edited.baselines), list(before.baselines))
    for path, (there, here) in different.items():
        raise RequestError(
            f"{name}: {path} is {show(there)}, and {show(here)} in this run, of which only {', '.join(EDITABLE)} can "
            f"be edited: a new search learns from it by search.learn_from: [{run.path}]"
        )


def edit_run(run: RunDirectory, edited: SearchSpace, most_expensive: Mapping[str, float]) -> str:
    """Note a run's edited space in its ledger, then in its space.yaml; return a line.

    edited: as it is prepared; most_expensive: see RunFacts. Earlier trials keep their recipes: a field that follows
    another one in one of both spaces alone is kept as a parameter of theirs.
    """
    before = run.space.with_recipe(run.space.recipe)
    was, now = before.to_dict(), edited.to_dict()
    changed = {section: _names_of_changes(was[section], now[section]) for section in EDITABLE}
    if not any(changed.values()):
        return "the space is the run's already: nothing is edited"
    kept: dict[str, dict[str, Any]] = {}
    for record in (*run.state.records.values(), *run.state.learned.values()):
        values, others = before.values_at(record.params), edited.values_at(record.params)
        kept[record.trial] = {path: value for path, value in values.items() if others.get(path) != value}
    document = space_document(edited, replace(run.facts, most_expensive=most_expensive))
    budget: dict[str, Any] = {}
    if before.search.trials != edited.search.trials:
        budget["trials"] = edited.budget
    event = Ledger(run.ledger_file).append(
        "edited",
        document=document,
        kept={trial: values for trial, values in kept.items() if values},
        varied=[*before.space, *before.ties],
        **budget,
    )
    write_whole(run.space_file, space_text(event["document"]))
    return f"edited: {', '.join(f'{section}.{name}' for section, names in changed.items() for name in names)}"


def _names_of_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        name for name in dict.fromkeys([*was, *now]) if name not in was or name not in now or was[name] != now[name]
    ]
