"""A run's space, edited between two starts: earlier trials keep their recipes, and inform what comes."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from plain_search import continue_here, open_here, search_here
from rich.console import Console

import mixtune
from mixtune.errors import RequestError
from mixtune.report.page import write_report
from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import Ledger, read_ledger
from mixtune.run.status import run_status
from mixtune.tuning.editing import current_run, edit_run, read_edited, refuse_other_recipe
from mixtune.tuning.prepare import prepare
from mixtune.tuning.run import resume

SPACE: dict[str, Any] = {
    "alpha": {"uniform": [0.3, 0.7]},
    "rho": {"choice": [0.5, 1.0]},
    "epochs.sl": {"randint": [2, 4]},
    "optim.sl.warmup_epochs": {"fraction_of": {"epochs.sl": 0.4}},
}
WIDER: dict[str, Any] = {
    "alpha": {"uniform": [0.05, 0.95]},
    "rho": {"choice": [0.5, 1.0]},
    "epochs.sl": {"randint": [2, 4]},
    "optim.sl.warmup_epochs": SPACE["optim.sl.warmup_epochs"],
    "ssl.mask_ratio": {"choice": [0.5, 0.75]},
    "optim.sl.base_lr": {"loguniform": [0.01, 0.1]},
}
BASE = {"ssl.mask_ratio": 0.75, "optim.sl.base_lr": 0.04}
TRIALS = ["t0001", "t0002", "t0003", "t0004"]


@pytest.fixture(scope="module")
def values(small_space_values: dict[str, Any]) -> dict[str, Any]:
    made = small_space_values | {"space": SPACE, "search": {"sampler": "tpe", "trials": 4}, "baselines": ["sl"]}
    made["resources"] = {**made["resources"], "gpus_per_trial": 0}
    optim = made["recipe"]["optim"]
    return {**made, "recipe": {**made["recipe"], "optim": {**optim, "sl": {**optim["sl"], "schedule": "wsd"}}}}


@pytest.fixture(scope="module")
def finished(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    search_here(values, folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def edited(values: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Return a function that gives the run's values with others in their place."""
    return lambda **sections: {**copy.deepcopy(values), **sections}


def edit(folder: Path, space: dict[str, Any]) -> str:
    """Edit a run as its resume does."""
    run = current_run(folder)
    prepared = prepare(read_edited(space, run), gpus=0)
    refuse_other_recipe("new.yaml", run, prepared.space)
    return edit_run(run, prepared.space, {"train_flops": 1.0})


def told(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the parameters of the earlier trials that Optuna is told."""
    trials = open_here(folder).suggester.study.trials
    complete = (trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE)
    return {name: t.params for t in complete if (name := t.user_attrs["trial"]) in TRIALS}


@pytest.mark.parametrize("sampler", ["tpe", "cost_aware", "gp", "nsga2", "random"])
def test_a_wider_space_of_two_more_parameters_has_what_was_found(
    run: Path, edited: Callable[..., dict[str, Any]], sampler: str
) -> None:
    before = mixtune.load(run)
    said = edit(run, edited(space=WIDER, search={"sampler": sampler, "trials": 6}))
    names = ["space.alpha", "space.ssl.mask_ratio", "space.optim.sl.base_lr"]
    changed = [*names, *(["search.sampler"] if sampler != "tpe" else []), "search.trials"]
    assert said == f"edited: {', '.join(changed)}"
    assert told(run) == {name: {**before.records[name].params, **BASE} for name in TRIALS}
    search = open_here(run)
    assert search.unheard == 0
    if sampler == "cost_aware":
        seen = search._advice.records
        assert [{**BASE, **seen[name].params} for name in TRIALS] == [seen[name].params for name in TRIALS]
        assert all(seen[name].epochs for name in TRIALS)
    result = continue_here(run)
    assert result.counts()["complete"] == 6
    assert all(result.values[trial] == before.values[trial] for trial in TRIALS)
    rows = result.trials.set_index("trial")
    assert rows.loc[TRIALS, list(BASE)].isna().all(axis=None)
    new = rows[rows["state"] == "complete"].drop(index=TRIALS)
    assert new[["alpha", *BASE]].notna().all(axis=None)
    again = open_here(run)
    assert again.suggester.study.trials[0].params == search.suggester.study.trials[0].params
    assert write_report(mixtune.load(run), driver=None).stat().st_size > 0
    assert run_status(mixtune.load(run), None).state == "finished"


def test_what_lies_outside_of_a_narrower_space_is_told_where_it_can_be_held(
    run: Path, edited: Callable[..., dict[str, Any]]
) -> None:
    alphas = {name: record.params["alpha"] for name, record in mixtune.load(run).records.items() if name in TRIALS}
    bound = sorted(alphas.values())[1] - 1e-4
    outside = {name for name, alpha in alphas.items() if alpha > bound}
    narrow = SPACE | {"alpha": {"uniform": [0.2, bound]}}
    for sampler, holds in (("tpe", True), ("gp", False), ("cost_aware", True)):
        edit(run, edited(space=narrow, search={"sampler": sampler, "trials": 8}))
        assert set(told(run)) == (set(TRIALS) if holds else set(TRIALS) - outside)
        search = open_here(run)
        assert search.unheard == (0 if holds else 3)
    seen = search._advice.records  # cost_aware's: on the front as a neighbour in the space, measured where it was
    for name in outside:
        assert (seen[name].params["alpha"], seen[name].epochs, seen[name].state) == (bound, [], "complete")
        where = seen[f"{name} as it was"]
        assert (where.params["alpha"], where.state) == (alphas[name], "learned")
        assert where.epochs
    asked = search.ask()
    assert asked is not None
    assert 0.2 <= asked.params["alpha"] <= bound
    del narrow["rho"]  # the base recipe's is 0.5: other trials are of another space
    edit(run, edited(space=narrow, search={"sampler": "cost_aware", "trials": 8}))
    search = open_here(run)
    whole = {name for name, record in search.records.items() if name in TRIALS and record.params["rho"] == 1.0}
    assert search.unheard == len(whole) > 0
    assert not whole & set(told(run))
    seen = search._advice.records
    assert all(seen[name].epochs == [] and f"{name} as it was" not in seen for name in whole)


def test_auto_in_an_edited_space_is_the_runs_own_sampler(run: Path, edited: Callable[..., dict[str, Any]]) -> None:
    assert mixtune.load(run).space.search.sampler == "tpe"
    assert edit(run, edited(search={"sampler": "auto", "trials": 6})) == "edited: search.trials"
    assert mixtune.load(run).space.search.sampler == "tpe"


def test_a_field_that_follows_no_other_any_more_is_as_it_was_in_earlier_trials(
    run: Path, edited: Callable[..., dict[str, Any]]
) -> None:
    before = mixtune.load(run).values
    edit(run, edited(space={path: entry for path, entry in SPACE.items() if "warmup" not in path}))
    after = mixtune.load(run)
    assert after.values == before
    assert {after.records[name].params["optim.sl.warmup_epochs"] for name in TRIALS} == {1}
    assert open_here(run).unheard == 4  # no recipe of this space has such a warm-up


def test_a_kill_between_ledger_and_file_is_mended_and_what_was_remembered_is_forgotten(
    run: Path, edited: Callable[..., dict[str, Any]]
) -> None:
    Ledger(run / "ledger.jsonl").append(
        "exhausted", reason="nothing is left", sampler={"memory": {"val_accuracy": [1]}}
    )
    former = (run / "space.yaml").read_bytes()
    edit(run, edited(space=WIDER))
    latter = (run / "space.yaml").read_bytes()
    (run / "space.yaml").write_bytes(former)
    assert {*current_run(run).space.space} == {*WIDER} - {"optim.sl.warmup_epochs"}
    assert (run / "space.yaml").read_bytes() == latter
    state = RunDirectory(run).state
    assert (state.exhausted, state.memory, state.budget) == (None, {}, None)
    assert yaml.safe_load(latter)["run"]["most_expensive"] == {"train_flops": 1.0}
    assert edit(run, edited(space=WIDER)) == "the space is the run's already: nothing is edited"
    assert sum(event["event"] == "edited" for event in read_ledger(run / "ledger.jsonl")) == 1


def test_a_grid_that_grows_is_tried_in_full(values: dict[str, Any], tmp_path: Path) -> None:
    small = {"space": {"rho": {"choice": [0.5, 1.0]}}, "search": {"sampler": "grid"}, "baselines": []}
    search_here(values | small, tmp_path / "run")
    larger = {"rho": {"choice": [0.5, 0.0]}, "epochs.sl": {"choice": [2, 3]}}
    edit(tmp_path / "run", values | small | {"space": larger, "search": {"sampler": "grid", "trials": 4}})
    result = continue_here(tmp_path / "run", trials=5)
    rows = result.trials[result.trials["state"] == "complete"]
    assert sorted(zip(rows["rho"], rows["epochs.sl"].fillna(3), strict=True)) == [
        *((0.0, 2), (0.0, 3), (0.5, 2), (0.5, 3), (1.0, 3))
    ]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"objectives": {"val_macro_f1": "max", "train_flops": "min"}}, 'objectives is {"val_macro_f1": "max"'),
        ({"baselines": ["sl", "paper"]}, 'baselines is ["sl", "paper"], and ["sl"] in this run'),
        ({"recipe": {"epochs": {"ssl": 3}}}, "recipe.epochs.ssl is 3, and 2 in this run"),
    ],
)
def test_what_else_is_edited_is_refused_and_a_new_search_is_named(
    run: Path, edited: Callable[..., dict[str, Any]], sections: dict[str, Any], said: str
) -> None:
    before = (run / "ledger.jsonl").read_bytes()
    space = edited(space=WIDER)
    space["recipe"]["epochs"] |= sections.pop("recipe", {}).get("epochs", {})
    with pytest.raises(RequestError) as error:
        resume(run, space={**space, **sections}, gpus=0)
    assert str(error.value).startswith(f"space: {said}")
    end = "of which only space, constraints, search and resources can be edited"
    assert end.replace(" and ", ", ") in str(error.value)
    assert str(error.value).endswith(f"a new search learns from it by search.learn_from: [{run}]")
    assert (run / "ledger.jsonl").read_bytes() == before


def test_a_space_that_was_edited_by_hand_trains_nothing_before_the_ledger_has_taken_it_over(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, space = run / "space.yaml", yaml.safe_load((run / "space.yaml").read_text())
    file.write_text(f"# a note\n{yaml.safe_dump(space)}")  # the same values
    assert current_run(run).space.space["rho"].values == (0.5, 1.0)
    space["space"]["rho"] = {"choice": [0.0, 1.0]}
    file.write_text(yaml.safe_dump(space))
    says = rf"space.yaml was edited by hand, .*: mixtune resume {run} --space {file} takes the edit over"
    for command in (
        lambda: resume(run, gpus=0),
        lambda: continue_here(run),
        lambda: mixtune.confirm(run),
        lambda: mixtune.export(run),
    ):
        with pytest.raises(RequestError, match=says):
            command()
    mixtune.load(run)
    assert caplog.messages == [f"{file} was edited by hand: its trials are of what it held before"]
    edited = prepare(read_edited(file, before := current_run(run, file)), gpus=0)
    assert edit_run(before, edited.space, {}) == "edited: space.rho"
    after = current_run(run)
    assert after.space.space["rho"].values == (0.0, 1.0)
    assert yaml.safe_load(file.read_text()) == after.state.edited


def test_resume_trains_the_edited_space_and_says_what_was_edited(
    run: Path, edited: Callable[..., dict[str, Any]], ray_quietly: None, tmp_path: Path
) -> None:
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(edited(space=WIDER), sort_keys=False))
    console = Console(file=io.StringIO(), width=100)
    result = resume(run, space=tmp_path / "new.yaml", trials=6, first=[{"alpha": 0.9}], gpus=0, console=console)
    assert isinstance(console.file, io.StringIO)
    assert "edited: space.alpha, space.ssl.mask_ratio" in console.file.getvalue()
    first, *_ = (record for name, record in result.records.items() if name not in [*TRIALS, "sl"])
    assert first.params == {"alpha": 0.9, "rho": 0.5, "epochs.sl": 3, **BASE}
    assert result.counts()["complete"] == 6
    assert pd.read_csv(run / "trials.csv")["optim.sl.base_lr"].notna().sum() >= 2
