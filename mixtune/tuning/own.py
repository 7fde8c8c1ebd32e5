"""What a Tuner of one's own needs besides MixTrainable: its param_space from a file, one latency for equal recipes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from os import PathLike
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.search.sample import Domain

from mixtune.errors import RequestError
from mixtune.meter.times import StepTimes
from mixtune.space.distributions import Distribution
from mixtune.space.recipe import change_recipe, check_path, flatten, with_absolute_paths
from mixtune.space.space import SearchSpace, load_space, space_from_dict
from mixtune.training.plan import PHASES
from mixtune.training.state import TrainState

STEPS = "steps"  # in a result: what latencies() prices, as JSON, which no logger takes for numbers


def param_space(space: SearchSpace | Mapping[str, Any] | str | PathLike[str], **changes: Any) -> dict[str, Any]:
    """Return a search space as the ``param_space`` of a ``ray.tune.Tuner`` that trains MixTrainable.

    space: a file, which is read here and not on the workers, plain values in its form, or a SearchSpace; relative paths
    in it are below the current folder. changes: dotted recipe values or Ray Tune's distributions, in place of the
    space's: ``alpha=tune.uniform(0, 1)``, ``**{"epochs.sl": 40}``; ``user``: anything of your own. Objectives,
    baselines, constraints and the search's settings are a search's alone. Raises RequestError.
    """
    if isinstance(space, str | PathLike):
        space = load_space(space)
    elif not isinstance(space, SearchSpace):
        space = space_from_dict(space, {})
    values = {path: value for path, value in changes.items() if path != "user"}
    fixed = {path: value for path, value in values.items() if not isinstance(value, Domain | Mapping)}
    recipe = with_absolute_paths(change_recipe(space.recipe, fixed))
    for path in values:
        check_path(recipe, path)
    resolved = flatten(recipe.to_dict())
    searched = {**space.space, **values}.keys() - fixed.keys()
    drawn = {}
    for path, distribution in space.space.items():
        parent = next((c.path for c in distribution.when if c.path in searched), None)
        if parent is not None and path not in values:
            raise RequestError(
                f"space.{path} depends on {parent}, and a Tuner of your own draws each by itself: fix one of them"
            )
        if all(condition.allows(resolved.get(condition.path)) for condition in distribution.when):
            drawn[path] = _drawn(distribution)
    ties = {path: tie.to_yaml() for path, tie in space.ties.items() if path not in values}
    known = {"recipe": recipe.to_dict(), **({"ties": ties} if ties else {})}
    return {**known, **drawn, **changes, **{path: resolved[path] for path in fixed}}


def _drawn(distribution: Distribution) -> Any:
    """Return Ray Tune's form of a distribution; names and bounds are the same."""
    make, arguments = getattr(tune, distribution.kind), distribution.arguments
    return make(arguments) if distribution.values else make(*arguments)


def describe_steps(state: TrainState) -> str:
    """Return how many steps of each cost a state has taken, and what is known of their seconds, for latencies()."""
    counts = state.bill.count_steps(len(state.history))
    return json.dumps({"steps": counts, "infer": state.bill.infer, **state.step_times.to_dict()})


def latencies(results: Any) -> pd.DataFrame:
    """Return a Tuner's results with the latencies that one table of step times gives: equal recipes have equal ones.

    results: a ``ray.tune.ResultGrid`` of MixTrainable, several joined, or a DataFrame of one. A row a trial with the
    metrics of its last epoch; columns of the config are without Ray's ``config/``. A step's time is the median of all
    trials' quiet windows of its cost, or the shortest one that was not quiet where none was. ``train_latency_s``, its
    parts by phase, ``infer_latency_ms`` and their errors are replaced; rows that lack steps, such as those of a trial
    that failed in its first epoch, keep what they have.
    """
    if isinstance(results, pd.DataFrame):
        frame = results
    else:  # not ResultGrid's own, which needs files that Ray may be told not to write
        frame = pd.json_normalize([result.metrics or {} for result in results], sep="/")
    frame = frame.rename(columns=lambda name: str(name).removeprefix("config/")).reset_index(drop=True)
    frame["whole"] = frame["whole"].eq(True) if "whole" in frame else False  # of a trial that reported nothing, too
    if STEPS not in frame:
        return frame
    known = {label: json.loads(text) for label, text in frame[STEPS].items() if isinstance(text, str)}
    windows: dict[str, set[float]] = defaultdict(set)  # a checkpoint's come with every trial that continues from it
    disturbed: dict[str, set[float]] = defaultdict(set)
    for steps in known.values():
        for signature, seconds in steps["windows"].items():
            windows[signature].update(seconds)
        for signature, shortest in steps["disturbed"].items():
            disturbed[signature].add(shortest)
    times = StepTimes({s: sorted(seconds) for s, seconds in windows.items()})
    times.disturbed = {s: min(seconds) for s, seconds in disturbed.items()}
    frame = frame.drop(columns=STEPS)
    for label, steps in known.items():
        taken = {phase: steps["steps"].get(phase, {}) for phase in PHASES}
        seconds = {phase: sum(n * times.step_time(s) for s, n in counts.items()) for phase, counts in taken.items()}
        frame.loc[label, "train_latency_s"] = sum(seconds.values())
        frame.loc[label, "train_latency_se_s"] = times.error_of(
            {s: n for own in taken.values() for s, n in own.items()}
        )
        for phase in PHASES:
            frame.loc[label, f"latency_{phase}_s"] = float(seconds[phase])
        frame.loc[label, "infer_latency_ms"] = 1e3 * times.step_time(steps["infer"])
        frame.loc[label, "infer_latency_ms_se"] = 1e3 * times.error(steps["infer"])
    return frame
