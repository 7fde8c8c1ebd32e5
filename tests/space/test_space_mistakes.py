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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "serach: {trials: 3}",
            "serach: unknown key; allowed are recipe, space, objectives, constraints, baselines, search, resources; "
            "did you mean 'search'?",
        ),
        (
            "alpha: 0.3",
            "alpha: unknown key; allowed are recipe, space, objectives, constraints, baselines, search, resources; "
            "alpha belongs below recipe",
        ),
        (
            "trials: 30",
            "trials: unknown key; allowed are recipe, space, objectives, constraints, baselines, search, resources; "
            "trials belongs below search",
        ),
        (
            "  ssl: {mask_rato: 0.5}",
            "recipe.ssl.mask_rato: unknown key; allowed are objective, encode, loss_on, mask_ratio, norm_pix, "
            "decoder_depth; did you mean 'mask_ratio'?",
        ),
        (
            "  optim: {sl: {base_rl: 0.1}}",
            "recipe.optim.sl.base_rl: unknown key; allowed are base_lr, weight_decay, betas, warmup_epochs, schedule; "
            "did you mean 'base_lr'?",
        ),
        (
            "search: {trails: 3}",
            "search.trails: unknown key; allowed are sampler, scheduler, trials, seed, max_failures; "
            "did you mean 'trials'?",
        ),
        (
            "resources: {gpu_per_trial: 1}",
            "resources.gpu_per_trial: unknown key; allowed are cpus_per_trial, gpus_per_trial; "
            "did you mean 'gpus_per_trial'?",
        ),
    ],
)
def test_an_unknown_key_lists_the_known_and_the_closest(text: str, message: str, tmp_path: Path) -> None:
    assert mistake(tmp_path, f"{RECIPE}{text}\n") == f"wrong.yaml:3: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  alpha: high", 'recipe.alpha: should be a number, got "high"'),
        ("  alpha: 1.2", "recipe.alpha: should be at most 1.0, got 1.2"),
        ("  lambda: -1", "recipe.lambda: should be at least 0.0, got -1"),
        ("  rho: .nan", "recipe.rho: should be a finite number, got NaN"),
        ("  epochs: {sl: 0}", "recipe.epochs.sl: should be at least 1, got 0"),
        ("  epochs: {sl: 5.5}", "recipe.epochs.sl: should be a whole number, got 5.5"),
        ("  epochs: [1, 2]", "recipe.epochs: should be a mapping of keys to values, got [1, 2]"),
        (
            "  ssl: {objective: mea}",
            "recipe.ssl.objective: unknown objective 'mea': known are dino, mae, mocov3, simclr; did you mean 'mae'?",
        ),
        ("  ssl: {mask_ratio: 1}", "recipe.ssl.mask_ratio: should be below 1.0, got 1"),
        ("search: [tpe]", 'search: should be a mapping of keys to values, got ["tpe"]'),
        ("search: {trials: many}", 'search.trials: should be a whole number, got "many"'),
        ("search: {trials: 0}", "search.trials: should be at least 1, got 0"),
        ("search: {seed: -1}", "search.seed: should be at least 0, got -1"),
        (
            "search: {sampler: 'json:decoder'}",
            "search.sampler: sampler 'json:decoder' needs a function build: see mixtune.tuning.samplers",
        ),
        ("search: {sampler: 3}", "search.sampler: should be text, got 3"),
        (
            "search: {sampler: tpee}",
            "search.sampler: unknown sampler 'tpee': known are cost_aware, gp, grid, nsga2, random, tpe; "
            "did you mean 'tpe'?",
        ),
        (
            "search: {scheduler: fofo}",
            "search.scheduler: unknown scheduler 'fofo': known are fifo, pareto_asha; did you mean 'fifo'?",
        ),
        ("resources: {gpus_per_trial: all}", "resources.gpus_per_trial: should be a number or 'auto', got \"all\""),
        ("resources: {gpus_per_trial: -1}", "resources.gpus_per_trial: should be at least 0.0 or 'auto', got -1"),
        ("resources: {gpus_per_trial: true}", "resources.gpus_per_trial: should be a number or 'auto', got true"),
        ("resources: {cpus_per_trial: .inf}", "resources.cpus_per_trial: should be a finite number, got Infinity"),
        (
            "objectives: {val_acuracy: max}",
            "objectives.val_acuracy: unknown objective; known are val_accuracy, val_balanced_accuracy, "
            "val_macro_f1, val_calibration_error, train_latency_s, train_flops, infer_latency_ms, peak_memory_mb; "
            "did you mean 'val_accuracy'?",
        ),
        ("objectives: {val_accuracy: min}", 'objectives.val_accuracy: should be max, got "min"'),
        ("objectives: {train_flops: }", "objectives.train_flops: should be min, got null"),
        ("objectives: [val_accuracy]", 'objectives: should be a mapping of keys to values, got ["val_accuracy"]'),
        (
            "constraints: {train_latency: <= 60}",
            "constraints.train_latency: unknown constraint; known are val_accuracy, val_balanced_accuracy, "
            "val_macro_f1, val_calibration_error, train_latency_s, train_flops, infer_latency_ms, peak_memory_mb; "
            "did you mean 'train_latency_s'?",
        ),
        (
            "constraints: {train_latency_s: < 60}",
            'constraints.train_latency_s: should be <= and a number, such as "<= 60", got "< 60"',
        ),
        (
            "constraints: {train_latency_s: 60}",
            'constraints.train_latency_s: should be <= and a number, such as "<= 60", got 60',
        ),
        (
            "constraints: {train_flops: <= .nan}",
            'constraints.train_flops: should be <= and a finite number, such as "<= 60", got "<= .nan"',
        ),
        (
            "constraints: {val_accuracy: '<= 0.9'}",
            'constraints.val_accuracy: should be >=, such as ">= 0.9", got "<= 0.9": less val_accuracy is worse',
        ),
        ("constraints: [fast]", 'constraints: should be a mapping of keys to values, got ["fast"]'),
        ("search: {max_failures: -1}", "search.max_failures: should be at least 0, got -1"),
        (
            "baselines: [sl, ssl-sl]",
            "baselines: unknown baseline 'ssl-sl': known are sl, ssl_sl; did you mean 'ssl_sl'?",
        ),
        ("baselines: [sl, ssl_sl, sl]", 'baselines: names one twice: ["sl", "ssl_sl", "sl"]'),
        ("baselines: sl", 'baselines: should be a list, such as [sl, ssl_sl], got "sl"'),
        ("baselines:", "baselines: should be a list, such as [sl, ssl_sl], got null"),
        ("baselines: [[sl]]", "baselines: unknown baseline \"['sl']\": known are sl, ssl_sl; did you mean 'sl'?"),
        ("space: [alpha]", 'space: should be a mapping of keys to values, got ["alpha"]'),
    ],
)
def test_a_wrong_value_says_what_was_given_and_what_is_allowed(text: str, message: str, tmp_path: Path) -> None:
    assert mistake(tmp_path, f"{RECIPE}{text}\n") == f"wrong.yaml:3: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: {}\n", " recipe: missing; it names at least the data: {data: {dataset: digits}}"),
        ("space: {}\nrecipe:\n", "2: recipe: missing; it names at least the data: {data: {dataset: digits}}"),
        ("recipe: {alpha: 0.5}\n", "1: recipe.data: missing, and it has no default"),
        ("recipe:\n  data: {root: x}\n", "2: recipe.data.dataset: missing, and it has no default"),
        (
            "recipe:\n  data:\n    dataset: digits\n    ssl_root: x\n",
            "4: recipe.data.ssl_root: is given without data.ssl_dataset: add it (image_folder, say)",
        ),
        (f"{RECIPE}recipe: {{}}\n", "3: duplicate key 'recipe': it stands on line 1 already"),
        (f"{RECIPE}space:\n\talpha: 1\n", "4: not valid YAML: a tab stands here, where YAML allows only spaces"),
        (f"{RECIPE}5: 1\n", "3: key '5' is no text to YAML: keys are names, in quotes if need be"),
        ("", " the file is empty: it needs at least recipe: {data: {dataset: ...}}"),
        ("just words\n", ' should be a mapping of keys to values, got "just words"'),
        ("a: [b\n", "2: not valid YAML: while parsing a flow sequence (begun on line 1), expected ',' or ']', but got"),
    ],
)
def test_a_file_that_lacks_the_form_is_told_where(text: str, message: str, tmp_path: Path) -> None:
    assert mistake(tmp_path, text).startswith(f"wrong.yaml:{message}")


def test_a_key_from_a_merged_mapping_is_named_where_it_is_written(tmp_path: Path) -> None:
    text = f"{RECIPE}  optim:\n    ssl: &rates\n      base_lr: 0\n    sl: {{<<: *rates}}\n"
    assert mistake(tmp_path, text) == "wrong.yaml:5: recipe.optim.ssl.base_lr: should be above 0.0, got 0"


@pytest.mark.parametrize(
    ("path", "distribution", "message"),
    [
        ("alpha", "0.3", "should be one distribution, such as {uniform: [0, 1]}, got 0.3"),
        ("alpha", "{uniform: [0.9, 0.1]}", "uniform has low 0.9 above high 0.1"),
        ("alpha", "{uniform: [0.1, 1.2]}", "uniform can give 1.2: should be at most 1.0, got 1.2"),
        ("rho", "{quniform: [-0.5, 1, 0.5]}", "quniform can give -0.5: should be at least 0.0, got -0.5"),
        ("alpha", "{choice: [0.5, 7]}", "choice can give 7: should be at most 1.0, got 7"),
        ("alpha", "{choice: [0.5, .nan]}", "choice can give NaN: should be a finite number, got NaN"),
        ("alpha", "{choice: [0.5, x]}", 'choice can give "x": should be a number, got "x"'),
        ("epochs.sl", "{uniform: [5, 10]}", "uniform can give 5.0: should be a whole number, got 5.0"),
        ("epochs.sl", "{randint: [0, 10]}", "randint can give 0: should be at least 1, got 0"),
        ("epochs.sl", "{randint: [5, 5]}", "randint [5, 5] is empty: as in Ray Tune its upper bound is exclusive"),
        ("optim.sl.betas", "{choice: [[0.9]]}", "choice can give [0.9]: should be longer, got [0.9]"),
        (
            "ssl.objective",
            "{choice: [mae, mea]}",
            "choice can give \"mea\": unknown objective 'mea': known are "
            "dino, mae, mocov3, simclr; did you mean 'mae'?",
        ),
        (
            "data.ssl_root",
            "{choice: [a, b]}",
            'choice can give "a": is given without data.ssl_dataset: add it (image_folder, say)',
        ),
        ("epoch.sl", "{randint: [1, 9]}", "no field of a recipe; did you mean 'epochs.sl'?"),
        ("alhpa", "{uniform: [0, 1]}", "no field of a recipe; did you mean 'alpha'?"),
        ("epochs", "{sl: 3}", "no field of a recipe (a section: name one of epochs.ssl, epochs.sl)"),
        ("alpha", "{grid_search: [0.1, 0.5]}", "grid_search needs search.sampler: grid, not tpe"),
    ],
)
def test_a_wrong_distribution_is_named_at_its_own_line(
    path: str, distribution: str, message: str, tmp_path: Path
) -> None:
    text = f"{RECIPE}space:\n  model.depth: {{choice: [2, 4]}}\n  {path}: {distribution}\n"
    assert mistake(tmp_path, text) == f"wrong.yaml:5: space.{path}: {message}"


def test_a_lambda_below_zero_is_named_at_its_own_line(tmp_path: Path) -> None:
    text = "recipe: {data: {dataset: digits, ssl_dataset: CIFAR10}}\nspace:\n  lambda: {uniform: [-1, 1]}\n"
    assert (
        mistake(tmp_path, text) == "wrong.yaml:3: space.lambda: uniform can give -1.0: should be at least 0.0, got -1.0"
    )


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
        ("epochs: {ssl: 0}", "rho", "{uniform: [0, 1]}", NO_SSL),
        ("epochs: {ssl: 0}", "ssl.mask_ratio", "{uniform: [0.1, 0.9]}", NO_SSL),
        ("epochs: {ssl: 0}", "ssl.decoder_depth", "{randint: [1, 3]}", NO_SSL),
        ("epochs: {ssl: 0}", "optim.ssl.base_lr", "{loguniform: [1.0e-4, 1]}", NO_SSL),
        ("epochs: {ssl: 0}", "data.ssl_dataset", "{choice: [CIFAR10, SVHN]}", NO_SSL),
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
        ("root: x, ssl_dataset: digits, ssl_root: x", 0.5, ONE_DATASET),
    ],
)
def test_a_lambda_that_mixes_nothing_is_refused(data: str, rho: float, because: str, tmp_path: Path) -> None:
    text = f"recipe: {{data: {{dataset: digits, {data}}}, rho: {rho}}}\nspace:\n  lambda: {{uniform: [0, 1]}}\n"
    assert mistake(tmp_path, text) == f"wrong.yaml:3: space.lambda: has no effect while {because}"


@pytest.mark.parametrize(
    ("path", "distribution"),
    [
        ("seed", "{randint: [0, 9]}"),
        ("data.val_fraction", "{uniform: [0.1, 0.2]}"),
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
        ({1: 2}, "1: unknown key; allowed are recipe, space, objectives, constraints, baselines, search, resources"),
        ({"recipe": {"data": {"dataset": "digits"}, 1: 2}}, "recipe.1: should be text, got 1"),
        ({"recipe": {"data": {"dataset": "digits"}}, "space": {3: {}}}, "space.3: no field of a recipe"),
        ({"recipe": None}, "recipe: missing; it names at least the data: {data: {dataset: digits}}"),
    ):
        with pytest.raises(RequestError) as caught:
            space_from_dict(values)
        assert str(caught.value) == f"the search space: {message}"
