"""A whole search of a space whose parameters depend on each other, and what a forecast says of such a space."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from plain_search import search_here

from mixtune.cost.machine import Machine
from mixtune.report.page import write_report
from mixtune.run.result import Result, load
from mixtune.tuning.forecast import forecast_search, look_at_machine_for
from mixtune.tuning.prepare import Prepared, prepare

SPACE = {
    "ssl.temperature": {"uniform": [0.1, 0.5]},
    "ssl.objective": {"choice": ["simclr", "mae"]},
    "model.depth": {"choice": [1, 2], "when": {"ssl.objective": "mae"}},
    "epochs.sl": {"qrandint": [2, 3, 1], "prior": {"value": 3, "confidence": 0.5}},
    "epochs.ssl": {"same_as": "epochs.sl"},
    "optim.sl.base_lr": {"qloguniform": [0.01, 0.1, 0.01]},
}


@pytest.fixture(scope="module")
def result(small_space_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Result:
    sections = {"baselines": ["sl"], "search": {"sampler": "random", "trials": 6}}
    return search_here(small_space_values | {"space": SPACE} | sections, tmp_path_factory.mktemp("runs") / "run")


def test_trials_train_what_is_active_and_what_follows_and_tables_leave_the_rest_blank(result: Result) -> None:
    assert result.counts()["complete"] == 6
    rows = pd.read_csv(result.directory / "trials.csv").set_index("trial")
    assert {*rows["ssl.objective"]} == {"simclr", "mae"}
    assert (rows["ssl.temperature"].isna() == (rows["ssl.objective"] == "mae")).all()
    assert (rows["model.depth"].isna() == (rows["ssl.objective"] == "simclr")).all()
    for trial, row in rows.iterrows():
        recipe = result.space.recipe_at(result.records[str(trial)].params)
        assert (recipe.epochs.ssl, recipe.epochs.sl) == (row["epochs.sl"], row["epochs.sl"])
        mixed = int(recipe.rho * row["epochs.sl"])
        assert row["epochs_asked"] == 2 * row["epochs.sl"] - mixed  # as a worker trained it
        assert result.idle(str(trial)) >= {"model.depth" if recipe.ssl.objective == "simclr" else "ssl.temperature"}
    front = pd.read_csv(result.directory / "pareto.csv").set_index("trial")
    trials = front[front["baseline"].isna()]
    assert (trials["ssl.temperature"].isna() == (trials["ssl.objective"] == "mae")).all()


def test_a_report_says_on_what_parameters_depend_and_what_follows(result: Result) -> None:
    write_report(load(result.directory), driver=None)
    page = (result.directory / "report.html").read_text()
    for said in ("0.1 to 0.5, where ssl.objective is simclr", "1, 2, where ssl.objective is mae", "that of epochs.sl"):
        assert said in page


@pytest.fixture(scope="module")
def heads(small_space_values: dict[str, Any]) -> dict[str, Any]:
    recipe = small_space_values["recipe"]
    searched = {"model.embed_dim": {"choice": [32, 48, 64]}, "model.num_heads": {"choice": [2, 4, 6]}}
    return {"recipe": {**recipe, "model": {**recipe["model"], "embed_dim": 48}}, "space": searched, "baselines": []}


@pytest.fixture(scope="module")
def machine(heads: dict[str, Any]) -> Machine:
    return look_at_machine_for(prepare(heads, gpus=0))


def test_a_forecast_says_which_share_of_the_space_is_possible(heads: dict[str, Any], machine: Machine) -> None:
    def said(**sections: Any) -> str | None:
        prepared: Prepared = prepare(heads | sections, gpus=0)
        found = forecast_search(prepared, machine)
        assert str(found).endswith(found.possible or "GB of training states")
        return found.possible

    assert said() == "possible: 7 of the 9 recipes of the space"  # 32 and 64 are no multiples of 6
    heavy = {"model.embed_dim <= 48": True, "model.num_heads < 6": True}
    assert said(constraints=heavy) == "possible: 4 of the 9 recipes of the space"
    assert said(space={"model.embed_dim": {"choice": [32, 48, 64]}}) is None
    drawn = said(space={"alpha": {"uniform": [0.0, 1.0]}}, constraints={"alpha > 0.5": True})
    assert drawn is not None
    assert 30 < int(drawn.removeprefix("possible: about ").partition(" %")[0]) < 70
    assert drawn.endswith("% of the space (64 recipes drawn)")
