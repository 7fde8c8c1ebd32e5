"""Model cards: figures of the right split, tables that fit, what is confirmed and what is not."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

from huggingface_hub import ModelCard

from mixtune.exporting.card import LOWEST, MAX_CONFUSED, MAX_MATRIX, ModelFacts, TaskFacts, model_card
from mixtune.space.recipe import parse_recipe

SCORES = {"accuracy": 0.875, "accuracy_se": 0.012, "balanced_accuracy": 0.81, "balanced_accuracy_se": 0.02}
SCORES |= {"macro_f1": 0.8, "calibration_error": 0.0432}
AUGMENTATION = {"pad": 4, "flip": 0.5, "crop_scale": None, "crop_ratio": (0.75, 1.33), "randaugment": None}
WRONG = [(0, 1, 10), (1, 0, 1)]
PETS = TaskFacts("pets", "pets", ("cat", "dog", "a|b"), 900, AUGMENTATION, SCORES, (50, 31, 0), (40, 30, 0), WRONG)
METRICS: dict[str, Any] = {"train_latency_s": 12.3, "infer_latency_ms": 1.5, "train_flops": 4e12, "lr_ssl": 1.5e-4}
METRICS |= {"lr_sl": 1e-3, "method": "mixtraining", "device": "NVIDIA H200", "precision": "bfloat16"}


def facts(**changes: Any) -> ModelFacts:
    given = ModelFacts(
        name="t0007",
        choice="the knee of the front that a search found among 18 complete trials",
        version="0.1.0",
        recipe=parse_recipe({"data": {"dataset": "digits"}, "alpha": 0.3, "seed": 5}),
        metrics=METRICS,
        split="val",
        sizes="patches of 4 pixels",
        epochs={"ssl": 50, "mix": 50, "sl": 50},
        image_size=32,
        channels=3,
        tasks=(PETS,),
    )
    return replace(given, **changes)


def test_a_card_says_what_it_is_how_good_and_how_it_was_measured() -> None:
    card = model_card(facts())
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "# t0007: a vision transformer for pets" in card
    assert "trained on 900 images of pets (32x32 RGB) by mixtune 0.1.0" in card
    assert "It is the knee of the front that a search found among 18 complete trials." in card
    assert "Measured on 81 validation images, which were taken from the training images" in card
    assert "of seed 5. The search compared its recipes by these same images" in card
    assert "| accuracy, top-1 (± standard error) | 87.5 ± 1.2 % |" in card
    assert "| balanced accuracy: the mean of the classes' recalls | 81.0 ± 2.0 % |" in card
    assert "| macro F1 | 80.0 % |" in card
    assert "15 bins of the top-1 probability | 4.3 % |" in card
    assert "Costs, on NVIDIA H200: training time 12.3 s, inference time 1.50 ms, training compute 4e+12 FLOP." in card
    assert "| method | mixtraining: 50 self-supervised, 50 of both at once, 50 supervised epochs |" in card
    assert "| loss-ratio alpha, mix-ratio rho | 0.300, 0.500 |" in card
    assert "| optimizer | AdamW, batches of 256, peak rates: ssl 0.000150, sl 0.00100 |" in card
    assert "| augmentation | pad 4, flip 0.5 |" in card
    assert "| precision, seed | bfloat16, 5 |" in card
    assert "| cat | 50 | 80.0 % |\n| dog | 31 | 96.8 % |\n| a\\|b | 0 | - |" in card
    assert "|  | cat | dog | a\\|b |\n| --- | ---: | ---: | ---: |\n| cat | 40 | 10 |  |\n| dog | 1 | 30 |  |" in card
    assert "depends on the images." in card
    assert "Confirmed" not in card


def test_the_hub_reads_what_it_is_and_its_accuracy() -> None:
    data = ModelCard(model_card(facts())).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", None)
    assert (data.tags, data.datasets, data.metrics) == (["timm", "mixtune"], ["pets"], ["accuracy"])
    (result,) = data.eval_results
    assert (data.model_name, result.task_type, result.dataset_split) == ("t0007", "image-classification", "validation")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.875)

    recipe = parse_recipe({"data": {"dataset": "digits", "ssl_dataset": "CIFAR10"}, "protocol": "paper"})
    other = replace(PETS, title="my scans: 2", counts=[0] * 3, right=[0] * 3, mistakes=[])  # without held-out images
    data = ModelCard(model_card(facts(recipe=recipe, split="test", tasks=(PETS, other)))).data
    assert data.datasets == ["pets", "my-scans-2", "CIFAR10"]
    assert [(each.dataset_name, each.dataset_split) for each in data.eval_results] == [("pets", "test")]
    data = ModelCard(model_card(facts(tasks=(other,)))).data
    assert (data.eval_results, data.metrics) == (None, None)


def class_names(count: int) -> tuple[str, ...]:
    return tuple(f"class{i}" for i in range(count))


def test_a_card_takes_memory_in_proportion_to_the_classes() -> None:
    def peak(count: int) -> int:
        names, mistakes = class_names(count), [(i, (i + 1) % count, 1) for i in range(count)]
        task = replace(PETS, classes=names, counts=[2] * count, right=[1] * count, mistakes=mistakes)
        tracemalloc.start()
        model_card(facts(tasks=(task,)))
        assert len(json.dumps(task.figures())) < 100 * count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    model_card(facts())  # what is loaded once
    assert peak(20_000) < 8 * peak(5_000)
    assert peak(5_000) < 50e6  # a matrix has 25 million cells


def test_metrics_have_a_matrix_or_what_there_is_of_it() -> None:
    assert PETS.figures()["confusion"] == [[40, 10, 0], [1, 30, 0], [0, 0, 0]]
    many = replace(PETS, classes=class_names(MAX_MATRIX + 1), counts=[1] * 1001, right=[1] * 1001)
    assert (many.figures()["mistakes"], "confusion" in many.figures()) == (WRONG, False)


def test_of_many_classes_the_worst_and_the_most_confused_are_shown() -> None:
    count = 120
    mistakes = [(i, i + 1, 150 if i == 17 else i) for i in range(1, count - 1) if i != 3]
    counts, right = [0 if i == 3 else 50 for i in range(count)], [0 if i == 3 else 50 for i in range(count)]
    for label, _, images in mistakes:
        counts[label] += images
    task = replace(PETS, classes=class_names(count), counts=counts, right=right, mistakes=mistakes)
    card = model_card(facts(tasks=(task,)))
    lowest = card.partition("| class | images | recall |")[2].partition("\n\n")[0].splitlines()[2:]
    assert (len(lowest), lowest[0]) == (LOWEST, "| class17 | 200 | 25.0 % |")
    shares = [float(row.split("|")[3].removesuffix(" % ")) for row in lowest]
    assert shares == sorted(shares)
    confused = card.partition("| class | predicted as | images |")[2].partition("\n\n")[0].splitlines()[2:]
    assert (len(confused), confused[0]) == (MAX_CONFUSED, "| class17 | class18 | 150 of 200 |")
    assert "The 10 of 120 classes with the lowest recall; `metrics.json` has all" in card
    assert "# 120 classes: class0, class1, " in card
    assert len(card.partition("\n---\n")[2].splitlines()) <= 96


def test_a_confirmed_recipe_says_whose_figures_those_are() -> None:
    row = {"seeds": 4, "test_accuracy": 0.933, "test_accuracy_se": 0.011, "train_latency_s": 8.16, "p_front": 0.3}
    card = model_card(facts(confirmed=row))
    assert "trained again on 4 fresh seeds, the recipe has a test accuracy of 93.3 ± 1.1 % after 8.16 s" in card
    assert "on the true front with a probability of 30 %" in card
    assert "the weights here are those of the search" in card
    assert "on 1 fresh seed," in model_card(facts(confirmed={**row, "seeds": 1}))


def test_several_tasks_have_their_columns_tables_and_folders() -> None:
    unflipped = {**AUGMENTATION, "flip": 0.0}
    other = replace(PETS, name="image_folder", title="signs", folder="signs", augmentation=unflipped)
    card = model_card(facts(tasks=(replace(PETS, folder="pets"), other)))
    assert "| figure | pets | signs |" in card
    assert "### Classes of signs" in card
    assert "python signs/classify.py IMAGE" in card
    assert '"local-dir:pets" or "local-dir:signs"' in card
    assert "on 900 images of pets and 900 images of signs (32x32 RGB)" in card
    assert "81 and 81 validation images each" in card
    assert "| augmentation of signs | pad 4, flip 0.0 |" in card


def test_what_it_began_from_and_what_differs_is_said() -> None:
    recipe = parse_recipe({"data": {"dataset": "digits"}, "model": {"pretrained": True}, "epochs": {"ssl": 0}})
    metrics = {**METRICS, "method": "sl", "infer_latency_ms": None}
    remark = "t0007: the val_accuracy of these weights is 0.8750, not 0.9000 as after the training."
    card = model_card(facts(recipe=recipe, metrics=metrics, epochs={"ssl": 0, "mix": 0, "sl": 9}, remarks=(remark,)))
    assert "| first weights | timm's pretrained ones of vit_tiny_patch16_224 |" in card
    assert "depends on the training images and the weights that it began from." in card
    assert remark in card
    assert "| method | sl: 9 supervised epochs |" in card
    assert "self-supervised objective" not in card
    assert "inference time" not in card
    assert "peak rates: sl 0.00100 |" in card


def test_names_end_no_code_and_are_no_markup() -> None:
    odd = ("```\n# not a title", "<script>alert(1)</script>", "\x1b[2Jx")
    card = model_card(facts(tasks=(replace(PETS, title="<b>\npets", classes=odd),)))
    assert not any(line.startswith(("```\n", "# not")) or "\x1b" in line for line in card.splitlines()[20:])
    assert card.count("\n```") == 4  # the two examples
    assert "<script>" not in card.split("```")[-1]
    assert "vision transformer for &lt;b> pets" in card
