"""What a search learns from the results of others: of run directories, or of Optuna's studies.

They are copied into the ledger at the search's first start (``learned`` events); their sources are not opened again.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.pool import NullPool

from mixtune.cost.machine import Machine, as_in_search
from mixtune.errors import RequestError, one_line, show, suggest
from mixtune.metrics import METRICS, find_metric, metric_value
from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import TrialRecord
from mixtune.space.placing import place_recipe
from mixtune.space.recipe import Recipe, change_recipe
from mixtune.space.space import SearchSpace
from mixtune.stages.keys import stage_keys
from mixtune.stages.store import MAX_BYTES, StateStore
from mixtune.training.data import load_training_data
from mixtune.training.plan import make_plan
from mixtune.training.sources import digest_sets, load_image_sets, other_data
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.study_file import UNUSABLE, storage_on
from mixtune.tuning.suggestions import encode, find_sampler

SQLITE = "sqlite:///"
MAX_REASONS = 3  # of what was left out, that a line names

KeysOf = Callable[[Sequence[Recipe]], Sequence[Sequence[str]]]


@dataclass
class Source:
    """Complete recipes of others.

    given: as ``search.learn_from`` has it; records: those that the space holds, in its parameters; left_out: how many
    others there are, by reason; device: what seconds are of, None where nobody knows; stages: the folder of their
    states, whose keys are ``stored``; notes: for the terminal.
    """

    given: str
    records: list[TrialRecord] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    device: tuple[str, int] | None = None
    stages: Path | None = None
    stored: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)

    def take(self, space: SearchSpace, record: TrialRecord, values: Mapping[str, Any]) -> None:
        """Take a result over, if the space holds its recipe, all of whose values are given by dotted path."""
        place = place_recipe(space, values)
        if place.outside or place.other:
            path, value = next(iter(place.other.items())) if place.other else (place.outside[0], None)
            self.left_out[f"{path} is {show(value)}" if place.other else f"{path} is outside of this space"] += 1
        elif (broken := space.broken(place.params)) is not None:
            self.left_out[broken] += 1
        else:
            try:
                space.recipe_at(place.params)
                self.records.append(replace(record, params=place.params))
            except RequestError as error:
                self.left_out[str(error)] += 1


def read_sources(space: SearchSpace, known: Collection[str] = ()) -> list[Source]:
    """Read what a space wants to be learned from, but for what is ``known``, which may be gone.

    Raises RequestError for a source that is not there or cannot be read, and for one of other images or labels.
    """
    found = []
    for given in dict.fromkeys(space.search.learn_from):
        if given not in known:
            try:
                found.append(_read_study(space, given) if "://" in given else _read_run(space, given))
            except RequestError as error:
                raise RequestError(f"search.learn_from: {error}") from error
    return found


def _read_run(space: SearchSpace, given: str) -> Source:
    run = RunDirectory(Path(given).expanduser())
    there, state = run.space, run.state
    there = there.with_recipe(there.recipe)  # older runs do not spell out every field
    opened = state.opened[-1] if state.opened else {}
    if opened and (parts := other_data(opened, digest_sets(load_image_sets(space.recipe)))):
        raise RequestError(f"{given}: {parts} are not those of this search: what was found there does not hold here")
    source = Source(
        given,
        device=(opened["device"], opened["threads"]) if opened else None,
        stages=run.stages,
        stored=frozenset(key for record in state.records.values() for key in record.stored.values()),
        notes=[] if opened else ["that its data are the same cannot be checked"],
    )
    for record in state.records.values():
        if record.state == "complete":
            source.take(space, record, there.values_at(record.params))
    return source


def _read_study(space: SearchSpace, given: str) -> Source:
    url, _, name = given.partition("#")
    try:
        names = sorted(optuna.get_all_study_names(storage := _open(url)))
        if (name not in names) if name else len(names) != 1:
            wrong = f"it holds {', '.join(names) or 'no study'}{suggest(name, names)}"
            raise RequestError(f"{given}: name one study, as in {url}#NAME; {wrong}")
        study = optuna.load_study(study_name=name or names[0], storage=storage)
        trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    except (*UNUSABLE, ImportError, AttributeError, RuntimeError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{given}: cannot be read as an Optuna storage: {one_line(error)}") from error
    better = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    objectives = study.metric_names
    if objectives is None:
        if study.directions != [better[mode] for mode in space.objectives.values()]:
            raise RequestError(f"{given}: its objectives have no names, and their directions are not this search's")
        objectives = [*space.objectives]
    source = Source(given, notes=["that its data are the same cannot be checked"])
    for trial in trials:
        if "baseline" in trial.user_attrs:  # whose parameters are not there
            continue
        own = {name: value for name, value in trial.user_attrs.items() if name in METRICS}
        metrics = {**own, **dict(zip(objectives, trial.values, strict=True))}
        params = dict(_decoded(space, trial.params))
        record = TrialRecord(str(trial.user_attrs.get("trial", trial.number)), params=params, metrics=metrics)
        source.take(space, record, {**space.values_at(params), **params})
    return source


def _open(url: str) -> optuna.storages.BaseStorage:
    """Return a storage; of a file of SQLite it is only read, and made by nobody. Raises RequestError."""
    if not url.startswith(SQLITE):
        return optuna.storages.get_storage(url)
    path = Path(url.removeprefix(SQLITE)).expanduser()
    if not path.is_file():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RequestError(f"there is no file {path}{suggest(path.name, siblings)}")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return storage_on(lambda: sqlite3.connect(uri, uri=True), NullPool, skip_table_creation=True)


def _decoded(space: SearchSpace, params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for path, value in params.items():
        choices = space.space[path].values if path in space.space else ()
        yield path, next((choice for choice in choices if encode(choice) == value), value)


def learn(search: RunningSearch, source: Source, machine: Machine, stages: Path, keys_of: KeysOf | None = None) -> str:
    """Let a search learn from a source, and return a line on that.

    machine: what the search trains on; seconds and memory of another device are not taken over; stages: the search's,
    which shares the states that its trials can continue from; keys_of: gives trial_keys(), None where none can.
    """
    space, left_out = search.space, source.left_out
    goals = dict.fromkeys([*space.objectives, *space.constraints])
    is_elsewhere = source.device != (machine.device, machine.threads)
    foreign = {name for name in (*goals, "train_latency_s") if is_elsewhere and find_metric(name).of_device}
    needs_all = not hasattr(find_sampler(space), "proposer")
    device, threads = source.device or ("another device", 0)
    whose = device if device != machine.device else f"{threads} threads"
    records = []
    for record in source.records:
        finite = {name for name in goals if math.isfinite(metric_value(record.metrics, name))}
        missing = [name for name in space.objectives if name not in finite - foreign]
        lacking = next((name for name in missing if name not in foreign), None)
        if lacking is not None:
            left_out[f"{lacking} is missing"] += 1
        elif missing and (needs_all or not finite - foreign):
            left_out[f"{missing[0]} is not of this device"] += 1
        else:
            records.append(
                _without(record, space, [name for name in (*goals, "train_latency_s") if name not in foreign])
            )
    recipes = [space.recipe_at(record.params) for record in records]
    paths = keys_of(recipes) if recipes and source.stored and keys_of is not None else [()] * len(recipes)
    store, linked = StateStore(stages, MAX_BYTES), set[str]()
    for record, keys in zip(records, paths, strict=True):
        for epoch in sorted(search.stages.ends(record.params)) if keys else ():
            if keys[epoch] in source.stored and source.stages is not None and store.adopt(keys[epoch], source.stages):
                record.stored[epoch] = keys[epoch]
                linked.add(keys[epoch])
    search.learn(source.given, records, dict(left_out))
    said = f"learned from {source.given}: {len(records)} of {len(records) + left_out.total()} complete recipes"
    said += f", {len(linked)} of their states" if linked else ""
    parts = [said, *source.notes]
    if records and (foreign := foreign & goals.keys()):
        parts.append(f"without {' and '.join(sorted(foreign))}, of {whose}")
    if left_out:
        reasons = [f"{count} ({reason})" for reason, count in left_out.most_common(MAX_REASONS)]
        others = left_out.total() - sum(count for _, count in left_out.most_common(MAX_REASONS))
        parts.append(f"left out: {', '.join([*reasons, *([f'{others} for other reasons'] if others else [])])}")
    return "; ".join(parts)


def _without(record: TrialRecord, space: SearchSpace, names: Iterable[str]) -> TrialRecord:
    """Return what is copied of a record: these metrics, also of its epochs, of which the last is always there."""

    def kept(metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {name: metrics[name] for name in names if metrics.get(name) is not None}

    epochs = len(make_plan(space.recipe_at(record.params)))
    last = {**kept(record.metrics), "epoch": epochs}
    curve = [{**kept(epoch), "epoch": epoch["epoch"]} for epoch in record.epochs if (epoch.get("epoch") or 0) < epochs]
    return TrialRecord(record.trial, "learned", params=record.params, metrics=last, epochs=[*curve, last])


def trial_keys(machine: Machine, recipes: Sequence[Recipe], on_gpu: bool) -> list[tuple[str, ...]]:
    """Return the keys (stage_keys) of recipes as trials on this machine have them."""
    found = []
    with as_in_search(recipes[0], machine.to_dict()) as (_, device):
        for recipe in recipes:
            if recipe.precision == "auto":
                recipe = change_recipe(recipe, {"precision": machine.precision})
            found.append(stage_keys(recipe, load_training_data(recipe, device), device))
    return found
