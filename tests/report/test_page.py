"""The report says what the ledger says, as one file that needs no network, and breaks on nobody's text."""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from mixtune.errors import RequestError
from mixtune.report import page as page_module
from mixtune.report.page import follow_search, report_page, write_comparison, write_report
from mixtune.report.several import compare_runs, differences, draw_fronts
from mixtune.report.trials import trials_table
from mixtune.run.ledger import Ledger
from mixtune.run.lock import hold_run
from mixtune.run.result import load
from mixtune.run.status import run_status
from mixtune.space.recipe import with_former_defaults, with_values

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


def test_its_first_words_are_the_recommendation_and_what_to_choose_from(run: Path) -> None:
    text, result = text_of(run), load(run)
    assert "A finished search: 5 of 5 trials done." in text
    assert result.recommendation().sentence in text
    assert "recommended, most accurate t0005" in text
    assert "cheapest on the front t0001" in text
    assert text.index("t0005") < text.index("confirmed nothing yet") < text.index("How sure is it?")
    assert re.search(r"searched .* \(\d+:\d\d", text)
    assert "comes with scikit-learn" in text
    commands = (f"mixtune confirm {run}", f"mixtune export {run}", f"mixtune resume {run} --trials 25")
    assert all(command in text for command in commands)


def test_it_tells_the_front_and_the_baselines(run: Path) -> None:
    text = text_of(run)
    for row in (
        "t0001 MixTraining 50.0 % 5.00 s",
        "t0002 MixTraining 90.0 % 10.0 s",
        "t0005 recommended MixTraining 96.0 %",
    ):
        assert row in text
    assert "t0003" not in text  # it is dominated
    assert "ssl_sl: 95.0 % in 45.0 s. The cheapest recipe on the front that is at least as accurate, t0004" in text
    assert "takes 30.0 s: 1.50x as fast." in text


def test_the_recommended_recipe_is_ready_to_be_trained(run: Path) -> None:
    page = page_of(run)
    shown = re.search(r'<code id="recipe">(.*?)</code>', page, re.DOTALL)
    assert shown
    given = yaml.safe_load(html.unescape(shown[1]))
    assert given == {"recipe": with_former_defaults(with_values(RECIPE, {"alpha": 0.5, "epochs.sl": 20}))}
    assert f"mixtune train {run}/models/t0005/recipe.yaml --set epochs.sl=40" in page


def test_the_table_of_all_trials_agrees_with_the_ledger_and_trials_csv(run: Path) -> None:
    ledger = Ledger(run / "ledger.jsonl")
    ledger.append("asked", trial="t0200", params={"alpha": 0.7, "epochs.sl": 30, "rho": 0.0})
    ledger.append("started", trial="t0200")
    ledger.append("failed", trial="t0200", reason="sl_loss is nan", metrics={})
    ledger.append("extended", trials=9)
    result = load(run)
    table = trials_table(result, run_status(result, None))
    titles = [column["title"] for column in table["columns"]]
    rows = {trial: dict(zip(titles, cells, strict=True)) for trial, _, _, cells in table["rows"]}
    assert list(rows) == list(result.records)
    for row in result.trials.dropna(subset=["val_accuracy"]).to_dict("records"):
        assert rows[row["trial"]]["validation accuracy"][1] == row["val_accuracy"]
        assert rows[row["trial"]]["training time"][1] == row["train_latency_s"]
        assert rows[row["trial"]]["wall time"][1] == row["wall_s"]
    assert (rows["t0200"]["state"], rows["t0200"]["reason"]) == ("failed", "sl_loss is nan")
    assert rows["t0200"]["alpha"] == rows["ssl_sl"]["alpha"] == "\N{EN DASH}"  # no mix phase
    text = text_of(run)
    assert "6 of 9 trials done" in text
    assert "trials 9" in text


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
    found = {
        "t0001": (0.5, 5.0),
        "t0002": (0.6, 10.0),
        "t0004": (0.4, 30.0),
        "t0005": (0.7, 50.0),
        "ssl_sl": (0.3, 45.0),
    }
    for trial, (accuracy, seconds) in found.items():
        for seed in (1, 2, 3, 4):
            metrics = {
                **{"val_accuracy": accuracy + seed / 100, "val_accuracy_se": 0.01},
                **{"test_accuracy": accuracy - seed / 100, "test_accuracy_se": 0.01},
                **{"train_latency_s": seconds, "device": "a CPU"},
            }
            ledger.append("confirmed", trial=trial, seed=seed, metrics=metrics)
    text = text_of(run)
    assert "Confirmed: 5 recipes, baselines too, were trained again" in text
    assert "The recipes that, more probably than not, no other beats in every objective." in text
    assert re.search(r"On it with a probability of at least 95 % are t0001(, t000[25])*; ", text)
    assert "t0004 fell off it (less than 5 %)" in text
    assert re.search(r"t0004 fell off MixTraining 42\.5 ± \d\.\d % 30\.0 s 37\.5 ± \d\.\d % \d+ %", text)
    assert "with 4 fresh seeds" in text
    assert "mixtune confirm" not in text


def test_a_running_and_an_empty_search_have_a_report_without_empty_sections(make_run: MakeRun) -> None:
    directory = with_recipe(make_run([]))
    result = load(directory)
    page = report_page(result, run_status(result, "process 1"), refresh_s=10.0)
    assert "still running: 0 of 5 trials done" in page
    assert page.count("No recipe is complete yet") == 1
    assert "data-figure" not in page
    assert f"mixtune report {directory} --watch" in page
    assert 'data-refresh="10.0"' in page
    assert re.search(r"made \d+ \w{3} \d{4}, \d\d:\d\d:\d\d", page)
    assert "data-refresh" not in page_of(directory).partition("<script")[0].partition("<body")[2][:50]


def test_figures_without_anything_to_show_are_not_on_the_page(run: Path) -> None:
    page = page_of(run)
    drawn = set(re.findall(r'data-figure="(\w+)"', page))
    assert {"pareto", "parallel_coordinates", "alpha_rho", "hypervolume"} <= drawn
    assert not drawn & {"importance", "learning_curves", "stage_tree"}  # five trials, fifo, no epochs
    assert "Nothing to show" not in page


def test_a_report_follows_its_search_until_it_ends(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[bool, int]] = []
    ledger = Ledger(run / "ledger.jsonl")

    def sleep(seconds: float) -> None:
        page = (run / "report.html").read_text()
        said.append(("data-refresh=" in page, page.count("of 5 trials done")))
        if len(said) == 2:
            ledger.append("asked", trial="t0300", params={})
        if len(said) == 3:
            search.close()

    written: list[Path] = []
    search = contextlib.ExitStack()
    search.enter_context(hold_run(run, "search"))
    monkeypatch.setattr(page_module.time, "sleep", sleep)
    with search:
        follow_search(run, None, written.append)
    assert said == [(True, 1)] * 3
    assert written == [run / "report.html"]
    assert "<body>" in (run / "report.html").read_text()


def test_runs_are_compared_by_what_they_have_in_common(run: Path, make_run: MakeRun) -> None:
    other = make_run(
        [(0.7, 4.0), (0.97, 60.0)], BASELINES, reference={"val_accuracy": 0.2, "train_latency_s": 90.0}, name="b"
    )
    results = [load(run), load(other)]
    runs = compare_runs(results)
    assert runs.reference == {"val_accuracy": 0.1, "train_latency_s": 90.0}
    _, fronts = draw_fronts(runs) or (None, None)
    named = {trace.name: trace for trace in fronts.data if trace.name}
    assert list(named["digits"].x) == list(load(run).pareto_front()["train_latency_s"])
    assert list(named["b"].x) == list(load(other).pareto_front()["train_latency_s"])
    rows = dict(differences(runs))
    assert "recipe.alpha" not in rows
    assert rows["recipe.epochs.ssl"] == ["5", "10"]
    parser = _Text()
    parser.feed(write_comparison(results, run.parent / "both.html").read_text())
    text = " ".join(" ".join(parser.words).split())
    assert all(result.recommendation().sentence in text for result in results)
    assert "validation accuracy 10.0 %, training time 90.0 s" in text
    one = make_run([{"train_flops": 1.0}], objectives={"train_flops": "min"}, name="c")
    with pytest.raises(RequestError, match="no objective in common"):
        compare_runs([load(run), load(one)])
    with pytest.raises(RequestError, match="cannot be compared with itself"):
        compare_runs([load(run), load(run)])


def test_one_objective_has_a_best_trial_and_no_knee(make_run: MakeRun) -> None:
    rows = [{"val_accuracy": accuracy} for accuracy in (0.5, 0.9)]
    text = text_of(with_recipe(make_run(rows, objectives={"val_accuracy": "max"})))
    assert "recommended, most accurate t0002" in text
    assert "cheapest" not in text
    assert "The knee is" not in text


def test_what_users_named_is_escaped(make_run: MakeRun) -> None:
    directory = with_recipe(make_run(FIVE, name="a<b>&c"))
    ledger = Ledger(directory / "ledger.jsonl")
    ledger.append("asked", trial="t0900", params={"data.root": "</script><img src=x>"})
    ledger.append("complete", trial="t0900", metrics={"val_accuracy": 0.99, "train_latency_s": 1.0})
    page = page_of(directory)
    assert "<h1>a&lt;b&gt;&amp;c</h1>" in page
    assert "<img" not in page.replace("&lt;img", "")
    data = re.search(r'<script type="application/json" id="hovers">(.*?)</script>', page, re.DOTALL)
    assert data
    assert "&lt;img" in json.dumps(json.loads(data[1]))
    assert load(directory).plot_pareto().layout.title.subtitle.text.startswith("a&lt;b&gt;&amp;c")
