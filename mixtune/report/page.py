"""One HTML file that tells a search's whole story, without a network: front, knee, costs, failures, every figure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mixtune import plugins
from mixtune._version import __version__
from mixtune.files import write_whole
from mixtune.report import words
from mixtune.report.figures._style import template
from mixtune.run.directory import RunDirectory
from mixtune.run.result import Result
from mixtune.run.status import RunStatus, run_status

FIRST = ("pareto", "hypervolume", "importance", "alpha_rho", "budgets", "phases", "learning_curves")  # then the others


@dataclass(frozen=True)
class Figure:
    """A figure as the page has it: plotly's JSON, its title, what it shows, or why there is nothing to show."""

    title: str
    says: str
    missing: str | None
    height: int | None
    json: Markup


def write_report(result: Result, driver: str | None) -> Path:
    """Write report.html into a run directory, finished or not, and return its path. Raises DataError.

    ``driver`` says who continues the search after this, None for nobody (``mixtune.run.lock.holder``).
    """
    path = RunDirectory(result.directory).report_file
    write_whole(path, report_page(result, run_status(result, driver)))
    return path


def report_page(result: Result, status: RunStatus) -> str:
    """Return the page; plotly.js and all data are inside, so it can be mailed and read offline."""
    folder = resources.files("mixtune.report").joinpath("templates")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(folder.joinpath("report.html").read_text(encoding="utf-8"))
    names = plugins.names("report.figures")
    order = [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]
    return page.render(
        name=result.directory.resolve().name,
        state=words.state(result, status),
        cards=list(words.cards(result, status)),
        constraints=" and ".join(str(constraint) for constraint in result.constraints.values()),
        front=words.front(result),
        knee=words.knee(result),
        baselines=list(words.baselines(result)),
        confidence=list(words.confidence(result)),
        confirm_commands=[]
        if result.state.confirmed
        else [c for c in status.commands() if c.startswith("mixtune confirm")],
        searched=list(words.searched(result)),
        cost=list(words.cost(result, status)),
        failures=[
            {"reason": f.reason, "count": len(f.trials), "trials": words.some(f.trials)} for f in status.failures
        ],
        figures={name: _figure(result, name) for name in order},
        measured=list(words.measured(result)),
        footer=f"Made by mixtune {__version__} from the ledger of {result.directory.resolve().name}.",
        templates=_script(json.dumps({kind: template(kind == "dark").to_plotly_json() for kind in ("light", "dark")})),
        plotly=Markup(get_plotlyjs()),
        css=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        js=Markup(folder.joinpath("report.js").read_text(encoding="utf-8")),
    )


def _figure(result: Result, name: str) -> Figure:
    module = plugins.find("report.figures", name, "figure")
    data = module.compute(result)
    figure, heading = module.draw(data), data.heading
    says = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    height = figure.layout.height
    # the page has the title, and gives the height and the template
    figure.update_layout(title=None, height=None, template=None, margin={"t": 30})
    return Figure(heading.title, says, heading.missing, height, _script(figure.to_json()))


def _script(text: str) -> Markup:
    """Return JSON that cannot end the script element that it stands in."""
    return Markup(text.replace("<", "\\u003c"))
