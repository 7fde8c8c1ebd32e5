"""A SearchSpace is a YAML file: a base recipe, distributions over its fields, objectives and a budget."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from os import PathLike
from typing import Any, Literal

from pydantic import ValidationError

from mixtune import plugins
from mixtune.errors import RequestError, show, suggest
from mixtune.metrics import DEFAULT_OBJECTIVES, Direction, directions
from mixtune.space.constraints import Constraint, parse_constraint
from mixtune.space.distributions import Distribution, parse_distribution
from mixtune.space.document import Document, KeyPath, parse_value, read_document
from mixtune.space.effective import SSL_ONLY, mixes_partners
from mixtune.space.recipe import (
    BASELINES,
    Recipe,
    RecipeError,
    baseline_values,
    change_recipe,
    check_path,
    describe_mistake,
    field_names,
    flatten,
    parse_recipe,
    recipe_on_arrays,
    with_former_defaults,
)
from mixtune.space.section import Count, NonNegative, Positive, PositiveCount, Section, Seed, Share

DEFAULT_TRIALS = 20


class Search(Section):
    """How the search goes: the ``search`` section."""

    sampler: str = "tpe"
    """What suggests recipes (see `mixtune list samplers`), or package.module:name for your own."""
    scheduler: str = "fifo"
    """What ends trials early (see `mixtune list schedulers`), or package.module:name for your own."""
    trials: PositiveCount | None = None
    """How many trials may end; default: 20, or the whole grid with `sampler: grid`."""
    seed: Seed = 0
    """Of the suggestions."""
    max_failures: Count = 2
    """How often a trial that crashed is tried again."""
    tolerance: Share = 0.01
    """Of the accuracy: within half of it of the best, what costs less is recommended."""


class Resources(Section):
    """What one trial gets: the ``resources`` section."""

    cpus_per_trial: Positive = 1.0
    """CPU cores of each trial, and its threads."""
    gpus_per_trial: NonNegative | Literal["auto"] = "auto"
    """Share of a GPU of each trial, at most 1. auto: as much as the largest recipe needs."""
    device: str | None = None
    """On a cluster the device that trials train on, by its name; default: that of the nodes with the most slots."""


_CHANGEABLE = ("space", "objectives", "constraints", "baselines", "search", "resources")  # by dotted values

_log = logging.getLogger("mixtune.space")

_SECTIONS = ("recipe", "space", "objectives", "constraints", "baselines", "search", "resources", "run")


@dataclass(frozen=True)
class SearchSpace:
    """A search space.

    values: the base recipe's nested values; ``space``: dotted recipe path -> distribution; ``objectives``: metric ->
    direction; ``constraints``: metric -> bound; ``baselines``: methods trained once each at the base recipe's values.
    """

    values: Mapping[str, Any]
    space: dict[str, Distribution] = field(default_factory=dict)
    objectives: dict[str, Direction] = field(default_factory=DEFAULT_OBJECTIVES.copy)
    baselines: tuple[str, ...] = tuple(BASELINES)
    search: Search = field(default_factory=Search)
    resources: Resources = field(default_factory=Resources)
    constraints: dict[str, Constraint] = field(default_factory=dict)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The base recipe, validated when it is first requested. Raises RecipeError."""
        return parse_recipe(self.values)

    def with_recipe(self, recipe: Recipe) -> SearchSpace:
        """Return this space with another base recipe."""
        return replace(self, values=recipe.to_dict())

    def recipe_at(self, params: Mapping[str, Any]) -> Recipe:
        """Return the base recipe with dotted values set. Raises RecipeError."""
        return change_recipe(self.recipe, params)

    def extremes(self) -> Iterator[tuple[str, Any]]:
        """Yield (path, value): one parameter at a time at each of its ends or choices."""
        for path, distribution in self.space.items():
            for value in distribution.extremes():
                yield path, value

    def baseline_params(self) -> dict[str, dict[str, Any]]:
        """Return the dotted values of each baseline: ``{"sl": {"epochs.ssl": 0}, ...}``; those that are known yet."""
        return {method: baseline_values(method) for method in self.baselines}

    def grid_size(self) -> int | None:
        """Return how many recipes the space holds, or None where it is continuous."""
        sizes = [distribution.size for distribution in self.space.values()]
        return None if None in sizes else math.prod(size or 1 for size in sizes)

    @property
    def budget(self) -> int:
        """How many trials may end (complete, stopped or failed): a grid's are never more than it holds."""
        size = self.grid_size() if self.search.sampler == "grid" else None
        if size is None:
            return self.search.trials or DEFAULT_TRIALS
        return min(self.search.trials or size, size)

    def with_search(self, **changes: Any) -> SearchSpace:
        """Return this space with other search settings (trials, seed, ...). Raises RequestError."""
        given = Document("the search space", {"search": {**self.search.model_dump(), **changes}})
        return replace(self, search=_section(given, "search", Search))

    def with_resources(self, **changes: Any) -> SearchSpace:
        """Return this space with other resources. Raises RequestError."""
        given = Document("the search space", {"resources": {**self.resources.model_dump(), **changes}})
        return replace(self, resources=_section(given, "resources", Resources))

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved space in the form of its file; every default is spelled out."""
        return {
            "recipe": dict(self.values),
            "space": {path: distribution.to_yaml() for path, distribution in self.space.items()},
            "objectives": dict(self.objectives),
            "constraints": {name: constraint.to_yaml() for name, constraint in self.constraints.items()},
            "baselines": list(self.baselines),
            "search": {**self.search.model_dump(), "trials": self.budget},
            "resources": self.resources.model_dump(),
        }


def load_space(path: str | PathLike[str], overrides: Mapping[str, Any] | None = None) -> SearchSpace:
    """Read a search space's file; ``overrides`` are dotted values (``--set``), see build_space().

    Raises RequestError: one line with the file, the line, the key, what was given and what is allowed.
    """
    return build_space(read_document(path), overrides or {})


def space_from_dict(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> SearchSpace:
    """Make a search space from plain values in the form of its file."""
    return build_space(Document("the search space", dict(values)), overrides or {})


def space_on_arrays(
    space: SearchSpace | Mapping[str, Any] | str | PathLike[str], root: str | None, overrides: Mapping[str, Any]
) -> SearchSpace:
    """Return a search space whose images are the arrays in a folder; see mixtune.datasets.arrays.

    space: a file, plain values in its form, or a SearchSpace; its ``data`` section may be missing, and does not say
    where the images are. Raises RequestError as load_space() does.
    """
    refuse_other_images(overrides)
    if isinstance(space, SearchSpace):
        document = Document("the search space", space.to_dict())
    else:
        given = isinstance(space, Mapping)
        document = Document("the search space", dict(space)) if given else read_document(space)  # type: ignore[arg-type]
    recipe = document.values.get("recipe") or {}
    if isinstance(recipe, Mapping) and isinstance(recipe.get("data") or {}, Mapping):
        recipe = recipe_on_arrays(recipe, root)
    return build_space(replace(document, values={**document.values, "recipe": recipe}), overrides)


def refuse_other_images(overrides: Mapping[str, Any]) -> None:
    """Raise RequestError where dotted values name images, alongside the given ones."""
    for path in ("data.dataset", "data.root", "data.train", "data.val", "data.test"):
        if path in overrides:
            raise RequestError(f"{path}={show(overrides[path])} names images, and data= gives others: drop one")


def build_space(document: Document, overrides: Mapping[str, Any]) -> SearchSpace:
    """Validate a document, section by section, and then every recipe at the ends of its distributions.

    overrides: dotted values. One of a recipe field is the base recipe's, and drops the distribution over that field,
    which a line on stderr says. Those below ``space``, ``objectives``, ``constraints``, ``baselines``, ``search`` and
    ``resources`` are put over the document's, where None drops what is there: ``{"space.rho": {"choice": [0, 0.5]}}``.
    """
    for key in document.values:
        if key not in _SECTIONS:
            raise _mistake(document, (str(key),), f"unknown key; {_where_it_belongs(str(key))}")
    sections = {path: value for path, value in overrides.items() if path.partition(".")[0] in _CHANGEABLE}
    document = _with_changes(document, sections)
    fixed = {path: value for path, value in overrides.items() if path not in sections}
    recipe = _base_recipe(document, fixed)
    search = _section(document, "search", Search)
    space = SearchSpace(
        values=recipe.to_dict(),
        space=_distributions(document, recipe, search, fixed),
        objectives=_objectives(document),
        baselines=_baselines(document),
        search=search,
        resources=_section(document, "resources", Resources),
        constraints=_constraints(document),
    )
    _check_plugins(document, space)
    _check_extremes(document, space)
    _refuse_idle(document, space, is_changed=bool(overrides))
    return space.with_search(trials=space.budget)


def _with_changes(document: Document, changes: Mapping[str, Any]) -> Document:
    """Return a document with dotted values put over its sections'; None drops a named one."""
    values, changed = dict(document.values), dict(document.changes)
    for path, value in changes.items():
        head, _, name = path.partition(".")
        key = (head, name) if name else (head,)
        changed[key] = value
        if not name:
            values[head] = value
            continue
        below = {**_mapping(replace(document, values=values), head)}
        if head == "objectives" and not below:
            below = {**DEFAULT_OBJECTIVES}
        if value is None and head in ("space", "objectives", "constraints"):
            if name not in below:
                known = f", but {', '.join(below)}" if below else ""
                wrong = f"{head} does not hold it{known}{suggest(name, below)}"
                raise _mistake(replace(document, changes=changed), key, wrong)
            del below[name]
        else:
            below[name] = value
        values[head] = below
    return replace(document, values=values, changes=changed)


def read_run_space(document: Document) -> SearchSpace:
    """Return the space of a run's own file: what an earlier version of mixtune wrote is not judged by today's rules.

    Metrics, samplers and recipe fields may be ones that this version does not know; the recipe is validated when it is
    first requested. Raises RequestError for what cannot be read at all.
    """
    objectives = _mapping(document, "objectives")
    for name, mode in objectives.items():
        if mode not in ("max", "min"):
            raise _mistake(document, ("objectives", str(name)), f"should be max or min, got {show(mode)}")
    if not objectives:
        raise _mistake(document, ("objectives",), "missing, though a search writes them there")
    constraints: dict[str, Constraint] = {}
    for name, given in _mapping(document, "constraints").items():
        try:
            constraints[name] = parse_constraint(name, given, ">=" if ">=" in str(given) else "<=")
        except RequestError as error:
            raise _mistake(document, ("constraints", str(name)), str(error)) from error
    distributions: dict[str, Distribution] = {}
    for path, given in _mapping(document, "space").items():
        try:
            distributions[path] = parse_distribution(given)
        except RequestError as error:
            raise _mistake(document, ("space", str(path)), str(error)) from error
    baselines = document.values.get("baselines")
    return SearchSpace(
        values=with_former_defaults(_mapping(document, "recipe")),
        space=distributions,
        objectives=dict(objectives),
        baselines=tuple(baselines) if isinstance(baselines, list) else (),
        search=_section(document, "search", Search),
        resources=_section(document, "resources", Resources),
        constraints=constraints,
    )


def parse_override(text: str) -> tuple[str, Any]:
    """Read ``path=value`` of ``--set``; the value is YAML (``optim.sl.betas=[0.9, 0.999]``), or plain text.

    ``data.root=`` is null, which is the default of the fields that have none; ``data.root=/a=b #1`` means that folder.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RequestError(f"--set {text}: should be path=value, such as --set alpha=0.5")
    try:
        return path.strip(), parse_value(value.strip())
    except RequestError as error:
        raise RequestError(f"--set {text}: {error}") from error


def override(recipe: Recipe, overrides: Mapping[str, Any], others: Iterable[str] = ()) -> Recipe:
    """Return a recipe with dotted values put over its own (``--set``); others: paths that may have been meant.

    Raises RequestError.
    """
    try:
        named = change_recipe(recipe, {p: v for p, v in overrides.items() if p == "ssl.objective"})
        for path in overrides:
            check_path(named, path, others)
        return change_recipe(recipe, overrides)
    except RecipeError as error:
        path = ".".join(error.path)
        given = f"{path}={show(overrides[path])}: {error.message}" if path in overrides else str(error)
        raise RequestError(f"--set {given}") from error


def _base_recipe(document: Document, overrides: Mapping[str, Any]) -> Recipe:
    given = document.values.get("recipe")
    if not isinstance(given, Mapping):
        wrong = "missing" if given is None else f"should be a mapping of keys to values, got {show(given)}"
        raise _mistake(document, ("recipe",), f"{wrong}; it names at least the data: {{data: {{dataset: digits}}}}")
    try:
        recipe = parse_recipe(given)
    except RecipeError as error:
        raise _mistake(document, ("recipe", *error.path), error.message) from error
    others = [f"search.{name}" for name in Search.model_fields] + [
        f"resources.{name}" for name in Resources.model_fields
    ]
    return override(recipe, overrides, [*_CHANGEABLE, *others])


def _distributions(
    document: Document, recipe: Recipe, search: Search, fixed: Mapping[str, Any]
) -> dict[str, Distribution]:
    """Return the distributions over fields that are not fixed, and say which ones are."""
    distributions: dict[str, Distribution] = {}
    pinned = []
    for path, given in _mapping(document, "space").items():
        key = ("space", str(path))
        try:
            check_path(recipe, str(path))
            distributions[path] = parse_distribution(given)
        except RecipeError as error:
            raise _mistake(document, key, error.message) from error
        except RequestError as error:
            raise _mistake(document, key, str(error)) from error
        if path in fixed:
            if key in document.changes:
                raise _mistake(document, key, f"--set {path}={show(fixed[path])} fixes the same field: drop one")
            del distributions[path]
            pinned.append(f"--set {path}={show(fixed[path])}")
            continue
        kind = distributions[path].kind
        if search.sampler == "grid" and distributions[path].size is None:
            raise _mistake(document, key, f"{kind} has no end of values, so sampler: grid cannot list them")
        if kind == "grid_search" and search.sampler != "grid":
            raise _mistake(document, key, f"grid_search needs search.sampler: grid, not {search.sampler}")
    if pinned and not distributions:
        nothing = "nothing is left to search: drop one, or train the one recipe by mixtune train"
        raise RequestError(
            f"{' '.join(pinned)} {'fixes' if len(pinned) == 1 else 'fix'} all that is searched: {nothing}"
        )
    if pinned:
        _log.warning("%s %s what the space searches", " ".join(pinned), "fixes" if len(pinned) == 1 else "fix")
    return distributions


_CONSTANT_ONLY = tuple(
    f"ssl.compression.{name}" for name in ("token_dropout", "key_token_dropout", "patch_size", "key_patch_size")
)


def _refuse_idle(document: Document, space: SearchSpace, is_changed: bool) -> None:
    """Refuse distributions whose draws something else overrides: they would search over nothing.

    is_changed: by ``--set``, which can drop them as well.
    """
    base = flatten(space.recipe.to_dict())
    values = {path: (value,) for path, value in base.items()} | {p: d.extremes() for p, d in space.space.items()}
    one_dataset = all(values[f"data.ssl_{name}"] in ((None,), values[f"data.{name}"]) for name in ("dataset", "root"))
    draws = product(values["data.partners"], values["data.fraction"], values["data.ssl_fraction"])
    never_partners = not any(mixes_partners(*drawn, not one_dataset) for drawn in draws)
    same_images = one_dataset and values["data.ssl_fraction"] in ((None,), values["data.fraction"])
    most_ssl = max(values["epochs.ssl"])
    mixes = max(values["rho"]) * min(most_ssl, max(values["epochs.sl"])) > 1 - 1e-6  # Eq. 1, up to rounding
    no_pure_ssl = min(values["rho"]) == 1.0 and most_ssl <= min(values["epochs.sl"])
    for path in space.space:
        if path in ("seed", "protocol", "data.dataset", "data.root", "data.val_fraction", "data.download"):
            raise _mistake(document, ("space", path), "is the same for all trials of a search: drop this distribution")
        because = None
        if path == "lambda" and never_partners:
            because = "both losses see the same images: set data.ssl_dataset, or data.ssl_fraction above data.fraction"
        elif most_ssl == 0 and path.startswith(SSL_ONLY):
            because = "epochs.ssl is 0: nothing is self-supervised"
        elif path == "data.ssl_epoch" and same_images:
            because = "the self-supervised images are the labelled ones: set data.ssl_dataset or data.ssl_fraction"
        elif path == "data.ssl_epoch" and no_pure_ssl:
            because = "rho is 1 and epochs.ssl at most epochs.sl: every self-supervised epoch is mixed"
        elif path == "augment.crop_ratio" and values["augment.crop_scale"] == (None,):
            because = "augment.crop_scale is null: nothing is cropped by area"
        elif path in _CONSTANT_ONLY and "constant" not in values["ssl.compression.schedule"]:
            because = "ssl.compression.schedule is never constant"
        elif path in ("ssl.encode", "augment.ssl") and never_partners and no_pure_ssl:
            because = "rho is 1 and epochs.ssl at most epochs.sl: every self-supervised epoch is mixed"
        elif not mixes and path in ("alpha", "rho", "lambda", "data.partners", "optim.mix_schedule"):
            because = "rho times the fewer of epochs.ssl and epochs.sl is below 1: no epoch is mixed"
        if because is not None:
            hint = f": --set space.{path}= drops it" if is_changed else ""
            raise _mistake(document, ("space", path), f"has no effect while {because}{hint}")


def _objectives(document: Document) -> dict[str, Direction]:
    given = _mapping(document, "objectives")
    for name, direction in given.items():
        key = ("objectives", str(name))
        _check_metric(document, key, "objective")
        if direction != (better := directions()[name]):
            raise _mistake(document, key, f"should be {better}, got {show(direction)}")
    return dict(given) or DEFAULT_OBJECTIVES.copy()


def _constraints(document: Document) -> dict[str, Constraint]:
    constraints: dict[str, Constraint] = {}
    for name, given in _mapping(document, "constraints").items():
        key = ("constraints", str(name))
        _check_metric(document, key, "constraint")
        try:
            constraints[name] = parse_constraint(name, given, ">=" if directions()[name] == "max" else "<=")
        except RequestError as error:
            raise _mistake(document, key, str(error)) from error
    return constraints


def _check_metric(document: Document, key: KeyPath, kind: str) -> None:
    known_metrics = directions()
    if key[-1] not in known_metrics:
        known = f"known are {', '.join(known_metrics)}{suggest(str(key[-1]), known_metrics)}"
        raise _mistake(document, key, f"unknown {kind}; {known}")


def _baselines(document: Document) -> tuple[str, ...]:
    given = document.values.get("baselines", list(BASELINES))
    if not isinstance(given, list):
        raise _mistake(document, ("baselines",), f"should be a list, such as [sl, ssl_sl], got {show(given)}")
    for method in given:
        try:
            baseline_values(str(method))
        except RequestError as error:
            raise _mistake(document, ("baselines",), str(error)) from error
    if len(set(given)) < len(given):
        raise _mistake(document, ("baselines",), f"names one twice: {show(given)}")
    return tuple(given)


def _check_plugins(document: Document, space: SearchSpace) -> None:
    for kind, name in (("sampler", space.search.sampler), ("scheduler", space.search.scheduler)):
        try:
            plugins.check_name(f"tuning.{kind}s", name, kind)
            if ":" in name and not callable(getattr(plugins.find(f"tuning.{kind}s", name, kind), "build", None)):
                raise RequestError(f"{kind} {name!r} needs a function build: see mixtune.tuning.{kind}s")
        except RequestError as error:
            raise _mistake(document, ("search", kind), str(error)) from error


def _check_extremes(document: Document, space: SearchSpace) -> None:
    for path, value in space.extremes():
        try:
            space.recipe_at({path: value})
        except RecipeError as error:
            message = error.message if ".".join(error.path) == path else str(error)
            wrong = f"{space.space[path].kind} can give {show(value)}: {message}"
            raise _mistake(document, ("space", path), wrong) from error


def _section(document: Document, name: str, model: type[Any]) -> Any:
    try:
        return model.model_validate(_mapping(document, name))
    except ValidationError as error:
        path, message = describe_mistake(model, error)
        raise _mistake(document, (name, *path), message) from error


def _mapping(document: Document, name: str) -> Mapping[str, Any]:
    given = document.values.get(name)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _mistake(document, (name,), f"should be a mapping of keys to values, got {show(given)}")
    return given


def _where_it_belongs(key: str) -> str:
    homes: dict[str, type[Section]] = {"recipe": Recipe, "search": Search, "resources": Resources}
    home = next((section for section, model in homes.items() if key in field_names(model)), None)
    allowed = f"allowed are {', '.join(_SECTIONS[:-1])}"
    return f"{allowed}; {key} belongs below {home}" if home else f"{allowed}{suggest(key, _SECTIONS)}"


def _mistake(document: Document, path: KeyPath, message: str) -> RequestError:
    """Return the error about a key: with its line in the file, or the ``--set`` that gave it."""
    for end in range(len(path), 0, -1):
        if path[:end] in document.changes:
            rest = "".join(f"{name}: " for name in path[end:])
            given = document.changes[path[:end]]
            return RequestError(f"--set {'.'.join(path[:end])}={'' if given is None else show(given)}: {rest}{message}")
    return RequestError(f"{document.where(path)}{'.'.join(path)}: {message}")
