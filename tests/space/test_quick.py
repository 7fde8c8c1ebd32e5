"""`--quick` cuts any space to one that is valid, small and otherwise the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixtune.space.quick import QUICK_EPOCHS, QUICK_TRIALS, quick_space
from mixtune.space.space import load_space, space_from_dict

DIGITS = {"data": {"dataset": "digits"}}
SHIPPED = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


def test_every_ready_space_becomes_a_smoke_run() -> None:
    for path in SHIPPED:
        space = load_space(path)
        small, line = quick_space(space)
        assert small == space_from_dict(small.to_dict()), path  # valid, and survives its file
        assert small.budget == min(QUICK_TRIALS, space.budget)
        assert f"{small.budget} of {space.budget} trials, at most {QUICK_EPOCHS} of " in line
        assert list(small.space) == list(space.space)
        budgets = [value for p, value in small.extremes() if p.startswith("epochs.")]
        assert max([*budgets, small.recipe.epochs.ssl, small.recipe.epochs.sl]) == QUICK_EPOCHS, path
        assert small.recipe.model_copy(update={"epochs": space.recipe.epochs, "optim": space.recipe.optim}) == (
            space.recipe
        )
        assert small.recipe.optim.ssl.warmup_epochs < space.recipe.optim.ssl.warmup_epochs


def test_every_kind_of_distribution_stays_one() -> None:
    for given, expected in (
        ({"qrandint": [0, 100, 25]}, {"qrandint": [0, 4, 1]}),
        ({"randint": [50, 101]}, {"randint": [2, 5]}),
        ({"randint": [1, 3]}, {"randint": [1, 2]}),
        ({"lograndint": [10, 101]}, {"lograndint": [1, 5]}),
        ({"choice": [0, 1, 10, 30, 100]}, {"choice": [0, 1, 4]}),
    ):
        small, _ = quick_space(space_from_dict({"recipe": DIGITS, "space": {"epochs.ssl": given}}))
        assert small.space["epochs.ssl"].to_yaml() == expected
        assert small == space_from_dict(small.to_dict())


def test_what_a_few_epochs_cannot_show_keeps_more_and_a_small_space_stays_as_it_is() -> None:
    rare: dict[str, Any] = {"recipe": {**DIGITS, "rho": 0.1}, "space": {"alpha": {"uniform": [0, 1]}}}
    small, line = quick_space(space_from_dict(rare))
    assert (small.recipe.epochs.ssl, small.recipe.epochs.sl) == (16, 16)  # a tenth of 8 would mix nothing
    assert "at most 16 of 100 epochs" in line
    tiny = {"recipe": {**DIGITS, "epochs": {"ssl": 2, "sl": 3}}, "space": {"epochs.sl": {"qrandint": [2, 4, 2]}}}
    space = space_from_dict({**tiny, "search": {"trials": 3}})
    assert quick_space(space)[0] == space


def test_limits_on_what_is_learned_are_dropped_and_others_stay() -> None:
    limits = {"val_accuracy": ">= 0.9", "train_latency_s": "<= 60"}
    space = space_from_dict({"recipe": DIGITS, "space": {"rho": {"uniform": [0, 1]}}, "constraints": limits})
    small, line = quick_space(space)
    assert list(small.constraints) == ["train_latency_s"]
    assert "no constraint on val_accuracy" in line
