"""A run directory as one object: trials, front, figures; of a finished search or of one that still runs."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mixtune import plugins
from mixtune.errors import RequestError, suggest
from mixtune.files import write_whole
from mixtune.metrics import quantity
from mixtune.run import front
from mixtune.run.accounting import Account, account
from mixtune.run.directory import read_space
from mixtune.run.frames import csv_text, plain, trial_frame
from mixtune.run.ledger import TrialRecord, read_ledger, trial_states, waited_seconds
from mixtune.space.constraints import Constraint

if TYPE_CHECKING:
    from mixtune.run.confirmed import Confirmation

STATES = ("complete", "stopped", "failed", "rejected", "running")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a search found. ``load`` makes one from a run directory; it does not follow a running search.

    ``space`` is space.yaml as a dict, ``records`` the ledger's word on each trial and baseline by id, and
    ``parameters`` the dotted recipe paths that the search varies. ``trials`` has a row a trial: trial, state,
    reason, parameters, objectives, every other metric, latency_ssl_s, latency_mix_s, latency_sl_s, wall_s,
    epochs_asked, epochs_trained, epochs_reused; ``baselines`` the same after a column ``method``; ``waited_s``: for
    which slots had nothing to do but wait for a stage; ``confirmed``: the ledger's events of trainings on fresh seeds.
    Names that end in ``_s`` are seconds; accuracies are shares of 1.
    """

    directory: Path
    objectives: dict[str, str]
    space: dict[str, Any]
    records: dict[str, TrialRecord]
    parameters: tuple[str, ...]
    trials: pd.DataFrame
    baselines: pd.DataFrame
    waited_s: float = 0.0
    confirmed: tuple[Mapping[str, Any], ...] = ()

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts().items() if count)
        return f"Result({str(self.directory)!r}: {counts or 'no trial has started'})"

    @property
    def constraints(self) -> dict[str, Constraint]:
        """The search's constraints by metric: a trial that breaks one is never on the front."""
        constraints: dict[str, Constraint] = self.space["constraints"]
        return constraints

    @property
    def reference_point(self) -> dict[str, float | None]:
        """The hypervolume's reference, fixed before the first trial; None for an objective without one."""
        given = self.space["run"]["reference_point"]
        return {name: given.get(name) for name in self.objectives}

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
        columns = list(dict.fromkeys([*self.baselines, *objectives]))
        return dataclasses.replace(self, objectives=dict(objectives), baselines=self.baselines.reindex(columns=columns))

    def complete(self) -> pd.DataFrame:
        """Return the rows of ``trials`` that are complete: the only ones that can be on the front."""
        return self.trials[self.trials["state"] == "complete"]

    def feasible(self) -> pd.DataFrame:
        """Return the complete trials that keep every constraint of the search; a metric that is missing keeps none."""
        rows = self.complete()
        for name, constraint in self.constraints.items():
            values = front.numeric_column(rows, name) if name in rows else np.full(len(rows), np.nan)
            kept = [constraint.holds(value) for value in values]
            rows = rows[np.array(kept, dtype=bool)]
        return rows

    def pareto_front(self, objectives: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return the feasible trials that no other dominates, sorted as ``front.pareto_front`` says."""
        return front.pareto_front(self.feasible(), objectives or self.objectives)

    def hypervolume(self) -> float | None:
        """Return the volume between feasible trials and reference point, None where that is incomplete."""
        reference = {name: bound for name, bound in self.reference_point.items() if bound is not None}
        if len(reference) < len(self.objectives):
            return None
        return front.hypervolume(self.feasible(), self.objectives, reference)

    def account(self) -> Account:
        """Return epochs and seconds that trials and baselines asked for, trained and reused."""
        return account(self.records.values(), self.waited_s)

    def knee(self) -> str | None:
        """Return the id of the front's knee (``front.knee``), None while no trial is feasible."""
        members = self.pareto_front()
        label = front.knee(members, self.objectives)
        return None if label is None else str(members["trial"][members.index == label].iloc[0])

    def best(self, metric: str, bounds: Mapping[str, float] | None = None) -> pd.Series[Any]:
        """Return the row of the complete trial with the best ``metric`` among those within ``bounds``.

        ``metric`` is an objective, which says what is better. A bound is inclusive: a least value for a "max"
        objective, a largest value for a "min" objective and for any other metric. Equals are ordered by the
        other objectives. Raises RequestError where ``metric`` is no objective, a bounded metric is unknown,
        or no complete trial is left.
        """
        if metric not in self.objectives:
            hint = suggest(metric, self.objectives)
            known = ", ".join(self.objectives)
            raise RequestError(f"best: {metric!r} is no objective of this run: they are {known}{hint}")
        rows = self.feasible()
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

    def beaten_by_baselines(self) -> dict[str, int]:
        """Return how many front members each complete baseline dominates; baselines that beat none are left out."""
        names = list(self.objectives)
        beaten = {}
        for _, baseline in self.baselines[self.baselines["state"] == "complete"].iterrows():
            pairs = (
                pd.DataFrame([baseline[names], member[names]], index=["baseline", "member"], dtype=float)
                for _, member in self.pareto_front().iterrows()
            )
            count = sum("member" not in front.pareto_front(pair, self.objectives).index for pair in pairs)
            if count:
                beaten[str(baseline["method"])] = count
        return beaten

    def noise_warning(self) -> str | None:
        """Return one line where neighbours on the front differ by less than their standard error, else None.

        It looks at every objective with a column ``<objective>_se``; of two neighbours' the larger counts.
        """
        warnings = []
        for name in self.objectives:
            if f"{name}_se" not in self.trials:
                continue
            members = self.pareto_front().sort_values(name)
            gaps = members[name].diff().iloc[1:]
            errors = [max(pair) for pair in pairwise(front.numeric_column(members, f"{name}_se"))]
            within = [error for gap, error in zip(gaps, errors, strict=True) if gap < error]
            if within:
                are = "is" if len(within) == 1 else "are"
                warnings.append(
                    f"{len(within)} of {len(gaps)} gaps in {name} between neighbours on the front {are} "
                    f"smaller than its standard error (up to {quantity(name).text(max(within))})"
                )
        return "; ".join(warnings) or None

    def confirmation(self) -> Confirmation | None:
        """Return what trainings on fresh seeds say of the front (``mixtune confirm``), None where there are none."""
        from mixtune.run.confirmed import confirmation

        return confirmation(self.confirmed, self) if self.confirmed else None

    def plot(self, name: str) -> Any:
        """Return a figure as a plotly Figure: ``name`` is that of a file in ``mixtune/report/figures``.

        They are alpha_rho, budgets, hypervolume, importance, learning_curves, pareto, phases, rungs and stage_tree.
        Raises RequestError for an unknown name, listing the known ones.
        """
        figure = plugins.find("report.figures", name, "figure")
        return figure.draw(figure.compute(self))

    def plot_pareto(self) -> Any:
        """Return the front as a plotly Figure, the same as ``plot("pareto")``."""
        return self.plot("pareto")

    def to_json_dict(self) -> dict[str, Any]:
        """Return what ``mixtune pareto --format json`` prints: plain Python, None for what is missing."""
        return {
            "objectives": dict(self.objectives),
            "constraints": {name: constraint.to_yaml() for name, constraint in self.constraints.items()},
            "reference_point": self.reference_point,
            "hypervolume": self.hypervolume(),
            "knee": self.knee(),
            "front": [self._member(row) for _, row in self.pareto_front().iterrows()],
            "baselines": [
                {name: plain(row[name]) for name in ("method", *self.objectives)}
                for _, row in self.baselines[self.baselines["state"] == "complete"].iterrows()
            ],
            "trials": self.counts(),
        }

    def write_tables(self) -> None:
        """Write trials.csv and pareto.csv into the run directory, each whole or not at all."""
        write_whole(self.directory / "trials.csv", csv_text(self.trials))
        write_whole(self.directory / "pareto.csv", csv_text(self.pareto_front()))

    def _member(self, row: pd.Series[Any]) -> dict[str, Any]:
        values: dict[str, Any] = {"trial": row["trial"]}
        for name in self.objectives:
            values[name] = plain(row[name])
            error = plain(row.get(f"{name}_se"))
            if error is not None:
                values[f"{name}_se"] = error
        return {**values, "params": dict(self.records[row["trial"]].params)}


def load(directory: str | os.PathLike[str]) -> Result:
    """Return the result of the run in ``directory``, finished or not.

    Raises RequestError where it is no run directory, its space.yaml cannot be read or its ledger is damaged.
    """
    directory = Path(directory)
    space = read_space(directory)
    ledger = directory / "ledger.jsonl"
    events = read_ledger(ledger) if ledger.exists() else []  # a run may have ended before its first word
    records = trial_states(events)
    objectives: dict[str, str] = space["objectives"]
    trials = [record for record in records.values() if record.baseline is None]
    asked = (name for record in trials for name in record.params)
    parameters = tuple(dict.fromkeys([*space["space"], *asked]))
    named = ["trial", "state", "reason"]
    baselines = [record for record in records.values() if record.baseline is not None]
    return Result(
        directory=directory,
        objectives=objectives,
        space=space,
        records=records,
        parameters=parameters,
        trials=trial_frame(trials, parameters, objectives, named),
        baselines=trial_frame(baselines, parameters, objectives, ["method", *named]),
        waited_s=waited_seconds(events),
        confirmed=tuple(event for event in events if event["event"] == "confirmed"),
    )
