"""How a search goes, and what its trials get: the ``search`` and ``resources`` sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mixtune.space.section import Count, NonNegative, Positive, PositiveCount, Section, Seed, Share

DEFAULT_TRIALS = 20


def _read_percent(given: Any) -> Any:
    """Return the share that text such as "1%" or "0.5 %" stands for; anything else as it is."""
    number = given.strip().removesuffix("%") if isinstance(given, str) and given.strip().endswith("%") else None
    try:
        return given if number is None else float(number) / 100
    except ValueError:
        return given


class Stop(Section):
    """When a search has converged: ``search.stop``."""

    after: PositiveCount
    """So many trials of the budget, a failed one too, have to have ended since."""
    gain: Annotated[float, BeforeValidator(_read_percent), Field(gt=0.0, lt=1.0)]
    """By less than this share of what it was have they enlarged the front's hypervolume: 1% or 0.01."""


FORMER_OPTIONS: dict[str, dict[str, Any]] = {"cost_aware": {"by_stage": False}}
"""What a sampler's missing options meant in a run that was recorded before it wrote them out."""


class Search(Section):
    """How the search goes: the ``search`` section."""

    sampler: str = "auto"
    """What suggests recipes (see `mixtune list samplers`): also one of Optuna's classes, or package.module:name for
    your own; with options: {name: tpe, multivariate: true}."""
    sampler_options: dict[str, Any] = Field(default_factory=dict)
    """Of the sampler, as it names them; `sampler: {name: ...}` sets them."""
    scheduler: str = "fifo"
    """What ends trials early (see `mixtune list schedulers`), or package.module:name for your own."""
    trials: PositiveCount | None = None
    """How many trials may end; default: 20, or the whole grid with `sampler: grid`."""
    stop: Stop | None = None
    """Ends the search before its budget is met: {after: 15, gain: 1%} once the latest 15 trials have enlarged the
    front's hypervolume by less than 1 %; null: never."""
    seed: Seed = 0
    """Of the suggestions."""
    max_failures: Count = 2
    """How often a trial that crashed is tried again."""
    tolerance: Share = 0.01
    """Of the accuracy: within half of it of the best, what costs less is recommended."""
    reference_point: dict[str, float] = Field(default_factory=dict)
    """The hypervolume's, of objectives that shall have another one than the search derives."""
    first: list[dict[str, Any]] = Field(default_factory=list)
    """Recipes to try before any that the sampler suggests: [{alpha: 0.3, epochs.sl: 20}]. Other parameters have the
    base recipe's values, or the closest that the space holds."""
    learn_from: list[str] = Field(default_factory=list)
    """Whose results the sampler learns from: run directories, Optuna storages (sqlite:///old.db#study-name). They are
    copied at the first start, and are not trials of this search."""

    @model_validator(mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        """Take ``sampler: {name: tpe, multivariate: true}`` apart."""
        sampler = given.get("sampler") if isinstance(given, Mapping) else None
        if not isinstance(sampler, Mapping) or "name" not in sampler:
            return given
        options = {name: value for name, value in sampler.items() if name != "name"}
        return {**given, "sampler": sampler["name"], "sampler_options": options}

    def to_dict(self) -> dict[str, Any]:
        """Return the section in the form of its file."""
        values = self.model_dump()
        options = values.pop("sampler_options")
        return {**values, "sampler": {"name": self.sampler, **options} if options else self.sampler}


def with_former_options(search: Search) -> Search:
    """Return a recorded section with what its sampler's missing options meant when it was recorded."""
    options = {**FORMER_OPTIONS.get(search.sampler, {}), **search.sampler_options}
    return search.model_copy(update={"sampler_options": options})


class Resources(Section):
    """What one trial gets: the ``resources`` section."""

    cpus_per_trial: Positive = 1.0
    """CPU cores of each trial, and its threads."""
    gpus_per_trial: NonNegative | Literal["auto"] = "auto"
    """Share of a GPU of each trial, at most 1. auto: as much as the largest recipe needs."""
    device: str | None = None
    """On a cluster the device that trials train on, by its name; default: that of the nodes with the most slots."""
