"""The report in a real browser: figures draw, rows and points mark each other, tables sort, on phones and at night."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixtune.report.page import write_report
from mixtune.run.result import load

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")

PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def report(write_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(load(write_run(tmp_path_factory.mktemp("made-up") / "run", 40)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        args = ["--no-sandbox", "--enable-unsafe-swiftshader"]  # WebGL without a GPU, for the parallel coordinates
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture(params=[(PHONE, "light"), (DESKTOP, "dark")], ids=["phone", "desktop"])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The report, drawn, without a network; whatever the console says against it fails the test."""
    (width, height), scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if "GPU stall" not in message.text else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: complaints.append(sent.url) if sent.url.startswith("http") else None)
    page.goto(report.as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    yield page
    context.close()
    assert complaints == []


def test_every_figure_has_drawn_and_nothing_is_wider_than_the_window(page: Any) -> None:
    figures = page.locator(".figure")
    assert figures.count() == 9
    for i in range(figures.count()):
        figure = figures.nth(i)
        assert figure.locator(".main-svg").count() >= 1
        assert figure.locator("svg .trace, svg .point, svg .scatterlayer path, .parcoords").count() >= 1
        assert figure.bounding_box()["height"] >= 300
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    button, code = page.locator(".copied button").first.bounding_box(), page.locator(".copied pre").first.bounding_box()
    assert button["x"] >= code["x"] + code["width"]


def test_every_row_of_the_front_has_a_mark_in_the_fronts_figure(page: Any, report: Path) -> None:
    result = load(report.parent)
    rows = page.locator("#front tr[data-trial]").evaluate_all("rows => rows.map((row) => row.dataset.trial)")
    assert rows[: len(result.pareto_front())] == list(result.pareto_front()["trial"])
    assert {*rows} == {*result.highlights}
    assert page.evaluate("(rows) => rows.every((trial) => marksOf(holders[0], trial).length)", rows)


def test_tab_moves_from_row_to_row_and_rings_its_marks_in_every_figure(page: Any) -> None:
    rows = page.locator("#front tr[data-trial]")
    rows.nth(0).focus()
    for place in (0, 1, 2):
        trial = rows.nth(place).get_attribute("data-trial")
        assert page.evaluate("document.activeElement.dataset.trial") == trial
        assert rows.nth(place).get_attribute("aria-current") == "true"
        assert page.locator("#trials tr[aria-current]").get_attribute("data-trial") == trial
        ringed = page.evaluate(
            "holders.filter((h) => h.querySelector('.rings').children.length).map((h) => h.dataset.figure)"
        )
        assert {"pareto", "phases", "learning_curves", "stage_tree", "parallel_coordinates"} <= {*ringed}
        page.keyboard.press("Tab")


def test_a_click_on_a_point_keeps_its_row_marked_until_it_is_cleared(page: Any) -> None:
    figure = page.locator("#figure-pareto")
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    trial = page.evaluate("trials.byTrial.keys().toArray().findLast((t) => holders[0].places.has(t))")
    x, y = page.evaluate("(trial) => marksOf(holders[0], trial)[0].ring", trial)
    page.mouse.move(box["x"] + x + 30, box["y"] + y)
    page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_function("pinned !== null")
    clicked = page.evaluate("pinned")  # where marks lie upon each other the upper one
    row = page.locator(f"#trials tr[data-trial={clicked}]")
    assert row.get_attribute("aria-current") == "true"
    page.locator("#front tr").nth(1).hover()
    assert row.get_attribute("aria-current") == "true"
    assert page.locator("#chosen").is_visible()
    page.locator("#chosen button").click()
    lines = page.locator("#figure-parallel_coordinates")
    lines.scroll_into_view_if_needed()
    box = lines.bounding_box()
    (x0, y0), (x1, y1) = page.evaluate(
        "marksOf(document.getElementById('figure-parallel_coordinates'), 't0005')[0].path.slice(0, 2)"
    )
    page.mouse.click(box["x"] + 0.6 * x0 + 0.4 * x1, box["y"] + 0.6 * y0 + 0.4 * y1)
    assert page.evaluate("pinned") == "t0005"
    page.keyboard.press("Escape")
    assert page.locator("tr[aria-current]").count() == 0
    assert not page.locator("#chosen").is_visible()


def column(page: Any, title: str) -> list[str]:
    heads = page.locator("#trials thead th").all_text_contents()
    return page.locator(f"#trials tbody tr > :nth-child({heads.index(title) + 1})").all_text_contents()


def test_the_table_of_trials_sorts_filters_and_chooses_columns(page: Any, report: Path) -> None:
    result = load(report.parent)
    assert len(column(page, "trial")) == len(result.records)
    head = page.locator("#trials thead th", has_text="training time")
    for order, is_falling in (("ascending", False), ("descending", True)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        seconds = [float(text.split()[0]) for text in column(page, "training time") if text]
        assert seconds == sorted(seconds, reverse=is_falling)
    page.locator("#state").select_option("stopped")
    assert {*column(page, "state")} == {"stopped"}
    stopped = result.counts()["stopped"]
    assert page.locator("#shown").text_content() == f"{stopped} of {len(result.records)} shown"
    page.locator("#state").select_option("")
    page.locator("#filter").fill("T0007")
    assert [text.split()[0] for text in column(page, "trial")] == ["t0007"]
    page.locator("#filter").fill("")
    page.locator(".tools summary").click()
    page.locator("#columns label", has_text="alpha").locator("input").uncheck()
    page.locator("#columns label", has_text="epochs reused").locator("input").check()
    titles = page.locator("#trials thead th").all_text_contents()
    assert "alpha" not in titles
    assert "epochs reused" in titles


def test_thousands_of_rows_are_written_as_they_are_scrolled_to(
    browser: Any, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    page = browser.new_page()
    page.goto(write_report(load(write_run(tmp_path / "run", 2000)), None).as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    rows = page.locator("#trials tbody tr")
    assert rows.count() < 400
    page.evaluate("pin('t1900', true)")
    assert page.locator("#trials tr[data-trial=t1900]").get_attribute("aria-current") == "true"
    assert rows.count() >= 1900
    page.close()


def test_a_page_that_follows_a_search_renews_itself_and_keeps_its_place(
    browser: Any, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    directory = write_run(tmp_path / "run", 40, True)
    page = browser.new_page()
    page.goto(write_report(load(directory), "search, process 1", refresh_s=600.0).as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    page.locator("#filter").fill("MixTraining")
    page.locator("#trials thead button", has_text="training time").click()
    page.evaluate("pin('t0007'); scrollTo(0, 700)")
    shown, place = page.locator("#shown").text_content(), page.evaluate("scrollY")
    write_report(load(directory), None)  # the last time: the search has ended
    page.evaluate("renew()")
    page.wait_for_selector("body[data-drawn=yes]:not([data-refresh])", timeout=60_000)
    assert page.locator("#shown").text_content() == shown
    assert page.locator("#trials th[aria-sort=ascending]").text_content() == "training time"
    assert page.evaluate("[pinned, scrollY]") == ["t0007", place]
    page.close()


def test_a_page_follows_a_change_between_light_and_dark(page: Any) -> None:
    def colours() -> tuple[str, str]:
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return body, page.evaluate("holders[0]._fullLayout.paper_bgcolor")

    for scheme, colour in (("light", ("rgb(255, 255, 255)", "#FFFFFF")), ("dark", ("rgb(20, 24, 29)", "#14181D"))):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("(colour) => holders[0]._fullLayout.paper_bgcolor === colour", arg=colour[1])
        assert colours() == colour


def test_the_recipe_opens_and_copies_by_keyboard(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#answer summary").focus()
    page.keyboard.press("Enter")
    recipe = page.locator("#recipe")
    assert recipe.is_visible()
    page.locator("#answer details button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#answer details button').textContent !== 'Copy'")
    assert page.locator("#answer details button").first.text_content() == "Copied"
    assert page.evaluate("navigator.clipboard.readText()") == recipe.text_content()
