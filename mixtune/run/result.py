"""A run directory as one object: trials, front, figures; of a finished search or of one that still runs."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixtune import plugins
from mixtune.errors import RequestError, show, suggest
from mixtune.files import write_whole
from mixtune.metrics import METHODS, find_metric
from mixtune.run import front
from mixtune.run.accounting import Account, account
from mixtune.run.confirmed import Confirmation, confirmation
from mixtune.run.directory import RunDirectory, RunFacts
from mixtune.run.frames import csv_text, plain, trial_frame
from mixtune.run.ledger import RunState, TrialRecord
from mixtune.run.paired import WITH_ERRORS, mean_error
from mixtune.run.recommendation import Recommendation, recommend
from mixtune.run.reference import derive_reference, given_reference
from mixtune.space.constraints import Constraint
from mixtune.space.effective import effective, find_method, idle_settings
from mixtune.space.foreign import foreign_in_space, refuse_foreign_code
from mixtune.space.recipe import BASELINES, flatten
from mixtune.space.space import SearchSpace

_DECISIVE = {"epochs.ssl", "epochs.sl", "rho"}  # of a recipe's method
_OF_BASELINES = ("epochs.sl", *(path for values in BASELINES.values() for path in values))
STATES = ("complete", "stopped", "failed", "rejected", "known", "paused", "running")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a search found. ``load`` makes one from a run directory; it does not follow a running search.

    ``space`` is what was searched, ``facts`` what the search wrote of itself, ``state`` what its ledger says;
    ``objectives`` are what it is judged by. ``trials`` has a row a trial: trial, state, reason, parameters, objectives,
    every other metric, latency_ssl_s, latency_mix_s, latency_sl_s, wall_s, epochs_asked, epochs_trained, epochs_reused;
    ``baselines`` the same after a column ``method``. Names that end in ``_s`` are seconds; accuracies are shares of 1.
    An answer is chosen from all that was trained, baselines too: ``candidates`` as the search found them, ``rows`` as
    they are known now: on fresh seeds, once ``mixtune confirm`` has trained them. What is derived, such as the front,
    is derived once.
    """

    directory: Path
    space: SearchSpace
    facts: RunFacts
    state: RunState
    objectives: Mapping[str, str]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts().items() if count)
        return f"Result({str(self.directory)!r}: {counts or 'no trial has started'})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the recommendation and the front."""
        front = self.pareto_front()
        columns = ["trial", *(name for name in self.parameters if name in front), *self.objectives]
        shown = front[columns].rename(columns=lambda name: find_metric(name).title).to_html(index=False, border=0)
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.recommendation().lines())
        return f"<div>{lines}{shown}</div>"

    @property
    def records(self) -> dict[str, TrialRecord]:
        """The ledger's word on each trial and baseline, by id."""
        return self.state.records

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The dotted recipe paths that the search varies."""
        asked = (name for record in self.records.values() if record.baseline is None for name in record.params)
        return tuple(dict.fromkeys([*self.space.space, *asked]))

    def params_to_train(self, trial: str) -> dict[str, Any]:
        """Return the parameters that a trial or baseline is trained again with.

        Raises RequestError where the ledger sets a field of the recipe that no space of the run varied.
        """
        record = self.records[trial]
        for path in self._foreign(record):
            given = f"{path} {show(record.params[path])}"
            raise RequestError(f"{self.directory}: {trial} has {given} in its ledger, which no space of the run varies")
        return record.params

    def _foreign(self, record: TrialRecord) -> list[str]:
        """Return the paths of a record's parameters that no space of the run varied and the recipe does not have so."""
        if self.state.varied is None:  # an older version edited the space, and did not say what the former one varied
            return []
        known = {*self.space.space, *self.space.ties, *self.state.varied, *(_OF_BASELINES if record.baseline else ())}
        own, none = flatten(self.space.values), object()
        return [path for path, value in record.params.items() if path not in known and own.get(path, none) != value]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a trial, in the order in which they were requested."""
        trials = (record for record in self.records.values() if record.baseline is None)
        return trial_frame(trials, self.parameters, self.space.objectives, ["trial", "state", "reason"])

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """A row a baseline."""
        baselines = (record for record in self.records.values() if record.baseline is not None)
        names = ["method", "trial", "state", "reason"]
        frame = trial_frame(baselines, self.parameters, self.space.objectives, names)
        return frame.reindex(columns=list(dict.fromkeys([*frame, *self.objectives])))

    @cached_property
    def complete_baselines(self) -> pd.DataFrame:
        """The rows of ``baselines`` that are complete."""
        return self.baselines[self.baselines["state"] == "complete"]

    @property
    def constraints(self) -> dict[str, Constraint]:
        """The search's constraints by metric: a trial that breaks one is never on the front."""
        return self.space.constraints

    @cached_property
    def reference_point(self) -> dict[str, float | None]:
        """The hypervolume's reference; None for an objective without one. See mixtune.run.reference."""
        measured = [record.metrics for record in self.records.values() if record.state == "complete"]
        judged = self.rows.reindex(columns=list(self.objectives)).to_dict("records")  # on fresh seeds, too
        rows = [*measured, *({str(name): value for name, value in row.items()} for row in judged)]
        point = derive_reference(self.space, self.facts, rows, self.objectives)
        return {name: point.get(name) for name in self.objectives}

    @property
    def beyond_reference(self) -> list[str]:
        """The candidates that add nothing to the hypervolume because a reference that was given is not worse."""
        beyond = np.zeros(len(self.candidates), dtype=bool)
        for name, bound in given_reference(self.space, self.facts).items():
            if name in self.objectives:
                values = front.numeric_column(self.candidates, name)
                beyond |= values <= bound if self.objectives[name] == "max" else values >= bound
        return list(self.candidates["trial"][beyond])

    def counts(self) -> dict[str, int]:
        """Return how many trials are in each state; baselines and trials not yet started are not counted."""
        found = Counter(self.trials["state"])
        return {state: found[state] for state in STATES}

    def with_objectives(self, objectives: Mapping[str, str]) -> Result:
        """Return the same run judged by other metrics, ``{"val_accuracy": "max", "train_flops": "min"}``.

        Raises RequestError for an unknown or non-numeric metric and for a mode that is not "max" or "min".
        """
        front.check_objectives(objectives)
        for name in objectives:
            front.numeric_column(self.trials, name)
        return dataclasses.replace(self, objectives=dict(objectives))

    def with_reference(self, point: Mapping[str, float]) -> Result:
        """Return the same run with another reference for the hypervolume, ``{"val_accuracy": 0.1}``.

        Raises RequestError for what is not an objective, and for a number that is not finite.
        """
        for name in point:
            if name not in self.objectives:
                known = f"they are {', '.join(self.objectives)}{suggest(name, self.objectives)}"
                raise RequestError(
                    f"the reference point names {name!r}, which is not an objective of this run: {known}"
                )
        given = {**self.space.search.reference_point, **point}
        return dataclasses.replace(self, space=self.space.with_search(reference_point=given))

    def complete(self) -> pd.DataFrame:
        """Return the rows of ``trials`` that are complete: the only ones that can be on the front."""
        return self.trials[self.trials["state"] == "complete"]

    def feasible(self) -> pd.DataFrame:
        """Return the complete trials that keep every constraint of the search; a metric that is missing keeps none."""
        return self._feasible

    def pareto_front(self, objectives: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return the ``rows`` on the front, sorted as ``front.in_order`` says.

        These are the ones that no other dominates, or where fresh seeds decide those that are on it more probably than
        not (``Confirmation.members``).
        """
        return self._front if objectives is None else self.with_objectives(objectives).pareto_front()

    def hypervolume(self) -> float | None:
        """Return the volume between ``candidates`` and reference point, None where that is incomplete."""
        return self._hypervolume

    @cached_property
    def _feasible(self) -> pd.DataFrame:
        return self._keep_constraints(self.complete())

    def _frame(self, records: Sequence[TrialRecord]) -> pd.DataFrame:
        """Return a row a record, also a baseline's with every searched parameter: where it has none, the base's."""
        frame = trial_frame(records, self.parameters, self.space.objectives, ["trial", "baseline", "state", "reason"])
        for path in self.parameters:
            depends = path in self.space.space and bool(self.space.space[path].when)
            known = [
                (record.params if depends and record.baseline is None else self.values[record.trial]).get(path)
                for record in records
            ]
            if records and (depends or all(value is not None for value in known)):
                frame[path] = known
        return frame

    def _keep_constraints(self, rows: pd.DataFrame) -> pd.DataFrame:
        for name, constraint in self.constraints.items():
            values = front.numeric_column(rows, name) if name in rows else np.full(len(rows), np.nan)
            rows = rows[np.array([constraint.holds(value) for value in values], dtype=bool)]
        return rows

    @cached_property
    def _front(self) -> pd.DataFrame:
        if self.confirmed is None:
            return front.pareto_front(self.rows, self.objectives)
        return front.in_order(self.rows[self.rows["trial"].isin(self.confirmed.members)], self.objectives)

    @cached_property
    def _hypervolume(self) -> float | None:
        reference = {name: bound for name, bound in self.reference_point.items() if bound is not None}
        if len(reference) < len(self.objectives):
            return None
        return front.hypervolume(self.candidates, self.objectives, reference)

    def account(self) -> Account:
        """Return epochs and seconds that trials and baselines requested, trained and reused."""
        return account(self.records.values(), self.state.waited_s)

    def knee(self) -> str | None:
        """Return the id of the front's knee (``front.knee``), None while no trial is feasible."""
        return self._knee

    @cached_property
    def _knee(self) -> str | None:
        label = front.knee(self._front, self.objectives)
        return None if label is None else str(self._front["trial"][self._front.index == label].iloc[0])

    @property
    def accuracy_name(self) -> str:
        """The accuracy that the run is judged by: its first objective to be large, else val_accuracy."""
        return next((name for name, mode in self.objectives.items() if mode == "max"), "val_accuracy")

    @property
    def cost_name(self) -> str:
        """The cost that the run is judged by: its first objective to be small, else train_latency_s."""
        return next((name for name, mode in self.objectives.items() if mode == "min"), "train_latency_s")

    @cached_property
    def highlights(self) -> Sequence[str]:
        """The recipes of the front, in its order, and the other complete baselines."""
        return list(dict.fromkeys([*self._front["trial"], *self.complete_baselines["trial"]]))

    @cached_property
    def values(self) -> dict[str, dict[str, Any]]:
        """Every recipe value of each trial and baseline, by dotted path; {} where the run does not say."""
        space = self.space
        if not flatten(space.values).keys() >= _DECISIVE:  # not a search's own file, which spells out every default
            try:
                space = space.with_recipe(space.recipe)
            except RequestError:
                return {trial: {} for trial in self.records}
        found = {}
        for trial, record in self.records.items():
            params = dict(record.params)
            if "ssl.objective" in self._foreign(record):  # which would be imported
                del params["ssl.objective"]
            values = space.values_at(params)
            found[trial] = values if _are_of_a_recipe(values) else {}
        return found

    def idle(self, trial: str) -> frozenset[str]:
        """Return the dotted paths of the settings that have no effect in a trial's recipe, or are not its own."""
        record = self.records[trial]
        depends = (path for path, distribution in self.space.space.items() if distribution.when)
        others = {path for path in depends if record.baseline is None and path not in record.params}
        return frozenset(others | (idle_settings(self.values[trial]) if self.values[trial] else frozenset()))

    def method(self, trial: str) -> str:
        """Return a trial's method in words: SL, SSL+SL or MixTraining."""
        values = self.values[trial]
        if not values:
            return str(self.records[trial].metrics.get("method") or "")
        return METHODS[find_method(values["rho"], values["epochs.ssl"], values["epochs.sl"])]

    @cached_property
    def same_recipes(self) -> dict[str, tuple[str, ...]]:
        """The complete trials and baselines whose recipes train the same, by a baseline or the first that has ended."""
        alike: dict[str, list[str]] = {}
        ended = (record for record in self.records.values() if record.state == "complete")
        for record in sorted(ended, key=lambda record: (record.baseline is None, record.ended_time or math.inf)):
            values = effective(known) if (known := self.values[record.trial]) else record.trial
            alike.setdefault(json.dumps(values, sort_keys=True, default=str), []).append(record.trial)
        return {trials[0]: tuple(trials[1:]) for trials in alike.values()}

    @cached_property
    def candidates(self) -> pd.DataFrame:
        """A row for each recipe that is complete and keeps every constraint, as the search found it.

        Columns as those of ``trials`` after ``baseline``, its name or None. Of trials that are one recipe the first
        one stands for all (``same_recipes``).
        """
        records = [r for r in self.records.values() if r.state == "complete" and r.trial in self.same_recipes]
        return self._keep_constraints(self._frame(records))

    @cached_property
    def searched_front(self) -> pd.DataFrame:
        """The rows of ``candidates`` that no other dominates."""
        return front.pareto_front(self.candidates, self.objectives)

    @cached_property
    def to_confirm(self) -> list[TrialRecord]:
        """What ``mixtune confirm`` trains: the search's front, in its order, and the other complete baselines."""
        baselines = (trial for trial in self.complete_baselines["trial"] if trial in self.same_recipes)
        return [self.records[trial] for trial in dict.fromkeys([*self.searched_front["trial"], *baselines])]

    @cached_property
    def confirmation(self) -> Confirmation | None:
        """What training runs on fresh seeds say, None where there are none."""
        return confirmation(self)

    @property
    def confirmed(self) -> Confirmation | None:
        """``confirmation`` where it decides: not before every recipe that it is about is trained and judged."""
        found = self.confirmation
        if found is None or found.interrupted:
            return None
        finished = found.frame[found.frame["diverged"] < found.frame["seeds"]]
        return found if np.isfinite(front.costs(finished, self.objectives)).all() else None

    def with_first_seeds(self, count: int) -> Result:
        """Return the same run as it was when the first so many fresh seeds were trained."""
        seeds = sorted({int(event["seed"]) for event in self.state.confirmed})[:count]
        confirmed = [event for event in self.state.confirmed if event["seed"] in seeds]
        return dataclasses.replace(self, state=dataclasses.replace(self.state, confirmed=confirmed))

    @cached_property
    def fallen(self) -> list[str]:
        """The recipes of the search's front that fresh seeds took off it: on it with less than 5 % probability."""
        if self.confirmed is None:
            return []
        fell_off = self.confirmed.frame["trial"][self.confirmed.frame["fell_off"]]
        return [trial for trial in self.searched_front["trial"] if trial in set(fell_off)]

    @cached_property
    def undecided(self) -> list[str]:
        """The confirmed recipes of which fresh seeds do not say whether they are on the front."""
        frame = None if self.confirmed is None else self.confirmed.frame
        return [] if frame is None else [str(trial) for trial in frame["trial"][frame["undecided"]]]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """What decides: ``candidates``, or those of them that are confirmed, with their means over fresh seeds.

        Where means decide, objectives and constrained metrics are those of the fresh seeds, and the ``_se`` of an
        accuracy holds the seeds' error and the images', which all rows share.
        """
        found = self.confirmed
        if found is None:
            return self.candidates
        decided = found.frame[found.frame["diverged"] < found.frame["seeds"]].set_index("trial")
        records = [self.records[trial] for trial in decided.index]
        rows = self._frame(records)
        for name in decided.columns.intersection([*rows.columns, *(f"{name}_se" for name in self.objectives)]):
            rows[name] = decided[name].to_numpy()
        rows["train_latency_se_s"] = decided["train_latency_se_s"].to_numpy()
        of_seeds = float((decided["seeds"] > 1).any())  # without a second one their errors are the images'
        for name in (name for name in self.objectives if name in WITH_ERRORS):
            runs = [list(found.runs[trial].values()) for trial in decided.index]
            of_images = [mean_error(own, name, self.state.held_out) for own in runs]
            rows[f"{name}_se"] = np.hypot(np.nan_to_num(of_images), of_seeds * np.nan_to_num(decided[f"{name}_se"]))
        return self._keep_constraints(rows)

    def recommendation(self) -> Recommendation:
        """Return which recipe to use, how sure that is, and what to do next; see mixtune.run.recommendation."""
        return self._recommendation

    @cached_property
    def _recommendation(self) -> Recommendation:
        return recommend(self)

    def best(self, metric: str, bounds: Mapping[str, float] | None = None) -> pd.Series[Any]:
        """Return the row of ``rows`` with the best ``metric`` among those within ``bounds``.

        ``metric`` is an objective, which says what is better. A bound is inclusive: a least value for a "max"
        objective, a largest value for a "min" objective and for any other metric. Equals are ordered by the
        other objectives. Raises RequestError where ``metric`` is not an objective, a bounded metric is unknown,
        or no complete trial is left.
        """
        if metric not in self.objectives:
            hint = suggest(metric, self.objectives)
            known = ", ".join(self.objectives)
            raise RequestError(f"best: {metric!r} is not an objective of this run: they are {known}{hint}")
        rows = self.rows
        rows = rows[np.isfinite(rows[metric])]
        if rows.empty:
            keeps = " and keeps its constraints" if self.constraints else ""
            raise RequestError(f"best: no trial of {self.directory} is complete yet{keeps}")
        for name, bound in (bounds or {}).items():
            values = front.numeric_column(rows, name)
            is_floor = self.objectives.get(name) == "max"
            within = rows[values >= bound] if is_floor else rows[values <= bound]
            if within.empty:
                reached = f"largest is {values.max()}" if is_floor else f"smallest is {values.min()}"
                sign = ">=" if is_floor else "<="
                raise RequestError(f"best: no complete trial left has {name} {sign} {bound}: the {reached}")
            rows = within
        order = [metric, *(name for name in self.objectives if name != metric)]
        ascending = [self.objectives[name] == "min" for name in order]
        winner: pd.Series[Any] = rows.sort_values(order, ascending=ascending, kind="stable").iloc[0]
        return winner

    def plot(self, name: str) -> Any:
        """Return a figure as a plotly Figure: ``name`` is that of a file in ``mixtune/report/figures``.

        They are alpha_rho, budgets, hypervolume, importance, learning_curves, parallel_coordinates, pareto, phases
        and stage_tree. Raises RequestError for an unknown name, listing the known ones.
        """
        figure = plugins.find("report.figures", name, "figure")
        return figure.draw(figure.compute(self))

    def plot_pareto(self) -> Any:
        """Return the front as a plotly Figure, the same as ``plot("pareto")``."""
        return self.plot("pareto")

    def to_json_dict(self, baselines: bool = True) -> dict[str, Any]:
        """Return what ``mixtune pareto --format json`` prints: plain Python, None for what is missing.

        baselines: whether their rows are in it; all other figures are the same without.
        """
        return {
            "recommended": self.recommendation().to_json_dict(),
            "objectives": dict(self.objectives),
            "constraints": {name: constraint.to_yaml() for name, constraint in self.constraints.items()},
            "reference_point": self.reference_point,
            "hypervolume": self.hypervolume(),
            "knee": self.knee(),
            "front": [
                self._member(row)
                for _, row in self.pareto_front().iterrows()
                if baselines or self.records[row["trial"]].baseline is None
            ],
            "baselines": [
                {name: plain(row[name]) for name in ("method", *self.objectives)}
                for _, row in self.complete_baselines.iterrows()
                if baselines
            ],
            "trials": self.counts(),
        }

    def write_tables(self) -> None:
        """Write trials.csv and pareto.csv into the run directory, each whole or not at all."""
        run = RunDirectory(self.directory)
        write_whole(run.trials_file, csv_text(self.trials))
        write_whole(run.front_file, csv_text(self.pareto_front()))

    def _member(self, row: pd.Series[Any]) -> dict[str, Any]:
        method = self.method(row["trial"])
        values: dict[str, Any] = {"trial": row["trial"]} | ({"method": method} if method else {})
        if (baseline := self.records[row["trial"]].baseline) is not None:
            values["baseline"] = baseline
        if same := self.same_recipes.get(row["trial"]):
            values["same_recipe"] = list(same)
        for name in self.objectives:
            values[name] = plain(row[name])
            error = plain(row.get(f"{name}_se"))
            if error is not None:
                values[f"{name}_se"] = error
        return {**values, "params": dict(self.records[row["trial"]].params)}


def _are_of_a_recipe(values: Mapping[str, Any]) -> bool:
    """Return whether values, which nobody has checked, go together as a recipe's do."""
    try:
        find_method(values["rho"], values["epochs.ssl"], values["epochs.sl"])
        effective(values)
    except (TypeError, ValueError, ArithmeticError, LookupError):
        return False
    alpha = values.get("alpha")
    return isinstance(alpha, int | float) and not isinstance(alpha, bool)


def load(directory: str | os.PathLike[str]) -> Result:
    """Return the result of the run in ``directory``, finished or not.

    Raises RequestError where it is not a run directory, its space.yaml cannot be read or its ledger is damaged.
    """
    return result_of(RunDirectory(Path(directory)))


def load_to_train(directory: str | os.PathLike[str], trust: bool) -> Result:
    """Return load() of a run whose recipes are trained again.

    Raises RequestError, too, where it was edited by hand, and where it names other code and is not trusted.
    """
    run = RunDirectory(Path(directory))
    if run.holds_run:
        run.refuse_edited_by_hand()
        refuse_foreign_code(run.path, foreign_in_space(run.space, searches=False), trust)
    return result_of(run)


def result_of(run: RunDirectory) -> Result:
    """Return the result of a run; see load()."""
    return Result(run.path, run.space, run.facts, run.state, run.space.objectives)
