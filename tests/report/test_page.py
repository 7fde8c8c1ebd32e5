"""The report says what the ledger says, as one file that needs no network, and breaks on nobody's text."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from mixtune.report.page import report_page, write_report
from mixtune.run.ledger import Ledger
from mixtune.run.result import load
from mixtune.run.status import run_status
from mixtune.space.recipe import with_values

MakeRun = Callable[..., Path]
FIVE = [(0.50, 5.0), (0.90, 10.0), (0.85, 12.0), (0.95, 30.0), (0.96, 50.0)]
BASELINES = {"ssl_sl": {"val_accuracy": 0.95, "val_accuracy_se": 0.02, "train_latency_s": 45.0}}
RECIPE = {
    "data": {"dataset": "digits", "fraction": 1.0, "ssl_fraction": None, "ssl_dataset": None},
    "epochs": {"ssl": 5, "sl": 20},
    **{"alpha": 0.5, "rho": 0.5, "lambda": 0.5},
}


class _Text(HTMLParser):
    """The page's text without scripts and styles, and the addresses that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self._shown = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._shown = tag not in ("script", "style")
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._shown = True

    def handle_data(self, data: str) -> None:
        self.words += [data] if self._shown else []


def page_of(directory: Path) -> str:
    return report_page(load(directory), run_status(load(directory), None))


def text_of(directory: Path) -> str:
    parser = _Text()
    parser.feed(page_of(directory))
    return " ".join(" ".join(parser.words).split())


def with_recipe(directory: Path) -> Path:
    path = directory / "space.yaml"
    space = yaml.safe_load(path.read_text()) | {"recipe": RECIPE, "search": {"trials": 5, "sampler": "tpe"}}
    path.write_text(yaml.safe_dump(space, sort_keys=False))
    return directory


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    """A search of five trials, whose space is whole."""
    return with_recipe(make_run(FIVE, BASELINES))


def test_it_is_one_file_that_loads_nothing(run: Path) -> None:
    path = write_report(load(run), None)
    assert path == run / "report.html"
    parser = _Text()
    parser.feed(path.read_text())
    assert parser.loads == ["data:,"]  # the empty icon, so that a browser asks for none


def test_it_tells_the_front_the_knee_and_the_baselines(run: Path) -> None:
    text = text_of(run)
    assert "A finished search: 5 of 5 trials done." in text
    for row in ("t0001 50.0 % 5.00 s", "t0002 knee 90.0 % 10.0 s", "t0005 96.0 % 50.0 s"):
        assert row in text
    assert "t0003" not in text  # it is dominated
    assert "ssl_sl: 95.0 % in 45.0 s. The cheapest trial on the front that is at least as accurate, t0004" in text
    assert "takes 30.0 s: 1.50x as fast." in text


def test_the_knees_recipe_is_ready_to_be_trained(run: Path) -> None:
    page = page_of(run)
    shown = re.search(r'<code id="recipe">(.*?)</code>', page, re.DOTALL)
    assert shown
    given = yaml.safe_load(html.unescape(shown[1]))
    assert given == {"recipe": with_values(RECIPE, {"alpha": 0.2, "epochs.sl": 20})}
    assert f"mixtune export {run} --trial t0002" in page
    assert "mixtune train t0002/recipe.yaml --set epochs.sl=40" in page


def test_failures_are_grouped_by_their_reason(run: Path) -> None:
    ledger = Ledger(run / "ledger.jsonl")
    for trial in ("t0101", "t0102"):
        ledger.append("asked", trial=trial, params={"alpha": 0.5})
        ledger.append("failed", trial=trial, reason=f"sl_loss is nan in epoch {trial[-1]}", metrics={})
    assert "sl_loss is nan in epoch 1 2 t0101, t0102" in text_of(run)


def test_a_front_says_how_to_confirm_it_and_then_test_accuracies_and_who_fell_off(run: Path) -> None:
    text = text_of(run)
    assert "Not confirmed." in text
    assert f"mixtune confirm {run}" in text
    ledger = Ledger(run / "ledger.jsonl")
    for trial, accuracy, seconds in (("t0001", 0.5, 5.0), ("t0002", 0.6, 10.0), ("t0004", 0.4, 30.0)):
        for seed in (1, 2):
            found = accuracy + seed / 100
            metrics = {"test_accuracy": found, "test_accuracy_se": 0.01, "train_latency_s": seconds, "device": "a CPU"}
            ledger.append("confirmed", trial=trial, seed=seed, metrics=metrics)
    text = text_of(run)
    assert "Confirmed: 3 members were trained again" in text
    assert "t0004 fell off it" in text
    assert re.search(r"t0004 95\.0 % 30\.0 s 41\.5 ± \d\.\d % fell off", text)
    assert "mixtune confirm" not in text


def test_a_running_and_an_empty_search_have_a_report(make_run: MakeRun) -> None:
    directory = with_recipe(make_run([]))
    page = report_page(load(directory), run_status(load(directory), "process 1"))
    assert "still running: 0 of 5 trials done" in page
    assert "Nothing to show: no trial is complete yet." in page


def test_one_objective_has_a_best_trial_and_no_knee(make_run: MakeRun) -> None:
    rows = [{"val_accuracy": accuracy} for accuracy in (0.5, 0.9)]
    text = text_of(with_recipe(make_run(rows, objectives={"val_accuracy": "max"})))
    assert "The best trial, t0002 90.0 %." in text
    assert "knee t" not in text.lower().replace("knee t0002;", "")


def test_what_users_named_is_escaped(make_run: MakeRun) -> None:
    directory = with_recipe(make_run(FIVE, name="a<b>&c"))
    ledger = Ledger(directory / "ledger.jsonl")
    ledger.append("asked", trial="t0900", params={"data.root": "</script><img src=x>"})
    ledger.append("complete", trial="t0900", metrics={"val_accuracy": 0.99, "train_latency_s": 1.0})
    page = page_of(directory)
    assert "<h1>a&lt;b&gt;&amp;c</h1>" in page
    assert "<img" not in page.replace("&lt;img", "")
    data = re.search(r'<script type="application/json" id="data-pareto">(.*?)</script>', page, re.DOTALL)
    assert data
    assert "&lt;img" in json.dumps(json.loads(data[1]))
    assert load(directory).plot_pareto().layout.title.subtitle.text.startswith("a&lt;b&gt;&amp;c")
