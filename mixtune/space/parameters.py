"""What a space's file says of a recipe's fields: which are searched, which follow others, how they relate."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mixtune.errors import RequestError, show
from mixtune.metrics import METRICS
from mixtune.space.conditions import Condition, parents_first
from mixtune.space.distributions import Distribution, parse_distribution
from mixtune.space.document import Document
from mixtune.space.reading import mistake_at, read_mapping
from mixtune.space.recipe import Recipe, RecipeError, check_known, default_settings, flatten
from mixtune.space.relations import Relation, is_relation, parse_relation
from mixtune.space.settings import Search
from mixtune.space.ties import Tie, is_number, is_tie, parse_tie

Entry = Distribution | Tie

_log = logging.getLogger("mixtune.space")


def read_parameters(
    document: Document, recipe: Recipe, search: Search, fixed: Mapping[str, Any]
) -> tuple[dict[str, Distribution], dict[str, Tie]]:
    """Return the distributions and the ties of fields that are not fixed, and say which ones are.

    Those that others depend on come first. A setting that some objectives have alone is active where one of them is.
    """
    given = read_mapping(document, "space")
    base, own = flatten(recipe.to_dict()), _settings_by_objective(given, fixed)
    known = {**base, **{path: value for settings in own.values() for path, value in settings.items()}}
    entries: dict[str, Entry] = {}
    pinned: list[str] = []
    for path, entry in given.items():
        key = ("space", str(path))
        try:
            check_known(known, str(path))
            entries[path] = parse_tie(entry) if is_tie(entry) else parse_distribution(entry)
        except RecipeError as error:
            raise mistake_at(document, key, error.message) from error
        except RequestError as error:
            raise mistake_at(document, key, str(error)) from error
        if path in fixed:
            if key in document.changes:
                raise mistake_at(document, key, f"--set {path}={show(fixed[path])} fixes the same field: drop one")
            pinned.append(f"--set {path}={show(fixed[path])}")
            del entries[path]
    distributions = {path: entry for path, entry in entries.items() if isinstance(entry, Distribution)}
    for path, distribution in distributions.items():
        _check_sampler(document, path, distribution, search)
    if pinned and not distributions:
        nothing = "nothing is left to search: drop one, or train the one recipe by mixtune train"
        raise RequestError(
            f"{' '.join(pinned)} {'fixes' if len(pinned) == 1 else 'fix'} all that is searched: {nothing}"
        )
    if pinned:
        _log.warning("%s %s what the space searches", " ".join(pinned), "fixes" if len(pinned) == 1 else "fix")
    ties = {path: entry for path, entry in entries.items() if isinstance(entry, Tie)}
    _check_ties(document, ties, distributions, known)
    for path, distribution in distributions.items():
        _check_conditions(document, path, distributions, ties, known)
        distributions[path] = _with_implied(distribution, path, base, own)
    try:
        order = parents_first({path: [c.path for c in each.when] for path, each in distributions.items()})
        tie_order = parents_first({path: [tie.source] for path, tie in ties.items()})
    except RecipeError as error:
        raise mistake_at(document, ("space", *error.path), error.message) from error
    return {path: distributions[path] for path in order}, {path: ties[path] for path in tie_order}


def _settings_by_objective(given: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the settings of each objective that is searched, none where the base recipe's is the only one."""
    if "ssl.objective" not in given or "ssl.objective" in fixed or is_tie(given["ssl.objective"]):
        return {}
    found = {}
    with suppress(RequestError):  # which is told where the distribution is read
        for objective in parse_distribution(given["ssl.objective"]).values:
            with suppress(RecipeError):  # which is told where its values are tried
                found[objective] = default_settings(objective)
    return found


def _check_sampler(document: Document, path: str, distribution: Distribution, search: Search) -> None:
    key, kind = ("space", path), distribution.kind
    if search.sampler == "grid" and distribution.size is None:
        raise mistake_at(document, key, f"{kind} has no end of values, so sampler: grid cannot list them")
    if kind == "grid_search" and search.sampler != "grid":
        raise mistake_at(document, key, f"grid_search needs search.sampler: grid, not {search.sampler}")


def _check_ties(
    document: Document, ties: Mapping[str, Tie], distributions: Mapping[str, Distribution], known: Mapping[str, Any]
) -> None:
    for path, tie in ties.items():
        key = ("space", path)
        try:
            check_known(known, tie.source)
        except RecipeError as error:
            raise mistake_at(document, key, str(error)) from error
        searched = distributions.get(tie.source)
        values = (known[tie.source],) if searched is None else searched.extremes()
        if tie.fraction is not None and not (is_number(known[path]) and all(map(is_number, values))):
            fields = ((path, known[path]), *((tie.source, value) for value in values))
            wrong = next(f"{name} can be {show(value)}" for name, value in fields if not is_number(value))
            raise mistake_at(document, key, f"fraction_of is of numbers, and {wrong}")


def _check_conditions(
    document: Document,
    path: str,
    distributions: Mapping[str, Distribution],
    ties: Mapping[str, Tie],
    known: Collection[str],
) -> None:
    for condition in distributions[path].when:
        try:
            check_known(known, condition.path)
        except RecipeError as error:
            raise mistake_at(document, ("space", path), f"when: {error}") from error
        if condition.path in ties:
            wrong = f"when: {condition.path} follows {ties[condition.path].source}: name that"
            raise mistake_at(document, ("space", path), wrong)
        parent = distributions.get(condition.path)
        if parent is not None and parent.size is None:
            wrong = f"when: {condition.path} is {parent.kind}, which has no end of values: give it steps or choices"
            raise mistake_at(document, ("space", path), wrong)


def _with_implied(
    distribution: Distribution, path: str, base: Collection[str], own: Mapping[str, Mapping[str, Any]]
) -> Distribution:
    """Return a distribution over a setting, or one that depends on one, active for the objectives that have it."""
    when = {condition.path: condition.values for condition in distribution.when}
    for name in (path, *when):
        having = tuple(objective for objective, settings in own.items() if name in settings)
        is_setting = bool(own) and name.startswith("ssl.") and name != "ssl.objective"
        if is_setting and (len(having) < len(own) or name not in base):
            allowed = when.get("ssl.objective", having)
            when["ssl.objective"] = tuple(objective for objective in allowed if objective in having)
    return replace(distribution, when=tuple(Condition(*each) for each in when.items()))


def read_relations(document: Document, known: Mapping[str, Any]) -> tuple[Relation, ...]:
    """Return the relations of the ``constraints`` section; ``known``: the values that fields may have, by path."""
    found = []
    for name, given in read_mapping(document, "constraints").items():
        if not is_relation(str(name)):
            continue
        try:
            relation = parse_relation(str(name), given)
            for path in relation.paths:
                if path in METRICS:
                    raise RequestError(f'{path} is a metric: write {path}: "{relation.sign} NUMBER"')
                check_known(known, path)
                if not any(value is None or is_number(value) for value in known[path]):
                    raise RequestError(f"compares numbers, and {path} is {show(known[path][0])}")
        except RequestError as error:
            raise mistake_at(document, ("constraints", str(name)), str(error)) from error
        found.append(relation)
    return tuple(found)
