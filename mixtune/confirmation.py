"""`mixtune confirm`: the search's front and the baselines, trained again on fresh seeds.

Their validation images decide; their test images are reported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mixtune.cost.machine import as_in_search
from mixtune.errors import RequestError
from mixtune.meter.times import StepTimes
from mixtune.metrics import DISTURBED, duration, is_disturbed
from mixtune.run.confirmed import Confirmation, counted_trainings
from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import Ledger, TrialRecord, finite_or_none
from mixtune.run.lock import hold_run
from mixtune.run.result import Result, load
from mixtune.single import Planned, Shared, train_each
from mixtune.space.recipe import Recipe, change_recipe
from mixtune.stages.opened import Opened
from mixtune.stages.resume import train_shared
from mixtune.training.data import load_test_pools, load_training_data
from mixtune.training.device import describe_device
from mixtune.training.evaluation import describe_held_out, encode_predictions, measure_scores
from mixtune.training.loop import DivergedError
from mixtune.training.measure import measure, score_metrics
from mixtune.training.state import start_state


def confirm(
    directory: str | PathLike[str], *, seeds: int = 4, on_line: Callable[[str], None] = lambda _: None
) -> Confirmation:
    """Train the search's front and the complete baselines of a run on fresh seeds; needs no Ray.

    seeds: how many, counted from the one after the recipe's own and the same for all. A seed decides weights, order,
    augmentation and masks; the split stays the search's, so no validation image is trained on. Every training run is
    kept in the run's ledger before the next one starts, those that it holds of this device are not repeated, and a
    diverged one is kept as such. Of one seed, epochs that recipes have in common are trained once, and step times are
    measured once, so that a seed's seconds differ by recipes alone. Seeds are taken in turn, so that a machine that
    slows down slows all members. Where the search trained on CPU, so does this, with as many threads. on_line: receives
    progress, line by line. Raises RequestError, also while a search runs there, DataError, or TrainingError where a
    GPU's memory is full.
    """
    directory = Path(directory)
    if seeds < 1:
        raise RequestError(f"seeds: should be at least 1, got {seeds}")
    load(directory)  # says what is wrong with a directory that holds no run
    with hold_run(directory, "confirm", on_wait=on_line):
        result = load(directory)
        if result.searched_front.empty:
            raise RequestError(f"{directory} has no front to confirm: no trial is complete")
        with as_in_search(result.space.recipe, result.facts.machine) as (base, device):
            opened = Opened.of(result.space, describe_device(device), torch.get_num_threads())
            for line in opened.compare(result.state, result.space):
                on_line(line)
            _confirm(result, base, device, seeds, on_line)
    found = load(directory).confirmation
    assert found is not None, "something was trained"
    return found


def _confirm(result: Result, base: Recipe, device: torch.device, seeds: int, on_line: Callable[[str], None]) -> None:
    """Train what is missing, each in the ledger and in the result before the next one starts."""
    run, space = RunDirectory(result.directory), result.space.with_recipe(base)
    known = counted_trainings(result.state.confirmed, describe_device(device))
    planned = [
        _plan(record, space.recipe_at(record.params), base.seed + 1 + number)
        for number in range(seeds)
        for record in result.to_confirm
    ]
    missing = [each for each in planned if (each.name, each.recipe.seed) not in known]
    expected = duration(sum(each.forecast_s for each in missing))
    on_line(
        f"{len(planned)} training runs ({device.type}), {len(planned) - len(missing)} of them held already; "
        f"about {expected} of training steps, by the search's"
    )
    ledger = Ledger(run.ledger_file)
    times: defaultdict[int, StepTimes] = defaultdict(StepTimes)
    for event in known.values():
        for signature, windows in event.get("windows", {}).items():
            for seconds in windows:
                times[event["seed"]].add(signature, seconds)
        times[event["seed"]].fix(event.get("windows", {}))

    def train_one(each: Planned, shared: Shared) -> Mapping[str, Any]:
        before = {signature: len(windows) for signature, windows in shared.step_times.windows.items()}
        fields = _train(each, shared, device)
        new = {s: windows[before.get(s, 0) :] for s, windows in shared.step_times.windows.items()}
        return {**fields, "windows": {signature: windows for signature, windows in new.items() if windows}}

    def held(each: Planned) -> Mapping[str, Any] | None:
        return known.get((each.name, each.recipe.seed))

    for each, fields in train_each(planned, train_one, held, _describe, run.stages, device, on_line, times):
        if held(each) is None:
            held_out = fields.get("held_out")
            if held_out is not None and held_out.digest not in result.state.held_out:
                result.state.apply(ledger.append("validation", **vars(held_out)))
            written = {name: value for name, value in fields.items() if name != "held_out"}
            result.state.apply(ledger.append("confirmed", trial=each.name, seed=each.recipe.seed, **written))


def _plan(record: TrialRecord, recipe: Recipe, seed: int) -> Planned:
    """Return a training run of a trial's recipe on its own split from another seed."""
    seconds = float(record.metrics.get("train_latency_s") or 1.0)  # where the search did not say
    return Planned(record.trial, change_recipe(recipe, {"seed": seed}), seconds, recipe)


def _train(each: Planned, shared: Shared, device: torch.device) -> dict[str, Any]:
    """Return the fields of an event, metrics and predictions, or a ``reason`` where it diverged; and ``held_out``."""
    try:
        data = load_training_data(each.split, device)
        pools = load_test_pools(each.split, data)
        state = start_state(each.recipe, data, device)
        for _ in train_shared(state, *shared):
            pass
        held_out = describe_held_out(data)
        scores = measure_scores(state, pools)
    except DivergedError as error:
        return _diverged(str(error), device)
    if not all(math.isfinite(score.accuracy) for score in scores):
        return _diverged("the trained weights give no finite logits on the test images", device)
    tested = score_metrics(scores, "test") | {"test_images": sum(map(len, pools))}
    if len(pools) > 1:
        tested |= {f"test_accuracy_{task.name}": s.accuracy for task, s in zip(data.tasks, scores, strict=True)}
    judged = {"held_out": held_out, "validation": held_out.digest, "predictions": encode_predictions(state)}
    return {"metrics": finite_or_none(measure(state) | tested), **judged}


def _diverged(reason: str, device: torch.device) -> dict[str, Any]:
    return {"reason": reason, "metrics": {"device": describe_device(device)}}


def _describe(fields: Mapping[str, Any]) -> str:
    metrics = fields["metrics"]
    if "reason" in fields:
        return f"diverged ({fields['reason']})"
    accuracies = f"validation accuracy {metrics['val_accuracy']:.3f}, test {metrics['test_accuracy']:.3f}"
    mark = DISTURBED * is_disturbed(metrics.get("disturbed"))
    return f"{accuracies} in {mark}{metrics['train_latency_s']:.1f} s"
