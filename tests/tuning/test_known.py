"""What is not trained: a recipe whose outcome is known, one that cannot be, and all of a space that is exhausted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from mixtune import plugins
from mixtune.errors import RequestError
from mixtune.run.ledger import TrialRecord, read_ledger
from mixtune.space.effective import effective
from mixtune.space.recipe import flatten
from mixtune.space.space import space_from_dict
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES
from mixtune.tuning.asking import DRAWS, MAX_IN_A_ROW
from mixtune.tuning.prepare import prepare
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import EpochReport

SPACE = {
    "alpha": {"choice": [0.2, 0.4]},
    "rho": {"choice": [0.0, 0.1, 0.5, 0.6, 1.0]},  # of 2 SSL epochs: none, none, one, one and two are mixed
    "ssl.mask_ratio": {"choice": [0.5, 0.75]},
    "epochs.ssl": {"choice": [0, 2]},
}
DIFFERENT = 1 + 2 * (1 + 2 + 2)  # sl; a mask ratio each of ssl_sl, and of two alphas at one and at two mixed epochs


def begin(search: RunningSearch) -> str | None:
    asked = search.ask()
    if asked is None:
        return None
    search.start(asked.trial)
    return asked.trial


def finish(search: RunningSearch, trial: str) -> None:
    alpha = search.records[trial].params.get("alpha", 0.5)
    metrics = {"epoch": 3, "epochs_asked": 3, "val_accuracy": 0.5 + alpha / 3, "device": "a CPU"}
    bill = Bill(dict.fromkeys(PHASES, 10), (("sl", "steps", 1.0),) * 3, "inference")
    windows = [("steps", 0.1, True, {"device": "a CPU"})]
    search.report(trial, EpochReport([{"epoch": 3}], metrics, windows, bill))
    search.end(trial)


def recipe_of(search: RunningSearch, record: TrialRecord) -> dict[str, Any]:
    return effective({**flatten(search.space.recipe.to_dict()), **record.params})


@pytest.mark.parametrize("sampler", [name for name in plugins.names("tuning.samplers") if name != "cost_aware"])
def test_every_recipe_is_trained_once_and_then_the_search_ends(small_space: Any, tmp_path: Path, sampler: str) -> None:
    values = small_space(space=SPACE, search={"sampler": sampler, "trials": 40}, baselines=["ssl_sl"])
    search = RunningSearch(space_from_dict(values), tmp_path / "ledger.jsonl", slots=2)
    while trial := begin(search):
        finish(search, trial)
    assert search.is_over
    assert search.stop_reason is None
    trained = [record for record in search.records.values() if record.state == "complete"]
    assert len(trained) == DIFFERENT
    assert all(
        recipe_of(search, one) != recipe_of(search, other) for one in trained for other in trained if one != other
    )
    known = [record for record in search.records.values() if record.state == "known"]
    assert len(known) + len(trained) == len(search.records)
    for record in known:
        assert recipe_of(search, record) == recipe_of(search, search.records[str(record.same_as)])
    assert search.done == DIFFERENT - 1  # the budget is not charged for them, nor for the baseline
    told = {trial.user_attrs["trial"]: trial for trial in search.suggester.study.trials}
    for record in known:
        assert told[record.trial].state == optuna.trial.TrialState.FAIL
        assert told[record.trial].user_attrs["same_as"] == record.same_as
    if sampler != "grid":
        every = 2 * 5 * 2 * 2
        assert search.state.exhausted == (
            f"nothing is left to try: the {every} recipes of the space come to {DIFFERENT} different ones, "
            "which are known"
        )
    going_on = RunningSearch(search.space, tmp_path / "ledger.jsonl")
    assert going_on.is_over
    assert [(r.state, r.same_as) for r in going_on.records.values()] == [
        (r.state, r.same_as) for r in search.records.values()
    ]


def test_a_repeat_of_a_running_trial_holds_no_slot_and_another_is_asked(small_space: Any, tmp_path: Path) -> None:
    space = space_from_dict(small_space(space={"alpha": {"choice": [0.2, 0.4]}}, baselines=[]))
    search = RunningSearch(space, tmp_path / "ledger.jsonl", slots=2)
    running = [begin(search), begin(search)]
    assert {search.records[str(trial)].params["alpha"] for trial in running} == {0.2, 0.4}
    assert begin(search) is None
    assert not search.is_over  # two trials run
    assert search.state.exhausted
    last = [event for event in read_ledger(tmp_path / "ledger.jsonl") if event["event"] == "known"][-MAX_IN_A_ROW:]
    assert {event["same_as"] for event in last} <= set(running)


@pytest.mark.parametrize(("cause", "trained"), [("crash", 2), ("permanent", 1)])
def test_what_diverged_answers_and_what_crashed_is_trained_again(
    small_space: Any, tmp_path: Path, cause: Any, trained: int
) -> None:
    space = space_from_dict(small_space(space={"alpha": {"choice": [0.2]}}, search={"max_failures": 0}, baselines=[]))
    search = RunningSearch(space, tmp_path / "ledger.jsonl")
    search.fail(str(begin(search)), "the reason", cause)
    search = RunningSearch(space, tmp_path / "ledger.jsonl")  # the ledger knows why
    if trial := begin(search):
        finish(search, trial)
    assert begin(search) is None
    assert sum(record.begun_time is not None for record in search.records.values()) == trained


def test_what_cannot_be_is_rejected_before_training_and_told_to_the_sampler(small_space: Any, tmp_path: Path) -> None:
    space = space_from_dict(small_space(search={"sampler": "tpe", "trials": 8}, baselines=[]))
    search = RunningSearch(
        space,
        tmp_path / "ledger.jsonl",
        fault=lambda params: "alpha is too small" if params["alpha"] < 0.8 else None,
    )
    while trial := begin(search):
        finish(search, trial)
    assert search.done == 8
    rejected = {record.trial for record in search.records.values() if record.state == "rejected"}
    assert rejected
    assert {search.records[trial].reason for trial in rejected} == {"alpha is too small"}
    told = {trial.user_attrs["trial"]: trial.constraints for trial in search.suggester.study.trials}
    assert {trial for trial, constraints in told.items() if constraints.get("possible", 0.0) > 0} == rejected


def test_a_space_of_which_nothing_can_be_ends_the_search_and_says_why(small_space: Any, tmp_path: Path) -> None:
    space = space_from_dict(small_space(baselines=[]))
    search = RunningSearch(space, tmp_path / "ledger.jsonl", fault=lambda params: "no such recipe")
    assert begin(search) is None
    assert search.is_over
    assert search.stop_reason == (f"of {DRAWS:,} recipes drawn from the space not one may be trained: no such recipe")


def test_heads_and_widths_that_do_not_go_with_the_base_recipe_are_searched_where_they_go_together(
    small_space: Any,
) -> None:
    choices = {"model.embed_dim": {"choice": [12, 20, 48]}, "model.num_heads": {"choice": [3, 4, 5]}}
    prepare(small_space(space=choices))  # of the base recipe's 2 heads and width of 16 none of them goes with all
    with pytest.raises(RequestError, match=r"^space\.model\.embed_dim at 17: model: timm cannot build "):
        prepare(small_space(space={**choices, "model.embed_dim": {"choice": [17, 48]}}))
