"""Suggestions that know the cost: no luck at the start, drawn to what is nearly free, the same after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixtune.cost.model import Cost
from mixtune.meter.times import StepTimes
from mixtune.run.ledger import read_ledger
from mixtune.space.recipe import Recipe
from mixtune.space.space import SearchSpace, space_from_dict
from mixtune.stages.paths import RecipePaths
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES, make_plan
from mixtune.tuning.samplers._candidates import value_at
from mixtune.tuning.samplers._gains import count_beaten, step_gains, volume_gains
from mixtune.tuning.samplers._states import States
from mixtune.tuning.samplers._surrogate import Surrogate
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.suggestions import draw
from mixtune.tuning.trial import EpochReport

SPACE = {
    "alpha": {"uniform": [0.0, 1.0]},
    "rho": {"choice": [0.0, 0.5, 1.0]},
    "epochs.ssl": {"randint": [2, 30]},
    "epochs.sl": {"qrandint": [5, 50, 5]},
    "optim.sl.base_lr": {"loguniform": [1e-3, 1e-1]},
    "ssl.encode": {"choice": ["visible", "full"]},
}
REFERENCE = {"val_accuracy": 0.1, "val_macro_f1": 0.1, "infer_latency_ms": 5.0, "train_latency_s": 90.0}


def accuracy(recipe: Recipe) -> float:
    """Return a score that a good rate and more SL epochs raise."""
    rate = float(np.exp(-((np.log(recipe.optim.sl.base_lr) - np.log(0.02)) ** 2)))
    return 0.2 + 0.5 * rate * recipe.epochs.sl / (recipe.epochs.sl + 10)


class Driven:
    """A search whose trials train in no time; an epoch takes a second. free: whose recipes are trained already."""

    def __init__(
        self,
        folder: Path,
        values: dict[str, Any],
        slots: int = 1,
        free: Callable[[Any], bool] = lambda params: False,
        baselines: Sequence[str] = (),
        macro_f1: Callable[[Recipe], float] = accuracy,
        waits: bool = True,
    ) -> None:
        self._macro_f1 = macro_f1
        self.space = space_from_dict({**values, "baselines": list(baselines)})
        self._free = free
        self.search = RunningSearch(
            self.space,
            folder / "ledger.jsonl",
            paths=RecipePaths(self.space),
            slots=slots,
            waits=waits,
            costs=self._cost,
            reference=lambda complete: {name: at for name, at in REFERENCE.items() if name in self.space.objectives},
        )

    def _cost(self, params: Mapping[str, Any], times: StepTimes, reused: int, untimed: float) -> Cost:
        seconds = float(len(make_plan(self.space.recipe_at(params))))
        left = 0.0 if self._free(params) else seconds - reused
        return Cost({"train_latency_s": seconds, "train_flops": seconds}, seconds, left, epochs=int(seconds))

    def ask(self) -> str | None:
        asked = self.search.ask()
        if asked is None:
            return None
        self.search.start(asked.trial)
        return asked.trial

    def train(self, trial: str) -> None:
        """Report every epoch of a trial, as far as the search lets it."""
        params = self.search.records[trial].params
        recipe = self.space.recipe_at(params)
        plan = make_plan(recipe)
        ends = self.search.stages.ends(params)
        bill = Bill(dict.fromkeys(PHASES, 1), tuple((e.phase, str(e.phase), 0.0) for e in plan), "inference")
        for epoch in range(self.search.stages.stored(params) + 1, len(plan) + 1):
            score = accuracy(recipe) * epoch / len(plan) if plan[epoch - 1].phase != "ssl" else None
            metrics = {"epoch": epoch, "epochs_asked": len(plan), "device": "a CPU", "val_accuracy": score}
            f1 = None if score is None else self._macro_f1(recipe) * epoch / len(plan)
            metrics |= {"val_macro_f1": f1, "train_flops": float(epoch), "epochs_trained": epoch}
            windows = [(plan[epoch - 1].phase, 1.0, True, {"device": "a CPU"}), ("inference", 1e-3, True, {})]
            report = EpochReport([metrics], metrics, windows, bill, stored="0" * 40 if epoch in ends else None)
            if not self.search.report(trial, report):
                break
        self.search.end(trial)

    def run(self, trials: int) -> list[dict[str, Any]]:
        """Train so many trials, and return the parameters of those that are complete."""
        while len(self.complete) < trials and (trial := self.ask()):
            self.train(trial)
        return self.complete

    @property
    def complete(self) -> list[dict[str, Any]]:
        return [record.params for record in self.search.records.values() if record.state == "complete"]


@pytest.fixture
def values(small_space: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    wsd = {"schedule": "wsd", "warmup_epochs": 1}
    made = small_space(space=SPACE, search={"sampler": "cost_aware", "trials": 200})
    made["recipe"]["optim"] |= {"ssl": {**made["recipe"]["optim"]["ssl"], **wsd}, "sl": wsd | {"base_lr": 0.02}}
    return made


def test_suggestions_are_of_the_space_different_and_the_same_again(values: Any, tmp_path: Path) -> None:
    both = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        both.append(Driven(tmp_path / folder, values).run(8))
    assert both[0] == both[1]
    space: SearchSpace = space_from_dict(values)
    for params in both[0]:
        assert set(params) == set(SPACE)
        assert all(space.space[path].contains(value) for path, value in params.items())
    assert len({tuple(params.items()) for params in both[0]}) == 8


def test_what_only_baselines_have_is_learned_from_and_not_suggested(values: Any, tmp_path: Path) -> None:
    """Neighbours of the front are of the space, also where supervised training alone leads."""
    values["space"] = {**SPACE, "epochs.ssl": {"choice": [2, 30]}}
    driven = Driven(tmp_path, values, baselines=["sl", "ssl_sl"])
    driven.run(12)
    records = [record for record in driven.search.records.values() if record.state == "complete"]
    alone = [record for record in records if record.params.get("epochs.ssl") == 0]
    assert [record.baseline for record in alone] == ["sl"]
    assert all(np.isfinite(datum.row).all() for datum in driven.search.suggester._proposer._data())
    assert all(record.params["epochs.ssl"] in (2, 30) for record in records if record.baseline is None)


def test_it_finds_the_rate_that_matters_without_a_random_start(values: Any, tmp_path: Path) -> None:
    """A rate drawn at random is worth 0.4 of the best. The first recipe is a cheap one; the model asks the others."""
    asked = Driven(tmp_path, values).run(14)
    space = space_from_dict(values)
    first, *others = (len(make_plan(space.recipe_at(params))) for params in [asked[0], *draw(space, 1, 100)])
    assert first <= np.quantile(others, 0.3)
    worth = [np.exp(-((np.log(params["optim.sl.base_lr"]) - np.log(0.02)) ** 2)) for params in asked]
    assert np.mean(worth[4:]) > 0.6


def test_a_search_that_continues_reads_the_kernels_numbers_and_asks_the_same(values: Any, tmp_path: Path) -> None:
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole = Driven(tmp_path / "whole", values)
    whole.run(10)
    for trials in (1, 3, 6, 10):
        killed = Driven(tmp_path / "killed", values)
        killed.run(trials)
    assert killed.complete == whole.complete
    events = read_ledger(tmp_path / "whole/ledger.jsonl")
    fits = [fit for event in events if (fit := event.get("sampler", {}).get("memory"))]
    counts = [fit["val_accuracy"][0] for fit in fits]
    assert all(later >= 1.1 * fit for fit, later in pairwise(counts))  # as data grow, not at every suggestion
    assert counts[-1] > 12  # of at most 10 complete trials: states on their ways have scores, too


def test_what_is_trained_already_is_asked_first(values: Any, tmp_path: Path) -> None:
    for wanted in (0.5, 1.0):
        (tmp_path / str(wanted)).mkdir()
        asked = Driven(tmp_path / str(wanted), values, free=lambda params, at=wanted: params["rho"] == at).run(8)
        assert sum(params["rho"] == wanted for params in asked[1:]) >= 5


def ask_beside(folder: Path, values: dict[str, Any], done: int, at_once: int) -> list[float]:
    """Return the one value that is searched of the trials that run at once, ascending, after so many have ended."""
    driven = Driven(folder, values, slots=at_once)
    driven.run(done)
    (path,) = values["space"]
    return sorted(driven.search.records[str(driven.ask())].params[path] for _ in range(at_once))


def test_what_runs_is_found_already(values: Any, tmp_path: Path) -> None:
    """Trials that run at once are not neighbours: what one is expected to add no other one adds."""
    values["recipe"]["optim"]["sl"] = {"base_lr": 0.02}  # cosine: no two budgets share an epoch
    values |= {"space": {"epochs.sl": {"randint": [5, 200]}}}
    values["recipe"]["epochs"] = {"ssl": 0, "sl": 5}
    budgets = ask_beside(tmp_path, values, done=2, at_once=4)
    assert budgets[-1] - budgets[0] > 20


def test_what_runs_is_no_news_any_more(values: Any, tmp_path: Path) -> None:
    """Where nothing but being unsure promises anything, trials that run at once look in different places."""
    values["recipe"]["epochs"] = {"ssl": 0, "sl": 20}
    values |= {"space": {"optim.sl.base_lr": {"loguniform": [1e-3, 1e-1]}}}
    rates = ask_beside(tmp_path, values, done=3, at_once=3)
    assert rates[-1] > 1.5 * rates[0]


def test_a_trial_makes_way_where_its_stage_ends_and_is_continued(values: Any, tmp_path: Path) -> None:
    values["recipe"]["epochs"] = {"ssl": 0, "sl": 5}
    values["space"] = {path: SPACE[path] for path in ("epochs.sl", "optim.sl.base_lr")}
    values["search"]["trials"] = 15
    driven = Driven(tmp_path, values)
    driven.run(15)
    events = [event["event"] for event in read_ledger(tmp_path / "ledger.jsonl")]
    assert "paused" in events
    assert "continued" in events
    assert driven.search.is_done
    assert driven.search.done == 15
    again = Driven(tmp_path, values)
    assert again.search.is_done
    assert [r.state for r in again.search.records.values()] == [r.state for r in driven.search.records.values()]
    for name, by_stage, waits in (("whole", False, True), ("in a loop of one's own", True, False)):
        values["search"]["sampler"] = {"name": "cost_aware", "by_stage": by_stage}
        (tmp_path / name).mkdir()
        Driven(tmp_path / name, values, waits=waits).run(15)
        assert "paused" not in [event["event"] for event in read_ledger(tmp_path / name / "ledger.jsonl")]


@pytest.mark.parametrize(
    "objectives",
    [
        {"val_accuracy": "max"},
        {"train_flops": "min", "train_latency_s": "min"},
        {"val_accuracy": "max", "train_latency_s": "min", "infer_latency_ms": "min"},
        {"val_accuracy": "max", "val_macro_f1": "max"},
    ],
)
def test_any_objectives_are_weighed(values: Any, tmp_path: Path, objectives: dict[str, str]) -> None:
    assert len(Driven(tmp_path, {**values, "objectives": objectives}).run(6)) == 6


def test_constraints_are_kept_in_view(values: Any, tmp_path: Path) -> None:
    """The rate with the best accuracy, 0.02, is one that does not keep the constraint."""
    values["constraints"] = {"train_latency_s": "<= 40", "val_macro_f1": ">= 0.5"}
    driven = Driven(tmp_path, values, macro_f1=lambda recipe: 1.0 / (1.0 + (recipe.optim.sl.base_lr / 0.01) ** 2))
    asked = driven.run(16)
    assert all(record.state != "rejected" for record in driven.search.records.values())
    assert sum(params["optim.sl.base_lr"] < 0.01 for params in asked[6:]) >= 8


def test_recipes_with_one_path_to_a_state_are_one_to_the_model(values: Any) -> None:
    space = space_from_dict(values)
    states, base = States(space), {"ssl.encode": "full", "optim.sl.base_lr": 0.02, "epochs.sl": 40, "epochs.ssl": 10}

    def row(epochs: int, **changed: Any) -> list[float]:
        params = {**base, "alpha": 0.5, "rho": 0.5, **{name.replace("_", "."): v for name, v in changed.items()}}
        return states.row(params, space.recipe_at(params), epochs).tolist()

    assert row(5, alpha=0.2) == row(5, alpha=0.9)  # nothing is mixed yet
    assert row(10, alpha=0.2) != row(10, alpha=0.9)
    assert row(20, epochs_sl=40) == row(20, epochs_sl=50)  # both rates are at their peak
    assert row(45, epochs_sl=40) != row(45, epochs_sl=50)  # one has come down
    assert all(0 <= number <= 1 for number in row(45))


def test_a_value_of_another_space_has_its_place(values: Any) -> None:
    space = space_from_dict(values | {"space": {"optim.sl.weight_decay": {"loguniform": [0.001, 0.1]}}})
    states = States(space)
    places = [
        states.row(params, space.recipe_at(params), 4)[-1]
        for value in (0.0, 0.0001, 0.001, 0.1, 1.0)
        if (params := {"optim.sl.weight_decay": value})
    ]
    np.testing.assert_allclose(places, [-1.0, -0.5, 0.0, 1.0, 1.5])


def test_a_score_of_which_nothing_is_known_has_its_prior_for_any_number_of_states() -> None:
    surrogate = Surrogate(np.zeros((0, 3)), np.zeros(0), np.zeros((0, 3)), 0.1)
    for states in (1, 2):
        assert surrogate.medians(np.zeros((states, 3))).shape == (states,)
        assert surrogate.quantiles(np.zeros((states, 3))).shape == (states, 16)


def test_gains_in_closed_form_are_those_of_the_hypervolume() -> None:
    rng = np.random.default_rng(0)
    found, values, costs = rng.random((6, 2)), rng.random((5, 16)), rng.random(5) * 1.2
    closed = step_gains(values, costs, found.tolist(), (0.1, 1.0))
    points = np.stack([-values, np.repeat(costs[:, None], 16, axis=1)], axis=2)
    exact = volume_gains(points, found * [-1, 1], np.array([-0.1, 1.0]))
    np.testing.assert_allclose(closed, exact, atol=1e-12)
    assert closed.max() > 0


@pytest.mark.parametrize("states", [1, 2, 60, 61])
def test_what_beats_a_state_is_counted_ties_included(states: int) -> None:
    scores, costs = np.random.default_rng(0).integers(0, 6, (2, states)).astype(float)
    costs[::9] = np.inf  # of another device, unknown
    slow = [int(((scores >= score) & (costs <= cost)).sum()) for score, cost in zip(scores, costs, strict=True)]
    assert count_beaten(scores, costs).tolist() == slow


def test_a_share_of_a_distribution_is_one_of_its_values(values: Any) -> None:
    for distribution in space_from_dict(values).space.values():
        for at in (0.0, 0.3, 0.5, 0.999999):
            assert distribution.contains(value_at(distribution, at))
