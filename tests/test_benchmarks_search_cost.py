"""The replays of searches: the table is whole, simulated time adds up, and the stage tree saves what it should."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plain_search import search_here

from mixtune.space.space import space_from_dict

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SLOTS = 2
PLAIN = "a. Ray Tune, OptunaSearch"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The benchmarks' modules: scripts there import each other by bare name."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        names = ("search_cost", "stage_tree", "replay.table", "replay.simulate", "replay.policies", "replay.real")
        yield SimpleNamespace(**{name.rpartition(".")[2]: importlib.import_module(name) for name in names})
        for name in set(sys.modules) - before:
            if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.fixture(scope="module", params=["digits", "cifar10"])
def table(scripts: SimpleNamespace, request: pytest.FixtureRequest) -> Any:
    return scripts.table.Table(scripts.search_cost.table_file(request.param))


def replayed(scripts: SimpleNamespace, table: Any, folder: Path, name: str) -> Any:
    """Return what a policy came to, with seed 0."""
    reference = scripts.search_cost.reference_point(table)
    enough = scripts.search_cost.ENOUGH * table.best_hypervolume(reference)
    policy = scripts.search_cost.POLICIES[name](table, 0, folder, SLOTS)
    outcome = scripts.simulate.simulate(policy, table, reference, SLOTS, enough, most_trials=100)
    assert outcome.seconds_until(enough) <= outcome.wall_s * SLOTS < float("inf")
    return outcome


def test_the_table_has_the_curve_of_every_recipe(table: Any) -> None:
    recipes = list(table.recipes())
    assert len(recipes) == {"digits": 432, "image_folder": 48}[table.space.recipe.data.dataset]
    assert table.space.recipe.data.root is None  # of the machine that it was recorded on
    for params in recipes:
        curve = table.curve(params)
        assert len(curve.phases) == len(curve.seconds) == len(curve.accuracies)
        assert [a is None for a in curve.accuracies] == [phase == "ssl" for phase in curve.phases]
        assert curve.sl_progress(len(curve.phases)) == 1.0


def test_epochs_that_take_longer_by_the_clock_change_when_a_search_finds_something_not_what(
    scripts: SimpleNamespace, tmp_path: Path
) -> None:
    table = scripts.table.Table(scripts.search_cost.table_file("cifar10"))
    recipe = next(params for params in table.recipes() if 0.0 < params["rho"] < 1.0)
    curve = table.curve(recipe)
    slow = table.by_clock({phase: 2 * seconds for phase, seconds in zip(curve.phases, curve.seconds, strict=True)})
    assert slow.curve(recipe).latency == curve.latency
    once, twice = (replayed(scripts, each, tmp_path / str(n), PLAIN) for n, each in enumerate((table, slow)))
    assert [volume for _, volume in twice.progress] == [volume for _, volume in once.progress]
    assert [seconds for seconds, _ in twice.progress] == pytest.approx([2 * seconds for seconds, _ in once.progress])


def test_a_real_epoch_takes_what_lies_between_two_of_a_trial(scripts: SimpleNamespace) -> None:
    def event(kind: str, time: float, trial: str = "t0001", phase: str = "ssl") -> dict[str, Any]:
        return {"event": kind, "time": time, "trial": trial, "metrics": {"phase": phase}}

    events = [
        *(event("asked", 0.0), event("epoch", 9.0), event("step_time", 9.5), event("epoch", 10.0, "t0002", "sl")),
        *(event("epoch", 11.0), event("paused", 11.0), event("continued", 50.0), event("epoch", 60.0, phase="mix")),
        *(event("epoch", 64.0, phase="mix"), event("epoch", 13.0, "t0002", "sl"), event("epoch", 68.0, phase="sl")),
    ]
    found = list(scripts.real.epochs_between(events))
    assert found == [("ssl", 2.0), ("mix", 4.0), ("sl", 3.0), ("sl", 4.0)]
    assert scripts.real.median_epochs(found) == {"ssl": 2.0, "mix": 4.0, "sl": 3.5}


def test_a_table_is_what_a_grid_search_finds_and_a_recipe_that_is_there_is_not_trained_again(
    scripts: SimpleNamespace, small_space: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    space = {"rho": {"choice": [0.0, 1.0]}, "alpha": {"choice": [0.2, 0.8]}, "epochs.sl": {"choice": [2, 3]}}
    values = small_space(space=space, baselines=[], search={"sampler": "grid"})
    rows, kept = tmp_path / "rows.jsonl", tmp_path / "kept.json.gz"
    keep = functools.partial(scripts.search_cost.record, "digits", values, tmp_path / "stages", rows, kept)
    keep()
    first, *others = rows.read_text().splitlines(keepends=True)
    assert len(others) == 5  # at rho 0 alpha is idle
    rows.write_text("".join(others) + first[:-9])  # a kill cut a line
    keep()
    assert rows.read_text() == "".join([*others, first])
    table = scripts.table.Table(kept)
    assert len(list(table.recipes())) == 8
    found = search_here(values, tmp_path / "run")
    for record in found.records.values():
        trained = found.records[record.same_as or record.trial]
        curve = table.curve(record.params)
        assert list(curve.accuracies) == [epoch["val_accuracy"] for epoch in trained.epochs]
        assert min(curve.seconds) > 0


def test_without_a_scheduler_slots_always_train_and_trials_end(
    scripts: SimpleNamespace, table: Any, tmp_path: Path
) -> None:
    outcome = replayed(scripts, table, tmp_path, "a. Ray Tune, OptunaSearch")
    assert outcome.trials - outcome.complete < SLOTS  # what ran when it was over
    longest_epoch = max(max(table.curve(params).seconds) for params in table.recipes())
    assert outcome.trained_s == pytest.approx(outcome.wall_s * SLOTS, abs=SLOTS * longest_epoch)


def test_mixtune_trains_fewer_epochs_than_it_asks(scripts: SimpleNamespace, table: Any, tmp_path: Path) -> None:
    outcome = replayed(scripts, table, tmp_path, "g. mixtune, whole recipes")
    assert outcome.epochs_trained <= 0.8 * outcome.epochs_asked


def test_fifty_random_recipes_share_their_epochs(scripts: SimpleNamespace) -> None:
    for name in ("digits", "SSL-heavy"):
        epochs, most = scripts.stage_tree.SPACES[name]
        values = scripts.stage_tree.search_values(epochs, scripts.stage_tree.WSD, trials=50)
        asked, distinct = scripts.stage_tree.count_epochs(space_from_dict(values))
        assert asked > 1000
        assert distinct <= most * asked, name


def test_suggestions_can_be_timed(scripts: SimpleNamespace, tmp_path: Path) -> None:
    asking = scripts.stage_tree.Asking(tmp_path, 12)
    whole = scripts.stage_tree.WHOLE
    asked, decided = zip(*map(asking.seconds, ("tpe", "cost_aware", whole)), strict=True)
    assert [len(seconds) for seconds in asked] == 3 * [scripts.stage_tree.TIMED]
    assert all(0 < s < 60 for seconds in (*asked, *decided) for s in seconds)
