"""A front on fresh seeds: means and spreads, and which members are really on it.

Validation images decide; means on test images are reported and decide nothing, since the best of several would be no
estimate. What ``±`` and ``p_front`` are: mixtune.run.estimates and mixtune.run.posterior.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.table import Table

from mixtune.metrics import COST_UNITS, disturbed_note, error_name, find_metric, metric_text, metric_value
from mixtune.render import fits, terminal_table
from mixtune.run.estimates import (
    DRAWS,
    FEW_SEEDS,
    Estimate,
    Floats,
    estimate,
    front_probabilities,
    mean_of,
)
from mixtune.run.frames import csv_text, plain
from mixtune.run.ledger import TrialRecord
from mixtune.run.paired import WITH_ERRORS, Judged, Runs, image_covariance
from mixtune.run.posterior import certainties, contenders, draw_truth

if TYPE_CHECKING:
    from mixtune.run.result import Result

Event = Mapping[str, Any]

ON_FRONT = 0.5  # a row whose probability of being on the front is at least this is shown as on it
FELL_OFF = 0.05  # a row whose probability of being on the front is below this fell off it
CERTAIN = 0.95  # one whose probability is at least this is on it; in between it is undecided
NEAR = 0.1  # of the best figure: recipes of the search that are further below are no like of the confirmed ones
FRESH = "fresh"  # an event's ``images`` where a seed has labelled and validation images of its own
MAX_ROWS = 64  # confirmed ones and those near them, of one posterior
_SEARCHED = ("val_accuracy", "val_accuracy_se", "train_latency_s", "disturbed")
_COLUMNS = [
    "trial",
    "method",
    "seeds",
    "diverged",
    "val_accuracy",
    "val_accuracy_std",
    "val_accuracy_se",
    "test_accuracy",
    "test_accuracy_std",
    "test_accuracy_se",
    "val_sampling_se",
    "test_sampling_se",
    "train_latency_s",
    "train_latency_std_s",
    "train_latency_se_s",
    *(f"search_{name}" for name in _SEARCHED),
    "p_front",
    "fell_off",
    "undecided",
    "disturbed",
]


@dataclass(frozen=True, eq=False)
class Confirmation:
    """What training runs on fresh seeds say of a run; ``Result.confirmation`` is one.

    frame: a row for each recipe that has such training runs, those of the search's front first, in its order, the other
    baselines last. Columns: trial; method (a baseline's, else None); seeds and diverged, training runs and
    how many of them diverged; val_accuracy, its mean over the others; val_accuracy_std, the sample's standard
    deviation over seeds, NaN for one; val_accuracy_se, the mean's standard error over seeds (mixtune.run.estimates);
    test_accuracy and so on, the same of test images; val_sampling_se and test_sampling_se, the binomial standard error
    of one training run's accuracy on that many images, common to all rows; train_latency_s, train_latency_std_s and
    train_latency_se_s, the same in seconds; val_balanced_accuracy and the like, with _std and _se, where an objective
    or a constraint is of their kind; every other objective and search_*, as the search found them; p_front, the
    probability of being on the front; fell_off, whether that is below FELL_OFF; undecided, whether it is from there to
    CERTAIN; disturbed, the share of the seconds that was timed while other processes computed.
    notes: what a reader needs alongside the numbers, a line each. device: what they trained on, None without any.
    runs: the training runs that did not diverge, by trial and seed. missing: recipes that confirm would train and has
    not; interrupted: whether some of them had ended before it last trained, so that its figures decide nothing yet.
    truth: draws of the true scores by name, (DRAWS, rows of the frame) each, from their posterior.
    """

    result: Result
    frame: pd.DataFrame
    notes: tuple[str, ...]
    device: str | None
    runs: Mapping[str, Runs]
    missing: tuple[str, ...]
    interrupted: bool
    truth: Mapping[str, Floats]

    @property
    def objectives(self) -> Mapping[str, str]:
        """What p_front judges by: the run's objectives."""
        return self.result.objectives

    def table(self, width: int = 100) -> Table:
        """Return the frame for a terminal: means with standard errors, and under a line what is not on the front.

        Where that is wider than ``width`` characters, the search's accuracies and then those on test images are left
        out.
        """
        tables = [self._table(columns) for columns in (["test_accuracy", "search"], ["test_accuracy"], [])]
        return next((table for table in tables if fits(table, width)), tables[-1])

    def _table(self, columns: Sequence[str]) -> Table:
        frame = self.frame.assign(is_below=~self.frame["trial"].isin(self.members))
        frame = frame.sort_values(["is_below", "train_latency_s"], kind="stable")
        rows: list[dict[str, Any]] = [{str(name): v for name, v in row.items()} for _, row in frame.iterrows()]
        others = [name for name in self.objectives if name not in ("val_accuracy", "train_latency_s")]
        names = ["val_accuracy", *columns[:1], "train_latency_s", *others]
        known = self.result.rows if self.result.confirmed is self else self.result.rows.iloc[:0]
        with_images = [error_name(name) for name in names if error_name(name) in known]
        errors = {row["trial"]: {name: row[name] for name in with_images} for _, row in known.iterrows()}
        titles = [find_metric(name).title.replace(" ", "\n", 1) for name in names]
        cells = [
            [
                self._name(row),
                *(metric_text(row | errors.get(row["trial"], {}) | {"test_accuracy_se": None}, name) for name in names),
                *([find_metric("val_accuracy").text(row["search_val_accuracy"])] if "search" in columns else []),
                f"{100 * row['p_front']:.0f} %",
            ]
            for row in rows
        ]
        on_front = sum(not row["is_below"] for row in rows)
        counts = [str(count) for count in sorted({*self.frame["seeds"]})] or ["no"]
        seeds = " to ".join(dict.fromkeys([counts[0], counts[-1]]))
        return terminal_table(
            ["recipe", *titles, *(["in the\nsearch"] if "search" in columns else []), "on the\nfront"],
            cells,
            title=f"the front on {seeds} fresh {'seed' if counts == ['1'] else 'seeds'}: mean ± standard error",
            styles={number: "dim" for number in range(on_front, len(rows))},
            rules={on_front},
        )

    @property
    def certainties(self) -> Mapping[str, float]:
        """How probably each recipe is the right one (mixtune.run.posterior), the cheapest first.

        Without those that diverged on a seed or whose means break a constraint; empty where no score is an objective.
        """
        found = self._worth()
        if found is None:
            return {}
        trials, lacking = found
        each = certainties(lacking, self.result.space.search.tolerance)
        return dict(zip(trials, map(float, each), strict=True))

    def contenders(self, chance: float) -> set[str]:
        """Return the recipes that may be the right one (mixtune.run.posterior); all where no score is an objective."""
        found = self._worth()
        if found is None:
            return set(self.frame["trial"])
        trials, lacking = found
        likely = contenders(lacking, self.result.space.search.tolerance, chance)
        return {trial for trial, is_likely in zip(trials, likely, strict=True) if is_likely}

    def _worth(self) -> tuple[list[str], Floats] | None:
        """Return the recipes, the cheapest first, and draws of what each lacks of the best, (DRAWS, recipes)."""
        name = next((name for name in self.objectives if name in self.truth), None)
        rows = self.frame[self.frame["diverged"] == 0] if name else self.frame.iloc[:0]
        for metric, constraint in self.result.constraints.items():
            if metric in rows:
                rows = rows[[constraint.holds(mean) for mean in rows[metric]]]
        if name is None or rows.empty:
            return None
        cost = next((c for c in self.objectives if find_metric(c).unit in COST_UNITS), None)
        ordered = rows if cost is None else rows.sort_values(cost, kind="stable")
        drawn = self.truth[name][:, ordered.index.to_numpy()]
        return list(ordered["trial"]), drawn.max(axis=1, keepdims=True) - drawn

    @property
    def probabilities(self) -> dict[str, float]:
        """How probably each recipe is on the front."""
        return dict(zip(self.frame["trial"], self.frame["p_front"], strict=True))

    @property
    def members(self) -> set[str]:
        """The front on fresh seeds: what is on it more probably than not, or, where nothing is, the most probable."""
        rows = self.frame[self.frame["diverged"] < self.frame["seeds"]]
        for name, constraint in self.result.constraints.items():
            if name in rows:  # else no seed changes it
                rows = rows[[constraint.holds(mean) for mean in rows[name]]]
        return set(rows["trial"][rows["p_front"] >= min(ON_FRONT, rows["p_front"].max())])

    def _name(self, row: Mapping[Any, Any]) -> str:
        fell = row["fell_off"] and row["trial"] in set(self.result.searched_front["trial"])
        mark = "*" if row["trial"] == self.result.recommendation().trial else " "
        return f"{mark}{row['trial']}{' (fell off)' if fell else ''}"

    def to_csv(self) -> str:
        """Return the frame as CSV with a header, in full precision."""
        return csv_text(self.frame)

    def to_json_dict(self) -> dict[str, Any]:
        """Return plain Python: objectives, device, the rows with their parameters, and the notes."""
        rows = [{str(name): plain(value) for name, value in row.items()} for row in self.frame.to_dict("records")]
        return {
            "objectives": self.objectives,
            "device": self.device,
            "confirmed": [{**row, "params": dict(self.result.records[row["trial"]].params)} for row in rows],
            "notes": list(self.notes),
        }


def confirmation(result: Result) -> Confirmation | None:
    """Return what training runs on fresh seeds say of a run's front and its baselines, None where there are none.

    Of a trial's training runs with one seed the latest counts, and only those of the latest one's device.
    """
    events = result.state.confirmed
    if not events:
        return None
    counted = counted_trainings(events)
    device, images = _kind(events[-1])
    by_trial: dict[str, list[Event]] = {}
    for (trial, _), event in counted.items():
        by_trial.setdefault(trial, []).append(event)
    wanted = result.to_confirm
    others = [record for trial in by_trial if (record := result.records.get(trial)) and record not in wanted]
    kept = [record for record in (*wanted, *others) if record.trial in by_trial]
    trainings = [by_trial[record.trial] for record in kept]
    named = [
        name for name in (*result.objectives, *result.constraints) if name.startswith("val_") or name in WITH_ERRORS
    ]
    scored = dict.fromkeys(["val_accuracy", "test_accuracy", *named])
    scores = {name: _estimate_score(trainings, name) for name in scored}
    accuracies = scores["val_accuracy"]
    latencies = estimate([_finished(own, "train_latency_s") for own in trainings], relative=True)
    runs = {
        trial: {int(event["seed"]): Judged.read(event) for event in own if not _has_diverged(event)}
        for trial, own in by_trial.items()
    }
    own_runs = {record.trial: runs[record.trial] for record in kept}
    truth = {name: _draw_scores(result, own_runs, name) for name in dict.fromkeys(["val_accuracy", *named])}
    frame = _frame(result, kept, trainings, scores, latencies, truth)
    notes = [
        *_divergence_notes(frame),
        *_constraint_notes(frame, result),
        *_spread_notes(frame, accuracies, latencies, images),
        *_missing_notes(frame, wanted),
        *_device_notes(events, (device, images), kept),
        *disturbed_note(frame["trial"][(frame["disturbed"] > 0) | (frame["search_disturbed"] > 0)]),
    ]
    missing = [record for record in wanted if record.trial not in by_trial]
    last = events[-1].get("time", math.inf)
    return Confirmation(
        result=result,
        frame=frame,
        notes=tuple(notes),
        device=device,
        runs=runs,
        missing=tuple(record.trial for record in missing),
        interrupted=any((record.ended_time or math.inf) <= last for record in missing),
        truth=truth,
    )


Kind = tuple[str | None, str | None]  # the device that a training run was on, and FRESH or None


def counted_trainings(events: Iterable[Event], kind: Kind | None = None) -> dict[tuple[str, int], Event]:
    """Return the ``confirmed`` events that count by (trial, seed), in the order in which they were written.

    Of several the latest counts. Seconds of different devices cannot be compared, nor accuracies on the search's images
    with those on fresh ones, so only those of one kind count, by default of the kind that was trained last.
    """
    confirmed = list(events)
    kind = _kind(confirmed[-1]) if kind is None and confirmed else kind
    counted: dict[tuple[str, int], Event] = {}
    for event in confirmed:
        if _kind(event) == kind:
            key = (str(event["trial"]), int(event["seed"]))
            counted.pop(key, None)
            counted[key] = event
    return counted


def _frame(
    result: Result,
    records: Sequence[TrialRecord],
    trainings: Sequence[Sequence[Event]],
    scores: Mapping[str, Estimate],
    latencies: Estimate,
    truth: Mapping[str, Floats],
) -> pd.DataFrame:
    seeds = np.array([len(own) for own in trainings], dtype=np.int64)
    diverged = np.array([sum(_has_diverged(event) for event in own) for own in trainings], dtype=np.int64)
    objectives = result.objectives
    others = {name: found for name, found in scores.items() if name not in _COLUMNS}
    exact = [name for name in objectives if name not in (*_COLUMNS, *others)]
    values: dict[str, Any] = {
        "trial": [record.trial for record in records],
        "method": pd.Series([record.baseline for record in records], dtype=object),  # None, where text would be NaN
        "seeds": seeds,
        "diverged": diverged,
        "val_sampling_se": _sampling_errors(trainings, "val_accuracy"),
        "test_sampling_se": _sampling_errors(trainings, "test_accuracy"),
        "train_latency_s": latencies.means,
        "train_latency_std_s": latencies.deviations,
        "train_latency_se_s": latencies.errors,
        "disturbed": np.array([mean_of(np.nan_to_num(_finished(own, "disturbed"))) for own in trainings]),
        **{f"search_{name}": _searched(records, name) for name in _SEARCHED},
        **{name: _searched(records, name) for name in exact},
    }
    for name, found in scores.items():
        values |= {name: found.means, f"{name}_std": found.deviations, f"{name}_se": found.errors}
    finished = 1.0 - diverged / np.maximum(seeds, 1)
    bounds = result.constraints
    known = {name: _searched(records, name) for name in bounds} | values
    drawn = {**truth, "train_latency_s": latencies.draw(np.random.default_rng(1))}
    values["p_front"] = p_front = front_probabilities(known, objectives, bounds, drawn, finished)
    values["fell_off"] = p_front < FELL_OFF
    values["undecided"] = (p_front >= FELL_OFF) & (p_front < CERTAIN)
    place = _COLUMNS.index("search_val_accuracy")
    extra = [*(f"{name}{ending}" for name in others for ending in ("", "_std", "_se")), *exact]
    return pd.DataFrame(values, columns=[*_COLUMNS[:place], *extra, *_COLUMNS[place:]])


def _draw_scores(result: Result, runs: Mapping[str, Runs], name: str) -> Floats:
    """Return draws of the confirmed rows' true figures, (DRAWS, rows).

    What the search found takes part, of the confirmed rows as of those near them: that the luckiest of many were
    confirmed is then part of what is known, and biases nothing.
    """
    searched = [*(trial for trial, own in runs.items() if own), *_near(result, runs, name)]
    rows: dict[str, dict[int | None, Judged]] = {}
    for trial in searched:
        own: dict[int | None, Judged] = {None: Judged.of(result.records[trial])}
        own.update(runs.get(trial, {}).items())
        if known := {seed: run for seed, run in own.items() if math.isfinite(metric_value(run.metrics, name))}:
            rows[trial] = known
    seeds = list(dict.fromkeys(seed for own in rows.values() for seed in own))
    figures = [
        [metric_value(own[seed].metrics, name) if seed in own else math.nan for seed in seeds] for own in rows.values()
    ]
    found = np.full((DRAWS, len(runs)), math.nan)
    if rows:
        images = image_covariance([list(own.values()) for own in rows.values()], name, result.state.held_out)
        costs = [metric_value(result.records[trial].metrics, "train_latency_s") for trial in rows]
        drawn = draw_truth(np.array(figures), images, np.nan_to_num(costs, nan=1.0))
        places = list(rows)
        for column, trial in enumerate(runs):
            if trial in rows:
                found[:, column] = drawn[:, places.index(trial)]
    return found


def _near(result: Result, confirmed: Mapping[str, Runs], name: str) -> list[str]:
    """Return the search's other recipes that are not much worse than the best, evenly over their costs."""
    frame = result.candidates
    if name not in frame:
        return []
    near = frame["trial"][(frame[name] >= frame[name].max() - NEAR) & ~frame["trial"].isin(list(confirmed))]
    costs = [metric_value(result.records[trial].metrics, "train_latency_s") for trial in near]
    most = max(0, MAX_ROWS - len(confirmed))
    places = np.unique(np.linspace(0, len(near) - 1, min(most, len(near))).astype(int))
    return [str(trial) for trial in near.iloc[np.argsort(costs, kind="stable")].iloc[places]]


def _estimate_score(trainings: Sequence[Sequence[Event]], name: str) -> Estimate:
    """Return the means of a figure; where no row has a spread, with the images' standard errors."""
    found = estimate([_finished(own, name) for own in trainings], relative=False)
    if found.pooled_degrees:
        return found
    errors = np.nan_to_num(_sampling_errors(trainings, name))  # not every figure has one
    return Estimate(found.means, found.deviations, errors, found.degrees)


def _sampling_errors(trainings: Sequence[Sequence[Event]], name: str) -> Floats:
    """Return each row's mean standard error of one training run's figure on that many images, (rows,)."""
    return np.array([mean_of(_finished(own, f"{name}_se")) for own in trainings])


def _divergence_notes(frame: pd.DataFrame) -> Iterator[str]:
    if total := int(frame["diverged"].sum()):
        rows = frame[frame["diverged"] > 0]
        each = (f"{t} {d} of {n}" for t, d, n in zip(rows["trial"], rows["diverged"], rows["seeds"], strict=True))
        yield (
            f"{total} of {frame['seeds'].sum()} training runs diverged ({', '.join(each)}): means are of the others, "
            "and a diverged one counts as not on the front"
        )


def _constraint_notes(frame: pd.DataFrame, result: Result) -> Iterator[str]:
    for name, constraint in result.constraints.items():
        if name not in frame:  # no seed changes it, so members keep it
            continue
        members = frame[frame["method"].isna() & frame[name].notna()]
        broken = [t for t, mean in zip(members["trial"], members[name], strict=True) if not constraint.holds(mean)]
        if broken:
            yield f"{name} {constraint.to_yaml()} does not hold on fresh seeds: {', '.join(broken)}"


def _spread_notes(frame: pd.DataFrame, accuracies: Estimate, latencies: Estimate, images: str | None) -> Iterator[str]:
    """Yield what ± is, and what is not in it."""
    points = 100 * frame["val_sampling_se"].mean()
    if math.isnan(points):
        return
    if not accuracies.pooled_degrees:
        yield (
            f"one seed has no spread: ± is the binomial standard error of the images, {points:.1f} points of "
            "validation images, and "
            "training times are taken as exact; more --seeds tell more"
        )
        return
    if (frame["seeds"] - frame["diverged"]).min() < FEW_SEEDS:
        yield (
            "± is the standard error over seeds, from standard deviations pooled over the rows: "
            f"{100 * accuracies.pooled:.2g} points of accuracy, {100 * latencies.pooled:.2g} % of the training time "
            f"({accuracies.pooled_degrees} degree{'s' * (accuracies.pooled_degrees > 1)} of freedom)"
        )
    if images == FRESH:
        yield "every seed had labelled and validation images of its own: ± holds what the choice of images adds, too"
        return
    yield (
        f"± of accuracies holds the images' sampling error too, about {points:.1f} points of one run, which all rows "
        "share: differences between rows are more certain than it"
    )


def _missing_notes(frame: pd.DataFrame, asked: Sequence[TrialRecord]) -> Iterator[str]:
    if frame.empty:
        return
    if missing := [record.trial for record in asked if record.trial not in set(frame["trial"])]:
        yield f"not confirmed yet, so not compared with: {', '.join(missing)}"
    most = frame["seeds"].max()
    fewer = frame[frame["seeds"] < most]
    if len(fewer):
        each = (f"{trial} {seeds}" for trial, seeds in zip(fewer["trial"], fewer["seeds"], strict=True))
        yield f"not every seed is in: {', '.join(each)} of {most}"


def _device_notes(events: Sequence[Event], kind: Kind, records: Sequence[TrialRecord]) -> Iterator[str]:
    device, images = kind
    others = Counter(_device(event) for event in events if _device(event) != device)
    if others:
        named = ", ".join(f"{count} on {other}" for other, count in others.items())
        yield f"of the training runs on {device} alone; left out: {named}"
    if unlike := sum(event.get("images") != images for event in events if _device(event) == device):
        others_images = "the search's" if images == FRESH else "fresh"
        yield f"left out: {unlike} training runs on {others_images} images"
    searched = {record.metrics.get("device") for record in records} - {None, device}
    if searched:
        yield f"confirmed on {device}; the search's seconds are of {', '.join(sorted(map(str, searched)))}"


def _device(event: Event) -> str | None:
    device = (event.get("metrics") or {}).get("device")
    return None if device is None else str(device)


def _kind(event: Event) -> Kind:
    return _device(event), event.get("images")


def _has_diverged(event: Event) -> bool:
    return event.get("reason") is not None


def _finished(trainings: Iterable[Event], metric: str) -> Floats:
    """Return a metric of the training runs that did not diverge, (runs,), NaN where it was not measured."""
    return np.array([event["metrics"].get(metric) for event in trainings if not _has_diverged(event)], dtype=float)


def _searched(records: Sequence[TrialRecord], name: str) -> Floats:
    """Return what the search found of a metric, (rows,), NaN where it did not."""
    return np.array([record.metrics.get(name) for record in records], dtype=float)
