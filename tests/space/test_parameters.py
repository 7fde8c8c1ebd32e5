"""Parameters that depend on others, fields that follow others, relations between numbers, beliefs."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixtune.errors import RequestError
from mixtune.space.distributions import parse_distribution
from mixtune.space.document import Document
from mixtune.space.points import points, ways
from mixtune.space.quick import quick_space
from mixtune.space.recipe import flatten
from mixtune.space.space import (
    SearchSpace,
    load_recipe,
    load_space,
    parse_override,
    read_run_space,
    space_from_dict,
)

DIGITS = {"data": {"dataset": "digits"}}
TEMPERATURE = {"uniform": [0.1, 0.5]}
BOTH = {"ssl.temperature": TEMPERATURE, "ssl.objective": {"choice": ["simclr", "mae", "mocov3"]}}
BUDGETS = {"epochs.ssl": {"qrandint": [10, 40, 10]}, "epochs.sl": {"qrandint": [10, 40, 10]}}
TIED = {
    "optim.sl.warmup_epochs": {"fraction_of": {"epochs.sl": 0.15}},
    "epochs.sl": {"same_as": "epochs.ssl"},
    "epochs.ssl": {"qrandint": [10, 40, 10]},
}


def make_space(space: dict[str, Any], overrides: dict[str, Any] | None = None, **sections: Any) -> SearchSpace:
    recipe = DIGITS | sections.pop("recipe", {})
    return space_from_dict({"recipe": recipe, "space": space, **sections}, overrides or {})


def test_a_setting_that_some_objectives_have_is_active_for_them_alone() -> None:
    for own in ("mae", "simclr", "dino"):  # whatever the base recipe's is
        space = make_space(BOTH, recipe={"ssl": {"objective": own}})
        assert [*space.space] == ["ssl.objective", "ssl.temperature"]
        assert space.space["ssl.temperature"].to_yaml()["when"] == {"ssl.objective": ["simclr", "mocov3"]}
        assert space.active({"ssl.objective": "mae"}) == ("ssl.objective",)
        assert space.active({"ssl.objective": "mocov3"}) == ("ssl.objective", "ssl.temperature")
        recipes = {o: space.recipe_at({"ssl.objective": o, "ssl.temperature": 0.3}) for o in ("mae", "simclr")}
        assert "temperature" not in recipes["mae"].to_dict()["ssl"]
        assert recipes["simclr"].to_dict()["ssl"]["temperature"] == 0.3
        assert [*space.extremes()][-2:] == [("ssl.temperature", 0.1), ("ssl.temperature", 0.5)]
    shared = {"ssl.crop_scale": {"choice": [[0.2, 1.0], [0.5, 1.0]]}, "ssl.objective": {"choice": ["simclr", "dino"]}}
    assert make_space(shared, recipe={"ssl": {"objective": "dino"}}).space["ssl.crop_scale"].when == ()
    assert [*make_space(shared).space] == ["ssl.objective", "ssl.crop_scale"]  # the base recipe's has it not


def random_conditions(rng: random.Random) -> dict[str, Any]:
    """Return a space of few values, in which a parameter may depend on any that comes later in the file, or not."""
    paths = ["alpha", "rho", "epochs.sl", "model.depth", "augment.flip", "ssl.mask_ratio"]
    values = {"epochs.sl": [10, 20, 30], "model.depth": [None, 2, 4]}
    space: dict[str, Any] = {path: {"choice": values.get(path, [0.25, 0.5, 0.75])} for path in paths}
    space["rho"] = {"quniform": [0.25, 1.0, 0.25]}
    for place, path in enumerate(paths[:-1]):
        for parent in rng.sample(paths[place + 1 :], rng.randint(0, min(2, len(paths) - 1 - place))):
            grid = parse_distribution(space[parent]).grid() or ()
            space[path].setdefault("when", {})[parent] = rng.sample(list(grid), rng.randint(1, 2))
    return space


def test_recipes_are_counted_and_listed_as_a_slow_enumeration_finds_them() -> None:
    tried = 0
    for seed in range(60):
        given = random_conditions(random.Random(seed))
        try:
            space = make_space(given)
        except RequestError:  # a parameter is never active
            continue
        tried += 1
        found = set()
        for values in product(*(parse_distribution(entry).grid() or () for entry in given.values())):
            params = dict(zip(given, values, strict=True))
            while True:  # what depends on something that is gone, or has another value, goes
                kept = {
                    path: value
                    for path, value in params.items()
                    if all(params.get(p, "gone") in v for p, v in given[path].get("when", {}).items())
                }
                if kept == params:
                    break
                params = kept
            found.add(frozenset(params.items()))
            assert set(space.active(params)) == set(params), seed
        listed = [frozenset(params.items()) for params in points(space)]
        assert len(listed) == len(set(listed)) == space.grid_size()
        assert set(listed) == found, seed
        for path in space.space:
            assert all(path in space.active(way) for way in ways(space, path)), seed
            assert any(path in params for params in points(space)), seed
    assert tried > 20


def test_fields_follow_others_and_the_base_recipe_too(tmp_path: Path) -> None:
    space = make_space(TIED, recipe={"epochs": {"ssl": 20, "sl": 99}})
    assert ([*space.space], [*space.ties]) == (["epochs.ssl"], ["epochs.sl", "optim.sl.warmup_epochs"])
    assert (space.recipe.epochs.sl, space.recipe.optim.sl.warmup_epochs) == (20, 3)
    for ssl, warmup in ((10, 2), (20, 3), (30, 5), (40, 6)):  # 1.5 and 4.5 are rounded up
        recipe = space.recipe_at({"epochs.ssl": ssl})
        assert (recipe.epochs.sl, recipe.optim.sl.warmup_epochs) == (ssl, warmup)
        assert flatten(recipe.to_dict()) == space.values_at({"epochs.ssl": ssl})
    assert space.baseline_params()["sl"] == {"epochs.ssl": 0, "epochs.sl": 20}
    assert [space.recipe_at(params).epochs.sl for params in space.baseline_params().values()] == [20] * 4
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(space.to_dict()))
    assert load_recipe(file, {"epochs.ssl": 40}).optim.sl.warmup_epochs == 6
    assert load_recipe(file, {"epochs.ssl": 40, "epochs.sl": 20}).optim.sl.warmup_epochs == 3


def test_a_fixed_value_takes_the_place_of_a_tie(caplog: pytest.LogCaptureFixture) -> None:
    space = make_space(TIED, {"epochs.sl": 60})
    assert [*space.ties] == ["optim.sl.warmup_epochs"]
    assert (space.recipe.epochs.sl, space.recipe.optim.sl.warmup_epochs) == (60, 9)
    assert caplog.messages == ["--set epochs.sl=60 fixes what the space searches"]


def test_a_relation_names_how_a_recipe_breaks_it_and_holds_where_there_is_nothing_to_compare() -> None:
    limits = {"epochs.ssl <= epochs.sl": True, "ssl.temperature>0.2": True, "train_latency_s": "<= 60"}
    space = make_space(BUDGETS | BOTH, constraints=limits)
    assert [str(relation) for relation in space.relations] == ["epochs.ssl <= epochs.sl", "ssl.temperature > 0.2"]
    assert [*space.constraints] == ["train_latency_s"]
    for params, broken in (
        ({"epochs.ssl": 30, "epochs.sl": 30}, None),
        ({"epochs.ssl": 40, "epochs.sl": 30}, "epochs.ssl is 40, not <= epochs.sl (30)"),
        ({"epochs.sl": 30}, "epochs.ssl is 100, not <= epochs.sl (30)"),  # the base recipe's
        ({"ssl.objective": "simclr", "ssl.temperature": 0.2}, "ssl.temperature is 0.2, not > 0.2"),
        ({"ssl.objective": "mae"}, None),
    ):
        assert space.broken(params) == broken
    assert make_space(BUDGETS).broken({"epochs.ssl": 40, "epochs.sl": 30}) is None
    for text, given in (("constraints.epochs.ssl <= epochs.sl=true", True), ("constraints.epochs.ssl==20=", None)):
        path, value = parse_override(text)
        assert (path, value) == (text.rpartition("=")[0], given)
    assert parse_override("constraints.train_latency_s=<= 60") == ("constraints.train_latency_s", "<= 60")


@pytest.mark.parametrize(
    "given",
    [
        {"uniform": [2.0, 4.0]},
        {"loguniform": [1e-4, 1.0]},
        {"quniform": [0.0, 1.0, 0.05]},
        {"qloguniform": [0.01, 1.0, 0.01]},
        {"randint": [0, 41]},
        {"lograndint": [1, 1001]},
        {"choice": ["a", "b", [1, 2], "d"]},
    ],
    ids=str,
)
def test_draws_have_the_density_of_the_prior(given: dict[str, Any]) -> None:
    plain = parse_distribution(given)
    grid = plain.grid()
    value = grid[len(grid) // 3] if grid else 10 ** (-1) if plain.log else 2.5
    believed = parse_distribution({**given, "prior": {"value": value, "confidence": 0.7}})
    assert parse_distribution(believed.to_yaml()) == believed
    rng, count = random.Random(0), 4000
    drawn = [believed.draw(rng) for _ in range(count)]
    assert all(map(plain.contains, drawn))
    assert [plain.density(v) for v in drawn[:9]] == [1.0] * 9
    if plain.values:
        expected = {v: believed.density(v) / len(plain.values) for v in plain.values}
        assert sum(expected.values()) == pytest.approx(1)
        assert {v: n / count for v, n in Counter(drawn).items()} == pytest.approx(expected, abs=0.03)
        return
    ends = [math.log(v) if plain.log else v for v in (plain.low, plain.high)]
    bins = 8  # of equal width on the distribution's own scale, each looked at in 200 places
    places = [ends[0] + (ends[1] - ends[0]) * (i + 0.5) / (200 * bins) for i in range(200 * bins)]
    densities = [believed.density(math.exp(p) if plain.log else p) for p in places]
    assert sum(densities) / len(places) == pytest.approx(1, abs=1e-3)
    if plain.step is None:
        shares = Counter(int(bins * believed._place(v)) for v in drawn)
        for i in range(bins):
            expected_share = sum(densities[200 * i : 200 * (i + 1)]) / len(places)
            assert shares[i] / count == pytest.approx(expected_share, abs=0.03)
    close = sum(abs(believed._place(v) - believed._place(value)) < 0.2 for v in drawn) / count
    assert close > 0.6  # of all values without the prior 0.4 at most


def test_all_of_it_survives_the_file_of_a_space_and_of_a_run(tmp_path: Path) -> None:
    prior = {"alpha": {"uniform": [0, 1], "prior": {"value": 0.25, "confidence": 0.5}}}
    space = make_space(BOTH | TIED | prior, constraints={"epochs.ssl <= 30": True, "val_accuracy": ">= 0.5"})
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(space.to_dict(), sort_keys=False))
    assert load_space(file) == space
    assert read_run_space(Document("space.yaml", space.to_dict())) == space
    assert space.density({"alpha": 0.25}) > 1 > space.density({"alpha": 1.0, "epochs.ssl": 20})


def test_a_smoke_run_keeps_conditions_and_ties_and_drops_numbers_that_few_epochs_cannot_reach() -> None:
    warm = {"optim.ssl.warmup_epochs": {"choice": [10, 20], "when": {"epochs.ssl": [40]}}}
    limits = {"epochs.ssl >= 20": True, "rho <= alpha": True}
    space = make_space(TIED | warm, constraints=limits, recipe={"epochs": {"ssl": 40}})
    small, line = quick_space(space)
    assert [str(relation) for relation in small.relations] == ["rho <= alpha"]
    assert "no constraint on epochs.ssl >= 20" in line
    assert small.space["optim.ssl.warmup_epochs"].when[0].values == (4,)
    assert small.recipe_at({"epochs.ssl": 4}).epochs.sl == 4


def test_a_mistake_is_one_line_that_says_what_is_allowed() -> None:
    tied = "epochs.ssl: {qrandint: [0, 40, 10]}, epochs.sl: {same_as: epochs.ssl}"
    for text, message in (
        (
            "alpha: {choice: [0.1], when: {rho: 1}}, rho: {choice: [1], when: {alpha: 0.1}}",
            "alpha -> rho -> alpha",
        ),
        ("alpha: {choice: [0.1], when: {roh: 0.5}}", "alpha: when: roh: no field of a recipe; did you mean 'rho'?"),
        (
            "alpha: {choice: [0.1], when: []}",
            "alpha: when should name fields and their values, such as {ssl.",
        ),
        ("alpha: {choice: [0.1], whem: {rho: 0.5}}", "did you mean 'when'?"),
        (
            "alpha: {choice: [0.1], when: {rho: 0.75}}, rho: {choice: [0.5]}",
            "is never active: rho is never 0.75",
        ),
        ("alpha: {choice: [0.1], when: {model.depth: 2}}", "alpha: is never active: model.depth is null"),
        ("alpha: {choice: [0.1], when: {rho: 0}}, rho: {uniform: [0, 1]}", "when: rho is uniform, which has no end of"),
        (
            "alpha: {choice: [0.1], when: {epochs.sl: 9}}, epochs.sl: {same_as: epochs.ssl}",
            "follows epochs.ssl: name",
        ),
        ("ssl.temperature: {uniform: [0.1, 1]}", "ssl.temperature: no field of a recipe"),
        (
            "ssl.mask_ratio: {uniform: [0.1, 1]}, ssl.objective: {choice: [dino, simclr]}",
            "never active: none of the",
        ),
        ("alpha: {same_as: rho}, rho: {same_as: alpha}", "alpha: depends on itself: alpha -> rho -> alpha"),
        ("epochs.sl: {same_as: epoch.ssl}", "epochs.sl: epoch.ssl: no field of a recipe; did you mean 'epochs.ssl'?"),
        ("epochs.sl: {same_as: epochs.ssl, when: {}}", "same_as stands alone, such as {same_as: "),
        ("epochs.sl: {fraction_of: {epochs.ssl: 0}}", "fraction_of should have a recipe field and a number above 0"),
        ("alpha: {fraction_of: {ssl.objective: 0.5}}", 'fraction_of is of numbers, and ssl.objective can be "mae"'),
        (tied, "epochs.ssl: qrandint can give 0: epochs.sl: should be greater than or equal to 1, got 0"),
        ("seed: {same_as: epochs.ssl}", "seed: is the same for all trials of a search: drop this"),
        ("alpha: {uniform: [0, 1], prior: {value: 2, confidence: 0.5}}", "alpha: prior: uniform never gives 2"),
        ("alpha: {uniform: [0, 1], prior: {value: 0, confidence: 1}}", "should be above 0 and below 1, got 1"),
        ("alpha: {uniform: [0, 1], prior: 0.5}", "prior should have a value and a confidence, such as {value: 0.0, "),
    ):
        refuses(message, space=yaml.safe_load(f"{{{text}}}"))
    for text, message in (
        ("epochs.ssl <= epoch.sl: true", "epoch.sl: no field of a recipe; did you mean 'epochs.sl'?"),
        (
            "epochs.ssl =< 3: true",
            "should be a recipe field, one of <=, <, >=, >, ==, !=, and a field or a number",
        ),
        ("ssl.objective == 3: true", 'compares numbers, and ssl.objective is "mae"'),
        ("train_latency_s <= 60: true", 'train_latency_s is a metric: write train_latency_s: "<= NUMBER"'),
        ("epochs.ssl < epochs.sl: yes please", 'should be true, got "yes please"'),
        ("epochs.ssl < inf: true", "should compare with a finite number, got inf"),
    ):
        refuses(message, space={}, constraints=yaml.safe_load(text))


def refuses(message: str, **sections: Any) -> None:
    with pytest.raises(RequestError) as refused:
        make_space(**sections)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_references_example_is_a_space() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "space.md"
    text = page.read_text().partition("## Conditions, ties, priors")[2]
    given = yaml.safe_load(text.split("```")[1].removeprefix("yaml"))
    space = make_space(given["space"], constraints=given["constraints"])
    assert [*space.ties] == ["optim.sl.warmup_epochs", "optim.ssl.warmup_epochs"]
    assert space.space["ssl.temperature"].when[0].values == ("simclr", "mocov3")
    assert len(space.relations) == 2
