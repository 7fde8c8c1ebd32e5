"""What a search notes, in which order, what it tells Optuna, and how it continues; no Ray needed."""

from __future__ import annotations

import hashlib
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from mixtune import plugins
from mixtune.cost.model import Cost
from mixtune.meter.times import StepTimes
from mixtune.run.ledger import read_ledger
from mixtune.run.remaining import ended_early
from mixtune.space.space import SearchSpace, space_from_dict
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import EpochReport, SearchContext

BILL = Bill(
    dict.fromkeys(PHASES, 10),
    (("ssl", "ssl steps", 1.0), ("sl", "sl steps", 1.0), ("sl", "sl steps", 1.0)),
    "inference",
)
WHOLE = {"val_accuracy": 0.9, "epoch": 3, "epochs_asked": 3, "device": "a CPU"}
WINDOWS = [("ssl steps", 0.1, True, {"device": "a CPU"}), ("sl steps", 0.05, True, {"device": "a CPU"})]


def report(*epochs: int, windows: list[Any] | None = None, **fields: Any) -> EpochReport:
    """Return what a worker reports of epochs, and of the latest of them."""
    own = {name: fields.pop(name) for name in [*fields] if name in ("val_accuracy", "device", "train_flops")}
    latest = {**WHOLE, "epoch": epochs[-1] if epochs else 1, **own}
    told = [{"epoch": epoch, "phase": "ssl"} for epoch in epochs]
    return EpochReport(told, latest, WINDOWS if windows is None else windows, BILL, reused=1, **fields)


@pytest.fixture
def space(small_space: Any) -> SearchSpace:
    return space_from_dict(small_space())


@pytest.fixture
def search(space: SearchSpace, tmp_path: Path) -> RunningSearch:
    return RunningSearch(space, tmp_path / "ledger.jsonl")


def again(search: RunningSearch, tmp_path: Path, **options: Any) -> RunningSearch:
    """Return the search as another process would find it."""
    return RunningSearch(search.space, tmp_path / "ledger.jsonl", **options)


def end_of(trial: str) -> str:
    """Return the key of a trial's last state."""
    return hashlib.sha1(trial.encode()).hexdigest()


def begin(search: RunningSearch) -> str:
    """Ask for a trial and let it train an epoch; return its id."""
    asked = search.ask()
    assert asked
    search.start(asked.trial)
    search.report(asked.trial, report(1, stored="a1" * 20))
    return asked.trial


def first_trial(search: RunningSearch) -> str:
    """Return the first trial of the budget; the baselines before it train on."""
    while (trial := begin(search)) in search.baselines:
        pass
    return trial


def finish(search: RunningSearch, trial: str, accuracy: float = 0.9) -> None:
    search.report(trial, report(2, 3, val_accuracy=accuracy, windows=[], stage=end_of(trial)))
    search.end(trial)


def finish_all(search: RunningSearch) -> None:
    """Run the whole budget, a trial after the other."""
    while not search.is_over:
        trial = begin(search)
        finish(search, trial, accuracy=0.5 + search.records[trial].params.get("alpha", 0.0) / 3)


def optuna_states(search: RunningSearch) -> list[optuna.trial.TrialState]:
    """Return the states of the trials that Optuna was asked for."""
    return [trial.state for trial in search.suggester.study.trials]


def test_baselines_come_first_and_do_not_count_in_the_budget(search: RunningSearch) -> None:
    asked = []
    while next_one := search.ask():
        asked.append(next_one)
    assert [(a.trial, a.params) for a in asked[:2]] == [("sl", {"epochs.ssl": 0}), ("ssl_sl", {"rho": 0.0})]
    known = [record.trial for record in search.records.values() if record.state == "known"]
    assert sorted([a.trial for a in asked[2:]] + known) == [f"t{i:04d}" for i in range(1, 7 + len(known))]
    assert not search.is_over  # eight trials train


def test_as_many_epochs_as_cost_what_the_base_recipe_does_are_known_once_its_steps_are_timed(
    small_space: Any, tmp_path: Path
) -> None:
    """Trials go first meanwhile; the ledger has the number, and whoever continues does not compute another one."""
    space = space_from_dict(small_space(baselines=["sl", "sl_same_time", "ssl_sl"]))

    def costs(params: Any, times: StepTimes, reused: int, untimed: float) -> Cost:
        known = times.is_known("ssl steps") and times.is_known("sl steps")
        seconds = 0.7 if params else 9.0 if known else 1e9
        return Cost({"train_latency_s": seconds, "train_flops": 1e9}, seconds, seconds, is_timed=known)

    search = RunningSearch(space, tmp_path / "ledger.jsonl", costs=costs, slots=4)
    first = [asked.trial for asked in (search.ask(), search.ask(), search.ask()) if asked]
    assert first == ["sl", "ssl_sl", "t0001"]
    search.start("sl")
    search.report("sl", report(1))  # with windows of all its steps
    same = search.ask()
    assert same is not None
    assert (same.trial, same.params) == ("sl_same_time", {"epochs.ssl": 0, "epochs.sl": 13})
    resumed = again(search, tmp_path, costs=lambda *_: Cost({"train_latency_s": 1.0}, 1.0, 1.0))
    assert resumed.records["sl_same_time"].params == same.params
    unpriced = RunningSearch(space, tmp_path / "other.jsonl")  # nobody knows what a recipe costs
    assert [asked.trial for _ in range(3) if (asked := unpriced.ask())] == ["sl", "ssl_sl", "t0001"]
    assert "sl_same_time" not in unpriced.baselines


def test_every_event_is_on_the_disk_before_anyone_hears_of_it(space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    heard = []
    search = RunningSearch(space, path, lambda _, record: heard.append((record.trial, len(read_ledger(path)))))
    assert search.ask()
    search.start("sl")
    search.report("sl", report(1))
    finish(search, "sl")
    assert heard == [("sl", lines) for lines in (1, 2, 5, 6, 7, 10)]
    events = [event["event"] for event in read_ledger(path)]
    assert events == [
        "asked",
        "started",
        "step_time",
        "step_time",
        *["epoch"] * 3,
        *["step_time_fixed"] * 2,
        "baseline",
    ]


def test_step_times_of_a_trial_that_ended_change_no_more(search: RunningSearch, tmp_path: Path) -> None:
    one = first_trial(search)
    finish(search, one)
    known = {signature: list(seconds) for signature, seconds in search.step_times.windows.items()}
    other = begin(search)
    assert search.step_times.windows == known == again(search, tmp_path).step_times.windows
    finish(search, other)
    assert len({search.records[trial].metrics["train_latency_s"] for trial in (one, other)}) == 1
    assert again(search, tmp_path).step_times.missing("sl steps") == 0


def test_a_window_that_was_not_quiet_stands_in_until_one_was(search: RunningSearch, tmp_path: Path) -> None:
    asked = search.ask()
    assert asked
    search.start(asked.trial)
    times = []
    for seconds, quiet in [(0.4, False), (0.3, False), (0.9, False), (0.1, True), (0.05, False)]:
        search.report(asked.trial, report(windows=[("sl steps", seconds, quiet, {"device": "a CPU"})]))
        times.append(search.step_times.step_time("sl steps"))
    assert times == [0.4, 0.3, 0.3, 0.1, 0.1]
    assert again(search, tmp_path).step_times.step_time("sl steps") == 0.1


def test_a_trial_that_ran_its_recipe_is_complete(search: RunningSearch) -> None:
    trial = first_trial(search)
    finish(search, trial)
    assert search.records[trial].state == "complete"
    assert optuna_states(search) == [optuna.trial.TrialState.COMPLETE]


def test_seconds_come_from_the_windows_that_came_first_so_equal_recipes_have_equal_ones(search: RunningSearch) -> None:
    one, other = first_trial(search), begin(search)
    later = [("ssl steps", seconds, True, {"device": "a CPU"}) for seconds in (0.2, 0.3, 0.4, 9.0)]
    search.report(other, report(windows=later))
    for trial in (one, other):
        finish(search, trial)
    latencies = [search.records[trial].metrics for trial in (one, other)]
    assert [m["latency_ssl_s"] for m in latencies] == [1.0, 1.0]  # 0.1 s: the baselines' and the first trial's windows
    assert [m["train_latency_s"] for m in latencies] == [2.0, 2.0]
    kept = [e["seconds"] for e in read_ledger(search._ledger.path) if e.get("signature") == "ssl steps"]
    assert kept == [0.1, 0.1, 0.1]


def test_an_ending_holds_the_key_of_what_was_trained(search: RunningSearch, tmp_path: Path) -> None:
    trial = first_trial(search)
    finish(search, trial)
    assert again(search, tmp_path).records[trial].stage == end_of(trial)


def test_training_s_is_priced_when_an_epoch_ends_and_never_revised(small_space: Any, tmp_path: Path) -> None:
    search, told = RunningSearch(space_from_dict(small_space(baselines=[])), tmp_path / "ledger.jsonl"), []
    trial = begin(search)
    for epoch, windows in ((1, []), (2, [("sl steps", 0.01, True, {})] * 2), (3, [])):
        search.report(trial, report(epoch, windows=windows))
        told.append(search.figures(trial))
    assert [round(metrics["train_latency_s"], 9) for metrics in told] == [1.0, 1.1, 1.2]  # the sl steps fell to 0.01 s
    spent = [metrics["training_s"] for metrics in told]
    assert spent == sorted(spent)
    assert [epoch["training_s"] for epoch in again(search, tmp_path).records[trial].epochs] == spent


def test_a_trial_ended_early_is_stopped_whatever_it_reported(search: RunningSearch) -> None:
    trial = first_trial(search)
    search.report(trial, report(2))
    search.end(trial)
    assert search.records[trial].state == "stopped"
    assert optuna_states(search) == [optuna.trial.TrialState.PRUNED]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_objective_that_is_not_finite_fails_the_trial(search: RunningSearch, value: float) -> None:
    trial = first_trial(search)
    finish(search, trial, accuracy=value)
    assert search.records[trial].state == "failed"
    assert search.records[trial].reason == f"val_accuracy is {value}"
    assert optuna_states(search) == [optuna.trial.TrialState.FAIL]


def test_a_missing_objective_fails_the_trial(search: RunningSearch) -> None:
    trial = first_trial(search)
    search.report(trial, EpochReport([], {"epoch": 3, "epochs_asked": 3}, [], BILL))
    search.end(trial)
    assert search.records[trial].reason == "val_accuracy is missing"


def test_seconds_of_another_device_are_no_result(search: RunningSearch) -> None:
    trial = first_trial(search)
    search.report(trial, report(3, device="a GPU"))
    search.end(trial)
    assert search.records[trial].state == "failed"
    assert search.records[trial].reason == "trained on a GPU, where seconds are not those of a CPU"


def test_a_failed_baseline_is_noted_and_optuna_hears_nothing(search: RunningSearch) -> None:
    search.fail(begin(search), "DivergedError: the loss is nan")
    assert search.records["sl"].state == "failed"
    assert search.records["sl"].baseline == "sl"
    assert optuna_states(search) == []


def test_a_crashed_trial_is_tried_again_at_once_and_not_for_ever(search: RunningSearch) -> None:
    trial = first_trial(search)
    for attempt in range(3):
        search.fail(trial, f"the worker process died, number {attempt}", "crash")
        if attempt < 2:
            assert search.records[trial].state == "asked"
            asked = search.ask()
            assert asked
            assert asked.trial == trial
    assert search.records[trial].state == "failed"
    assert search.records[trial].reason == "the worker process died, number 2"
    assert [e["event"] for e in read_ledger(search._ledger.path) if e["trial"] == trial].count("retried") == 2


def test_what_runs_the_trials_may_break_down_as_often_as_a_trial_may_crash(
    search: RunningSearch, tmp_path: Path
) -> None:
    """Then they stay unfinished, not failed: the fault is not theirs, and a search that continues trains them."""
    trial = first_trial(search)
    others = {record.trial for record in search.active} - {trial}
    for _ in range(search.space.search.max_failures):
        assert search.lose("Ray's head process has ended")
        assert not search.active
        while search.ask() is not None:
            pass
        assert {record.trial for record in search.active} >= {trial, *others}
    assert not search.lose("Ray's head process has ended")
    found = again(search, tmp_path)
    assert {found.records[name].state for name in (trial, *others)} == {"asked"}
    asked = list(iter(found.ask, None))
    assert {trial, *others} <= {each.trial for each in asked}


def test_a_trial_that_no_retry_can_help_fails_at_once(search: RunningSearch) -> None:
    trial = first_trial(search)
    search.fail(trial, "DivergedError: the loss is nan")
    assert search.records[trial].state == "failed"
    assert optuna_states(search) == [optuna.trial.TrialState.FAIL]


def test_out_of_memory_gets_larger_fractions_until_there_is_none(space: SearchSpace, tmp_path: Path) -> None:
    shares: dict[float | None, float | None] = {None: 0.5, 0.5: 1.0, 1.0: None}
    search = RunningSearch(space, tmp_path / "ledger.jsonl", larger_fraction=shares.__getitem__)
    trial = first_trial(search)
    given = []
    while search.records[trial].state != "failed":
        search.fail(trial, "OutOfMemoryError: CUDA out of memory", "out of memory")
        search = again(search, tmp_path, larger_fraction=shares.__getitem__)  # a larger share outlives the driver
        if search.records[trial].state != "failed":
            asked = next(a for a in iter(search.ask, None) if a.trial == trial)
            given.append(asked.gpus)
    assert given == [0.5, 1.0]


def test_when_most_trials_fail_alike_the_search_stops_and_says_why(search: RunningSearch) -> None:
    finish(search, begin(search))
    for step in range(4):
        assert search.stop_reason is None
        search.fail(begin(search), f"DivergedError: the loss is nan in step {step}")
    assert search.stop_reason == "4 of 5 trials failed for one reason: DivergedError: the loss is nan in step 0"
    assert search.ask() is None
    assert search.is_over


def test_failures_of_many_kinds_do_not_stop_it(search: RunningSearch) -> None:
    for kind in "abcde":
        search.fail(begin(search), f"ValueError: {kind}")
    assert search.stop_reason is None


def test_unfinished_trials_come_first_when_a_search_goes_on(search: RunningSearch, tmp_path: Path) -> None:
    finish(search, begin(search))
    unfinished = [begin(search), begin(search), begin(search)]
    going_on = again(search, tmp_path)
    asked = [going_on.ask() for _ in range(4)]
    assert [a.trial for a in asked if a] == [*unfinished, "t0003"]
    assert [a.params for a in asked if a][:3] == [search.records[trial].params for trial in unfinished]


def test_epochs_that_a_stored_state_brings_are_noted_once(search: RunningSearch, tmp_path: Path) -> None:
    trial = begin(search)
    going_on = again(search, tmp_path)
    going_on.ask()
    going_on.report(trial, report(1, 2, 3))
    assert [epoch["epoch"] for epoch in going_on.records[trial].epochs] == [1, 2, 3]


@pytest.mark.parametrize("sampler", plugins.names("tuning.samplers"))
def test_what_is_asked_depends_on_the_ledger_alone(small_space: Any, tmp_path: Path, sampler: str) -> None:
    """One search to its end, and two whose driver dies after some or all of its events, with a trial at a time."""
    grid = {
        "alpha": {"choice": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]},
        "rho": {"quniform": [0.0, 1.0, 0.5]},
        "epochs.sl": {"randint": [1, 3]},
    }
    named, trials = {"sampler": sampler}, 16
    if sampler == "gp":  # which takes seconds a suggestion
        named, trials = {"sampler": {"name": "gp", "n_startup_trials": 3}}, 6
    space = space_from_dict(small_space(space=grid, search={**named, "trials": trials}, baselines=[]))
    asked = []
    for folder, dies in (("whole", range(0)), ("killed", range(2, 40, 3)), ("killed each time", range(40))):
        (tmp_path / folder).mkdir()
        search = RunningSearch(space, tmp_path / folder / "ledger.jsonl")
        for moment in range(10_000):
            if search.is_over:
                break
            trial = begin(search)
            if moment in dies:
                search = RunningSearch(space, tmp_path / folder / "ledger.jsonl")
                continue
            finish(search, trial, accuracy=0.5 + search.records[trial].params["alpha"] / 3)
        asked.append({trial: record.params for trial, record in search.records.items()})
        assert search.is_done
    assert asked[0] == asked[1] == asked[2]
    assert search.done == trials


def test_a_finished_search_is_over_until_it_is_extended(search: RunningSearch, tmp_path: Path) -> None:
    finish_all(search)
    going_on = again(search, tmp_path)
    assert going_on.is_over
    going_on.extend(8)
    assert again(search, tmp_path).budget == 8
    finish_all(going_on)
    assert sum(record.state == "complete" for record in going_on.records.values()) == 8 + len(going_on.baselines)


def test_a_search_that_gets_nowhere_ends_finishes_what_runs_and_says_so_once(small_space: Any, tmp_path: Path) -> None:
    settings = {"sampler": "random", "trials": 40, "stop": {"after": 4, "gain": "1%"}}
    space = space_from_dict(small_space(search=settings, baselines=["sl"]))
    reference: Any = lambda complete: {"val_accuracy": 0.1, "train_latency_s": 60.0}  # noqa: E731

    def train_until_over(search: RunningSearch, accuracies: dict[int, float]) -> int:
        """Train two at a time; by number of a trial its accuracy, else the latest before. Return how many ended."""
        before, running = search.done, []
        while not search.is_over:
            while len(running) < 2 and search.ask() is not None:
                running.append([*search._active][-1])
                search.start(running[-1])
                search.report(running[-1], report(1, stored="a1" * 20))
            trial = running.pop(0)
            number = search.done + 1
            if number in (8, 9):  # no gain either
                search.fail(trial, f"ValueError: {'ab'[number - 8]}")
            else:
                finish(search, trial, max(value for at, value in accuracies.items() if at <= number))
        return search.done - before

    search = RunningSearch(space, tmp_path / "ledger.jsonl", slots=2, reference=reference)
    # the sixth trial adds; the seventh's gain of 1 % and less, and failures, do not
    assert train_until_over(search, {1: 0.5, 4: 0.55, 6: 0.9, 7: 0.901}) == 6 + 4 + 1  # one was running
    assert search.is_done
    reason = ended_early(search.state, space)
    assert reason is not None
    assert reason.startswith("search.stop: the latest 4 trials enlarged the front's hypervolume by 0.1")
    assert reason.endswith(" %, less than 1.0 %")
    resumed = again(search, tmp_path, slots=2, reference=reference)
    assert resumed.is_over
    assert resumed.ask() is None
    other = replace(space, search=space.with_search(stop={"after": 3, "gain": 0.5}).search)
    changed = RunningSearch(other, tmp_path / "ledger.jsonl", slots=2, reference=reference)
    assert not changed.is_over
    assert train_until_over(changed, {1: 0.901}) == 3  # since it last ended, and one ran then
    resumed = RunningSearch(other, tmp_path / "ledger.jsonl", slots=2, reference=reference)
    resumed.extend(40)
    assert train_until_over(resumed, {1: 0.901}) == 3
    events = read_ledger(tmp_path / "ledger.jsonl")
    assert [event["trials"] for event in events if event["event"] == "converged"] == [10, 13, 16]


def test_failed_trials_can_be_asked_for_once_more_and_their_results_are_told(search: RunningSearch) -> None:
    trial = first_trial(search)
    search.fail(trial, "DataError: the disk is gone")
    assert search.retry_failed() == 1
    asked = search.ask()
    assert asked
    assert asked.trial == trial
    search.start(trial)
    finish(search, trial)
    assert optuna_states(search) == [optuna.trial.TrialState.COMPLETE]


def test_whoever_fails_to_hear_of_a_trials_end_does_not_undo_it(space: SearchSpace, tmp_path: Path) -> None:
    search = RunningSearch(space, tmp_path / "ledger.jsonl")
    trial = first_trial(search)
    finish(search, trial)
    search.fail(trial, "ZeroDivisionError: in a callback", "crash")
    assert search.records[trial].state == "complete"


def test_a_grid_that_a_constraint_cuts_is_trained_once_each(small_space: Any, tmp_path: Path) -> None:
    grid = {"alpha": {"choice": [0.1, 0.3, 0.6, 0.7]}}
    search = RunningSearch(
        limited(small_space, space=grid, search={"sampler": "grid"}), tmp_path / "ledger.jsonl", costs=by_alpha
    )
    while asked := search.ask():
        search.start(asked.trial)
        search.report(asked.trial, report(1))
        finish(search, asked.trial)
    states = {record.params["alpha"]: record.state for record in search.records.values()}
    assert states == {0.1: "complete", 0.3: "complete", 0.6: "rejected", 0.7: "rejected"}
    assert len(search.records) == 4
    assert search.is_over
    assert search.stop_reason is None


def test_a_constrained_metric_that_is_not_finite_fails_the_trial(small_space: Any, tmp_path: Path) -> None:
    values = small_space(objectives={"train_flops": "min"}, constraints={"val_accuracy": ">= 0.5"}, baselines=[])
    search = RunningSearch(space_from_dict(values), tmp_path / "ledger.jsonl")
    trial = begin(search)
    search.report(trial, report(3, val_accuracy=math.nan, train_flops=1.0))
    search.end(trial)
    assert search.records[trial].reason == "val_accuracy is nan"
    assert again(search, tmp_path).records[trial].state == "failed"


def test_a_deadline_is_told_as_the_seconds_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's clock has another zero, and its date may be wrong."""
    told = pickle.dumps(SearchContext("run", deadline=time.monotonic() + 100.0))
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    assert pickle.loads(told).deadline == pytest.approx(105.0, abs=60.0)
    assert pickle.loads(pickle.dumps(SearchContext("run"))).deadline is None


def test_after_its_deadline_a_search_asks_no_more_and_running_trials_stay_unfinished(
    space: SearchSpace, tmp_path: Path
) -> None:
    search = RunningSearch(space, tmp_path / "ledger.jsonl")
    trial = first_trial(search)
    search.deadline = 0.0
    assert search.ask() is None
    for running in (trial, *search.baselines):
        assert not search.report(running, report(2, after_deadline=True))
        search.end(running)
    assert search.is_over
    assert not search.is_done
    assert search.records[trial].state == "running"


def limited(small_space: Any, **sections: Any) -> SearchSpace:
    return space_from_dict(small_space(constraints={"train_latency_s": "<= 2"}, baselines=[], **sections))


def by_alpha(params: Any, *_: Any) -> Cost:
    """Return a forecast that half of the space's alphas keep."""
    return Cost({"train_latency_s": 4.0 * params["alpha"]}, 1.0, 1.0)


def test_a_suggestion_that_breaks_a_constraint_is_rejected_before_training(small_space: Any, tmp_path: Path) -> None:
    space = limited(small_space, search={"sampler": "tpe", "trials": 6})
    search = RunningSearch(space, tmp_path / "ledger.jsonl", costs=by_alpha)
    while asked := search.ask():
        assert asked.params["alpha"] <= 0.5
        search.start(asked.trial)
        search.report(asked.trial, report(1))
        finish(search, asked.trial)
    rejected = [record for record in search.records.values() if record.state == "rejected"]
    assert rejected
    assert all(record.params["alpha"] > 0.5 for record in rejected)
    assert rejected[0].reason == f"train_latency_s would be {4 * rejected[0].params['alpha']:.4g}, not <= 2"
    assert sum(record.state == "complete" for record in search.records.values()) == search.budget
    known = {t.number: t for t in search.suggester.study.trials}
    assert sum(t.state == optuna.trial.TrialState.PRUNED for t in known.values()) == len(rejected)
    for number, record in enumerate(search.records.values()):
        kept = known[number].constraints["train_latency_s"]
        assert (kept > 0) == (record.state == "rejected")
    assert [r.state for r in again(search, tmp_path).records.values()] == [r.state for r in search.records.values()]


def test_a_constraint_that_cannot_be_met_ends_the_search_and_is_named(small_space: Any, tmp_path: Path) -> None:
    never: Callable[..., Cost] = lambda *_: Cost({"train_latency_s": 3.0}, 3.0, 3.0)  # noqa: E731
    search = RunningSearch(limited(small_space), tmp_path / "ledger.jsonl", costs=never)
    assert search.ask() is None
    assert search.is_over
    assert search.stop_reason == (
        "of 1,000 recipes drawn from the space not one may be trained: train_latency_s would be 3, not <= 2"
    )


def test_what_a_worker_warns_of_is_logged_once(search: RunningSearch, caplog: pytest.LogCaptureFixture) -> None:
    trial = first_trial(search)
    for megabytes in (12, 11):
        warning = f"a trial's state cannot be written (no space: {megabytes} MB are free)"
        search.report(trial, report(windows=[], warnings=[warning]))
    search.report(trial, report(windows=[], warnings=["another one"]))
    assert [record.getMessage() for record in caplog.records] == [
        "a trial's state cannot be written (no space: 12 MB are free)",
        "another one",
    ]
