"""What Optuna is asked and told."""

from __future__ import annotations

import functools
import math
from typing import Any

import optuna
import pytest

from mixtune import plugins
from mixtune.errors import RequestError
from mixtune.run.ledger import TrialRecord
from mixtune.space.document import Document
from mixtune.space.space import read_run_space, space_from_dict
from mixtune.tuning.suggestions import Suggester, _trial_seed, find_sampler, first_point, settle_sampler, to_optuna

SAMPLERS = plugins.names("tuning.samplers")


def finite_space(small_space: Any, sampler: str, **sections: Any) -> Any:
    space = {
        "alpha": {"choice": [0.25, 0.5, 0.75]},
        "rho": {"quniform": [0.0, 1.0, 0.5]},
        "epochs.sl": {"randint": [1, 3]},
    }
    return space_from_dict(small_space(space=space, search={"sampler": sampler}, **sections))


def cost(params: dict[str, Any]) -> dict[str, float]:
    return {"val_accuracy": 1 - abs(params["alpha"] - 0.5), "train_latency_s": params["epochs.sl"] - params["rho"] / 2}


def run(suggester: Suggester, count: int, others: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    asked = []
    for number in range(1, count + 1):
        trial = f"t{number:04d}"
        asked.append(suggester.ask(trial, number))
        suggester.tell(TrialRecord(trial, "complete", metrics=cost({**(others or {}), **asked[-1]})))
    return asked


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_suggestion_is_of_the_space_and_depends_only_on_the_seed_and_the_trials_before(
    small_space: Any, sampler: str
) -> None:
    space = finite_space(small_space, sampler)
    asked = run(Suggester(space), 12)
    for params in asked:
        assert set(params) == set(space.space)
        assert all(space.space[path].contains(value) for path, value in params.items())
        space.recipe_at(params)
    assert run(Suggester(space), 12) == asked


def test_auto_is_settled_once_and_says_why(small_space: Any) -> None:
    space = space_from_dict(small_space(search={"sampler": "auto", "trials": 2_000}))
    settled, why = settle_sampler(space)
    assert (settled.search.sampler, why[:20]) == ("cost_aware", "sampler cost_aware: ")
    assert settled.to_dict()["search"]["sampler"] == {"name": "cost_aware", "by_stage": True}
    assert settle_sampler(settled.with_search(trials=2_001))[0].search.sampler == "cost_aware"  # it continues
    larger, why = settle_sampler(space.with_search(trials=2_001))
    assert larger.search.sampler == "tpe"
    assert why == "sampler tpe: 2,001 trials are more than the 2,000 that cost_aware is for"


def test_a_run_whose_file_says_nothing_of_stages_goes_on_trial_by_trial(small_space: Any) -> None:
    values = space_from_dict(small_space(search={"sampler": "cost_aware"})).to_dict()
    begun, recorded = space_from_dict(values), read_run_space(Document("space.yaml", values))
    assert [settle_sampler(space)[0].search.sampler_options["by_stage"] for space in (begun, recorded)] == [True, False]


def test_options_reach_the_sampler_and_unknown_ones_are_named(small_space: Any) -> None:
    def of(sampler: dict[str, Any]) -> Any:
        return space_from_dict(small_space(search={"sampler": sampler}))

    plain, joint = (run(Suggester(of({"name": "tpe", **options})), 14) for options in ({}, {"multivariate": True}))
    assert plain[:10] == joint[:10]  # drawn at random
    assert plain[10:] != joint[10:]
    with pytest.raises(RequestError, match=r"search\.sampler: tpe: unknown option 'multivariat'; .* 'multivariate'\?"):
        find_sampler(of({"name": "tpe", "multivariat": True}))
    with pytest.raises(RequestError, match="known are by_stage"):
        find_sampler(of({"name": "cost_aware", "stages": True}))


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "grid"])
def test_another_search_seed_gives_other_suggestions(small_space: Any, sampler: str) -> None:
    first = space_from_dict(small_space(search={"sampler": sampler, "seed": 0}))
    second = first.with_search(seed=1)
    assert run(Suggester(first), 4)[1:] != run(Suggester(second), 4)[1:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_that_run_at_once_and_end_in_any_way_are_all_told(small_space: Any, sampler: str) -> None:
    suggester = Suggester(finite_space(small_space, sampler))
    asked = {f"t{i:04d}": suggester.ask(f"t{i:04d}", i) for i in range(1, 13)}
    for number, (trial, params) in enumerate(asked.items()):
        if number % 3 == 0:
            suggester.tell(TrialRecord(trial, "complete", metrics=cost(params)))
        elif number % 3 == 1:
            suggester.tell(TrialRecord(trial, "stopped"))
        else:
            suggester.tell(TrialRecord(trial, "failed"))
    states = [trial.state for trial in suggester.study.trials]
    assert (
        states == [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL] * 4
    )
    assert {t.number % 3 for t in suggester.study.best_trials} == {0}
    suggester.ask("t0013", 13)


def test_the_grid_visits_every_recipe_once(small_space: Any) -> None:
    space = finite_space(small_space, "grid")
    assert space.grid_size() == space.budget == 3 * 3 * 2
    one_by_one = [tuple(params.items()) for params in run(Suggester(space), space.budget)]
    assert len(set(one_by_one)) == space.budget
    at_once = Suggester(space)
    assert {tuple(at_once.ask(f"t{i:04d}", i).items()) for i in range(1, space.budget + 1)} == set(one_by_one)


def test_the_papers_point_is_asked_first_with_the_base_recipes_other_values(small_space: Any) -> None:
    space = space_from_dict(small_space())
    paper = {"alpha": 0.5, "rho": 0.5, "epochs.sl": 3}
    assert Suggester(space).ask("t0001", 1) == paper
    baseline = space_from_dict(small_space(baselines=["paper"]))
    assert Suggester(baseline).ask("t0001", 1) != paper  # it is trained anyway


def test_values_that_the_space_does_not_hold_are_left_to_the_sampler(small_space: Any) -> None:
    space = space_from_dict(small_space(space={"alpha": {"uniform": [0.6, 0.9]}, "rho": {"choice": [0.5, 1.0]}}))
    assert first_point(space) == {"rho": 0.5}
    params = Suggester(space).ask("t0001", 1)
    assert params["rho"] == 0.5
    assert 0.6 <= params["alpha"] <= 0.9


def test_quantised_draws_are_the_decimals_that_were_meant(small_space: Any) -> None:
    space = space_from_dict(small_space(space={"rho": {"quniform": [0.0, 1.0, 0.05]}}, search={"sampler": "random"}))
    suggester = Suggester(space)
    drawn = {suggester.ask(f"t{i:04d}", i)["rho"] for i in range(1, 200)}
    assert drawn <= {round(0.05 * k, 2) for k in range(21)}
    assert 0.15 in drawn


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_logarithmic_draws_are_rounded_and_a_resumed_search_suggests_the_same(small_space: Any, sampler: str) -> None:
    drawn = {"optim.sl.base_lr": {"qloguniform": [0.001, 1.0, 0.001]}, "epochs.sl": {"qlograndint": [4, 64, 4]}}
    space = space_from_dict(small_space(space=drawn, search={"sampler": sampler}))
    whole, interrupted = Suggester(space), Suggester(space)
    asked: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for number in range(1, 31):
        trial = f"t{number:04d}"
        if number == 20:  # a search that continues
            interrupted = Suggester(space)
            for before, params in enumerate(asked, 1):
                interrupted.ask_again(f"t{before:04d}", params, notes[before - 1])
                interrupted.tell(TrialRecord(f"t{before:04d}", "complete", metrics=measured(params)))
        asked.append(whole.ask(trial, number))
        notes.append(whole.notes(trial))
        assert interrupted.ask(trial, number) == asked[-1]
        for suggester in (whole, interrupted):
            suggester.tell(TrialRecord(trial, "complete", metrics=measured(asked[-1])))
    assert all(space.space[path].contains(value) for params in asked for path, value in params.items())
    rates = sorted(params["optim.sl.base_lr"] for params in asked)
    assert sampler != "random" or rates[len(rates) // 2] < 0.2  # the median of a uniform draw would be 0.5


def measured(params: dict[str, Any]) -> dict[str, float]:
    return {"val_accuracy": 1 - params["optim.sl.base_lr"], "train_latency_s": float(params["epochs.sl"])}


CONDITIONAL = {
    "ssl.temperature": {"uniform": [0.1, 0.5]},
    "rho": {"quniform": [0.0, 1.0, 0.5], "when": {"epochs.sl": [1, 2]}},
    "epochs.sl": {"randint": [1, 4]},
    "ssl.objective": {"choice": ["simclr", "mae"]},
}


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s not in ("grid", "cost_aware")])
def test_what_depends_on_others_is_asked_where_it_is_active_and_resumes_the_same(
    small_space: Any, sampler: str
) -> None:
    space = space_from_dict(small_space(space=CONDITIONAL, search={"sampler": sampler}))
    whole, resumed = Suggester(space), Suggester(space)
    asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for number in range(1, 25):
        trial = f"t{number:04d}"
        if number == 18:
            resumed = Suggester(space)
            for before, params, notes in asked:
                resumed.ask_again(before, params, notes)
                resumed.tell(TrialRecord(before, "complete", metrics=cost({"alpha": 0.5, "rho": 0.0, **params})))
        params = whole.ask(trial, number)
        assert tuple(params) == space.active(params)
        recipe = space.recipe_at(params).to_dict()
        has_temperature = params["ssl.objective"] == "simclr"
        assert ("temperature" in recipe["ssl"]) == ("ssl.temperature" in params) == has_temperature
        assert ("rho" in params) == (params["epochs.sl"] < 3)
        asked.append((trial, params, whole.notes(trial)))
        assert resumed.ask(trial, number) == params
        for suggester in (whole, resumed):
            suggester.tell(TrialRecord(trial, "complete", metrics=cost({"alpha": 0.5, "rho": 0.0, **params})))
    assert len({frozenset(params) for _, params, _ in asked}) >= 3  # of 4 forms


def test_a_grid_visits_each_different_recipe_once(small_space: Any) -> None:
    values = CONDITIONAL | {"ssl.temperature": {"choice": [0.1, 0.2, 0.5]}}
    space = space_from_dict(small_space(space=values, search={"sampler": "grid"}))
    assert space.budget == (3 + 3 + 1) * (3 + 1)
    asked = run(Suggester(space), space.budget, {"alpha": 0.5, "rho": 0.0})
    assert len({frozenset(params.items()) for params in asked}) == space.budget
    assert all(tuple(params) == space.active(params) for params in asked)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "gp"])
def test_the_first_draws_are_by_the_priors(small_space: Any, sampler: str) -> None:
    prior = {"prior": {"value": 0.1, "confidence": 0.9}}
    drawn = {}
    for name, given in (("none", {}), ("some", prior)):
        searched = {"alpha": {"uniform": [0.0, 1.0], **given}, "rho": {"quniform": [0.0, 1.0, 0.25]}}
        space = space_from_dict(small_space(space=searched, search={"sampler": sampler}))
        suggester = Suggester(space)
        drawn[name] = [suggester.ask(f"t{i:04d}", i) for i in range(1, 31)]
        for i in range(1, 31):
            suggester.tell(TrialRecord(f"t{i:04d}", "failed"))
    close = {name: sum(abs(params["alpha"] - 0.1) < 0.15 for params in asked) for name, asked in drawn.items()}
    assert close["none"] < 15 < 20 < close["some"]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_space_without_conditions_and_priors_gets_optunas_own_suggestions(small_space: Any, sampler: str) -> None:
    space = finite_space(small_space, sampler, baselines=["paper"])
    asked = run(Suggester(space), 30)
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number, params in enumerate(asked, 1):
        seed = _trial_seed(0, number)
        if sampler == "nsga2":
            study.sampler = optuna.samplers.NSGAIISampler(population_size=4, seed=seed)
        elif sampler == "random":
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            tpe = optuna.samplers.TPESampler(seed=seed)
            tpe._gamma = functools.partial(tenth, number - 1)
            study.sampler = tpe
        trial = study.ask(fixed_distributions={path: to_optuna(d) for path, d in space.space.items()})
        assert trial.params == params
        study.tell(trial, [*cost(params).values()])


def tenth(complete: int, trials: int) -> int:
    return math.ceil(0.1 * complete)


def test_lists_can_be_choices(small_space: Any) -> None:
    betas = [[0.9, 0.95], [0.9, 0.999]]
    space = space_from_dict(small_space(space={"optim.sl.betas": {"choice": betas}}))
    suggester = Suggester(space)
    drawn = [suggester.ask(f"t{i:04d}", i) for i in range(1, 12)]
    assert {space.recipe_at(params).optim.sl.betas for params in drawn} == {(0.9, 0.95), (0.9, 0.999)}


def test_a_trial_from_before_the_space_was_edited_is_left_out_where_it_cannot_be_held(small_space: Any) -> None:
    """tpe looks at one parameter at a time, and can; gp cannot, see test_edited.py for what else there is."""
    space = small_space(space={"alpha": {"uniform": [0.1, 0.5]}}, search={"sampler": "gp"})
    suggester = Suggester(space_from_dict(space))
    for trial, params in {"t0001": {"alpha": 0.9}, "t0002": {"rho": 0.5}, "t0003": {"alpha": 0.3}}.items():
        suggester.ask_again(trial, params, {})
        suggester.tell(TrialRecord(trial, "complete", metrics={"val_accuracy": 0.5, "train_latency_s": 1.0}))
    assert [t.params for t in suggester.study.trials] == [{"alpha": 0.3}]


def test_an_infinite_objective_is_never_told_as_a_result(small_space: Any) -> None:
    suggester = Suggester(space_from_dict(small_space()))
    suggester.ask("t0001", 1)
    with pytest.raises(AssertionError):
        suggester.tell(TrialRecord("t0001", "complete", metrics={"val_accuracy": math.inf, "train_latency_s": 1.0}))
