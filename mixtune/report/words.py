"""What a report says in words and tables: a function a section, none of which knows of HTML."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import yaml

from mixtune.metrics import find_metric, setting, significant
from mixtune.report.tables import front_notes, objective_cells, varying_parameters
from mixtune.run.confirmed import confirmation
from mixtune.run.result import Result
from mixtune.run.status import RunStatus
from mixtune.space.recipe import with_values

_KNEE = (
    ": the member of the front with the largest distance from the line through its ends; a good place to begin where "
    "neither objective is all that counts."
)
LIKELY = 0.5  # a probability of being on the front


def state(result: Result, status: RunStatus) -> str:
    """Return one sentence: finished, running or interrupted, and how much is done."""
    done = f"{status.done:,} of {status.budget:,} trials done"
    if status.state == "finished":
        return f"A finished search: {done}."
    if status.state == "running":
        return f"A search that is still running: {done}. What stands here is what was known when this page was made."
    return f"An interrupted search: {done}. mixtune resume {_quoted(result)} continues it."


def cards(result: Result, status: RunStatus) -> Iterator[dict[str, str]]:
    """Yield the figures at the top: name, value, and a note where there is one."""
    for name, best in status.best.items():
        metric = find_metric(name)
        yield {"name": f"best {metric.title}", "value": metric.text(best.value), "note": best.trial}
    complete = f"of {len(result.complete()):,} complete trials"
    yield {"name": "on the front", "value": str(status.front), "note": complete}
    if (volume := result.hypervolume()) is not None and status.front:
        point = ", ".join(find_metric(name).text(value) for name, value in result.reference_point.items())
        yield {"name": "hypervolume", "value": significant(volume), "note": f"up to {point}"}
    account = status.account
    if account.epochs_asked:
        share = 100 * account.epochs_trained / account.epochs_asked
        yield {"name": "epochs trained", "value": f"{share:.0f} %", "note": f"of {account.epochs_asked:,} requested"}


def front(result: Result) -> dict[str, Any]:
    """Return the table of the front and the baselines: columns, rows with the trial that each is of, and notes."""
    varying = varying_parameters(result)
    found = confirmation(result)
    confirmed = {} if found is None else found.frame.set_index("trial").to_dict("index")
    columns = ["trial", *(find_metric(name).title for name in result.objectives)]
    if confirmed:
        columns += ["test accuracy", "on the front"]

    def row(trial: pd.Series[Any], mark: str) -> dict[str, Any]:
        record = result.records[str(trial["trial"])]
        cells = objective_cells(result, trial)
        if again := confirmed.get(record.trial):
            share = f"{100 * again['p_front']:.0f} %"
            cells.append(find_metric("test_accuracy").text(again["test_accuracy"], again["test_accuracy_se"]))
            cells.append("fell off" if again["fell_off"] and mark != "baseline" else share)
        elif confirmed:
            cells += ["", ""]
        cells += [setting(record.params.get(name)) for name in varying]
        return {"trial": record.trial, "name": record.baseline or record.trial, "mark": mark, "cells": cells}

    knee = result.knee() if len(result.objectives) > 1 else None
    members = [member for _, member in result.pareto_front().iterrows()]
    return {
        "columns": [*columns, *varying],
        "rows": [row(member, "knee" if member["trial"] == knee else "") for member in members],
        "baselines": [row(baseline, "baseline") for _, baseline in result.complete_baselines.iterrows()],
        "notes": [line[:1].upper() + line[1:] + "." for line in front_notes(result)],
    }


def knee(result: Result) -> dict[str, Any] | None:
    """Return what the page says of the knee, its recipe as YAML and the commands for it; None without a front."""
    trial = result.knee()
    if trial is None or not result.space.values:
        return None
    record = result.records[trial]
    recipe = with_values(result.space.values, record.params)
    return {
        "trial": trial,
        "title": "The knee" if len(result.objectives) > 1 else "The best trial",
        "says": f"{', '.join(objective_cells(result, record.metrics))}{_KNEE if len(result.objectives) > 1 else '.'}",
        "commands": [
            f"mixtune export {_quoted(result)} --trial {trial} --out {trial}",
            f"mixtune train {trial}/recipe.yaml --set epochs.sl={2 * recipe['epochs']['sl']} --out longer",
        ],
        "recipe": yaml.safe_dump({"recipe": recipe}, sort_keys=False),
    }


def baselines(result: Result) -> Iterator[str]:
    """Yield a line a baseline: what it reached, and what the cheapest trial that is as good costs."""
    accuracy, cost = result.accuracy_name, result.cost_name
    members = result.pareto_front()
    if not {accuracy, cost} <= set(members.columns):
        return
    for _, baseline in result.complete_baselines.iterrows():
        reached = " in ".join(find_metric(name).text(baseline[name]) for name in (accuracy, cost))
        reached = f"{baseline['method']}: {reached}"
        as_good = members[members[accuracy] >= baseline[accuracy]].sort_values(cost, kind="stable")
        if as_good.empty:
            yield f"{reached}. No trial on the front is as accurate."
            continue
        best = as_good.iloc[0]
        yield (
            f"{reached}. The cheapest trial on the front that is at least as accurate, {best['trial']} "
            f"({find_metric(accuracy).text(best[accuracy])}), takes {find_metric(cost).text(best[cost])}: "
            f"{significant(baseline[cost] / best[cost])}x as fast."
        )


def confidence(result: Result) -> Iterator[str]:
    """Yield what speaks for the front: confirmed on fresh seeds or not, and what that says."""
    found = confirmation(result)
    if found is None:
        yield (
            "Not confirmed. The accuracies above are of one seed, on the validation images, and the best of many "
            "trials is in part the luckiest. Training the front again on fresh seeds, with the test images, tells:"
        )
        return
    members = found.frame[found.frame["method"].isna()]
    fell = list(members["trial"][members["fell_off"]])
    likely = int((members["p_front"] >= LIKELY).sum())
    yield (
        f"Confirmed: {len(members)} members were trained again, evaluated on the test images. "
        f"{likely} of them are on the front with a probability of at least {LIKELY:.0%}; "
        f"{some(fell) if fell else 'none'} fell off it."
    )
    yield from (f"{note[:1].upper()}{note[1:]}." for note in found.notes)


def searched(result: Result) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of data, parameters, objectives, search and machine."""
    run, search = result.facts, result.space.search.model_dump()
    for name, task in run.tasks.items():
        images = f"{task['train_images']:,} training and {task['val_images']:,} validation images"
        yield "data", f"{name}: {images}, {task['classes']:,} classes"
    for path, distribution in result.space.space.items():
        step = "" if distribution.step in (None, 1) else f" in steps of {setting(distribution.step)}"
        log = ", logarithmic" if distribution.log else ""
        bounds = f"{setting(distribution.low)} to {setting(distribution.high)}{step}{log}"
        yield path, ", ".join(map(setting, distribution.values)) if distribution.values else bounds
    directions = {"max": "as high as possible", "min": "as low as possible"}
    yield (
        "objectives",
        ", ".join(f"{find_metric(name).title} {directions[mode]}" for name, mode in result.objectives.items()),
    )
    if result.constraints:
        yield "constraints", ", ".join(str(constraint) for constraint in result.constraints.values())
    yield "search", ", ".join(f"{name} {setting(value)}" for name, value in search.items())
    if machine := run.machine:
        yield "machine", f"{machine.get('device')}, {machine.get('precision')}"
    if versions := run.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def cost(result: Result, status: RunStatus) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of trials, epochs, seconds and disk."""
    counts = {state: count for state, count in result.counts().items() if count}
    yield "trials", ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "none has started"
    account = status.account
    if account.epochs_asked:
        spared = account.epochs_asked - account.epochs_trained - account.epochs_reused
        ended_early = f", {spared:,} spared by ending trials early" if spared else ""
        yield (
            "epochs",
            f"{account.epochs_asked:,} requested, {account.epochs_trained:,} trained, {account.epochs_reused:,} reused "
            f"from the stage tree{ended_early}",
        )
        seconds = [find_metric("x_s").text(value) for value in (account.asked_s, account.trained_s, account.reused_s)]
        yield "training steps", "{} requested, {} trained, {} reused".format(*seconds)
        yield "waiting", f"{find_metric('x_s').text(account.waited_s)} of slots that waited for a stage"
    if status.stages_mb:
        yield "disk", f"{status.stages:,} training states, {status.stages_mb:,.0f} MB"


def measured(result: Result) -> Iterator[str]:
    """Yield how the objectives, the knee and the hypervolume are defined."""
    if "val_accuracy" in result.objectives:
        yield "Validation accuracy is top-1, on images held out of the training set; ± is its binomial standard error."
    if "train_latency_s" in result.objectives:
        yield (
            "Training time is what a recipe's training steps take from scratch on a device of their own: the seconds "
            "of a step are measured in short windows in which the trials alongside it hold still. Epochs that another "
            "trial had trained cost this search nothing, and count here in full."
        )
    yield (
        "The knee is the front's member with the largest distance from the line through its ends (Das, 1999). "
        "The hypervolume is what the front dominates, up to a reference point that was fixed before the first trial."
    )


def some(trials: Sequence[str], most: int = 10) -> str:
    """Return the first of them, and how many there are more."""
    more = f" and {len(trials) - most:,} more" if len(trials) > most else ""
    return ", ".join(trials[:most]) + more


def _quoted(result: Result) -> str:
    return shlex.quote(str(result.directory))
