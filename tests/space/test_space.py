"""A search space resolves to one that is written, read back and equal; its recipes are all sound."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixtune.errors import RequestError
from mixtune.space.recipe import flatten, parse_recipe
from mixtune.space.space import SearchSpace, load_space, override, parse_override, space_from_dict

DIGITS = {"data": {"dataset": "digits"}}
SHIPPED = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))

# for each distribution, fields of the recipe that it can be over
CANDIDATES: dict[str, list[dict[str, list[Any]]]] = {
    "alpha": [{"uniform": [0.05, 0.95]}, {"choice": [0.1, 0.5]}],
    "rho": [{"quniform": [0.0, 1.0, 0.25]}, {"quniform": [0.1, 0.9, 0.1]}],
    "epochs.ssl": [{"randint": [5, 10]}, {"lograndint": [1, 65]}],
    "epochs.sl": [{"qrandint": [10, 50, 10]}],
    "optim.sl.base_lr": [{"loguniform": [1e-5, 1e-2]}],
    "optim.ssl.betas": [{"choice": [[0.9, 0.95], [0.9, 0.999]]}],
    "ssl.norm_pix": [{"choice": [True, False]}],
    "model.depth": [{"choice": [None, 2, 4]}],
    "ssl.mask_ratio": [{"uniform": [0.3, 0.9]}],
}


def through_yaml(space: SearchSpace, folder: Path) -> SearchSpace:
    file = folder / "resolved.yaml"
    file.write_text(yaml.safe_dump({**space.to_dict(), "run": {"versions": {"ray": "2.60"}}}, sort_keys=False))
    return load_space(file)


def test_a_resolved_space_survives_its_file(tmp_path: Path) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        paths = rng.sample(sorted(CANDIDATES), rng.randint(0, len(CANDIDATES)))
        limits = {"train_latency_s": f"<= {rng.uniform(1, 99)}", "val_accuracy": ">=0.5"}
        space = space_from_dict(
            {
                "recipe": {**DIGITS, "rho": rng.choice([0.25, 1]), "seed": rng.randrange(2**40)},
                "space": {path: rng.choice(CANDIDATES[path]) for path in paths},
                "objectives": rng.choice([{}, {"train_flops": "min", "val_accuracy": "max"}]),
                "constraints": rng.choice([{}, limits]),
                "baselines": rng.choice([[], ["sl"], ["ssl_sl", "sl"]]),
                "search": {"sampler": rng.choice(["tpe", "nsga2"]), "seed": rng.randrange(9)},
                "resources": {"gpus_per_trial": rng.choice([0.25, 1, "auto"])},
            }
        )
        again = through_yaml(space, tmp_path)
        assert again == space, seed
        assert again.to_dict() == space.to_dict(), seed
        assert list(again.space) == paths, seed
    for file in SHIPPED:
        assert through_yaml(load_space(file), tmp_path) == load_space(file), file


def test_a_grid_survives_its_file(tmp_path: Path) -> None:
    values = {"alpha": {"grid_search": [0.25, 0.5, 0.75]}, "rho": {"quniform": [0.5, 1.0, 0.25]}}
    space = space_from_dict({"recipe": DIGITS, "space": values, "search": {"sampler": "grid"}})
    assert space.grid_size() == space.budget == space.search.trials == 9
    assert through_yaml(space, tmp_path) == space
    assert space.with_search(trials=100).budget == 9
    assert space.with_search(trials=4).budget == 4


def test_every_default_is_spelled_out() -> None:
    assert space_from_dict({"recipe": DIGITS}).to_dict() == {
        "recipe": parse_recipe(DIGITS).to_dict(),
        "space": {},
        "objectives": {"val_accuracy": "max", "train_latency_s": "min"},
        "constraints": {},
        "baselines": ["sl", "sl_same_time", "ssl_sl", "paper"],
        "search": {
            **{"sampler": "auto", "scheduler": "fifo", "trials": 20, "seed": 0},
            **{
                "max_failures": 2,
                "tolerance": 0.01,
                "reference_point": {},
                "stop": None,
                "first": [],
                "learn_from": [],
            },
            **{"first": [], "learn_from": []},
        },
        "resources": {"cpus_per_trial": 1.0, "gpus_per_trial": "auto", "device": None},
    }


def test_empty_sections_and_what_a_run_wrote_count_for_nothing() -> None:
    empty = {"space": None, "objectives": None, "constraints": None, "search": None, "resources": None}
    written = {"reference_point": {"val_accuracy": 0.1}, "any": [1]}
    assert space_from_dict({"recipe": DIGITS, **empty, "run": written}) == space_from_dict({"recipe": DIGITS})


def test_recipes_of_the_space_are_the_base_recipe_with_values_set() -> None:
    betas = (0.9, 0.95), (0.9, 0.999)
    searched = {"epochs.sl": {"randint": [5, 9]}, "optim.sl.betas": {"choice": list(map(list, betas))}}
    space = space_from_dict({"recipe": {**DIGITS, "alpha": 0.3}, "space": searched})
    recipe = space.recipe_at({"epochs.sl": 6, "optim.sl.betas": betas[1]})
    assert (recipe.alpha, recipe.epochs.sl, recipe.optim.sl.betas) == (0.3, 6, betas[1])
    ends = [("epochs.sl", 5), ("epochs.sl", 8), ("optim.sl.betas", betas[0]), ("optim.sl.betas", betas[1])]
    assert list(space.extremes()) == ends
    assert space.baseline_params() == {
        "sl": {"epochs.ssl": 0},
        "sl_same_time": {"epochs.ssl": 0},  # for how many epochs a search finds out
        "ssl_sl": {"rho": 0.0},
        "paper": {"alpha": 0.5, "rho": 0.5},
    }
    assert space.grid_size() == 8


def test_lambda_is_a_key_like_any_other() -> None:
    data = {"dataset": "digits", "ssl_dataset": "image_folder", "ssl_root": "x"}
    space = space_from_dict({"recipe": {"data": data, "lambda": 0.25}, "space": {"lambda": {"uniform": [0, 1]}}})
    assert space.recipe.lambda_ == 0.25
    assert space.recipe_at({"lambda": 0.75}).lambda_ == 0.75
    assert override(space.recipe, {"lambda": 0.5}).to_dict()["lambda"] == 0.5


def test_a_distribution_counts_where_another_one_gives_it_effect() -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"rho": 0}, {"alpha": {"uniform": [0, 1]}, "rho": {"quniform": [0, 1, 0.5]}}),
        ({"epochs": {"ssl": 0}}, {"ssl.mask_ratio": {"uniform": [0.1, 0.9]}, "epochs.ssl": {"randint": [0, 9]}}),
        ({"rho": 0.1, "epochs": {"ssl": 10, "sl": 10}}, {"alpha": {"uniform": [0, 1]}}),
        ({"rho": 0}, {"data.ssl_dataset": {"choice": [None, "CIFAR10"]}}),
    ]
    for recipe, space in cases:
        assert list(space_from_dict({"recipe": {**DIGITS, **recipe}, "space": space}).space) == list(space)


def test_an_override_is_a_path_and_a_yaml_value_but_text_needs_no_quotes() -> None:
    assert parse_override(" alpha = 1e-3 ") == ("alpha", 0.001)
    for text, value in (
        ("0.5", 0.5), ("true", True), ("", None), ("null", None), ("[0.9, 0.999]", [0.9, 0.999]), ("{a: 1}", {"a": 1}),
        ("'7'", "7"), ('"5"', "5"), ("'a b'", "a b"), ("007", "007"), ("2026-07-01", "2026-07-01"), ("/a=b", "/a=b"),
        ("C:x", "C:x"), ("/a: b", "/a: b"), ("/a #b", "/a #b"), ("*.png", "*.png"), ("- a", "- a"),
    ):  # fmt: skip
        assert parse_override(f"data.root={text}") == ("data.root", value), text


def test_a_malformed_override_is_shown_as_it_was_typed() -> None:
    for text, begins in (
        ("alpha", "--set alpha: should be path=value, such as --set alpha=0.5"),
        ("=3", "--set =3: should be path=value, such as --set alpha=0.5"),
        ("", "--set : should be path=value"),
        ("optim.sl.betas=[0.9", "--set optim.sl.betas=[0.9: not valid YAML: while parsing a flow sequence"),
        *((f"alpha={text}", f"--set alpha={text}: not valid YAML: ") for text in ("{a: 1", "'a", "[1] 2")),
    ):
        with pytest.raises(RequestError) as caught:
            parse_override(text)
        assert str(caught.value).startswith(begins)
        assert "\n" not in str(caught.value)


def test_overrides_are_set_together_whatever_their_order() -> None:
    recipe = parse_recipe(DIGITS)
    both = {"data.ssl_root": "x", "data.ssl_dataset": "image_folder"}
    assert flatten(override(recipe, both).to_dict()).items() >= both.items()
    assert override(recipe, {}) == recipe


def test_an_override_fixes_what_is_searched_and_a_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    values = {"recipe": DIGITS, "space": {path: CANDIDATES[path][0] for path in ("alpha", "rho", "epochs.ssl")}}
    space = space_from_dict(values, {"epochs.ssl": 2, "alpha": 0.25, "seed": 4})
    assert (list(space.space), space.recipe.epochs.ssl, space.recipe.alpha) == (["rho"], 2, 0.25)
    assert caplog.messages == ["--set alpha=0.25 --set epochs.ssl=2 fix what the space searches"]


def test_an_override_changes_the_spaces_other_sections(caplog: pytest.LogCaptureFixture) -> None:
    values = {"recipe": DIGITS, "space": {path: CANDIDATES[path][0] for path in ("alpha", "rho")}}
    changes: dict[str, Any] = {"space.rho": {"choice": [0, 0.5]}, "space.epochs.sl": {"randint": [2, 5]}}
    changes |= {"search.trials": 4, "objectives.train_latency_s": None, "objectives.train_flops": "min"}
    changes |= {"constraints.train_latency_s": "<= 60", "baselines": ["sl"], "resources.cpus_per_trial": 2.0}
    space = space_from_dict(values, changes)
    assert list(space.space) == ["alpha", "rho", "epochs.sl"]
    assert space.space["rho"].values == (0, 0.5)
    assert (space.budget, space.baselines, space.resources.cpus_per_trial) == (4, ("sl",), 2.0)
    assert space.objectives == {"val_accuracy": "max", "train_flops": "min"}
    assert space.to_dict()["constraints"] == {"train_latency_s": "<= 60"}
    assert list(space_from_dict(values, {"space.rho": None}).space) == ["alpha"]
    assert list(values["space"]) == ["alpha", "rho"]
    assert caplog.messages == []


def test_a_wrong_override_names_itself() -> None:
    section, alone = "a section: name one of epochs.ssl, epochs.sl", "is given without data.ssl_dataset: add it"
    unknown = "unknown objective 'mea': known are dino, mae, mocov3, simclr; did you mean 'mae'?"
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"alpha": 2}, "alpha=2: should be less than or equal to 1, got 2"),
        ({"epochs.sl": "x"}, 'epochs.sl="x": should be a valid integer, got "x"'),
        ({"epoch.sl": 5}, "epoch.sl=5: no field of a recipe; did you mean 'epochs.sl'?"),
        ({"lambda_": 1}, "lambda_=1: no field of a recipe; did you mean 'lambda'?"),
        ({"optim.sl.betas.0": 1}, "optim.sl.betas.0=1: no field of a recipe; did you mean 'optim.sl.betas'?"),
        ({"epochs": {"sl": 5}}, f'epochs={{"sl": 5}}: no field of a recipe ({section})'),
        ({"data.ssl_root": "x"}, f'data.ssl_root="x": {alone} (image_folder, say)'),
        ({"ssl.objective": "mea"}, f'ssl.objective="mea": {unknown}'),
    ]
    for overrides, message in mistakes:
        for ask in (
            lambda given: override(parse_recipe(DIGITS), given),
            lambda given: space_from_dict({"recipe": DIGITS}, given),
        ):
            with pytest.raises(RequestError) as caught:
                ask(overrides)
            assert str(caught.value) == f"--set {message}"


def test_options_are_checked_like_the_file() -> None:
    space = space_from_dict({"recipe": DIGITS})
    assert space.with_search(trials=3, seed=7).search.seed == 7
    assert space.with_resources(gpus_per_trial=0.25).resources.gpus_per_trial == 0.25
    with pytest.raises(RequestError, match=r"^the search space: search.trials: should be .* or equal to 1, got 0$"):
        space.with_search(trials=0)
    with pytest.raises(RequestError, match=r"^the search space: resources.cpus_per_trial: should .* than 0, got 0.0$"):
        space.with_resources(cpus_per_trial=0.0)
