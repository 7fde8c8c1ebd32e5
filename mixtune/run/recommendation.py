"""Which recipe to use, how sure that is, and what to do next: one answer for every command, figure and export.

What is right is the cheapest recipe that is about as accurate as the best one. After a search, with one seed, the rule
is the one-standard-error rule (Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984,
section 3.4.3) with paired errors: among the front's members, baselines too, the cheapest that is not worse than the
most accurate one by more than the standard error of their difference (mixtune.run.paired), or by half of
``search.tolerance`` where that is more. On fresh seeds it is the member that is right most probably
(mixtune.run.posterior). Accuracy is the first objective with an error, cost the first in seconds or FLOPs; ties go to
the remaining objectives in their order. Where no objective has an error, it is the knee.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd

from mixtune.metrics import COST_UNITS, METHODS, counted, find_metric, metric_value, setting, significant
from mixtune.run.paired import WITH_ERRORS, Difference, Judged, Runs, compare_with, images_needed
from mixtune.space.foreign import to_train

if TYPE_CHECKING:
    from mixtune.run.result import Result

POINT = 0.01  # of accuracy
SLACK = 1e-12  # of a comparison: what is equal but for rounding is equal
BASELINES = {
    "sl": "supervised training alone (sl)",
    "sl_same_time": "supervised training alone for the same time (sl_same_time)",
    "ssl_sl": "self-supervised, then supervised training (ssl_sl)",
    "paper": "the paper's values (paper)",
}
COSTS = {"train_latency_s": "time", "train_flops": "compute", "infer_latency_ms": "inference time"}


@dataclass(frozen=True)
class Recommendation:
    """The answer of a run; ``Result.recommendation()`` makes one.

    trial: its id, a baseline's name, None where nothing can be recommended; why: the rule in a few words; confirmed:
    whether fresh seeds decided, seeds: how many of the recommended recipe (1: the search's own); margin: what counts as
    no worse than the most accurate, in its unit, None without an error; certainty: the probability that it is right, by
    fresh seeds (``Confirmation.certainties``), None before these; gain: over ``over``, the most accurate other
    baseline, None without one; most_accurate, cheapest: of the front. sentence: all of it; next: the command to type,
    None where there is none; notes: what else a reader should know, a line each.
    """

    trial: str | None
    why: str
    confirmed: bool
    seeds: int
    sentence: str
    next: str | None = None
    margin: float | None = None
    certainty: float | None = None
    gain: Difference | None = None
    over: str | None = None
    most_accurate: str | None = None
    cheapest: str | None = None
    alternatives: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return it for a terminal: notes and alternatives, then the sentence, and the next command last."""
        return [
            *self.notes,
            *(f"{what}: {trial}, {figures}" for what, trial, figures in self.alternatives),
            self.sentence,
            *([f"next: {self.next}"] if self.next else []),
        ]

    def to_json_dict(self) -> dict[str, Any]:
        """Return plain Python for ``mixtune pareto --format json``."""
        gain = None
        if self.gain is not None:
            error = self.gain.error if math.isfinite(self.gain.error) else None
            gain = {"over": self.over, "mean": self.gain.mean, "se": error, "shown": self.gain.is_shown}
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown = {name: value for name, value in kept.items() if name not in ("over", "alternatives")}
        return {**shown, "notes": list(self.notes), "gain": gain}


def recommend(result: Result) -> Recommendation:
    """Return a run's recommendation; see the module."""
    front = result.pareto_front()
    if front.empty:
        return _nothing(result)
    accuracy, cost = accuracy_of(result), _cost_of(result)
    cheapest_first = _sorted(front, [cost], result)
    certainties = {} if result.confirmed is None else result.confirmed.certainties
    if accuracy is None:
        found = Choice(str(result.knee()), "the knee: no objective has an error")
    elif likely := {trial: certainties[trial] for trial in cheapest_first if trial in certainties}:
        found = _most_certain(likely, result.space.search.tolerance)
    else:
        found = _choose(result, cheapest_first, accuracy, cost)
    accurate_first = cheapest_first if accuracy is None else _sorted(front, [accuracy, cost], result)
    return _describe(result, found, accuracy, cost, str(accurate_first.iloc[0]), str(cheapest_first.iloc[0]))


@dataclass(frozen=True)
class Choice:
    """A recipe, why it is chosen, and how much less accurate than the best it might have been."""

    trial: str
    why: str
    margin: float | None = None


def accuracy_of(result: Result) -> str | None:
    """Return the objective that is compared with its error, None where none has one."""
    return next((name for name in result.objectives if name in WITH_ERRORS), None)


def training_runs(result: Result) -> Mapping[str, Runs]:
    """Return what decides of each recipe: its training runs on fresh seeds, or the search's own, by seed."""
    if result.confirmed is not None:
        return result.confirmed.runs
    return {trial: {0: Judged.of(result.records[trial])} for trial in result.rows["trial"]}


def describe_recipe(result: Result, trial: str) -> str:
    """Return a recipe in words: "MixTraining, alpha 0.41, rho 0.50, 20 SSL + 30 SL epochs"; searched values alone."""
    method = result.method(trial)
    if not result.values[trial]:
        return method
    values, idle = result.values[trial], result.idle(trial)
    ratios = [f"{name} {values[name]:.2f}" for name in ("alpha", "rho")] if method == METHODS["mixtraining"] else []
    ssl = "" if method == METHODS["sl"] else f"{values['epochs.ssl']} SSL + "
    told = {"alpha", "rho", "epochs.ssl", "epochs.sl", *idle}
    others = [f"{path} {setting(values[path])}" for path in result.parameters if path not in told and path in values]
    sl = f"{values['epochs.sl']} SL epochs" if ssl else counted(values["epochs.sl"], "epoch")
    return ", ".join([method, *ratios, f"{ssl}{sl}", *others])


def _choose(result: Result, cheapest_first: pd.Series[Any], accuracy: str, cost: str | None) -> Choice:
    best = str(_sorted(result.rows[result.rows["trial"].isin(cheapest_first)], [accuracy, cost], result).iloc[0])
    differences, least = _differences(result, best, accuracy), result.space.search.tolerance / 2
    for trial in cheapest_first:
        difference = differences.get(trial)
        if trial == best:
            break
        if difference is None:  # no seed in common
            continue
        margin = max(difference.error, least) if math.isfinite(difference.error) else least
        if difference.mean >= -margin - SLACK:
            return Choice(str(trial), "the cheapest within one standard error of the most accurate", margin)
    return Choice(best, "the most accurate: what is cheaper is worse by more than one standard error")


def _most_certain(certainties: Mapping[str, float], tolerance: float) -> Choice:
    trial = max(certainties, key=lambda trial: certainties[trial])  # the cheapest of several
    return Choice(trial, f"the most probably right on fresh seeds: {_say_right(tolerance)}", tolerance)


def _say_right(tolerance: float) -> str:
    points = f"{100 * tolerance:g}"
    return f"within {points} {'point' if points == '1' else 'points'} of the best, and nothing cheaper that near"


def resolution(result: Result) -> str | None:
    """Return one line where the validation images cannot tell the front's neighbours apart, and what would, or None."""
    accuracy, images = accuracy_of(result), _count_images(result)
    if accuracy is None or not images or len(front := result.pareto_front()) < 2:
        return None
    ids = list(_sorted(front, [accuracy], result))
    found = (_differences(result, one, accuracy).get(other) for one, other in pairwise(ids))
    gaps = [gap for gap in found if gap is not None]
    errors = [gap.error for gap in gaps if math.isfinite(gap.error)]
    close = [gap for gap in gaps if abs(gap.mean) < 2 * gap.error]
    if not errors or not close:
        return None
    error, seeds = statistics.median(errors), "more seeds" if result.confirmed else "fresh seeds"
    needed = float(f"{images_needed(images, error, POINT):.2g}")
    return (
        f"{images:,} validation images tell recipes apart that differ by about {200 * error:.1f} points or more: "
        f"{len(close)} of {len(gaps)} neighbours on the front {'is' if len(close) == 1 else 'are'} closer; one point "
        f"takes about {needed:,.0f} images (data.val_fraction) or {seeds} (mixtune confirm)"
    )


def _describe(
    result: Result, found: Choice, accuracy: str | None, cost: str | None, most_accurate: str, cheapest: str
) -> Recommendation:
    confirmed, trial = result.confirmed, found.trial
    over = _best_baseline(result, trial, accuracy)
    gains = {} if over is None or accuracy is None else _differences(result, over, accuracy)
    gain = gains.get(trial)
    method = result.method(trial)
    use = "Supervised training alone is enough here: use" if method == METHODS["sl"] else "Use"
    recipe = describe_recipe(result, trial)
    said = [f"{use} {trial}{f' ({recipe})' if recipe else ''}: {_figures(result, trial, accuracy, cost)}."]
    if gain is not None and over is not None:
        is_any_shown = any(each.mean > 0 and each.is_shown for each in gains.values())
        said.append(_describe_gain(result, trial, gain, over, cost, is_any_shown))
    certainty = None if confirmed is None else confirmed.certainties.get(trial)
    name = to_train(result.directory, result.space)
    following = f"mixtune confirm {name}"
    if confirmed is None:
        said.append("One seed, with which about a point can be luck; not confirmed.")
    else:
        seeds = len(confirmed.runs[trial])
        said.append(
            f"Confirmed with {seeds} fresh {'seed' if seeds == 1 else 'seeds'}{_say_certain(result, certainty)}."
        )
        following = following if confirmed.missing else f"mixtune export {name}"
    what = {"most accurate": most_accurate, "cheapest on the front": cheapest}
    return Recommendation(
        trial=trial,
        why=found.why,
        confirmed=confirmed is not None,
        seeds=1 if confirmed is None else len(confirmed.runs[trial]),
        sentence=" ".join(said),
        next=following,
        margin=found.margin,
        certainty=certainty,
        gain=gain,
        over=over,
        most_accurate=most_accurate,
        cheapest=cheapest,
        alternatives=tuple(
            (kind, other, _figures(result, other, accuracy, cost)) for kind, other in what.items() if other != trial
        ),
        notes=tuple(_notes(result)),
    )


def _say_certain(result: Result, certainty: float | None) -> str:
    if certainty is None:
        return ""
    probability = "more than 99" if certainty > 0.99 else f"{100 * certainty:.0f}"
    return f": {_say_right(result.space.search.tolerance)}, with a probability of {probability} %"


def _nothing(result: Result) -> Recommendation:
    complete = any(record.state == "complete" for record in result.records.values())
    limits = " and ".join(str(constraint) for constraint in result.constraints.values())
    missing = f"no complete recipe keeps {limits}" if complete and limits else "nothing is complete yet"
    return Recommendation(None, missing, False, 0, f"Nothing to recommend: {missing}.")


def _best_baseline(result: Result, trial: str, accuracy: str | None) -> str | None:
    """Return the most accurate baseline besides a recipe, None without one."""
    baselines = result.rows[result.rows["baseline"].notna() & (result.rows["trial"] != trial)]
    return None if accuracy is None or baselines.empty else str(_sorted(baselines, [accuracy], result).iloc[0])


def _differences(result: Result, reference: str, accuracy: str) -> dict[str, Difference]:
    """Return the accuracies of the front and of the baselines less that of one of them."""
    runs = training_runs(result)
    others = {trial: runs[trial] for trial in result.highlights if trial != reference and trial in runs}
    return compare_with(runs[reference], others, accuracy, result.state.held_out)


def _describe_gain(
    result: Result, trial: str, gain: Difference, over: str, cost: str | None, is_any_shown: bool
) -> str:
    error = f" ± {100 * gain.error:.1f}" if math.isfinite(gain.error) else ""
    said = f"{100 * gain.mean:+.1f}{error} points over {BASELINES.get(over, over)}"
    if cost is not None:
        ratio = _row(result, trial)[cost] / _row(result, over)[cost]
        said += f" at {significant(ratio, 2)}x its {COSTS.get(cost, find_metric(cost).title)}"
    if gain.mean > 0 and gain.is_shown:
        return f"{said}."
    return f"{said}: {'not' if is_any_shown else 'nothing was'} shown to be better than {over}."


def _figures(result: Result, trial: str, accuracy: str | None, cost: str | None) -> str:
    """Return a recipe's figures: accuracy with its standard error and on how many images, cost, the other ones."""
    row = _row(result, trial)
    images = _count_images(result)
    said = []
    if accuracy is not None:
        reached = find_metric(accuracy).text(row[accuracy], metric_value(row, f"{accuracy}_se"))
        of = f" of {images:,} validation images" if images else ""
        said.append(f"{reached}{of}" if accuracy == "val_accuracy" else f"{find_metric(accuracy).title} {reached}")
        if result.confirmed is not None and math.isfinite(tested := metric_value(row, "test_accuracy")):
            said.append(f"{find_metric('test_accuracy').text(tested)} of the test images")
    named = [name for name in (cost, *result.objectives) if name is not None and name != accuracy]
    for name in dict.fromkeys(named):
        title = "" if name == cost or name == "train_latency_s" else f"{find_metric(name).title} "
        said.append(f"{title}{find_metric(name).text(metric_value(row, name))}")
    return ", ".join(said)


def _row(result: Result, trial: str) -> Mapping[str, Any]:
    rows = result.rows[result.rows["trial"] == trial]
    return {str(name): value for name, value in rows.iloc[0].items()}


def _notes(result: Result) -> list[str]:
    notes, found = [], result.confirmation
    if found is not None and found.interrupted:
        notes.append(f"fresh seeds do not decide before {', '.join(found.missing)} are trained with them, too")
    elif found is not None and found.missing:
        notes.append(f"joined the front since, not confirmed yet: {', '.join(found.missing)}")
    if undecided := result.undecided:
        notes.append(f"undecided whether on the front: {', '.join(undecided)}")
    if fallen := result.fallen:
        notes.append(f"fell off the front on fresh seeds: {', '.join(fallen)}")
    return notes


def _count_images(result: Result) -> int:
    return sum(task.get("val_images", 0) for task in result.facts.tasks.values())


def _cost_of(result: Result) -> str | None:
    return next((name for name in result.objectives if find_metric(name).unit in COST_UNITS), None)


def _sorted(rows: pd.DataFrame, first: Sequence[str | None], result: Result) -> pd.Series[Any]:
    """Return the recipes' ids, the best first in some objectives and then in all others in their order."""
    order = list(dict.fromkeys([*(name for name in first if name is not None), *result.objectives]))
    ascending = [result.objectives[name] == "min" for name in order]
    ids: pd.Series[Any] = rows.sort_values(order, ascending=ascending, kind="stable")["trial"]
    return ids


def describe_figures(result: Result, trial: str) -> str:
    """Return the figures of one of ``result.rows``, as the sentence has them."""
    return _figures(result, trial, accuracy_of(result), _cost_of(result))
