"""What a report says in words and tables: a function a section, none of which knows of HTML."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from mixtune.metrics import duration, find_metric, setting, significant
from mixtune.report.tables import IDLE, front_notes, objective_cells, setting_cells, some, varying_parameters
from mixtune.run.accounting import paused_note
from mixtune.run.confirmed import CERTAIN, FELL_OFF
from mixtune.run.latency import TIMED, is_distinguishable, latency_difference
from mixtune.run.recommendation import describe_figures
from mixtune.run.result import Result
from mixtune.run.status import RunStatus
from mixtune.space.foreign import to_train
from mixtune.space.recipe import flatten, with_values
from mixtune.space.space import SearchSpace

if TYPE_CHECKING:
    import pandas as pd

_DATA_FOLDER = "mixtune's folder for data ($MIXTUNE_DATA, else ~/.cache/mixtune)"


def moment(seconds: float) -> str:
    """Return a time, unix seconds, as this machine's date and time of day: "26 Nov 2026, 21:34"."""
    return time.strftime("%d %b %Y, %H:%M", time.localtime(seconds)).lstrip("0")


def made(seconds: float) -> str:
    """Return when a report was made, with the zone."""
    zone = time.strftime("%Z", time.localtime(seconds))
    return f"{moment(seconds)}{time.strftime(':%S', time.localtime(seconds))} {zone}".rstrip()


def state(result: Result, status: RunStatus) -> str:
    """Return one sentence: finished, running or interrupted, and how much is done."""
    done = f"{status.done:,} of {status.budget:,} trials done"
    if status.state == "finished":
        return f"A finished search: {done}."
    if status.state == "running":
        return f"A search that is still running: {done}."
    return f"An interrupted search: {done}. mixtune resume {to_train(result.directory, result.space)} continues it."


def facts(result: Result, status: RunStatus) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of when it was searched, for how long, on which images, and what is confirmed."""
    records = result.records.values()
    begun = [at for record in records if (at := record.asked_time) is not None]
    ended = [at for record in records if (at := record.ended_time) is not None]
    if begun:
        first = min(begun)
        last = max([*ended, first])
        if status.state == "running":
            last = max(last, result.state.last_time or last)
        until = moment(last).removeprefix(f"{moment(first).rpartition(', ')[0]}, ")
        yield "searched", f"{moment(first)} to {until} ({duration(last - first)})"
    yield from _images(result)
    places = _places(result)
    if places:
        yield "images from", "; ".join(places)
    yield "confirmed", _confirmed(result)


def choices(result: Result) -> Iterator[dict[str, Any]]:
    """Yield the recipes to choose from: recommended, most accurate, cheapest; one that is several of them once.

    Each has kinds, trial, name, method, figures, and settings: pairs of a searched parameter and its value.
    """
    found = result.recommendation()
    modes = set(result.objectives.values())
    kinds = {"recommended": found.trial}
    kinds |= {"most accurate": found.most_accurate} if "max" in modes else {}
    kinds |= {"cheapest on the front": found.cheapest} if "min" in modes else {}
    for trial in dict.fromkeys(trial for trial in kinds.values() if trial is not None):
        baseline = result.records[trial].baseline
        cells = zip(result.parameters, setting_cells(result, trial, list(result.parameters)), strict=True)
        yield {
            "kinds": ", ".join(kind for kind, chosen in kinds.items() if chosen == trial),
            "trial": trial,
            "name": f"{baseline} (baseline)" if baseline else trial,
            "method": result.method(trial),
            "figures": describe_figures(result, trial),
            "settings": [(path, cell) for path, cell in cells if cell not in ("", IDLE)],
        }


def commands(result: Result, status: RunStatus) -> Iterator[tuple[str, str]]:
    """Yield (what it does, command): what is to be done next, the export, and how to search on."""
    export = f"mixtune export {to_train(result.directory, result.space)}"
    found = result.recommendation()
    if status.state == "running":
        yield "keep this page up to date", f"mixtune report {_quoted(result)} --watch"
    elif found.next and found.next != export:
        yield "next: train the front again on fresh seeds", found.next
    if found.trial is not None:
        yield "write the recommended recipe as a model", export
    yield from (("search on", command) for command in status.commands())


def front(result: Result) -> dict[str, Any]:
    """Return the table of the front and the baselines: what it says, columns, rows with the trial of each, and notes.

    Where a confirmation decides, figures are its means, and rows that fell off the front stand below it.
    """
    members = [str(trial) for trial in result.pareto_front()["trial"]]
    others = [str(trial) for trial in result.complete_baselines["trial"] if trial not in members]
    searched = [t for t in (*result.fallen, *result.undecided) if t not in members and t not in others]
    others = [*searched, *others]
    confirmed = {} if result.confirmed is None else result.confirmed.frame.set_index("trial").to_dict("index")
    rows = {
        str(row["trial"]): row
        for frame in (result.candidates, result.baselines, result.rows)
        for _, row in frame.iterrows()
    }
    varying = varying_parameters(result, [*members, *others])
    columns = ["recipe", "method", *(find_metric(name).title for name in result.objectives)]
    columns += ["test accuracy", "on the front"] if confirmed else []

    def row(trial: str) -> dict[str, Any]:
        record = result.records[trial]
        marks = [
            *(["recommended"] if trial == result.recommendation().trial else []),
            *(["baseline"] if record.baseline else []),
            *(["fell off"] if trial in result.fallen else []),
            *(["undecided"] if trial in result.undecided else []),
        ]
        cells = [result.method(trial), *objective_cells(result, rows[trial])]
        if again := confirmed.get(trial):
            cells.append(find_metric("test_accuracy").text(again["test_accuracy"], again["test_accuracy_se"]))
            cells.append(f"{100 * again['p_front']:.0f} %")
        elif confirmed:
            cells += ["", ""]
        cells += setting_cells(result, trial, varying)
        return {"trial": trial, "marks": marks, "cells": cells, "is_below": trial in others}

    return {
        "says": f"The recipes that{', more probably than not,' if confirmed else ''} no other beats in every objective",
        "columns": [*columns, *varying],
        "rows": [row(trial) for trial in (*members, *others)],
        "notes": [line[:1].upper() + line[1:] + "." for line in front_notes(result)],
    }


def recipe(result: Result) -> dict[str, Any] | None:
    """Return the recommended recipe as YAML, and how to train it for longer; None without one."""
    trial = result.recommendation().trial
    if trial is None or not result.space.values:
        return None
    values = with_values({}, result.values[trial]) or with_values(result.space.values, result.records[trial].params)
    budget = flatten(values).get("epochs.sl")
    if not isinstance(budget, int):  # what nobody has checked is no recipe
        return None
    file = shlex.quote(str(result.directory / "models" / trial / "recipe.yaml"))
    return {
        "trial": trial,
        "longer": f"mixtune train {file} --set epochs.sl={2 * budget} --out longer",
        "yaml": yaml.safe_dump({"recipe": values}, sort_keys=False),
    }


def baselines(result: Result) -> Iterator[str]:
    """Yield a line a baseline: what it reached, and what the cheapest recipe that is as good costs."""
    accuracy, cost = result.accuracy_name, result.cost_name
    members = result.pareto_front()
    if not {accuracy, cost} <= set(members.columns):
        return
    decided = {str(row["trial"]): row for _, row in result.rows.iterrows()}
    probable = {} if result.confirmed is None else result.confirmed.probabilities
    for _, searched in result.complete_baselines.iterrows():
        baseline = decided.get(str(searched["trial"]), searched)
        reached = " in ".join(find_metric(name).text(baseline[name]) for name in (accuracy, cost))
        reached = f"{searched['method']}: {reached}"
        if baseline["trial"] in set(members["trial"]):
            why = ": nothing is as accurate for less"
            if (probability := probable.get(baseline["trial"])) is not None:
                why = f" with a probability of {100 * probability:.0f} %"
            yield f"{reached}. It is on the front{why}."
            continue
        as_good = members[members[accuracy] >= baseline[accuracy]].sort_values(cost, kind="stable")
        if as_good.empty:
            yield f"{reached}. Nothing on the front is as accurate."
            continue
        best = as_good.iloc[0]
        yield (
            f"{reached}. The cheapest recipe on the front that is at least as accurate, {best['trial']} "
            f"({find_metric(accuracy).text(best[accuracy])}), takes {find_metric(cost).text(best[cost])}: "
            f"{_times_as_fast(result, baseline, best, cost)}."
        )


def _times_as_fast(result: Result, slow: pd.Series[Any], fast: pd.Series[Any], cost: str) -> str:
    """Return "1.25x as fast", or "1.37x as long", and that it may be neither, within the error of the difference."""
    ratio = slow[cost] / fast[cost]
    said = f"{significant(ratio)}x as fast" if ratio >= 1 else f"{significant(1 / ratio)}x as long"
    if cost != TIMED or result.confirmed is not None:
        return said
    records = [result.records[str(row["trial"])] for row in (slow, fast)]
    close = not is_distinguishable(latency_difference(result.state.step_times, *records))
    return f"{said}, which may be nothing: not distinguishable" if close else said


def confidence(result: Result) -> Iterator[str]:
    """Yield what speaks for the front: confirmed on fresh seeds or not, and what that says."""
    found = result.confirmation
    if found is None:
        yield (
            "Not confirmed. The accuracies above are of one seed, on the validation images, and the best of many "
            "trials is in part the luckiest. mixtune confirm trains the front and the baselines again on fresh seeds: "
            "their validation images then decide, and the test images are reported."
        )
        return
    if found.interrupted:
        yield (
            f"A confirmation that is not finished: {len(found.frame)} recipes were trained again, "
            f"{some(found.missing)} not yet. Until then the search's own figures decide, as above."
        )
    else:
        certain = [trial for trial in result.pareto_front()["trial"] if trial not in result.undecided]
        yield (
            f"Confirmed: {len(found.frame)} recipes, baselines too, were trained again on fresh seeds. Their "
            "validation images decide; test accuracies are reported and decide nothing. The front is what is on it "
            "more probably than not. "
            f"On it with a probability of at least {100 * CERTAIN:.0f} % are {some(certain) or 'none'}; "
            f"{some(result.fallen) or 'none'} fell off it (less than {100 * FELL_OFF:.0f} %); "
            f"{some(result.undecided) or 'none'} are undecided."
        )
    yield from (f"{note[:1].upper()}{note[1:]}." for note in found.notes if not note.startswith("fell off the front"))


def searched(result: Result, status: RunStatus) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of data, parameters, objectives, search and machine."""
    run, search = result.facts, result.space.search.model_dump() | {"trials": status.budget}
    yield from _images(result)
    yield from drawn(result.space).items()
    directions = {"max": "as high as possible", "min": "as low as possible"}
    yield (
        "objectives",
        ", ".join(f"{find_metric(name).title} {directions[mode]}" for name, mode in result.objectives.items()),
    )
    if limits := [*map(str, result.constraints.values()), *map(str, result.space.relations)]:
        yield "constraints", ", ".join(limits)
    yield "search", ", ".join(f"{name} {setting(value)}" for name, value in search.items() if value != {})
    if machine := run.machine:
        yield "machine", f"{machine.get('device')}, {machine.get('precision')}"
    if versions := run.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def drawn(space: SearchSpace) -> dict[str, str]:
    """Return what each searched field may be, in words, and what each other one follows, by dotted path."""
    found = {}
    for path, distribution in space.space.items():
        bounds = [*map(setting, distribution.values)] or [setting(distribution.low), setting(distribution.high)]
        step = "" if distribution.step in (None, 1) else f" in steps of {setting(distribution.step)}"
        log = ", logarithmic" if distribution.log else ""
        when = "".join(f", where {path} is {' or '.join(map(setting, values))}" for path, values in distribution.when)
        found[path] = (", " if distribution.values else " to ").join(bounds) + step + log + when
    return {**found, **{path: str(tie) for path, tie in space.ties.items()}}


def cost(result: Result, status: RunStatus) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of trials, epochs, seconds, disk and hypervolume."""
    counts = {state: count for state, count in result.counts().items() if count}
    yield "trials", ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "none has started"
    if note := paused_note(counts):
        yield "paused", note
    account = status.account
    if account.epochs_asked:
        spared = account.epochs_asked - account.epochs_trained - account.epochs_reused
        ended_early = f", {spared:,} spared by ending trials early" if spared else ""
        share = 100 * account.epochs_trained / account.epochs_asked
        yield (
            "epochs",
            f"{account.epochs_asked:,} requested, {account.epochs_trained:,} trained ({share:.0f} %), "
            f"{account.epochs_reused:,} reused from the stage tree{ended_early}",
        )
        seconds = [find_metric("x_s").text(value) for value in (account.asked_s, account.trained_s, account.reused_s)]
        yield "training steps", "{} requested, {} trained, {} reused".format(*seconds)
        yield "waiting", f"{find_metric('x_s').text(account.waited_s)} of slots that waited for a stage"
    if status.wall_s:
        yield "trials' own time", f"{duration(status.wall_s)} from start to end, all trials together"
    if status.stages_mb:
        yield "disk", f"{status.stages:,} training states, {status.stages_mb:,.0f} MB"
    if (volume := result.hypervolume()) is not None and not result.candidates.empty:
        point = ", ".join(find_metric(name).text(value) for name, value in result.reference_point.items())
        yield "hypervolume", f"{significant(volume)} of what the search found, up to {point}"


def measured(result: Result) -> Iterator[str]:
    """Yield how the objectives, the knee and the hypervolume are defined."""
    if "val_accuracy" in result.objectives:
        error = "its binomial standard error"
        if result.confirmed is not None:
            error = "the standard error of a mean over fresh seeds, of one seed the binomial one"
        yield f"Validation accuracy is top-1, on images held out of the training set; \u00b1 is {error}."
    if "train_latency_s" in result.objectives:
        yield (
            "Training time is what a recipe's training steps take from scratch on a device of their own: the seconds "
            "of a step are measured in short windows in which the trials alongside it hold still. Epochs that another "
            "trial had trained cost this search nothing, and count here in full."
        )
    if len(result.objectives) > 1:
        yield (
            "The knee is the front's member with the largest distance from the line through its ends (Das, 1999). "
            "The hypervolume is what the front dominates, up to a reference point: of a score what guessing gets, of a "
            "cost a tenth above the worst of all complete recipes and of the most expensive one as forecast, where the "
            "search was given no other."
        )


def _images(result: Result) -> Iterator[tuple[str, str]]:
    for name, task in result.facts.tasks.items():
        images = f"{task['train_images']:,} training and {task['val_images']:,} validation images"
        yield "data", f"{name}: {images}, {task['classes']:,} classes"
        yield from (("look", line) for line in task.get("looks", ()))


def _places(result: Result) -> Sequence[str]:
    """Return where the images are, a text a dataset; none where the run does not say."""
    data = result.space.values.get("data") or {}
    given = data.get("dataset")
    datasets = list(given) if isinstance(given, list | tuple) else [given]
    root = data.get("root")
    roots = list(root) if isinstance(root, list | tuple) else [root] * len(datasets)
    pairs = [*zip(datasets, roots, strict=False), (data.get("ssl_dataset"), data.get("ssl_root"))]
    found = {
        str(name): str(folder) if folder else "comes with scikit-learn" if name == "digits" else _DATA_FOLDER
        for name, folder in pairs
        if name is not None
    }
    return list(found.values()) if len(found) == 1 else [f"{name}: {place}" for name, place in found.items()]


def _confirmed(result: Result) -> str:
    found = result.confirmation
    if found is None:
        return "nothing yet: all figures are of one seed"
    counts = sorted({*map(int, found.frame["seeds"])})
    many = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else "no"
    seeds = f"{many} fresh {'seed' if many == '1' else 'seeds'}"
    missing = f"; not yet {some(found.missing)}" if found.missing else ""
    return f"{some(list(found.frame['trial']), 4)} with {seeds}{missing}"


def _quoted(result: Result) -> str:
    return shlex.quote(str(result.directory))
