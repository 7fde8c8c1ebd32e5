"""The same searches for real: what the replay says is checked against them."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
import yaml
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

import mixtune
from mixtune import MixTrainable
from mixtune.run.ledger import read_ledger
from replay.table import Curve, Params, Table, front_volume


class Finished(NamedTuple):
    """A trial that ran to its end: seconds after the first one began, its parameters and its validation accuracy."""

    seconds: float
    params: Params
    accuracy: float


class Searched(NamedTuple):
    """A search that ran: its complete trials, the median seconds of an epoch by the wall clock, by phase, and start_s.

    start_s: from the first trial's start until its first epoch began; a worker starts meanwhile.
    """

    finished: list[Finished]
    clock: dict[str, float]
    start_s: float


def search_plainly(table: Table, values: Mapping[str, Any], seed: int, trials: int, slots: int) -> Searched:
    """Search with Ray Tune and OptunaSearch, as their documentation shows it, with MixTrainable."""
    finished: list[Finished] = []
    epochs: list[tuple[str, float]] = []
    starts: list[float] = []

    class Note(tune.Callback):  # type: ignore[misc]
        began = 0.0

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.began = self.began or time.monotonic()

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
        ) -> None:
            epochs.append((result["phase"], result["time_this_iter_s"]))
            starts.append(time.monotonic() - self.began - result["time_this_iter_s"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            params = {path: trial.config[path] for path in table.space.space}
            finished.append(Finished(time.monotonic() - self.began, params, trial.last_result["val_accuracy"]))

    choices = {path: tune.choice(list(d.grid() or ())) for path, d in table.space.space.items()}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "space.yaml")
        file.write_text(yaml.safe_dump(dict(values)))
        ray.init(num_cpus=slots, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            tune.Tuner(
                tune.with_resources(MixTrainable, {"cpu": 1}),
                param_space={"recipe": str(file), **choices},
                tune_config=tune.TuneConfig(
                    search_alg=OptunaSearch(metric=["val_accuracy", "train_latency_s"], mode=["max", "min"], seed=seed),
                    num_samples=trials,
                    max_concurrent_trials=slots,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(name="a", storage_path=scratch, callbacks=[Note()], verbose=0),
            ).fit()
        finally:
            ray.shutdown()
    return Searched(finished, median_epochs(epochs), starts[0])


def search_with_mixtune(
    table: Table, values: Mapping[str, Any], seed: int, trials: int, slots: int, by_stage: bool = False
) -> Searched:
    """Search with mixtune: stage tree and cost_aware."""
    how = {"sampler": {"name": "cost_aware", "by_stage": by_stage}, "trials": trials, "seed": seed}
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch, "run")
        mixtune.search({**values, "search": how}, out=run, gpus=0, cpus_per_trial=1, console=Console(quiet=True))
        events = read_ledger(run / "ledger.jsonl")
    began = next(event["time"] for event in events if event["event"] == "started")
    params = {event["trial"]: event["params"] for event in events if event["event"] == "asked"}
    finished = [
        Finished(event["time"] - began, params[event["trial"]], event["metrics"]["val_accuracy"])
        for event in events
        if event["event"] == "complete"
    ]
    clock = median_epochs(epochs_between(events))
    first = next(event for event in events if event["event"] == "epoch")
    return Searched(finished, clock, first["time"] - began - clock[first["metrics"]["phase"]])


def epochs_between(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yield the phase and the seconds, by the wall clock, of each epoch that another of its trial preceded at once."""
    before: dict[str, float] = {}
    for event in events:
        if event["event"] in ("asked", "continued", "retried"):
            before.pop(event["trial"], None)
        elif event["event"] == "epoch":
            trial, now = event["trial"], event["time"]
            if trial in before:
                yield event["metrics"]["phase"], now - before[trial]
            before[trial] = now


def median_epochs(epochs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the median seconds of an epoch by phase."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for phase, each in epochs:
        seconds[phase].append(each)
    return {phase: statistics.median(each) for phase, each in seconds.items()}


def device_seconds(
    finished: list[Finished], table: Table, reference: Mapping[str, float], slots: int, enough: float
) -> float:
    """Return the slots' seconds until a hypervolume of the table's seconds was reached; infinite where it was not."""
    curves: list[Curve] = []
    for trial in finished:
        curves.append(table.curve(trial.params))
        if front_volume(curves, reference) >= enough:
            return slots * trial.seconds
    return float("inf")
