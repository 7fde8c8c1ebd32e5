"""A SearchSpace is a YAML file: a base recipe, distributions over its fields, objectives and a budget."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

from mixtune.errors import RequestError, show, suggest
from mixtune.metrics import DEFAULT_OBJECTIVES, Direction, named_judges
from mixtune.space.checks import check_extremes, check_plugins, refuse_idle
from mixtune.space.constraints import Constraint, parse_constraint
from mixtune.space.distributions import Distribution, parse_distribution
from mixtune.space.document import Document, parse_value, read_document
from mixtune.space.parameters import read_parameters, read_relations
from mixtune.space.placing import complete_params
from mixtune.space.points import count_points
from mixtune.space.reading import (
    CHANGEABLE,
    SECTIONS,
    mistake_at,
    read_baselines,
    read_constraints,
    read_mapping,
    read_objectives,
    read_section,
    where_it_belongs,
    with_changes,
)
from mixtune.space.recipe import (
    BASELINES,
    Recipe,
    RecipeError,
    baseline_values,
    change_recipe,
    check_path,
    default_settings,
    flatten,
    parse_recipe,
    recipe_on_arrays,
    with_former_defaults,
    with_objective,
)
from mixtune.space.relations import Relation, is_relation, parse_relation
from mixtune.space.settings import DEFAULT_TRIALS, Resources, Search, with_former_options
from mixtune.space.ties import Tie, is_tie, parse_tie


@dataclass(frozen=True)
class SearchSpace:
    """A search space.

    values: the base recipe's nested values; ``space``: dotted recipe path -> distribution, those that others depend on
    first; ``objectives``: metric -> direction; ``constraints``: metric -> bound; ``baselines``: methods trained once
    each at the base recipe's values; ``relations``: what a recipe's numbers have to keep; ``ties``: dotted recipe path
    -> what that field follows, those that others follow first.
    """

    values: Mapping[str, Any]
    space: dict[str, Distribution] = field(default_factory=dict)
    objectives: dict[str, Direction] = field(default_factory=DEFAULT_OBJECTIVES.copy)
    baselines: tuple[str, ...] = tuple(BASELINES)
    search: Search = field(default_factory=Search)
    resources: Resources = field(default_factory=Resources)
    constraints: dict[str, Constraint] = field(default_factory=dict)
    relations: tuple[Relation, ...] = ()
    ties: dict[str, Tie] = field(default_factory=dict)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The base recipe, validated when it is first requested. Raises RecipeError."""
        return parse_recipe(self.values)

    def with_recipe(self, recipe: Recipe) -> SearchSpace:
        """Return this space with another base recipe."""
        return replace(self, values=recipe.to_dict())

    def recipe_at(self, params: Mapping[str, Any]) -> Recipe:
        """Return the base recipe with dotted values set, and the fields that follow them. Raises RecipeError.

        A parameter that the objective has no use for (``ssl.mask_ratio`` of SimCLR) is left out.
        """
        return change_recipe(self.recipe, {**self._known(params), **self.tied(params)})

    def values_at(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return every value of recipe_at(), by dotted path, not validated."""
        return {**self._base(params.get("ssl.objective")), **self._known(params), **self.tied(params)}

    def tied(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the fields that follow others, by dotted path; one that is among ``params`` does not."""
        if not self.ties:
            return {}
        base = self._base(params.get("ssl.objective"))
        values, found = {**base, **params}, {}
        for path, tie in self.ties.items():
            if path not in params and path in base and tie.source in values:
                values[path] = found[path] = tie.value(values[tie.source], base[path])
        return found

    def broken(self, params: Mapping[str, Any]) -> str | None:
        """Return how a recipe breaks the first of the relations that it breaks: "epochs.ssl is 30, not <= 20"."""
        values = self.values_at(params) if self.relations else {}
        return next((why for relation in self.relations if (why := relation.broken(values)) is not None), None)

    def density(self, params: Mapping[str, Any]) -> float:
        """Return how much more probable parameters are by the space's priors than without them; 1 without priors."""
        return math.prod(self.space[path].density(value) for path, value in params.items() if path in self.space)

    def active(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the paths of the parameters that a recipe with these ones has, in the space's order.

        What depends on a parameter that is not among ``params`` is not active.
        """
        found: list[str] = []
        known: dict[str, Any] = {}
        for path in self.space:
            if self.is_active(path, known):
                found.append(path)
                known |= {path: params[path]} if path in params else {}
        return tuple(found)

    def is_active(self, path: str, params: Mapping[str, Any]) -> bool:
        """Return whether the parameter at ``path`` is active, where those before it in the space are ``params``."""
        return all(
            (condition.path in params and condition.allows(params[condition.path]))
            if condition.path in self.space
            else condition.allows(self._base(params.get("ssl.objective")).get(condition.path))
            for condition in self.space[path].when
        )

    def extremes(self) -> Iterator[tuple[str, Any]]:
        """Yield (path, value): one parameter at a time at each of its ends or choices."""
        for path, distribution in self.space.items():
            for value in distribution.extremes():
                yield path, value

    def ends(self) -> dict[str, tuple[Any, ...]]:
        """Return what each field may be, by dotted path: of a searched one its ends, or every choice."""
        searched = self.space.get("ssl.objective")
        found: dict[str, tuple[Any, ...]] = {}
        for objective in (None,) if searched is None else searched.values:
            for path, value in self._base(objective).items():
                known = found.get(path, ())
                found[path] = known if value in known else (*known, value)
        for path, distribution in self.space.items():
            found[path] = (*distribution.extremes(), *(found.get(path, ()) if distribution.when else ()))
        for path, tie in self.ties.items():
            found[path] = tuple(tie.value(value, found[path][0]) for value in found[tie.source])
        return found

    def baseline_params(self) -> dict[str, dict[str, Any]]:
        """Return the dotted values of each baseline: ``{"sl": {"epochs.ssl": 0}, ...}``; those that are known yet."""
        found = {method: baseline_values(method) for method in self.baselines}
        if "epochs.sl" in self.ties:  # a baseline without SSL epochs has the base recipe's others
            kept = {"epochs.sl": self.recipe.epochs.sl}
            found = {
                method: {**kept, **values} if "epochs.ssl" in values else values for method, values in found.items()
            }
        return found

    def grid_size(self) -> int | None:
        """Return how many different recipes the space holds, or None where it is continuous."""
        return count_points(self)

    def _known(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters without settings that the objective does not have."""
        base = self._base(params.get("ssl.objective"))
        return {
            path: value
            for path, value in params.items()
            if path in base or path not in self.space or not self.space[path].when
        }

    def _base(self, objective: Any) -> dict[str, Any]:
        """Return the base recipe's values by dotted path, under another objective where one is given."""
        if objective not in self._bases:
            values = self._bases[None]
            if objective != values.get("ssl.objective"):
                try:
                    other = flatten({"ssl": with_objective(self.values, objective)["ssl"]})
                    others = {path: value for path, value in values.items() if not path.startswith("ssl.")}
                    values = {**others, **default_settings(objective), **other}
                except RecipeError:  # its trial will say so
                    pass
            self._bases[objective] = values
        return self._bases[objective]

    @functools.cached_property
    def _bases(self) -> dict[Any, dict[str, Any]]:
        """What _base() has found, by objective."""
        return {None: flatten(self.values)}

    @property
    def budget(self) -> int:
        """How many trials may end (complete, stopped or failed): a grid's are never more than it holds."""
        size = self.grid_size() if self.search.sampler == "grid" else None
        if size is None:
            return self.search.trials or DEFAULT_TRIALS
        return min(self.search.trials or size, size)

    def with_search(self, **changes: Any) -> SearchSpace:
        """Return this space with other search settings (trials, seed, ...). Raises RequestError."""
        own = self.search.model_dump()
        if "sampler" in changes:  # another one has other options
            del own["sampler_options"]
        given = Document("the search space", {"search": {**own, **changes}})
        return replace(self, search=read_section(given, "search", Search))

    def with_resources(self, **changes: Any) -> SearchSpace:
        """Return this space with other resources. Raises RequestError."""
        given = Document("the search space", {"resources": {**self.resources.model_dump(), **changes}})
        return replace(self, resources=read_section(given, "resources", Resources))

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved space in the form of its file; every default is spelled out."""
        return {
            "recipe": dict(self.values),
            "space": {
                **{path: distribution.to_yaml() for path, distribution in self.space.items()},
                **{path: tie.to_yaml() for path, tie in self.ties.items()},
            },
            "objectives": dict(self.objectives),
            "constraints": {
                **{name: constraint.to_yaml() for name, constraint in self.constraints.items()},
                **{str(relation): True for relation in self.relations},
            },
            "baselines": list(self.baselines),
            "search": {**self.search.to_dict(), "trials": self.budget},
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
        if key not in SECTIONS:
            raise mistake_at(document, (str(key),), f"unknown key; {where_it_belongs(str(key))}")
    sections = {path: value for path, value in overrides.items() if path.partition(".")[0] in CHANGEABLE}
    document = with_changes(document, sections)
    fixed = {path: value for path, value in overrides.items() if path not in sections}
    recipe = _base_recipe(document, fixed)
    search = read_section(document, "search", Search)
    distributions, ties = read_parameters(document, recipe, search, fixed)
    space = SearchSpace(
        values=recipe.to_dict(),
        space=distributions,
        objectives=read_objectives(document),
        baselines=read_baselines(document),
        search=search,
        resources=read_section(document, "resources", Resources),
        constraints=read_constraints(document),
        ties=ties,
    )
    judges = {*recipe.representation, *named_judges([*space.objectives, *space.constraints])}
    if judges > {*recipe.representation}:
        space = space.with_recipe(change_recipe(recipe, {"representation": sorted(judges)}))
    try:
        space = space.with_recipe(space.recipe_at({}))
    except RecipeError as error:
        raise mistake_at(document, ("space", *error.path), error.message) from error
    space = replace(space, relations=read_relations(document, space.ends()))
    check_plugins(document, space)
    for name in search.reference_point:
        if name not in space.objectives:
            wrong = f"is not an objective; they are {', '.join(space.objectives)}{suggest(name, space.objectives)}"
            raise mistake_at(document, ("search", "reference_point", name), wrong)
    check_extremes(document, space)
    for number, given in enumerate(search.first, start=1):
        try:
            complete_params(space, given)
        except RequestError as error:
            raise mistake_at(document, ("search", "first"), f"recipe {number}: {error}") from error
    refuse_idle(document, space, is_changed=bool(overrides))
    return space.with_search(trials=space.budget)


def read_run_space(document: Document) -> SearchSpace:
    """Return the space of a run's own file: what an earlier version of mixtune wrote is not judged by today's rules.

    Metrics, samplers and recipe fields may be ones that this version does not know; the recipe is validated when it is
    first requested. Raises RequestError for what cannot be read at all.
    """
    objectives = read_mapping(document, "objectives")
    for name, mode in objectives.items():
        if mode not in ("max", "min"):
            raise mistake_at(document, ("objectives", str(name)), f"should be max or min, got {show(mode)}")
    if not objectives:
        raise mistake_at(document, ("objectives",), "missing, though a search writes them there")
    constraints: dict[str, Constraint] = {}
    relations: list[Relation] = []
    for name, given in read_mapping(document, "constraints").items():
        try:
            if is_relation(str(name)):
                relations.append(parse_relation(name, given))
                continue
            constraints[name] = parse_constraint(name, given, ">=" if ">=" in str(given) else "<=")
        except RequestError as error:
            raise mistake_at(document, ("constraints", str(name)), str(error)) from error
    distributions: dict[str, Distribution] = {}
    ties: dict[str, Tie] = {}
    for path, given in read_mapping(document, "space").items():
        try:
            if is_tie(given):
                ties[path] = parse_tie(given)
            else:
                distributions[path] = parse_distribution(given)
        except RequestError as error:
            raise mistake_at(document, ("space", str(path)), str(error)) from error
    baselines = document.values.get("baselines")
    return SearchSpace(
        values=with_former_defaults(read_mapping(document, "recipe")),
        space=distributions,
        objectives=dict(objectives),
        baselines=tuple(baselines) if isinstance(baselines, list) else (),
        search=with_former_options(read_section(document, "search", Search)),
        resources=read_section(document, "resources", Resources),
        constraints=constraints,
        relations=tuple(relations),
        ties=ties,
    )


def parse_override(text: str) -> tuple[str, Any]:
    """Read ``path=value`` of ``--set``; the value is YAML (``optim.sl.betas=[0.9, 0.999]``), or plain text.

    ``data.root=`` is null, which is the default of the fields that have none; ``data.root=/a=b #1`` means that folder.
    """
    relation = re.fullmatch(r"(\s*constraints\.[^=<>!]*(?:[<>=!]=|[<>])[^=]*)(=)(.*)", text)  # whose sign may have one
    path, equals, value = text.partition("=") if relation is None else relation.groups()
    if not equals or not path.strip():
        raise RequestError(f"--set {text}: should be path=value, such as --set alpha=0.5")
    try:
        return path.strip(), parse_value(value.strip())
    except RequestError as error:
        raise RequestError(f"--set {text}: {error}") from error


def parse_recipe_to_try(text: str) -> dict[str, Any]:
    """Read ``alpha=0.3,epochs.sl=20`` of ``--try``: values as parse_override() reads them. Raises RequestError."""
    try:
        return dict(parse_override(part) for part in re.split(r",(?=\s*[\w.]+\s*=)", text))
    except RequestError as error:
        given = "should be path=value, or several with commas between, such as --try alpha=0.3,epochs.sl=20"
        raise RequestError(f"--try {text}: {given}") from error


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


def load_recipe(path: str | PathLike[str], overrides: Mapping[str, Any]) -> Recipe:
    """Return the base recipe of a search space's file with dotted values put over it, which other fields may follow.

    Raises RequestError.
    """
    space = load_space(path)
    override(space.recipe, overrides)  # says what is wrong with what was given, before something follows it
    return override(space.recipe, {**overrides, **space.tied(overrides)})


def _base_recipe(document: Document, overrides: Mapping[str, Any]) -> Recipe:
    given = document.values.get("recipe")
    if not isinstance(given, Mapping):
        wrong = "missing" if given is None else f"should be a mapping of keys to values, got {show(given)}"
        raise mistake_at(document, ("recipe",), f"{wrong}; it names at least the data: {{data: {{dataset: digits}}}}")
    try:
        recipe = parse_recipe(given)
    except RecipeError as error:
        raise mistake_at(document, ("recipe", *error.path), error.message) from error
    others = [f"search.{name}" for name in Search.model_fields] + [
        f"resources.{name}" for name in Resources.model_fields
    ]
    return override(recipe, overrides, [*CHANGEABLE, *others])
