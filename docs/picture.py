"""Draw the README's picture, the front of a run as its report shows it: ``python docs/picture.py runs/digits``.

Needs Chromium and the ``test`` extra. Writes docs/images/front.png.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from mixtune.report.page import write_report
from mixtune.run.result import load

PICTURE = Path(__file__).parent / "images" / "front.png"


def main(directory: str) -> None:
    """Draw the figure of one run."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = write_report(load(directory), None, Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme="light")
        page.goto(report.as_uri())
        page.wait_for_selector("body[data-drawn=yes]")
        page.locator(".figure").first.screenshot(path=PICTURE)
        browser.close()
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
