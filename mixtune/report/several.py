"""Several runs on one page: fronts in one plane, hypervolumes up to one point, and the settings that differ."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixtune.errors import RequestError
from mixtune.metrics import find_metric, setting
from mixtune.report.figures._style import (
    METHOD_SYMBOLS,
    SERIES,
    Heading,
    add_marks,
    dots,
    hover_texts,
    new_figure,
    scaled,
)
from mixtune.report.figures.hypervolume import grow
from mixtune.report.words import drawn
from mixtune.run.front import pareto_front
from mixtune.run.result import Result
from mixtune.space.recipe import flatten


@dataclass(frozen=True)
class Runs:
    """Runs by name, judged by the ``objectives`` that all have. ``reference``: the worst of their reference points.

    ``notes``: what a reader needs alongside, a line each.
    """

    results: Mapping[str, Result]
    objectives: Mapping[str, str]
    reference: Mapping[str, float]
    notes: tuple[str, ...]


def compare_runs(results: Sequence[Result]) -> Runs:
    """Return what runs have in common. Raises RequestError where no objective is."""
    folders = [result.directory.resolve() for result in results]
    short = [folder.name for folder in folders]
    names = {
        str(folder) if short.count(folder.name) > 1 else folder.name: result
        for folder, result in zip(folders, results, strict=True)
    }
    if len(names) < len(results):
        raise RequestError("a run cannot be compared with itself: name different directories")
    first = results[0].objectives
    common = {
        name: mode for name, mode in first.items() if all(result.objectives.get(name) == mode for result in results)
    }
    if not common:
        each = "; ".join(f"{name}: {', '.join(result.objectives)}" for name, result in names.items())
        raise RequestError(f"these runs have no objective in common: {each}")
    judged = {
        name: result if dict(result.objectives) == common else result.with_objectives(common)
        for name, result in names.items()
    }
    points = {name: [result.reference_point[name] for result in judged.values()] for name in common}
    reference = {
        name: min(known) if common[name] == "max" else max(known)
        for name, given in points.items()
        if len(known := [value for value in given if value is not None]) == len(results)
    }
    notes = []
    devices = {name: str((result.facts.machine or {}).get("device", "unknown")) for name, result in names.items()}
    of_device = [name for name in common if find_metric(name).of_device]
    if len({*devices.values()}) > 1 and of_device:
        titles = " and ".join(find_metric(name).title for name in of_device)
        each = ", ".join(f"{name} {device}" for name, device in devices.items())
        notes.append(f"The runs are of different devices, so {titles} cannot be compared: {each}.")
    images = {str(dict(result.facts.tasks)) for result in results}
    if len(images) > 1:
        notes.append("The runs have different images, so accuracies cannot be compared as they stand.")
    return Runs(judged, common, reference if len(reference) == len(common) else {}, tuple(notes))


def draw_fronts(runs: Runs) -> tuple[Heading, Any] | None:
    """Return the figure of all fronts, None where fewer than two objectives are in common or no front has a member."""
    if len(runs.objectives) < 2 or all(result.pareto_front().empty for result in runs.results.values()):
        return None
    (y_name, y_mode), (x_name, x_mode) = list(runs.objectives.items())[:2]
    if (y_mode, x_mode) == ("min", "max"):
        (y_name, x_name), (y_mode, x_mode) = (x_name, y_name), (x_mode, y_mode)
    x, y = find_metric(x_name), find_metric(y_name)
    confirmed = [name for name, result in runs.results.items() if result.confirmed is not None]
    caption = "A mark's shape is its method; a ring is around each run's recommended recipe."
    if confirmed:
        caption += f" Of {', '.join(confirmed)} it is means over fresh seeds."
    heading = Heading("The fronts", caption=caption)
    figure = new_figure(heading, x.axis_title, y.axis_title)
    for number, (name, result) in enumerate(runs.results.items()):
        members = result.pareto_front().sort_values(x_name, kind="stable")
        xs, ys = scaled(members[x_name], x), scaled(members[y_name], y)
        colour, trials = SERIES[number % len(SERIES)], list(map(str, members["trial"]))
        marker = dots(colour, 12, symbol=[METHOD_SYMBOLS.get(result.method(trial), "circle") for trial in trials])
        line = {"color": colour, "width": 2, "shape": "vh" if x_mode == "max" else "hv"}
        edge = pareto_front(members, runs.objectives).sort_values(x_name, kind="stable")
        line_x, line_y = scaled(edge[x_name], x), scaled(edge[y_name], y)
        figure.add_scatter(
            x=line_x, y=line_y, mode="lines", line=line, hoverinfo="skip", showlegend=False, legendgroup=name
        )
        hover = [f"{html.escape(name)}<br>{text}" for text in hover_texts(result, trials)]
        add_marks(
            figure, xs, ys, [f"{name}/{trial}" for trial in trials], hover, marker, name=html.escape(name),
            legendgroup=name,
        )  # fmt: skip
        if (chosen := result.recommendation().trial) in trials:
            place = trials.index(str(chosen))
            ring = {"size": 22, "symbol": "circle-open", "color": colour, "line": {"width": 3}}
            figure.add_scatter(
                x=[xs[place]], y=[ys[place]], mode="markers", marker=ring, hoverinfo="skip", showlegend=False,
                legendgroup=name,
            )  # fmt: skip
    return heading, figure


def draw_hypervolumes(runs: Runs) -> tuple[Heading, Any] | None:
    """Return the figure of hypervolumes over device-seconds, None where there is no common reference point."""
    if not runs.reference:
        return None
    point = ", ".join(f"{find_metric(name).title} {find_metric(name).text(v)}" for name, v in runs.reference.items())
    heading = Heading(
        "Hypervolume over training time spent",
        caption=f"Up to one point for all runs, the worst of theirs: {point}. Reused epochs cost nothing here.",
    )
    figure = new_figure(heading, "training time spent (s)", "hypervolume")
    for number, (name, result) in enumerate(runs.results.items()):
        steps, end_s = grow(runs.reference, result)
        if steps.empty:
            continue
        xs, ys = list(steps["device_s"]), list(steps["hypervolume"])
        line = {"shape": "hv", "color": SERIES[number % len(SERIES)], "width": 2}
        figure.add_scatter(
            x=[*xs, max(end_s, xs[-1])], y=[*ys, ys[-1]], mode="lines", line=line, name=html.escape(name),
            showlegend=True,
        )  # fmt: skip
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return (heading, figure) if figure.data else None


def differences(runs: Runs) -> list[tuple[str, list[str]]]:
    """Return (setting, its value in each run) of what differs: recipe, space, search, data, machine."""
    described = [_describe(result) for result in runs.results.values()]
    rows = [(name, [own.get(name, "") for own in described]) for name in dict.fromkeys(n for d in described for n in d)]
    return [(name, values) for name, values in rows if len({*values}) > 1]


def _describe(result: Result) -> dict[str, str]:
    space = result.space
    found = {"trials": f"{result.state.budget or space.budget:,}"}
    found |= {f"search.{name}": setting(value) for name, value in space.search.model_dump().items() if name != "trials"}
    found |= {f"recipe.{path}": setting(value) for path, value in flatten(space.values).items()}
    found |= {f"space.{path}": text for path, text in drawn(space).items()}
    found["objectives"] = ", ".join(f"{name} {mode}" for name, mode in space.objectives.items())
    found["constraints"] = ", ".join([*map(str, space.constraints.values()), *map(str, space.relations)])
    for name, task in result.facts.tasks.items():
        found[f"data {name}"] = f"{task['train_images']:,} training, {task['val_images']:,} validation images"
    found |= {f"machine.{name}": setting((result.facts.machine or {}).get(name)) for name in ("device", "precision")}
    return found | {f"versions.{name}": str(version) for name, version in result.facts.versions.items()}
