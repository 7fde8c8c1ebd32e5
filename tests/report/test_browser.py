"""The report in a real browser: figures draw, a row highlights its point, all by keyboard, on phones and at night."""

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
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(PHONE, "light"), (DESKTOP, "dark")], ids=["phone", "desktop"])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The report, drawn, without a network; whatever the console says against it fails the test."""
    (width, height), scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
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
        assert figure.locator("svg .trace, svg .point, svg .scatterlayer path").count() >= 1
        assert figure.bounding_box()["height"] >= 300
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_member_of_the_front_is_a_row_and_is_a_point(page: Any, report: Path) -> None:
    members = list(load(report.parent).pareto_front()["trial"])
    rows = page.locator("#front tr[data-trial]").evaluate_all("rows => rows.map((row) => row.dataset.trial)")
    assert rows == [*members, "sl", "ssl_sl"]
    assert page.evaluate("(rows) => rows.every((trial) => pointOf(trial) !== null)", rows)


def test_tab_moves_from_row_to_row_and_rings_its_point(page: Any) -> None:
    rows = page.locator("#front tr[data-trial]")
    rows.nth(0).focus()
    for place in (0, 1, 2):
        page.wait_for_function("front.data.some((trace) => trace.name === 'chosen')")
        trial = rows.nth(place).get_attribute("data-trial")
        page.wait_for_function(
            """(trial) => {
              const ring = front.data.find((trace) => trace.name === "chosen"), [x, y] = pointOf(trial);
              return ring.x[0] === x && ring.y[0] === y;
            }""",
            arg=trial,
        )
        assert page.evaluate("document.activeElement.dataset.trial") == trial
        assert rows.nth(place).get_attribute("aria-current") == "true"
        assert page.locator("tr[aria-current]").count() == 1
        page.keyboard.press("Tab")


def test_a_page_follows_a_change_between_light_and_dark(page: Any) -> None:
    def colours() -> tuple[str, str]:
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return body, page.evaluate("front._fullLayout.paper_bgcolor")

    for scheme, colour in (("light", ("rgb(255, 255, 255)", "#FFFFFF")), ("dark", ("rgb(20, 24, 29)", "#14181D"))):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("(colour) => front._fullLayout.paper_bgcolor === colour", arg=colour[1])
        assert colours() == colour


def test_the_recipe_opens_and_copies_by_keyboard(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    recipe = page.locator("#recipe")
    assert recipe.is_visible()
    page.locator("details button").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('details button').textContent !== 'Copy'")
    assert page.locator("details button").text_content() == "Copied"
    assert page.evaluate("navigator.clipboard.readText()") == recipe.text_content()
