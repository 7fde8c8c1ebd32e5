"""`mixtune confirm`: the search's front and the baselines, trained again on fresh seeds.

Their validation images decide; their test images are reported. With ``until``, recipes race: in a round all that may
still be the answer train the next seed, and what cannot is left (Maron and Moore, "Hoeffding races", NeurIPS 1993; the
posterior takes the bound's place).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mixtune.cost.machine import as_in_search
from mixtune.errors import DataError, RequestError
from mixtune.meter.times import StepTimes
from mixtune.metrics import DISTURBED, duration, is_disturbed
from mixtune.run.confirmed import FRESH, Confirmation, counted_trainings
from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import Ledger, TrialRecord, finite_or_none
from mixtune.run.lock import hold_run
from mixtune.run.result import Result, load, load_to_train
from mixtune.single import Planned, Shared, train_each
from mixtune.space.foreign import to_train
from mixtune.space.recipe import Recipe, change_recipe
from mixtune.stages.opened import Opened
from mixtune.stages.resume import train_shared
from mixtune.training.data import load_test_pools, load_training_data
from mixtune.training.device import describe_device
from mixtune.training.evaluation import describe_held_out, encode_predictions, measure_scores
from mixtune.training.loop import DivergedError
from mixtune.training.measure import measure, score_metrics
from mixtune.training.state import start_state

SEEDS, MAX_SEEDS = 4, 10  # of each recipe by default, and where they race
FIRST_SEEDS = 2  # that all recipes have before one is left: without a second there is no spread


def confirm(
    directory: str | PathLike[str],
    *,
    seeds: int | None = None,
    until: float | None = None,
    fresh_images: bool = False,
    trust: bool = False,
    on_line: Callable[[str], None] = lambda _: None,
) -> Confirmation:
    """Train the search's front and the complete baselines of a run on fresh seeds; needs no Ray.

    seeds: how many of each recipe, counted from the one after the recipe's own and the same for all (default 4, with
    ``until`` 10). until: a probability, 0.95 for example: seeds are trained only until the recommended recipe is so
    probably right (``Confirmation.certainties``), and only for recipes that may still be the answer. A seed decides
    weights, order, augmentation and masks; the split stays the search's, so no validation image is trained on, or with
    fresh_images is each seed's own, as in ``compare``, so that the images are no luck either. Every training run is
    kept in the run's ledger before the next one starts, those that it holds of this device are not repeated, and a
    diverged one is kept as such. Of one seed, epochs that recipes have in common are trained once, and step times are
    measured once, so that a seed's seconds differ by recipes alone. Seeds are taken in turn, so that a machine that
    slows down slows all members. Where the search trained on CPU, so does this, with as many threads. trust: import
    what the run names of other code. on_line: receives
    progress, line by line. Raises RequestError, also while a search runs there, DataError, or TrainingError where a
    GPU's memory is full.
    """
    directory = Path(directory)
    if seeds is not None and seeds < 1:
        raise RequestError(f"seeds: should be at least 1, got {seeds}")
    if until is not None and not 0 < until < 1:
        raise RequestError(f"until: should be a probability between 0 and 1, such as 0.95, got {until:g}")
    count = seeds or (SEEDS if until is None else MAX_SEEDS)
    load_to_train(directory, trust)  # says what is wrong with a directory that holds no run
    with hold_run(directory, "confirm", on_wait=on_line):
        result = load_to_train(directory, trust)
        if result.searched_front.empty:
            raise RequestError(f"{directory} has no front to confirm: no trial is complete")
        with as_in_search(result.space.recipe, result.facts.machine) as (base, device):
            opened = Opened.of(result.space, describe_device(device), torch.get_num_threads())
            for line in opened.compare(result.state, result.space):
                on_line(line)
            rivals = _Rivals(result, base, device, fresh_images, on_line)
            if until is None:
                rivals.train(result.to_confirm, range(count))
            else:
                _race(rivals, count, until, on_line)
    found = load(directory).confirmation
    assert found is not None, "something was trained"
    return found


def _race(rivals: _Rivals, most: int, until: float, on_line: Callable[[str], None]) -> None:
    """Train seed after seed, from the second one on only what may be the answer, until that is probably known.

    Which recipes a round has depends on the rounds before it alone, so an interrupted race goes on as it would have.
    """
    racing = rivals.result.to_confirm
    for number in range(most):
        if number >= FIRST_SEEDS:
            known = rivals.result.with_first_seeds(number)
            found, trial = known.confirmation, known.recommendation().trial
            assert found is not None, "seeds were trained"
            certainty = found.certainties.get(trial or "")
            if certainty is None:
                on_line("no objective has an error, or nothing finished: every recipe trains every seed")
            else:
                sure = f"{100 * certainty:.0f} % certain, {100 * until:g} % are requested"
                on_line(f"after {number} seeds: {trial}, {sure}")
                if certainty >= until:
                    return
                contenders = found.contenders(1 - until)
                if left := [record.trial for record in racing if record.trial not in contenders]:
                    on_line(f"not trained further, since they are hardly the answer: {', '.join(left)}")
                racing = [record for record in racing if record.trial in contenders]
        rivals.train(racing, [number])


class _Rivals:
    """The recipes of a run's front and its baselines, to be trained on fresh seeds."""

    def __init__(
        self, result: Result, base: Recipe, device: torch.device, fresh_images: bool, on_line: Callable[[str], None]
    ) -> None:
        self.result = result
        self._space, self._seed, self._device = result.space.with_recipe(base), base.seed, device
        self._images: dict[str, Any] = {"images": FRESH} if fresh_images else {}
        self._on_line = on_line
        self._run = RunDirectory(result.directory)
        self._ledger = Ledger(self._run.ledger_file)
        held = counted_trainings(result.state.confirmed, (describe_device(device), self._images.get("images")))
        self._known: dict[tuple[str, int], Mapping[str, Any]] = {**held}
        self._times: defaultdict[int, StepTimes] = defaultdict(StepTimes)
        for event in held.values():
            for signature, windows in event.get("windows", {}).items():
                for seconds in windows:
                    self._times[event["seed"]].add(signature, seconds)
            self._times[event["seed"]].fix(event.get("windows", {}))

    def train(self, records: Sequence[TrialRecord], numbers: Sequence[int]) -> None:
        """Train what is missing of these seeds, each in the ledger and in the result before the next one starts."""
        planned = [self._plan(record, self._seed + 1 + number) for number in numbers for record in records]
        missing = [each for each in planned if self._held(each) is None]
        self._on_line(
            f"{len(planned)} training runs ({self._device.type}), {len(planned) - len(missing)} of them there already; "
            f"about {duration(sum(each.forecast_s for each in missing))} of training steps, by the search's"
        )
        trained = train_each(
            planned, self._train, self._held, _describe, self._run.stages, self._device, self._on_line, self._times
        )
        state = self.result.state
        for each, fields in trained:
            if self._held(each) is None:
                held_out = fields.get("held_out")
                if held_out is not None and held_out.digest not in state.held_out:
                    state.apply(self._append("validation", **vars(held_out)))
                written = {name: value for name, value in fields.items() if name != "held_out"}
                event = self._append("confirmed", trial=each.name, seed=each.recipe.seed, **self._images, **written)
                state.apply(event)
                self._known[each.name, each.recipe.seed] = event

    def _append(self, event: str, **fields: Any) -> Mapping[str, Any]:
        try:
            return self._ledger.append(event, **fields)
        except OSError as error:
            raise DataError(
                f"{self._ledger.path} cannot be written ({error.strerror}): what it holds is kept; make room, then "
                f"mixtune confirm {to_train(self.result.directory, self.result.space)}"
            ) from error

    def _plan(self, record: TrialRecord, seed: int) -> Planned:
        """Return a training run of a trial's recipe from another seed, on its own split or on that seed's."""
        recipe = self._space.recipe_at(self.result.params_to_train(record.trial))
        seeded = change_recipe(recipe, {"seed": seed})
        seconds = float(record.metrics.get("train_latency_s") or 1.0)  # where the search did not say
        return Planned(record.trial, seeded, seconds, seeded if self._images else recipe)

    def _held(self, each: Planned) -> Mapping[str, Any] | None:
        return self._known.get((each.name, each.recipe.seed))

    def _train(self, each: Planned, shared: Shared) -> Mapping[str, Any]:
        before = {signature: len(windows) for signature, windows in shared.step_times.windows.items()}
        fields = _train(each, shared, self._device)
        new = {s: windows[before.get(s, 0) :] for s, windows in shared.step_times.windows.items()}
        return {**fields, "windows": {signature: windows for signature, windows in new.items() if windows}}


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
