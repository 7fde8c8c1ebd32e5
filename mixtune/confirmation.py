"""`mixtune confirm`: the front's members and the baselines, trained again on fresh seeds and tested."""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mixtune.cost.machine import as_in_search
from mixtune.errors import RequestError
from mixtune.meter.times import StepTimes
from mixtune.metrics import duration
from mixtune.run.confirmed import Confirmation, confirmation, counted_trainings, members_and_baselines
from mixtune.run.ledger import Ledger, TrialRecord, finite_or_none, read_ledger
from mixtune.run.lock import hold_run
from mixtune.run.result import load
from mixtune.space.recipe import Recipe, change_recipe
from mixtune.space.space import load_space
from mixtune.stages.keys import stage_keys
from mixtune.stages.resume import train_shared
from mixtune.training.data import load_test_pools, load_training_data
from mixtune.training.device import describe_device, release_memory
from mixtune.training.evaluation import measure_scores
from mixtune.training.loop import DivergedError
from mixtune.training.measure import measure, score_metrics
from mixtune.training.state import start_state

Planned = tuple[TrialRecord, int]  # what to train, and its seed


def confirm(
    directory: str | PathLike[str], *, seeds: int = 4, on_line: Callable[[str], None] = lambda _: None
) -> Confirmation:
    """Train the front's members and the complete baselines of a run on fresh seeds, and test them; needs no Ray.

    seeds: how many, counted from the one after the recipe's own and the same for all. A seed decides weights, order,
    augmentation and masks; the split stays the search's, so no validation image is trained on. Every training is kept
    in the run's ledger before the next one starts, those that it holds of this device are not repeated, and a diverged
    one is kept as such. Of one seed, epochs that recipes have in common are trained once, and step times are measured
    once, so that a seed's seconds differ by recipes alone. Seeds are taken in turn, so that a machine that slows down
    slows all members. Where the search
    trained on CPU, so does this, with as many threads. on_line: told of progress, line by line.
    Raises RequestError, also while a search runs there, DataError, or TrainingError where a GPU's memory is full.
    """
    directory = Path(directory)
    if seeds < 1:
        raise RequestError(f"seeds: should be at least 1, got {seeds}")
    load(directory)  # says what is wrong with a directory that holds no run
    with hold_run(directory, "confirm", on_wait=on_line):
        return _confirm(directory, seeds, on_line)


def _confirm(directory: Path, seeds: int, on_line: Callable[[str], None]) -> Confirmation:
    result = load(directory)
    if result.pareto_front().empty:
        raise RequestError(f"{directory} has no front to confirm: no trial is complete")
    searched = load_space(directory / "space.yaml").recipe
    with as_in_search(searched, result.space["run"].get("machine") or {}) as (base, device):
        events = read_ledger(directory / "ledger.jsonl")
        held = counted_trainings(events, describe_device(device))
        fresh = range(base.seed + 1, base.seed + 1 + seeds)
        planned = [(record, seed) for seed in fresh for record in members_and_baselines(result)]
        missing = [(record, seed) for record, seed in planned if (record.trial, seed) not in held]
        expected = duration(sum(_search_seconds(record) for record, _ in missing))
        on_line(
            f"{len(planned)} trainings ({device.type}), {len(planned) - len(missing)} of them held already; "
            f"about {expected} of training steps, by the search's"
        )
        ledger = Ledger(directory / "ledger.jsonl")
        trainer = _Trainer(directory / "stages", base, device, planned, held.values())
        for (record, seed), fields in _train_all(missing, trainer, on_line):
            events.append(ledger.append("confirmed", trial=record.trial, seed=seed, **fields))
    return confirmation(events, result)


def _train_all(
    planned: Sequence[Planned], trainer: _Trainer, on_line: Callable[[str], None]
) -> Iterator[tuple[Planned, dict[str, Any]]]:
    """Yield what was trained with the fields of its event, and tell of it once the caller has kept them."""
    forecasts = [_search_seconds(record) for record, _ in planned]
    started = time.perf_counter()
    for number, (record, seed) in enumerate(planned, start=1):
        fields = trainer.train(record, seed)
        yield (record, seed), fields
        pace = (time.perf_counter() - started) / sum(forecasts[:number])
        left = f"; about {duration(pace * sum(forecasts[number:]))} left" if number < len(planned) else ""
        metrics = fields["metrics"]
        outcome = (
            f"diverged ({fields['reason']})"
            if "reason" in fields
            else f"test accuracy {metrics['test_accuracy']:.3f} in {metrics['train_latency_s']:.1f} s"
        )
        on_line(f"[{number}/{len(planned)}] {record.trial}, seed {seed}: {outcome}{left}")


class _Trainer:
    """Trains recipes on fresh seeds, each seed's from stages and with step times that its recipes have in common.

    planned: all trainings, held ones too; held: the events of those that are.
    """

    def __init__(
        self,
        stages: Path,
        base: Recipe,
        device: torch.device,
        planned: Sequence[Planned],
        held: Iterable[Mapping[str, Any]],
    ) -> None:
        self._stages, self._base, self._device, self._planned = stages, base, device, planned
        self._times: defaultdict[int, StepTimes] = defaultdict(StepTimes)
        for event in held:
            for signature, windows in event.get("windows", {}).items():
                for seconds in windows:
                    self._times[event["seed"]].add(signature, seconds)
            self._times[event["seed"]].fix(event.get("windows", {}))
        self._keys = functools.cache(self._all_keys)

    def train(self, record: TrialRecord, seed: int) -> dict[str, Any]:
        """Return the fields of an event: metrics, windows, and a ``reason`` where the training diverged."""
        recipe = change_recipe(self._base, record.params)
        times, windows = self._times[seed], dict[str, list[float]]()
        before = {signature: len(known) for signature, known in times.windows.items()}
        fields = self._train(recipe, seed, times)
        for signature, known in times.windows.items():
            if new := known[before.get(signature, 0) :]:
                windows[signature] = new
        release_memory(recipe.compile)
        return {**fields, "windows": windows}

    def _train(self, recipe: Recipe, seed: int, times: StepTimes) -> dict[str, Any]:
        """Train a recipe on its own split from another seed."""
        device = self._device
        try:
            data = load_training_data(recipe, device)
            pools = load_test_pools(recipe, data)
            state = start_state(change_recipe(recipe, {"seed": seed}), data, device)
            for _ in train_shared(state, self._stages, times, self._keys(seed)):
                pass
            scores = measure_scores(state, pools)
        except DivergedError as error:
            return _diverged(str(error), device)
        if not all(math.isfinite(each.accuracy) for each in scores):
            return _diverged("the trained weights give no finite logits on the test images", device)
        tested = score_metrics(scores, "test") | {"test_images": sum(map(len, pools))}
        if len(pools) > 1:
            tested |= {f"test_accuracy_{t.name}": each.accuracy for t, each in zip(data.tasks, scores, strict=True)}
        return {"metrics": finite_or_none(measure(state).to_dict() | tested)}

    def _all_keys(self, seed: int) -> list[tuple[str, ...]]:
        """Return the stage keys of each recipe of a seed."""
        recipes = [change_recipe(self._base, record.params) for record, planned in self._planned if planned == seed]
        return [
            stage_keys(change_recipe(recipe, {"seed": seed}), load_training_data(recipe, self._device), self._device)
            for recipe in recipes
        ]


def _diverged(reason: str, device: torch.device) -> dict[str, Any]:
    return {"reason": reason, "metrics": {"device": describe_device(device)}}


def _search_seconds(record: TrialRecord) -> float:
    """Return the seconds of training steps that the search found; 1 where it did not say."""
    return float(record.metrics.get("train_latency_s") or 1.0)
