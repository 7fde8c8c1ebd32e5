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
SCORES = "val_accuracy, val_balanced_accuracy, val_macro_f1, val_calibration_error"
FEATURES = "ssl_knn_accuracy, ssl_probe_accuracy, knn_accuracy, probe_accuracy"
COSTS = "train_latency_s, train_flops, infer_latency_ms, peak_memory_mb"
NEEDS = "needs a function build or proposer: see mixtune.tuning.samplers"
SCHEDULERS = "known are fifo; did you mean 'fifo'?"
BASELINES = "known are sl, sl_same_time, ssl_sl, paper; did you mean 'ssl_sl'?"


def test_a_mistake_says_what_was_given_and_what_is_allowed(tmp_path: Path) -> None:
    ssl = "unknown key; allowed are objective, encode, loss_on, mask_ratio, norm_pix, decoder_depth"
    gpus = "unknown key; allowed are cpus_per_trial, gpus_per_trial, device; did you mean 'gpus_per_trial'?"
    meant = f"unknown objective; known are {SCORES}, {FEATURES}, {COSTS}; did you mean 'val_accuracy'?"
    form, either = "should be <= and a number, such as", "should be a valid number or should be 'auto'"
    for text, key, message in (
        ("serach: {trials: 3}", "serach", f"{SECTIONS}; did you mean 'search'?"),
        ("trials: 30", "trials", f"{SECTIONS}; trials belongs below search"),
        ("  ssl: {mask_rato: 0.5}", "recipe.ssl.mask_rato", f"{ssl}; did you mean 'mask_ratio'?"),
        ("resources: {gpu_per_trial: 1}", "resources.gpu_per_trial", gpus),
        ("search: [tpe]", "search", 'should be a mapping of keys to values, got ["tpe"]'),
        ("search: {sampler: 'json:decoder'}", "search.sampler", f"sampler 'json:decoder' {NEEDS}"),
        ("search: {scheduler: fofo}", "search.scheduler", f"unknown scheduler 'fofo': {SCHEDULERS}"),
        ("resources: {gpus_per_trial: all}", "resources.gpus_per_trial", f'{either}, got "all"'),
        ("objectives: {val_acuracy: max}", "objectives.val_acuracy", meant),
        ("objectives: {val_accuracy: min}", "objectives.val_accuracy", 'should be max, got "min"'),
        ("constraints: {train_latency_s: 60}", "constraints.train_latency_s", f'{form} "<= 60", got 60'),
        ("baselines: [sl, ssl-sl]", "baselines", f"unknown baseline 'ssl-sl': {BASELINES}"),
        ("baselines: [sl, ssl_sl, sl]", "baselines", 'names one twice: ["sl", "ssl_sl", "sl"]'),
        ("baselines:", "baselines", "should be a list, such as [sl, ssl_sl], got null"),
    ):
        assert mistake(tmp_path, f"{RECIPE}{text}\n") == f"wrong.yaml:3: {key}: {message}"


def test_a_file_that_lacks_the_form_is_told_where(tmp_path: Path) -> None:
    for text, message in (
        ("space: {}\n", " recipe: missing; it names at least the data: {data: {dataset: digits}}"),
        ("space: {}\nrecipe:\n", "2: recipe: missing; it names at least the data: {data: {dataset: digits}}"),
        ("recipe: {alpha: 0.5}\n", "1: recipe.data: missing, and it has no default"),
        ("recipe:\n  data: {root: x}\n", "2: recipe.data.dataset: missing, and it has no default"),
    ):
        assert mistake(tmp_path, text).startswith(f"wrong.yaml:{message}")


def test_a_key_from_a_merged_mapping_is_named_where_it_is_written(tmp_path: Path) -> None:
    text = f"{RECIPE}  optim:\n    ssl: &rates\n      base_lr: 0\n    sl: {{<<: *rates}}\n"
    assert mistake(tmp_path, text) == "wrong.yaml:5: recipe.optim.ssl.base_lr: should be greater than 0, got 0"


def test_a_wrong_distribution_is_named_at_its_own_line(tmp_path: Path) -> None:
    alone = "is given without data.ssl_dataset: add it (image_folder, say)"
    for path, distribution, message in (
        ("alpha", "0.3", "should be one distribution, such as {uniform: [0, 1]}, got 0.3"),
        ("rho", "{quniform: [-1, 1, 0.5]}", "quniform can give -1.0: should be greater than or equal to 0, got -1.0"),
        ("epochs.sl", "{uniform: [5, 10]}", "uniform can give 5.0: should be a valid integer, got 5.0"),
        ("data.ssl_root", "{choice: [a, b]}", f'choice can give "a": {alone}'),
        ("epoch.sl", "{randint: [1, 9]}", "no field of a recipe; did you mean 'epochs.sl'?"),
        ("alpha", "{grid_search: [0.1, 0.5]}", "grid_search needs search.sampler: grid, not auto"),
    ):
        text = f"{RECIPE}space:\n  model.depth: {{choice: [2, 4]}}\n  {path}: {distribution}\n"
        assert mistake(tmp_path, text) == f"wrong.yaml:5: space.{path}: {message}"


def test_a_grid_needs_an_end(tmp_path: Path) -> None:
    text = f"{RECIPE}search: {{sampler: grid}}\nspace:\n  alpha: {{uniform: [0, 1]}}\n"
    expected = "wrong.yaml:5: space.alpha: uniform has no end of values, so sampler: grid cannot list them"
    assert mistake(tmp_path, text) == expected


NO_SSL = "epochs.ssl is 0: nothing is self-supervised"
NO_MIX = "rho times the fewer of epochs.ssl and epochs.sl is below 1: no epoch is mixed"
ONE_DATASET = "both losses see the same images: set data.ssl_dataset, or data.ssl_fraction above data.fraction"


def test_a_distribution_without_effect_is_refused(tmp_path: Path) -> None:
    never = "ssl.compression.schedule is never constant"
    same = "the self-supervised images are the labelled ones: set data.ssl_dataset or data.ssl_fraction"
    compressed = "ssl: {objective: simclr, compression: {schedule: none}}"
    for recipe, path, distribution, because in (
        ("rho: 0", "alpha", "{uniform: [0, 1]}", NO_MIX),
        ("rho: 0.1, epochs: {ssl: 9, sl: 100}", "alpha", "{uniform: [0, 1]}", NO_MIX),
        ("epochs: {ssl: 2, sl: 2}", "rho", "{uniform: [0, 0.4]}", NO_MIX),
        ("epochs: {ssl: 0}", "alpha", "{uniform: [0, 1]}", NO_SSL),
        ("epochs: {ssl: 0}", "optim.ssl.base_lr", "{loguniform: [1.0e-4, 1]}", NO_SSL),
        ("alpha: 0.5", "lambda", "{uniform: [0, 1]}", ONE_DATASET),
        ("rho: 0", "data.partners", "{choice: [own, pool]}", NO_MIX),
        ("epochs: {ssl: 0}", "data.partners", "{choice: [own, pool]}", NO_SSL),
        ("alpha: 0.5", "data.ssl_epoch", "{choice: [supervised, pool]}", same),
        (compressed, "ssl.compression.token_dropout", "{choice: [0.0, 0.5]}", never),
    ):
        text = f"recipe: {{data: {{dataset: digits}}, {recipe}}}\nspace:\n  {path}: {distribution}\n"
        assert mistake(tmp_path, text) == f"wrong.yaml:3: space.{path}: has no effect while {because}"


def test_a_lambda_that_mixes_images_without_labels_is_searched() -> None:
    few = {"dataset": "digits", "fraction": 0.1, "ssl_fraction": 1.0}
    for data, searched in (
        (few, {}),
        ({**few, "ssl_fraction": None}, {"data.ssl_fraction": {"choice": [None, 0.5]}}),
        ({"dataset": "digits", "partners": "pool"}, {}),
        ({"dataset": "digits"}, {"data.partners": {"choice": ["own", "pool"]}}),
    ):
        drawn = {"lambda": {"uniform": [0, 1]}, "data.ssl_epoch": {"choice": ["supervised", "pool"]}}
        kept = drawn if "ssl_fraction" in data else {"lambda": drawn["lambda"]}
        assert space_from_dict({"recipe": {"data": data}, "space": {**kept, **searched}}).space.keys() >= kept.keys()


def test_a_lambda_that_mixes_nothing_is_refused(tmp_path: Path) -> None:
    for ssl_dataset, rho, because in (("CIFAR10", 0, NO_MIX), ("digits", 0.5, ONE_DATASET)):
        data = f"{{dataset: digits, ssl_dataset: {ssl_dataset}}}"
        text = f"recipe: {{data: {data}, rho: {rho}}}\nspace:\n  lambda: {{uniform: [0, 1]}}\n"
        assert mistake(tmp_path, text) == f"wrong.yaml:3: space.lambda: has no effect while {because}"


def test_what_all_trials_share_is_not_searched(tmp_path: Path) -> None:
    for path, distribution in (("seed", "{randint: [0, 9]}"), ("data.download", "{choice: [true, false]}")):
        expected = f"wrong.yaml:4: space.{path}: is the same for all trials of a search: drop this distribution"
        assert mistake(tmp_path, f"{RECIPE}space:\n  {path}: {distribution}\n") == expected


def test_what_an_option_makes_idle_is_named_where_it_stands_and_how_to_drop_it(tmp_path: Path) -> None:
    text = f"{RECIPE}space:\n  epochs.sl: {{randint: [5, 9]}}\n  alpha: {{uniform: [0, 1]}}\n"
    expected = f"wrong.yaml:5: space.alpha: has no effect while {NO_MIX}: --set space.alpha= drops it"
    assert mistake(tmp_path, text, {"rho": 0}) == expected


def test_a_mistake_in_an_option_names_the_option() -> None:
    values = {"recipe": {"data": {"dataset": "digits"}}, "space": {"alpha": {"uniform": [0, 1]}}}
    fixes = "nothing is left to search: drop one, or train the one recipe by mixtune train"
    for overrides, message in (
        ({"space.rhoo": {"choice": [0]}}, "space.rhoo={\"choice\": [0]}: no field of a recipe; did you mean 'rho'?"),
        ({"space.rho": 3}, "space.rho=3: should be one distribution, such as {uniform: [0, 1]}, got 3"),
        (
            {"space.alhpa": None},
            "space.alhpa=: space does not hold it, but alpha; did you mean 'alpha'?",
        ),
        ({"space.rho": {"choice": [2]}}, None),
        ({"search.trials": 0}, "search.trials=0: should be greater than or equal to 1, got 0"),
        ({"search": {"trials": 0}}, 'search={"trials": 0}: trials: should be greater than or equal to 1, got 0'),
        ({"serach.trials": 4}, "serach.trials=4: no field of a recipe; did you mean 'search.trials'?"),
        (
            {"search.trails": 4},
            "search.trails=4: unknown key; allowed are sampler, sampler_options, scheduler, trials, ",
        ),
        ({"objectives.val_accuracy": "min"}, 'objectives.val_accuracy="min": should be max, got "min"'),
        ({"alpha": 0.5}, f"alpha=0.5 fixes all that is searched: {fixes}"),
        ({"alpha": 0.5, "space.alpha": {"choice": [0, 1]}}, None),
        ({"run.machine": 1}, "run.machine=1: no field of a recipe"),
    ):
        with pytest.raises(RequestError) as caught:
            space_from_dict(values, overrides)
        said = str(caught.value)
        assert said.startswith("--set ")
        assert "\n" not in said
        assert message is None or said.startswith(f"--set {message}"), said


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
