"""A front on fresh seeds: means and spreads on the test images, and which members are really on it.

What ``±`` and ``p_front`` are: mixtune.run.estimates.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from mixtune.metrics import find_metric, significant
from mixtune.render import terminal_table
from mixtune.run.estimates import (
    FEW_SEEDS,
    Estimate,
    Floats,
    costs_of,
    dominated_by,
    estimate,
    front_probabilities,
    keeps,
    mean_of,
)
from mixtune.run.frames import csv_text, plain
from mixtune.run.ledger import TrialRecord
from mixtune.run.result import Result

Event = Mapping[str, Any]

_SEARCHED = ("val_accuracy", "val_accuracy_se", "train_latency_s")
_COLUMNS = [
    "trial",
    "method",
    "seeds",
    "diverged",
    "test_accuracy",
    "test_accuracy_std",
    "test_accuracy_se",
    "test_sampling_se",
    "train_latency_s",
    "train_latency_std_s",
    "train_latency_se_s",
    *(f"search_{name}" for name in _SEARCHED),
    "p_front",
    "fell_off",
]


@dataclass(frozen=True, eq=False)
class Confirmation:
    """What training runs on fresh seeds say of a run; ``confirmation`` makes one.

    frame: a row for each member of the present front and each baseline that has such training runs, in the front's
    order, the baselines last. Columns: trial; method (a baseline's, else None); seeds and diverged, training runs and
    how many of them diverged; test_accuracy, its mean over the others; test_accuracy_std, the sample's standard
    deviation over seeds, NaN for one; test_accuracy_se, the mean's standard error (see mixtune.run.estimates);
    test_sampling_se, the binomial standard error of one training run's accuracy on that many test images, common to all
    rows; train_latency_s, train_latency_std_s and train_latency_se_s, the same in seconds; test_balanced_accuracy and
    the like, with _std and _se, where an objective or a constraint is of their kind; every other objective and
    search_*, as the search found them; p_front; fell_off, whether another row's means dominate this one's or they break
    a constraint, or all its training runs diverged.
    notes: what a reader needs alongside the numbers, a line each. device: what they trained on, None without any.
    """

    result: Result
    frame: pd.DataFrame
    notes: tuple[str, ...]
    device: str | None

    @property
    def objectives(self) -> dict[str, str]:
        """What p_front judges by: the run's objectives, those on validation images replaced by those on test images."""
        return {_column(name): mode for name, mode in self.result.objectives.items()}

    def table(self) -> Table:
        """Return the frame for a terminal, means with standard errors; under a line the baselines."""
        frame = self.frame
        extra = [name for name in self.objectives if name not in ("test_accuracy", "train_latency_s")]
        counts = [str(count) for count in sorted({*frame["seeds"]})] or ["no"]
        seeds = " to ".join(dict.fromkeys([counts[0], counts[-1]]))
        names = ("test_accuracy", "train_latency_s", *extra)
        titles = [find_metric(name).title.replace(" ", "\n", 1) for name in names]
        rows = frame.to_dict("records")
        is_baseline = [row["method"] is not None for row in rows]
        return terminal_table(
            ["trial", *titles, "search:\naccuracy", "search:\ntime", "on the\nfront"],
            [_cells(row, extra) for row in rows],
            title=f"the front on {seeds} fresh {'seed' if counts == ['1'] else 'seeds'}: mean ± standard error",
            styles={i: "dim" for i, row in enumerate(rows) if row["fell_off"] or is_baseline[i]},
            rules={is_baseline.index(True)} if any(is_baseline) else (),
        )

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
    return _confirmation(result, len(result.state.confirmed)) if result.state.confirmed else None


@functools.lru_cache(maxsize=2)
def _confirmation(result: Result, count: int) -> Confirmation:
    events = result.state.confirmed
    counted = counted_trainings(events)
    device = _device(next(reversed(counted.values()))) if counted else None
    by_trial: dict[str, list[Event]] = {}
    for (trial, _), event in counted.items():
        by_trial.setdefault(trial, []).append(event)
    kept = [record for record in members_and_baselines(result) if record.trial in by_trial]
    trainings = [by_trial[record.trial] for record in kept]
    named = dict.fromkeys(_column(name) for name in (*result.objectives, *result.constraints))
    tested = ["test_accuracy", *(name for name in named if name.startswith("test_") and name != "test_accuracy")]
    scores = {name: _estimate_score(trainings, name) for name in tested}
    accuracies = scores["test_accuracy"]
    latencies = estimate([_finished(own, "train_latency_s") for own in trainings], relative=True)
    frame = _frame(result, kept, trainings, scores, latencies)
    notes = [
        *_front_notes(frame),
        *_constraint_notes(frame, result),
        *_spread_notes(frame, accuracies, latencies),
        *_missing_notes(frame, members_and_baselines(result)),
        *_device_notes(events, counted, device, kept),
    ]
    return Confirmation(result, frame, tuple(notes), device)


def counted_trainings(events: Iterable[Event], device: str | None = None) -> dict[tuple[str, int], Event]:
    """Return the ``confirmed`` events that count by (trial, seed), in the order in which they were written.

    Of several the latest counts. Seconds of different devices cannot be compared, so only one device's count: those of
    ``device``, by default of the one that trained last.
    """
    confirmed = list(events)
    device = _device(confirmed[-1]) if device is None and confirmed else device
    counted: dict[tuple[str, int], Event] = {}
    for event in confirmed:
        if _device(event) == device:
            key = (str(event["trial"]), int(event["seed"]))
            counted.pop(key, None)
            counted[key] = event
    return counted


def members_and_baselines(result: Result) -> list[TrialRecord]:
    """Return the records that ``confirm`` trains again: the front's, in its order, and complete baselines'."""
    return [result.records[trial] for trial in result.highlights]


def _frame(
    result: Result,
    records: Sequence[TrialRecord],
    trainings: Sequence[Sequence[Event]],
    scores: Mapping[str, Estimate],
    latencies: Estimate,
) -> pd.DataFrame:
    seeds = np.array([len(own) for own in trainings], dtype=np.int64)
    diverged = np.array([sum(_has_diverged(event) for event in own) for own in trainings], dtype=np.int64)
    objectives = {_column(name): mode for name, mode in result.objectives.items()}
    others = {name: found for name, found in scores.items() if name != "test_accuracy"}
    exact = [name for name in objectives if name not in (*_COLUMNS, *others)]
    values: dict[str, Any] = {
        "trial": [record.trial for record in records],
        "method": pd.Series([record.baseline for record in records], dtype=object),  # None, where text would be NaN
        "seeds": seeds,
        "diverged": diverged,
        "test_sampling_se": _sampling_errors(trainings, "test_accuracy"),
        "train_latency_s": latencies.means,
        "train_latency_std_s": latencies.deviations,
        "train_latency_se_s": latencies.errors,
        **{f"search_{name}": _searched(records, name) for name in _SEARCHED},
        **{name: _searched(records, name) for name in exact},
    }
    for name, found in scores.items():
        values |= {name: found.means, f"{name}_std": found.deviations, f"{name}_se": found.errors}
    finished = 1.0 - diverged / np.maximum(seeds, 1)
    estimates = {**scores, "train_latency_s": latencies}
    bounds = {_column(name): constraint for name, constraint in result.constraints.items()}
    known = {name: _searched(records, name) for name in bounds} | values
    values["p_front"] = front_probabilities(known, objectives, bounds, estimates, finished)
    takes_part = (finished > 0) & keeps(known, bounds, (1, len(records)))
    means = costs_of(values, objectives, (1, len(records)))
    values["fell_off"] = ~takes_part[0] | dominated_by(means, takes_part)[0]
    place = _COLUMNS.index("search_val_accuracy")
    extra = [*(f"{name}{ending}" for name in others for ending in ("", "_std", "_se")), *exact]
    return pd.DataFrame(values, columns=[*_COLUMNS[:place], *extra, *_COLUMNS[place:]])


def _estimate_score(trainings: Sequence[Sequence[Event]], name: str) -> Estimate:
    """Return the means of a figure on test images; where no row has a spread, with the images' standard errors."""
    found = estimate([_finished(own, name) for own in trainings], relative=False)
    if found.pooled_degrees:
        return found
    errors = np.nan_to_num(_sampling_errors(trainings, name))  # not every figure has one
    return Estimate(found.means, found.deviations, errors, found.degrees)


def _sampling_errors(trainings: Sequence[Sequence[Event]], name: str) -> Floats:
    """Return each row's mean standard error of one training run's figure on that many images, (rows,)."""
    return np.array([mean_of(_finished(own, f"{name}_se")) for own in trainings])


def _front_notes(frame: pd.DataFrame) -> Iterator[str]:
    if fallen := list(frame["trial"][frame["fell_off"] & frame["method"].isna()]):
        members = int(frame["method"].isna().sum())
        yield f"{len(fallen)} of {members} members fell off the front: {', '.join(fallen)}"
    if total := int(frame["diverged"].sum()):
        rows = frame[frame["diverged"] > 0]
        each = (f"{t} {d} of {n}" for t, d, n in zip(rows["trial"], rows["diverged"], rows["seeds"], strict=True))
        yield (
            f"{total} of {frame['seeds'].sum()} training runs diverged ({', '.join(each)}): means are of the others, "
            "and a diverged one counts as not on the front"
        )


def _constraint_notes(frame: pd.DataFrame, result: Result) -> Iterator[str]:
    for metric, constraint in result.constraints.items():
        name = _column(metric)
        if name not in frame:  # no seed changes it, so members keep it
            continue
        members = frame[frame["method"].isna() & frame[name].notna()]
        broken = [t for t, mean in zip(members["trial"], members[name], strict=True) if not constraint.holds(mean)]
        if broken:
            yield f"{name} {constraint.to_yaml()} does not hold on fresh seeds: {', '.join(broken)}"


def _spread_notes(frame: pd.DataFrame, accuracies: Estimate, latencies: Estimate) -> Iterator[str]:
    """Yield what ± is, and what is not in it."""
    points = 100 * frame["test_sampling_se"].mean()
    if math.isnan(points):
        return
    if not accuracies.pooled_degrees:
        yield (
            f"one seed has no spread: ± is the binomial standard error of the test images, {points:.1f} points, and "
            "training times are taken as exact; more --seeds tell more"
        )
        return
    if (frame["seeds"] - frame["diverged"]).min() < FEW_SEEDS:
        yield (
            "± is the standard error over seeds, from standard deviations pooled over the rows: "
            f"{100 * accuracies.pooled:.2g} points of accuracy, {100 * latencies.pooled:.2g} % of the training time "
            f"({accuracies.pooled_degrees} degree{'s' * (accuracies.pooled_degrees > 1)} of freedom)"
        )
    yield f"all rows share the test images: their common sampling error, {points:.1f} points, is not in the spread"


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


def _device_notes(
    events: Sequence[Event],
    counted: Mapping[tuple[str, int], Event],
    device: str | None,
    records: Sequence[TrialRecord],
) -> Iterator[str]:
    others = Counter(_device(event) for event in events if _device(event) != device)
    if others:
        named = ", ".join(f"{count} on {other}" for other, count in others.items())
        yield f"of the training runs on {device} alone; left out: {named}"
    searched = {record.metrics.get("device") for record in records} - {None, device}
    if counted and searched:
        yield f"confirmed on {device}; the search's seconds are of {', '.join(sorted(map(str, searched)))}"


def _cells(row: Mapping[Any, Any], extra: Sequence[str]) -> list[str]:
    name = str(row["trial"]) if row["method"] is None else f"{row['method']} (baseline)"
    mean, error = row["train_latency_s"], row["train_latency_se_s"]
    exact = not (math.isfinite(mean) and error > 0)  # a time that has no spread stands alone
    seconds = find_metric("train_latency_s").text(mean) if exact else f"{significant(mean)} ± {significant(error, 1)} s"
    return [
        f"{name} (fell off)" if row["fell_off"] and row["method"] is None else name,
        find_metric("test_accuracy").text(row["test_accuracy"], row["test_accuracy_se"]),
        seconds,
        *(find_metric(objective).text(row[objective], row.get(f"{objective}_se")) for objective in extra),
        find_metric("val_accuracy").text(row["search_val_accuracy"], row["search_val_accuracy_se"]),
        find_metric("train_latency_s").text(row["search_train_latency_s"]),
        f"{100 * row['p_front']:.0f} %",
    ]


def _column(objective: str) -> str:
    return f"test_{objective.removeprefix('val_')}" if objective.startswith("val_") else objective


def _device(event: Event) -> str | None:
    device = (event.get("metrics") or {}).get("device")
    return None if device is None else str(device)


def _has_diverged(event: Event) -> bool:
    return event.get("reason") is not None


def _finished(trainings: Iterable[Event], metric: str) -> Floats:
    """Return a metric of the training runs that did not diverge, (runs,), NaN where it was not measured."""
    return np.array([event["metrics"].get(metric) for event in trainings if not _has_diverged(event)], dtype=float)


def _searched(records: Sequence[TrialRecord], name: str) -> Floats:
    """Return what the search found of a metric, (rows,), NaN where it did not."""
    return np.array([record.metrics.get(name) for record in records], dtype=float)
