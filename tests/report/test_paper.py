"""The paper's rows for exactly one setting, by any spelling of its datasets, or one line on what it has."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from mixtune.report.paper import NoPaperRowsError, Setting, paper_rows, paper_rows_of, paper_sweep
from mixtune.space.recipe import change_recipe, parse_recipe

Values = dict[str, Any]
CIFAR: Values = {
    "dataset": "CIFAR10", "ssl_dataset": None, "data_percent": 10, "ssl_epochs": 100, "sl_epochs": 100,
    "alpha": 0.5, "rho": 0.5,
}  # fmt: skip
BOTH: Values = {**CIFAR, "dataset": ("CIFAR10", "SVHN")}
CROSS: Values = {**CIFAR, "ssl_dataset": "tiny_imagenet", "data_percent": 100}


def found(setting: Values) -> pd.DataFrame:
    rows = paper_rows(Setting(**setting))
    assert list(rows["method"]) == ["sl", "ssl_sl", "mixtraining"]
    return rows.set_index("method")


def test_table_1_cifar_10_with_10_percent() -> None:
    rows = found(CIFAR)
    assert list(rows["accuracy"]) == pytest.approx([0.5340, 0.5679, 0.6045])
    assert list(rows["latency_s"]) == [589.44, 1253.65, 962.16]
    assert list(rows["speedup"].round(2)) == pytest.approx([math.nan, math.nan, 1.30], nan_ok=True)
    assert set(rows["table"]) == {"1"}
    assert set(rows["setting"]) == {"CIFAR-10, 10 % of the data, 100 + 100 epochs, alpha 0.5, rho 0.5"}


@pytest.mark.parametrize(
    ("changes", "table", "accuracy"),
    [
        ({"dataset": "CIFAR-10", "ssl_dataset": "CIFAR10"}, "1", 0.6045),
        ({"dataset": "tiny_imagenet"}, "1", 0.2099),
        ({"data_percent": 100.0}, "1", 0.8713),  # Table 5 repeats it with 85.54
        ({"data_percent": 100 * 0.1}, "1", 0.6045),
        ({"ssl_epochs": 50, "sl_epochs": 50}, "6", 0.5760),
        ({"dataset": "CIFAR100", "data_percent": 25, "ssl_epochs": 75, "sl_epochs": 75}, "8", 0.3843),
        ({"ssl_dataset": "tiny_imagenet", "data_percent": 100}, "2", 0.8919),
    ],
)
def test_spellings_and_tables(changes: Values, table: str, accuracy: float) -> None:
    mixed = found({**CIFAR, **changes}).loc["mixtraining"]
    assert mixed["table"] == table
    assert mixed["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("dataset", [("CIFAR10", "SVHN"), ("SVHN", "CIFAR10"), "CIFAR10+SVHN"])
def test_several_tasks_have_their_own_accuracies_and_the_mean_of_table_3(dataset: str | tuple[str, ...]) -> None:
    mixed = found({**BOTH, "dataset": dataset}).loc["mixtraining"]
    assert mixed["accuracy"] == pytest.approx(0.7011)
    assert mixed["accuracy_CIFAR10"] == pytest.approx(0.6344)
    assert mixed["accuracy_SVHN"] == pytest.approx(0.7677)
    assert (mixed["table"], mixed["latency_s"]) == ("3, 12", 1782.5)


def test_a_sweep_has_no_latency_and_its_baselines_come_from_the_main_tables() -> None:
    rows = found({**BOTH, "data_percent": 100, "rho": 0.25})
    assert list(rows["table"]) == ["3, 16", "3, 16", "5"]
    assert rows["accuracy"]["mixtraining"] == pytest.approx((0.8737 + 0.9446) / 2)
    assert rows["accuracy"]["ssl_sl"] == pytest.approx(0.9092)
    assert rows["latency_s"]["ssl_sl"] == 21561.18
    assert rows[["latency_s", "speedup"]].loc["mixtraining"].isna().all()


def test_another_setting_is_none_and_says_what_the_paper_has() -> None:
    all_ = "TinyImageNet, CIFAR-10, CIFAR-100, CIFAR-10+SVHN, TinyImageNet to CIFAR-10, TinyImageNet to CIFAR-100"
    tenth = "the paper has CIFAR-10 with 10 % of the data for"
    for setting, reason in (
        ({**CIFAR, "dataset": "digits"}, f"the paper has no training on digits: it has {all_}"),
        ({**CIFAR, "dataset": "SVHN"}, "the paper has no training on SVHN: it has"),
        ({**CIFAR, "ssl_dataset": "SVHN"}, "the paper has no training on SVHN to CIFAR10: it has"),
        ({**CIFAR, "dataset": ("CIFAR10", "CIFAR10")}, "the paper has no training on CIFAR10+CIFAR10: it has"),
        ({**CROSS, "data_percent": 10}, "the paper has TinyImageNet to CIFAR-10 with 100 % of the data, not 10 %"),
        ({**CROSS, "lambda_": 0.7}, "the paper has TinyImageNet to CIFAR-10 with lambda 0.5, not 0.7"),
        ({**CIFAR, "ssl_epochs": 20}, f"{tenth} 50 + 50, 75 + 75, 100 + 100 epochs, not 20 + 100"),
        ({**CIFAR, "rho": 0.25}, f"{tenth} 100 + 100 epochs at alpha and rho 0.5 and 0.5, not 0.5 and 0.25"),
    ):
        with pytest.raises(NoPaperRowsError) as none:
            paper_rows(Setting(**setting))
        assert str(none.value).startswith(reason), setting


def test_lambda_does_not_matter_where_nothing_is_mixed() -> None:
    assert list(found({**CIFAR, "lambda_": 0.7})["accuracy"]) == list(found(CIFAR)["accuracy"])


def test_the_paper_has_no_rows_of_another_objective() -> None:
    recipe = parse_recipe({"data": {"dataset": "CIFAR10"}})
    other = change_recipe(recipe, {"ssl.objective": "simclr"})
    assert len(paper_rows_of(recipe.to_dict())) == 3
    assert len(paper_sweep(recipe.to_dict(), "alpha")) > 0
    with pytest.raises(NoPaperRowsError, match="the paper's SSL objective is mae, not simclr"):
        paper_rows_of(other.to_dict())
    assert paper_sweep(other.to_dict(), "alpha").empty
