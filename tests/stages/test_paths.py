"""Where paths part, against the keys of all pairs of recipes; who waits for whom."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from mixtune.space.points import points
from mixtune.space.space import space_from_dict
from mixtune.stages.paths import RecipePaths
from mixtune.stages.table import StageTable, Stored, TrialPath
from mixtune.training.plan import make_plan

SCHEDULES = [*product(["cosine", "wsd"], repeat=2), ("whole_cosine", "polynomial"), ("polynomial", "whole_cosine")]
BUDGETS = {"epochs.ssl": {"choice": [1, 2, 6, 7, 12]}, "epochs.sl": {"choice": [1, 5, 6, 10]}}


def space_with(small_space: Any, ssl: str, sl: str, rho: Any, warmup: int, budgets: Any = BUDGETS) -> Any:
    values = small_space(space={**budgets, "rho": rho, "alpha": {"choice": [0.5, 0.7]}})
    for loss, schedule in (("ssl", ssl), ("sl", sl)):
        values["recipe"]["optim"][loss] |= {"schedule": schedule, "warmup_epochs": warmup}
    return space_from_dict(values)


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("rho", [{"choice": [0.0, 0.5, 1.0]}, {"uniform": [0.0, 1.0]}])
@pytest.mark.parametrize(("ssl", "sl"), SCHEDULES)
def test_a_recipe_stores_where_another_of_its_space_goes_on_and_nowhere_else(
    small_space: Any, ssl: str, sl: str, rho: Any, warmup: int
) -> None:
    space = space_with(small_space, ssl, sl, rho, warmup)
    paths = RecipePaths(space)
    drawn = [
        {"epochs.ssl": e, "epochs.sl": s, "rho": r, "alpha": a}
        for e, s, r, a in product([1, 2, 6, 7, 12], [1, 5, 6, 10], [0.0, 0.5, 1.0], [0.5, 0.7])
    ]
    drawn += [{"alpha": 0.5, **params} for params in space.baseline_params().values()]
    for one in drawn:
        shared = {paths(one).shared_with(paths(other)) for other in drawn}
        assert shared - {-1, 0} <= paths(one).stored_after, one
        if "choice" in rho:  # all recipes of the space were drawn
            assert set(paths.branches.of(space.recipe_at(one))) <= shared, one


ABC = TrialPath("abcde", {2, 4})
ABX = TrialPath("abcxy", {2, 4})
TABLE = {"abc": ABC, "abx": ABX, "other": TrialPath("zzz", {2})}


def test_budgets_that_follow_others_or_depend_on_them_part_where_theirs_do(small_space: Any) -> None:
    tied = {"epochs.ssl": {"choice": [2, 4, 8]}, "epochs.sl": {"fraction_of": {"epochs.ssl": 1.5}}}
    depends = {"epochs.sl": {"choice": [3, 6, 9], "when": {"rho": [1.0]}}, "epochs.ssl": {"choice": [2, 4]}}
    for budgets in (tied, depends):
        space = space_with(small_space, "wsd", "wsd", {"choice": [0.0, 0.5, 1.0]}, 1, budgets)
        paths = RecipePaths(space)
        drawn = [*points(space), *({"alpha": 0.5, **params} for params in space.baseline_params().values())]
        for one in drawn:
            shared = {paths(one).shared_with(paths(other)) for other in drawn}
            assert shared - {-1, 0} <= paths(one).stored_after, one


def test_stages_of_shares_begin_as_much_later_as_a_budget_is_longer_and_part_paths_there(small_space: Any) -> None:
    values = small_space(space={"epochs.ssl": {"choice": [4, 6, 8, 12]}, "rho": {"choice": [0.0, 0.5]}})
    stages = [{"from_share": 0.0, "token_dropout": 0.5}, {"from_share": 0.5, "patch_size": 4}, {"from_share": 0.75}]
    values["recipe"]["ssl"] = {"objective": "simclr", "compression": {"schedule": "auto", "stages": stages}}
    values["recipe"]["optim"]["ssl"] = {"schedule": "wsd", "warmup_epochs": 1}
    space = space_from_dict(values)
    strategies = {
        ssl: [epoch.strategy for epoch in make_plan(space.recipe_at({"epochs.ssl": ssl, "rho": 0.0}))][:ssl]
        for ssl in (4, 8, 12)
    }
    for ssl, found in strategies.items():
        assert [found.index(each) for each in dict.fromkeys(found)] == [0, ssl // 2, 3 * ssl // 4]
    paths = RecipePaths(space)
    drawn = [*points(space), *space.baseline_params().values()]
    for one in drawn:
        shared = {paths(one).shared_with(paths(other)) for other in drawn}
        assert shared - {-1, 0} <= paths(one).stored_after, one
        assert set(paths.branches.of(space.recipe_at(one))) <= shared, one


@pytest.fixture
def table() -> StageTable:
    return StageTable(lambda params: TABLE[params["path"]])


def named(path: str) -> dict[str, str]:
    return {"path": path}


def test_a_trial_waits_for_a_stage_that_is_being_built_and_for_no_other(table: StageTable) -> None:
    assert table.awaited(named("abx")) is None
    table.begin("t1", named("abc"))
    assert table.awaited(named("abx")) == "t1"
    assert table.awaited(named("abc")) == "t1"
    assert table.awaited(named("other")) is None
    table.advance("t1", 1)
    assert table.awaited(named("abx")) == "t1"
    table.note_stored(named("abc"), 2, Stored("key"))
    table.advance("t1", 2)
    assert table.awaited(named("abx")) is None  # they part here
    assert table.awaited(named("abc")) == "t1"  # an equal recipe waits for the end


def test_nobody_waits_for_a_builder_that_left_or_a_stage_that_could_not_be_stored(table: StageTable) -> None:
    table.begin("t1", named("abc"))
    table.leave("t1")
    assert table.awaited(named("abx")) is None
    table.begin("t1", named("abc"))
    table.advance("t1", 3)
    assert table.awaited(named("abx")) is None


def test_what_is_stored_or_coming_is_reusable(table: StageTable) -> None:
    assert table.reusable(named("abx")) == 0
    table.begin("t1", named("abc"))
    assert table.reusable(named("abx")) == 0  # who waits for it waits as long as it trains
    table.advance("t1", 1)
    assert table.reusable(named("abx")) == 1
    table.leave("t1")
    assert table.reusable(named("abx")) == 0
    table.note_stored(named("abc"), 1, Stored("key"))  # between branches: it does not stay
    assert table.reusable(named("abx")) == 0
    table.note_stored(named("abc"), 2, Stored("key"))
    assert table.reusable(named("abx")) == 2
    assert table.reusable(named("abc")) == 2
    table.note_stored(named("abc"), 4, Stored("key"))
    assert table.reusable(named("abc")) == 4


def test_a_path_follows_the_first_trial_that_came_to_where_they_part(table: StageTable) -> None:
    assert table.follows("t1", named("abc")) is None
    assert table.follows("t2", named("abx")) == ("t1", 2)
    assert table.follows("t3", named("abx")) == ("t2", 4)  # an equal recipe, all of it
    assert table.follows("t4", named("other")) is None
    assert table.follows("t2", named("abx")) == ("t1", 2)  # tried again, it follows whom it followed


def test_a_recipe_that_does_not_exist_has_a_path_of_its_own(small_space: Any) -> None:
    paths = RecipePaths(space_from_dict(small_space()))
    wrong = paths({"rho": 2.0})
    assert wrong.shared_with(paths({"rho": 0.5})) == -1
    assert wrong.stored_after == frozenset()
