"""A SearchSpace is a YAML file: a base recipe, distributions over its fields, objectives and a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from mixtune import plugins
from mixtune.distributions import Distribution, parse_distribution
from mixtune.document import Document, KeyPath, parse_document, read_document
from mixtune.errors import RequestError, suggest
from mixtune.recipe import (
    PositiveCount,
    Recipe,
    RecipeError,
    Section,
    baseline_values,
    check_path,
    describe_mistake,
    parse_recipe,
    with_values,
)

Direction = Literal["max", "min"]

# what a trial reports that a search can aim at, and which way is better
OBJECTIVES: dict[str, Direction] = {"val_accuracy": "max", "train_latency_s": "min", "train_flops": "min"}
DEFAULT_OBJECTIVES: dict[str, Direction] = {"val_accuracy": "max", "train_latency_s": "min"}


DEFAULT_TRIALS = 20


class Search(Section):
    """How the search goes: the ``search`` section."""

    sampler: str = "tpe"
    scheduler: str = "fifo"
    trials: PositiveCount | None = None  # default: DEFAULT_TRIALS, or the whole grid with `sampler: grid`
    seed: Annotated[int, Field(ge=0)] = 0


class Resources(Section):
    """What one trial gets: the ``resources`` section. ``auto`` is a whole GPU where the machine has one."""

    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"


_SECTIONS = ("recipe", "space", "objectives", "baselines", "search", "resources", "run")


@dataclass(frozen=True)
class SearchSpace:
    """A validated search space.

    recipe: the base recipe; ``space``: dotted recipe path -> distribution; ``objectives``: metric -> direction;
    ``baselines``: methods trained once each at the base recipe's values.
    """

    recipe: Recipe
    space: dict[str, Distribution] = field(default_factory=dict)
    objectives: dict[str, Direction] = field(default_factory=DEFAULT_OBJECTIVES.copy)
    baselines: tuple[str, ...] = ("sl", "ssl_sl")
    search: Search = field(default_factory=Search)
    resources: Resources = field(default_factory=Resources)

    def recipe_at(self, params: Mapping[str, Any]) -> Recipe:
        """Return the base recipe with dotted values set. Raises RecipeError."""
        return parse_recipe(with_values(self.recipe.to_dict(), params))

    def extremes(self) -> Iterator[tuple[str, Any]]:
        """Yield (path, value): one parameter at a time at each of its ends or choices."""
        for path, distribution in self.space.items():
            for value in distribution.extremes():
                yield path, value

    def baseline_params(self) -> dict[str, dict[str, Any]]:
        """Return the dotted values of each baseline: ``{"sl": {"epochs.ssl": 0}, ...}``."""
        return {method: baseline_values(method) for method in self.baselines}

    def grid_size(self) -> int | None:
        """Return how many recipes the space holds, or None where it is continuous."""
        grids = [distribution.grid() for distribution in self.space.values()]
        return None if any(g is None for g in grids) else math.prod(len(g or ()) for g in grids)

    @property
    def budget(self) -> int:
        """How many trials may end (complete, stopped or failed): a grid's are never more than it holds."""
        size = self.grid_size() if self.search.sampler == "grid" else None
        if size is None:
            return self.search.trials or DEFAULT_TRIALS
        return min(self.search.trials or size, size)

    def with_search(self, **changes: Any) -> SearchSpace:
        """Return this space with other search settings (trials, seed, ...)."""
        return replace(self, search=Search(**{**self.search.model_dump(), **changes}))

    def with_resources(self, **changes: Any) -> SearchSpace:
        """Return this space with other resources."""
        return replace(self, resources=Resources(**{**self.resources.model_dump(), **changes}))

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved space in the form of its file; every default is spelled out."""
        return {
            "recipe": self.recipe.to_dict(),
            "space": {path: distribution.to_yaml() for path, distribution in self.space.items()},
            "objectives": dict(self.objectives),
            "baselines": list(self.baselines),
            "search": {**self.search.model_dump(), "trials": self.budget},
            "resources": self.resources.model_dump(),
        }


def load_space(path: str | PathLike[str], overrides: Mapping[str, Any] | None = None) -> SearchSpace:
    """Read a search space's file; ``overrides`` are dotted recipe values (``--set``).

    Raises RequestError: one line with the file, the line, the key, what was given and what is allowed.
    """
    return build_space(read_document(path), overrides or {})


def space_from_dict(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> SearchSpace:
    """Make a search space from plain values in the form of its file."""
    return build_space(Document("the search space", dict(values)), overrides or {})


def build_space(document: Document, overrides: Mapping[str, Any]) -> SearchSpace:
    """Validate a document, section by section, and then every recipe at the ends of its distributions."""
    values = document.values
    for key in values:
        if key not in _SECTIONS:
            raise _mistake(document, (key,), f"unknown key; allowed are {_listed(_SECTIONS[:-1])}", key, _SECTIONS)
    recipe = _base_recipe(document, overrides)
    search = _section(document, "search", Search)
    space = SearchSpace(
        recipe=recipe,
        space=_distributions(document, recipe, search, overrides),
        objectives=_objectives(document),
        baselines=_baselines(document),
        search=search,
        resources=_section(document, "resources", Resources),
    )
    _check_plugins(document, space)
    _check_extremes(document, space)
    return space


def parse_override(text: str) -> tuple[str, Any]:
    """Read ``path=value`` of ``--set``; the value is YAML (``alpha=0.5``, ``optim.sl.betas=[0.9, 0.999]``)."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RequestError(f"--set {text}: should be path=value, such as --set alpha=0.5")
    try:
        return path.strip(), parse_document(f"value: {value}", f"--set {text}").values["value"]
    except yaml.YAMLError as error:
        raise RequestError(f"--set {text}: the value is no YAML") from error


def override(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return a recipe with dotted values put over its own (``--set``). Raises RequestError."""
    for path, value in overrides.items():
        try:
            check_path(recipe, path)
            recipe = parse_recipe(with_values(recipe.to_dict(), {path: value}))
        except RecipeError as error:
            raise RequestError(f"--set {path}={value}: {error}") from error
    return recipe


def _base_recipe(document: Document, overrides: Mapping[str, Any]) -> Recipe:
    given = document.values.get("recipe")
    if not isinstance(given, Mapping):
        shown = "is missing" if given is None else f"should be a mapping, got {given!r}"
        example = "it names at least the data, as in recipe: {data: {dataset: digits}}"
        raise _mistake(document, ("recipe",), f"{shown}: {example}")
    try:
        recipe = parse_recipe(given)
    except RecipeError as error:
        raise _mistake(document, ("recipe", *error.path), error.message) from error
    return override(recipe, overrides)


def _distributions(
    document: Document, recipe: Recipe, search: Search, overrides: Mapping[str, Any]
) -> dict[str, Distribution]:
    distributions: dict[str, Distribution] = {}
    for path, given in _mapping(document, "space").items():
        key = ("space", path)
        try:
            check_path(recipe, path)
            distributions[path] = parse_distribution(given)
        except RecipeError as error:
            raise _mistake(document, key, error.message) from error
        except RequestError as error:
            raise _mistake(document, key, str(error)) from error
        if path in overrides:
            raise _mistake(document, key, f"--set {path}={overrides[path]} overrides this distribution: drop one")
        kind = distributions[path].kind
        if search.sampler == "grid" and distributions[path].grid() is None:
            raise _mistake(document, key, f"{kind} has no end of values, so sampler: grid cannot list them")
        if kind == "grid_search" and search.sampler != "grid":
            raise _mistake(document, key, f"grid_search needs search.sampler: grid, not {search.sampler}")
    _refuse_idle(document, recipe, distributions)
    return distributions


def _refuse_idle(document: Document, recipe: Recipe, distributions: Mapping[str, Distribution]) -> None:
    """Refuse distributions whose draws something else overrides: they would search over nothing."""
    idle = {}
    if "seed" in distributions:
        idle["seed"] = "the seed is the same for all trials of a search; `mixtune confirm` uses fresh ones"
    if recipe.data.ssl_dataset is None and "data.ssl_dataset" not in distributions:
        idle["lambda"] = "has no effect while both losses see the same dataset: set data.ssl_dataset"
    never_mixes = recipe.rho == 0 and "rho" not in distributions
    if never_mixes:
        idle["alpha"] = "has no effect while rho is 0: no epoch mixes the losses"
    if recipe.epochs.ssl == 0 and "epochs.ssl" not in distributions:
        because = "has no effect while epochs.ssl is 0: nothing is self-supervised"
        idle |= {path: because for path in ("alpha", "rho") if path in distributions}
        idle |= {path: because for path in distributions if path.startswith(("ssl.", "optim.ssl."))}
    for path in distributions:
        if path in idle:
            raise _mistake(document, ("space", path), idle[path])


def _objectives(document: Document) -> dict[str, Direction]:
    given = _mapping(document, "objectives")
    for name, direction in given.items():
        key = ("objectives", str(name))
        if name not in OBJECTIVES:
            raise _mistake(document, key, f"unknown objective; known are {_listed(OBJECTIVES)}", name, OBJECTIVES)
        if direction != OBJECTIVES[name]:
            raise _mistake(document, key, f"should be {OBJECTIVES[name]}, got {direction!r}")
    return dict(given) or DEFAULT_OBJECTIVES.copy()


def _baselines(document: Document) -> tuple[str, ...]:
    given = document.values.get("baselines", ["sl", "ssl_sl"])
    if not isinstance(given, list):
        raise _mistake(document, ("baselines",), f"should be a list, such as [sl, ssl_sl], got {given!r}")
    for method in given:
        try:
            baseline_values(str(method))
        except RequestError as error:
            raise _mistake(document, ("baselines",), str(error)) from error
    if len(set(given)) < len(given):
        raise _mistake(document, ("baselines",), f"names one twice: {given}")
    return tuple(given)


def _check_plugins(document: Document, space: SearchSpace) -> None:
    for kind, name in (("sampler", space.search.sampler), ("scheduler", space.search.scheduler)):
        try:
            plugins.check_name(f"tuning.{kind}s", name, kind)
        except RequestError as error:
            raise _mistake(document, ("search", kind), str(error)) from error


def _check_extremes(document: Document, space: SearchSpace) -> None:
    for path, value in space.extremes():
        try:
            space.recipe_at({path: value})
        except RecipeError as error:
            message = error.message if error.path == tuple(path.split(".")) else str(error)
            raise _mistake(document, ("space", path), f"at {value!r}: {message}") from error


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
        raise _mistake(document, (name,), f"should be a mapping of keys to values, got {given!r}")
    return given


def _mistake(document: Document, path: KeyPath, message: str, given: Any = None, known: Any = ()) -> RequestError:
    hint = suggest(str(given), known) if given is not None else ""
    return RequestError(f"{document.where(path)}{'.'.join(path)}: {message}{hint}")


def _listed(names: Any) -> str:
    return ", ".join(names)
