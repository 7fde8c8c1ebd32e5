"""HTML files that tell a search's whole story, or compare several, without a network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mixtune import plugins
from mixtune._version import __version__
from mixtune.files import refuse_other_file, remove_temporary, write_whole
from mixtune.report import several, words
from mixtune.report.figures._style import Heading, hover_texts, template
from mixtune.report.tables import some
from mixtune.report.trials import trials_table
from mixtune.run.directory import RunDirectory
from mixtune.run.lock import holder
from mixtune.run.result import Result, load
from mixtune.run.status import RunStatus, run_status

FIRST = ("parallel_coordinates", "importance", "alpha_rho", "learning_curves", "budgets", "phases")  # then the others
ON_TOP, OF_COST = "pareto", "hypervolume"  # have a place of their own
WIDE = ("parallel_coordinates", "stage_tree")  # take both columns of figures
REFRESH_S = 10.0  # of a page that follows a search


@dataclass(frozen=True)
class Figure:
    """A figure as the page has it: plotly's JSON, title, caption, sizes in pixels; width is the least one."""

    name: str
    title: str
    says: str
    height: int | None
    width: int | None
    json: Markup

    @property
    def is_wide(self) -> bool:
        """Whether half a page is too narrow for it."""
        return self.name in WIDE


def write_report(result: Result, driver: str | None, out: Path | None = None, refresh_s: float | None = None) -> Path:
    """Write a run's report, by default report.html in its directory, and return its path.

    ``driver`` says who continues the search after this, None for nobody (``mixtune.run.lock.holder``). ``refresh_s``:
    how often the page loads itself again, None for never. Raises DataError, and RequestError where ``out`` is a file
    and no report.
    """
    path = out or RunDirectory(result.directory).report_file
    if out is not None:
        _refuse_other_page(out)
    write_whole(path, report_page(result, run_status(result, driver), refresh_s))
    remove_temporary(path.parent, path.name)  # what a killed report has left
    return path


def follow_search(directory: Path, out: Path | None, on_written: Callable[[Path], None]) -> None:
    """Keep a run's report current until its search has ended; ``on_written`` gets its path after the first time.

    It is written again when the ledger has grown, every ``REFRESH_S`` seconds at most and in a tenth of the time, for
    the search's sake. The page loads itself again until the last time. Raises as ``load`` and ``write_report`` do.
    """
    ledger, written = RunDirectory(directory).ledger_file, -1
    try:
        while (driver := holder(directory)) is not None:
            size, started = ledger.stat().st_size if ledger.exists() else 0, time.monotonic()
            if size != written:
                path = write_report(load(directory), driver, out, REFRESH_S)
                if written < 0:
                    on_written(path)
                written = size
            time.sleep(max(REFRESH_S, 9 * (time.monotonic() - started)))
    finally:  # a page that nobody writes again should not wait for news
        path = write_report(load(directory), holder(directory), out)
    if written < 0:
        on_written(path)


def report_page(result: Result, status: RunStatus, refresh_s: float | None = None) -> str:
    """Return the page; plotly.js and all data are inside, so it can be mailed and read offline."""
    names = plugins.names("report.figures")
    order = [*(name for name in (ON_TOP, OF_COST, *FIRST) if name in names)]
    figures = [figure for name in dict.fromkeys([*order, *names]) if (figure := _of_run(result, name)) is not None]
    placed = {name: next((figure for figure in figures if figure.name == name), None) for name in (ON_TOP, OF_COST)}
    return _render(
        "report.html",
        figures,
        name=result.directory.resolve().name,
        state=words.state(result, status),
        answer=result.recommendation(),
        facts=list(words.facts(result, status)),
        choices=list(words.choices(result)),
        commands=list(words.commands(result, status)),
        constraints=" and ".join(str(constraint) for constraint in result.constraints.values()),
        front=words.front(result),
        recipe=words.recipe(result),
        baselines=list(words.baselines(result)),
        confidence=list(words.confidence(result)),
        searched=list(words.searched(result, status)),
        cost=list(words.cost(result, status)),
        failures=[{"reason": f.reason, "count": len(f.trials), "trials": some(f.trials)} for f in status.failures],
        placed=placed,
        figures=[figure for figure in figures if figure.name not in placed],
        measured=list(words.measured(result)),
        trials=_script(json.dumps(trials_table(result, status), separators=(",", ":"), ensure_ascii=False)),
        hovers=_script(json.dumps(dict(zip(result.records, hover_texts(result, result.records), strict=True)))),
        refresh_s=refresh_s,
    )


def write_comparison(results: Sequence[Result], out: Path) -> Path:
    """Write a page that compares runs, and return its path.

    Raises DataError, and RequestError as ``compare_runs`` and where a file is there that is no report.
    """
    _refuse_other_page(out)
    write_whole(out, comparison_page(several.compare_runs(results)))
    return out


def _refuse_other_page(path: Path) -> None:
    refuse_other_file(path, b"mixtune</title>", "a report that mixtune wrote")


def comparison_page(runs: several.Runs) -> str:
    """Return the page that compares runs: their recommendations, fronts, hypervolumes, and what differs."""
    drawn = {"fronts": several.draw_fronts(runs), "hypervolumes": several.draw_hypervolumes(runs)}
    figures = [_page_figure(name, *made) for name, made in drawn.items() if made is not None]
    return _render(
        "several.html",
        figures,
        name=" and ".join(runs.results),
        answers=[
            {"name": name, "directory": str(result.directory), "says": result.recommendation().sentence}
            for name, result in runs.results.items()
        ],
        notes=runs.notes,
        differences=several.differences(runs),
        names=list(runs.results),
        figures=figures,
        refresh_s=None,
    )


def _render(file: str, drawn: Sequence[Figure], **values: Any) -> str:
    folder = resources.files("mixtune.report").joinpath("templates")

    def read(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(file).render(
        **values,
        made=words.made(time.time()),
        version=__version__,
        drawn=drawn,
        templates=_script(json.dumps({kind: template(kind == "dark").to_plotly_json() for kind in ("light", "dark")})),
        plotly=Markup(get_plotlyjs()),
        css=Markup(read("report.css")),
        js=Markup(read("report.js")),
    )


def _of_run(result: Result, name: str) -> Figure | None:
    """Return a figure of a run, None where it has nothing to show."""
    module = plugins.find("report.figures", name, "figure")
    data = module.compute(result)
    if data.heading.missing is not None:
        return None
    figure = module.draw(data)
    for trace in figure.data:  # what the page knows of every trial is in it once
        given = trace.to_plotly_json()
        trials = [str(trial) for trial in _listed(given.get("customdata"))]
        if trials and _listed(given.get("hovertext")) == hover_texts(result, trials):
            trace.hovertext = None
    return _page_figure(name, data.heading, figure)


def _page_figure(name: str, heading: Heading, figure: Any) -> Figure:
    """Return a figure as the page has it, which gives it its title, sizes and template."""
    height, width = figure.layout.height, figure.layout.width
    figure.update_layout(title=None, height=None, width=None, template=None)
    if figure.layout.margin.t is None:
        figure.update_layout(margin={"t": 30})
    return Figure(name, heading.title, heading.caption, height, width, _script(figure.to_json()))


def _listed(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _script(text: str) -> Markup:
    """Return JSON that cannot end the script element that it stands in."""
    return Markup(text.replace("<", "\\u003c"))
