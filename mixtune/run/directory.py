"""A run directory: the names of its files, and its space.yaml with what a search wrote there of itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixtune.errors import RequestError, suggest
from mixtune.files import is_temporary
from mixtune.run.events import Count, Number, say_first
from mixtune.run.ledger import RunState, finite_or_none, read_state
from mixtune.run.lines import printable_values
from mixtune.run.lock import DRIVER_LOCK, TRIALS_LOCK
from mixtune.space.document import Document, read_document
from mixtune.space.recipe import follow_arrays
from mixtune.space.space import SearchSpace, read_run_space

_log = logging.getLogger("mixtune")


@dataclass(frozen=True)
class RunFacts:
    """What a search wrote of itself: ``run`` in space.yaml.

    tasks: by name, their classes and images; versions: by package; machine: as mixtune.cost.machine.Machine takes it,
    empty where it is not there; most_expensive: what the most expensive recipe was forecast to cost, by metric;
    reference_point: the hypervolume's, which older versions fixed before the first trial.
    """

    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    most_expensive: Mapping[str, float] = field(default_factory=dict)
    reference_point: Mapping[str, float] = field(default_factory=dict)


class _Read(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Task(_Read):
    classes: Annotated[int, Field(ge=1, le=10**9)]
    train_images: Count
    val_images: Count
    looks: list[str] = []
    origins: dict[str, str | None] = Field({}, alias="from")


class _Machine(_Read):
    device: str
    threads: Annotated[int, Field(ge=1, le=10**6)]
    precision: str
    speeds: dict[str, Annotated[Number, Field(gt=0)]]
    gpu_bytes: dict[str, Count] | None = None
    step_costs: dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)]] = {}


class _Facts(_Read):
    """The kinds of what RunFacts is read from."""

    tasks: dict[str, _Task] = {}
    versions: dict[str, str] = {}
    machine: _Machine | None = None
    most_expensive: dict[str, Number | None] = {}
    reference_point: dict[str, Number | None] = {}


class RunDirectory:
    """A run's folder. Its files are read when they are first requested, once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.space_file = self.path / "space.yaml"
        self.ledger_file = self.path / "ledger.jsonl"
        self.stages = self.path / "stages"
        self.study_file = self.path / "study.db"
        self.report_file = self.path / "report.html"
        self.trials_file = self.path / "trials.csv"
        self.front_file = self.path / "pareto.csv"
        self.data = self.path / "data"  # what a search was given as data=; see mixtune.datasets.arrays
        self.logs = self.path / "logs"
        self.models = self.path / "models"

    @property
    def holds_run(self) -> bool:
        """Whether a search has begun here."""
        return self.space_file.exists()

    @cached_property
    def document(self) -> Document:
        """Its space.yaml. Raises RequestError where there is no run, and where the file cannot be read."""
        if not self.path.is_dir():
            raise RequestError(self._no_directory())
        if not self.holds_run:
            raise RequestError(f"{self.path} holds no run: {self.space_file.name} is missing")
        if not self.space_file.is_file():
            raise RequestError(f"{self.space_file} is not a regular file")
        return read_document(self.space_file)

    @cached_property
    def space(self) -> SearchSpace:
        """What was searched, as the run's own version of mixtune understood it. Raises RequestError."""
        values = self._values
        recipe = values.get("recipe")
        if isinstance(recipe, dict):
            values = values | {"recipe": follow_arrays(recipe, self.data)}
        return read_run_space(replace(self.document, values=values))

    @cached_property
    def facts(self) -> RunFacts:
        """What the search wrote of itself. Raises RequestError."""
        run = self._mapping(self._values, "run")
        given = {fact.name: run[fact.name] for fact in fields(RunFacts) if run.get(fact.name)}
        try:
            _Facts.model_validate(given)
        except ValidationError as error:
            raise RequestError(f"{self.space_file}: run.{say_first(error)}") from error
        for fact in ("most_expensive", "reference_point"):
            given[fact] = {name: float(value) for name, value in given.get(fact, {}).items() if value is not None}
        return RunFacts(**given)

    @cached_property
    def state(self) -> RunState:
        """What the ledger says; a run may have ended before its first word. Raises RequestError where it is no file."""
        return read_state(self.ledger_file) if self.ledger_file.exists() else RunState()

    @cached_property
    def _values(self) -> dict[str, Any]:
        """What space.yaml held for its trials: of one that was edited by hand the ledger knows it."""
        if self.is_edited_by_hand:
            _log.warning("%s was edited by hand: its trials are of what it held before", self.space_file)
            return dict(self.state.documents[-1])
        return self.document.values

    @property
    def new_document(self) -> dict[str, Any]:
        """What the first ``opened`` event of this version holds: space.yaml, so that an edit by hand is seen."""
        return {} if self.state.documents else {"document": finite_or_none(self.document.values)}

    @cached_property
    def is_edited_by_hand(self) -> bool:
        """Whether space.yaml holds what no start and no edit of the search wrote there; False where none noted it."""
        known = self.state.documents if len(self.state.documents) > (self.state.edited is not None) else []
        return bool(known) and printable_values(finite_or_none(self.document.values)) not in known

    def refuse_edited_by_hand(self) -> None:
        """Raise RequestError where space.yaml is not what the trials were trained by."""
        if self.is_edited_by_hand:
            raise RequestError(
                f"{self.space_file} was edited by hand, and its trials are of what it held before: mixtune resume "
                f"{self.path} --space {self.space_file} takes the edit over for those to come"
            )

    def refuse_occupied(self) -> None:
        """Raise RequestError unless the folder is new or empty: a run is never overwritten."""
        if self.holds_run or self.ledger_file.exists():
            raise RequestError(
                f"{self.path} holds a run already: give another --out, see it with mixtune pareto {self.path}, or "
                f"continue it with mixtune resume {self.path}"
            )
        ours = (DRIVER_LOCK, TRIALS_LOCK, *([self.data.name] if (self.data / "meta.json").is_file() else []))
        if self.path.is_dir() and all(item.name in ours or is_temporary(item) for item in self.path.iterdir()):
            return
        if self.path.exists():
            raise RequestError(f"{self.path} is not an empty directory: give another --out")

    def _mapping(self, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        given = values.get(name) or {}
        if not isinstance(given, dict):
            raise RequestError(f"{self.space_file}: {name!r} should be a mapping of keys to values, got {given!r}")
        return given

    def _no_directory(self) -> str:
        if self.path.exists():
            return f"{self.path} is a file, not a run directory"
        parent = self.path.parent
        siblings = [item.name for item in parent.iterdir() if item.is_dir()] if parent.is_dir() else []
        return f"there is no run directory {self.path}{suggest(self.path.name, siblings)}"


def free_directory(name: str) -> Path:
    """Return ``runs/<name>``, or the first of ``runs/<name>-2``, ... that does not exist."""
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10**6))
    return next(path for path in candidates if not path.exists())


def space_document(space: SearchSpace, facts: RunFacts) -> dict[str, Any]:
    """Return what a run's space.yaml holds: the resolved space, and what the search says of itself."""
    return space.to_dict() | {"run": {name: dict(fact) for name, fact in vars(facts).items() if fact}}


def space_text(document: Mapping[str, Any]) -> str:
    """Return the text of a run's space.yaml, see space_document()."""
    return yaml.safe_dump(dict(document), sort_keys=False)
