"""Each mistake in a search space's file gets one line: file, line, key, what was given, what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixtune.errors import RequestError
from mixtune.space.space import load_space, space_from_dict

RECIPE = "recipe:\n  data: {dataset: digits}\n"  # two lines: what follows stands on line 3


def mistake(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> str:
    file = folder / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(RequestError) as caught:
        load_space(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert sorted(path.name for path in folder.iterdir()) == ["wrong.yaml"]
    assert message.startswith(f"{file}:")
    return message.removeprefix(f"{folder}/")


SECTIONS = "unknown key; allowed are recipe, space, objectives, constraints, baselines, search, resources"
METRICS = (
    "known are val_accuracy, val_balanced_accuracy, val_macro_f1, val_calibration_error, train_latency_s, train_flops, "
    "infer_latency_ms, peak_memory_mb"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serach: {trials: 3}", f"serach: {SECTIONS}; did you mean 'search'?"),
        ("trials: 30", f"trials: {SECTIONS}; trials belongs below search"),
        (
            "  ssl: {mask_rato: 0.5}",
            "recipe.ssl.mask_rato: unknown key; allowed are objective, encode, loss_on, mask_ratio, norm_pix, "
            "decoder_depth; did you mean 'mask_ratio'?",
        ),
        (
            "resources: {gpu_per_trial: 1}",
            "resources.gpu_per_trial: unknown key; allowed are cpus_per_trial, gpus_per_trial; "
            "did you mean 'gpus_per_trial'?",
        ),
        ("  rho: .nan", "recipe.rho: should be a finite number, got NaN"),
        ("search: [tpe]", 'search: should be a mapping of keys to values, got ["tpe"]'),
        ("search: {trials: 0}", "search.trials: should be greater than or equal to 1, got 0"),
        (
            "search: {sampler: 'json:decoder'}",
            "search.sampler: sampler 'json:decoder' needs a function build: see mixtune.tuning.samplers",
        ),
        (
            "search: {scheduler: fofo}",
            "search.scheduler: unknown scheduler 'fofo': known are fifo, pareto_asha; did you mean 'fifo'?",
        ),
        (
            "resources: {gpus_per_trial: all}",
            "resources.gpus_per_trial: should be a valid number or should be 'auto', got \"all\"",
        ),
        (
            "objectives: {val_acuracy: max}",
            f"objectives.val_acuracy: unknown objective; {METRICS}; did you mean 'val_accuracy'?",
        ),
        ("objectives: {val_accuracy: min}", 'objectives.val_accuracy: should be max, got "min"'),
        (
            "constraints: {train_latency: <= 60}",
            f"constraints.train_latency: unknown constraint; {METRICS}; did you mean 'train_latency_s'?",
        ),
        (
            "constraints: {train_latency_s: 60}",
            'constraints.train_latency_s: should be <= and a number, such as "<= 60", got 60',
        ),
        (
            "constraints: {val_accuracy: '<= 0.9'}",
            'constraints.val_accuracy: should be >=, such as ">= 0.9", got "<= 0.9": less val_accuracy is worse',
        ),
        (
            "baselines: [sl, ssl-sl]",
            "baselines: unknown baseline 'ssl-sl': known are sl, ssl_sl; did you mean 'ssl_sl'?",
        ),
        ("baselines: [sl, ssl_sl, sl]", 'baselines: names one twice: ["sl", "ssl_sl", "sl"]'),
        ("baselines:", "baselines: should be a list, such as [sl, ssl_sl], got null"),
    ],
)
def test_a_mistake_says_what_was_given_and_what_is_allowed(text: str, message: str, tmp_path: Path) -> None:
    assert mistake(tmp_path, f"{RECIPE}{text}\n") == f"wrong.yaml:3: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: {}\n", " recipe: missing; it names at least the data: {data: {dataset: digits}}"),
        ("space: {}\nrecipe:\n", "2: recipe: missing; it names at least the data: {data: {dataset: digits}}"),
        ("recipe: {alpha: 0.5}\n", "1: recipe.data: missing, and it has no default"),
        ("recipe:\n  data: {root: x}\n", "2: recipe.data.dataset: missing, and it has no default"),
    ],
)
def test_a_file_that_lacks_the_form_is_told_where(text: str, message: str, tmp_path: Path) -> None:
    assert mistake(tmp_path, text).startswith(f"wrong.yaml:{message}")


def test_a_key_from_a_merged_mapping_is_named_where_it_is_written(tmp_path: Path) -> None:
    text = f"{RECIPE}  optim:\n    ssl: &rates\n      base_lr: 0\n    sl: {{<<: *rates}}\n"
    assert mistake(tmp_path, text) == "wrong.yaml:5: recipe.optim.ssl.base_lr: should be greater than 0, got 0"


@pytest.mark.parametrize(
    ("path", "distribution", "message"),
    [
        ("alpha", "0.3", "should be one distribution, such as {uniform: [0, 1]}, got 0.3"),
        ("alpha", "{uniform: [0.9, 0.1]}", "uniform has low 0.9 above high 0.1"),
        ("rho", "{quniform: [-0.5, 1, 0.5]}", "quniform can give -0.5: should be greater than or equal to 0, got -0.5"),
        ("epochs.sl", "{uniform: [5, 10]}", "uniform can give 5.0: should be a valid integer, got 5.0"),
        ("epochs.sl", "{randint: [5, 5]}", "randint [5, 5] is empty: as in Ray Tune its upper bound is exclusive"),
        (
            "data.ssl_root",
            "{choice: [a, b]}",
            'choice can give "a": is given without data.ssl_dataset: add it (image_folder, say)',
        ),
        ("epoch.sl", "{randint: [1, 9]}", "no field of a recipe; did you mean 'epochs.sl'?"),
        ("epochs", "{sl: 3}", "no field of a recipe (a section: name one of epochs.ssl, epochs.sl)"),
        ("alpha", "{grid_search: [0.1, 0.5]}", "grid_search needs search.sampler: grid, not tpe"),
    ],
)
def test_a_wrong_distribution_is_named_at_its_own_line(
    path: str, distribution: str, message: str, tmp_path: Path
) -> None:
    text = f"{RECIPE}space:\n  model.depth: {{choice: [2, 4]}}\n  {path}: {distribution}\n"
    assert mistake(tmp_path, text) == f"wrong.yaml:5: space.{path}: {message}"


def test_a_grid_needs_an_end(tmp_path: Path) -> None:
    text = f"{RECIPE}search: {{sampler: grid}}\nspace:\n  alpha: {{uniform: [0, 1]}}\n"
    expected = "wrong.yaml:5: space.alpha: uniform has no end of values, so sampler: grid cannot list them"
    assert mistake(tmp_path, text) == expected


NO_SSL = "epochs.ssl is 0: nothing is self-supervised"
NO_MIX = "rho times the fewer of epochs.ssl and epochs.sl is below 1: no epoch is mixed"
ONE_DATASET = "both losses see the same dataset: set data.ssl_dataset"


@pytest.mark.parametrize(
    ("recipe", "path", "distribution", "because"),
    [
        ("rho: 0", "alpha", "{uniform: [0, 1]}", NO_MIX),
        ("rho: 0.1, epochs: {ssl: 9, sl: 100}", "alpha", "{uniform: [0, 1]}", NO_MIX),
        ("epochs: {ssl: 2, sl: 2}", "rho", "{uniform: [0, 0.4]}", NO_MIX),
        ("epochs: {ssl: 0}", "alpha", "{uniform: [0, 1]}", NO_SSL),
        ("epochs: {ssl: 0}", "optim.ssl.base_lr", "{loguniform: [1.0e-4, 1]}", NO_SSL),
        ("alpha: 0.5", "lambda", "{uniform: [0, 1]}", ONE_DATASET),
        (
            "ssl: {objective: simclr, compression: {schedule: none}}",
            "ssl.compression.token_dropout",
            "{choice: [0.0, 0.5]}",
            "ssl.compression.schedule is never constant",
        ),
    ],
)
def test_a_distribution_without_effect_is_refused(
    recipe: str, path: str, distribution: str, because: str, tmp_path: Path
) -> None:
    text = f"recipe: {{data: {{dataset: digits}}, {recipe}}}\nspace:\n  {path}: {distribution}\n"
    assert mistake(tmp_path, text) == f"wrong.yaml:3: space.{path}: has no effect while {because}"


@pytest.mark.parametrize(
    ("data", "rho", "because"),
    [
        ("ssl_dataset: CIFAR10", 0, NO_MIX),
        ("ssl_dataset: digits", 0.5, ONE_DATASET),
    ],
)
def test_a_lambda_that_mixes_nothing_is_refused(data: str, rho: float, because: str, tmp_path: Path) -> None:
    text = f"recipe: {{data: {{dataset: digits, {data}}}, rho: {rho}}}\nspace:\n  lambda: {{uniform: [0, 1]}}\n"
    assert mistake(tmp_path, text) == f"wrong.yaml:3: space.lambda: has no effect while {because}"


@pytest.mark.parametrize(
    ("path", "distribution"),
    [
        ("seed", "{randint: [0, 9]}"),
        ("data.download", "{choice: [true, false]}"),
    ],
)
def test_what_all_trials_share_is_not_searched(path: str, distribution: str, tmp_path: Path) -> None:
    expected = f"wrong.yaml:4: space.{path}: is the same for all trials of a search: drop this distribution"
    assert mistake(tmp_path, f"{RECIPE}space:\n  {path}: {distribution}\n") == expected


def test_a_distribution_over_an_overridden_field_is_refused(tmp_path: Path) -> None:
    text = f"{RECIPE}space:\n  epochs.sl: {{randint: [5, 9]}}\n  alpha: {{uniform: [0, 1]}}\n"
    message = mistake(tmp_path, text, {"rho": 0.25, "alpha": 0.5})
    assert message == "wrong.yaml:5: space.alpha: --set alpha=0.5 overrides this distribution: drop one"
    assert mistake(tmp_path, text, {"rho": 0}) == f"wrong.yaml:5: space.alpha: has no effect while {NO_MIX}"


def test_values_from_python_get_the_same_messages() -> None:
    for values, message in (
        ({1: 2}, f"1: {SECTIONS}"),
        ({"recipe": {"data": {"dataset": "digits"}, 1: 2}}, "recipe.1: keys should be strings, got 1"),
        ({"recipe": {"data": {"dataset": "digits"}}, "space": {3: {}}}, "space.3: no field of a recipe"),
        ({"recipe": None}, "recipe: missing; it names at least the data: {data: {dataset: digits}}"),
    ):
        with pytest.raises(RequestError) as caught:
            space_from_dict(values)
        assert str(caught.value) == f"the search space: {message}"
