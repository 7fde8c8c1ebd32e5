"""Draw the pictures of README and guides from runs, as their reports show them.

    python docs/picture.py runs/digits front            # the front of the first search
    python docs/picture.py runs/photos photos page      # a report's first screen

Needs Chromium and the ``test`` extra. Writes docs/images/NAME.png.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from mixtune.report.page import write_report
from mixtune.run.result import load

IMAGES = Path(__file__).parent / "images"


def main(directory: str, name: str, part: str = "figure") -> None:
    """Draw the first figure of a run's report, or the first screen of its page."""
    picture = IMAGES / f"{name}.png"
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = write_report(load(directory), None, Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme="light")
        page.goto(report.as_uri())
        page.wait_for_selector("body[data-drawn=yes]")
        if part == "page":
            page.screenshot(path=picture)
        else:
            page.locator(".figure").first.screenshot(path=picture)
        browser.close()
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
