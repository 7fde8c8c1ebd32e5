"""`mixtune gradient-error`: what shortened sequences do to the gradient, and the schedule that follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io
import torch
import yaml
from pydantic import ValidationError
from rich.table import Table

from mixtune.errors import RequestError, TrainingError, one_line, show
from mixtune.files import write_whole
from mixtune.gradient_error.measure import GradientError, find_stages, find_undecided, measure_profile
from mixtune.gradient_error.profile import profile_figure, profile_table
from mixtune.metrics import duration
from mixtune.run.lock import hold_folder
from mixtune.space.compression import Period, Shortenings
from mixtune.space.recipe import Recipe, describe_mistake
from mixtune.space.space import load_recipe, override
from mixtune.space.views import Strategy
from mixtune.training.device import choose_device


@dataclass(frozen=True)
class GradientErrors:
    """The errors at each point of a training run, and the schedule of the strategies with the least CA-MSE.

    stages: by shares of ``epochs.ssl``; epochs: the ``epochs.ssl`` that spends the recipe's budget with them;
    undecided: one line where the batches do not tell a strategy of the schedule from no compression, else None.
    """

    errors: tuple[tuple[GradientError, ...], ...]
    stages: tuple[Period, ...]
    epochs: int
    about: str
    undecided: str | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """A row a point and strategy; see mixtune.gradient_error.profile.relative for the columns."""
        rows = []
        for error in (error for point in self.errors for error in point):
            values = {name: v for name, v in asdict(error).items() if name not in ("strategy", "replicates")}
            derived = {"adjusted_variance": error.adjusted_variance, "ca_mse": error.ca_mse}
            derived |= {"ca_mse_se": error.ca_mse_se}
            rows.append({**values, **error.settings, **derived})
        return pd.DataFrame(rows)

    def table(self) -> Table:
        """Return the profile for a terminal."""
        return profile_table(self.frame)

    def plot(self) -> go.Figure:
        """Return the profile as a figure."""
        return profile_figure(self.frame, self.about)

    def to_yaml(self) -> str:
        """Return the schedule, and the epochs that spend the budget, as the lines of a recipe."""
        stages = [
            {"from_share": stage.from_share, **stage.model_dump(exclude_defaults=True, exclude={"from_share"})}
            for stage in self.stages
        ]
        section = {"epochs": {"ssl": self.epochs}, "ssl": {"compression": {"schedule": "auto", "stages": stages}}}
        return yaml.safe_dump(section, sort_keys=False, default_flow_style=None)


def measure_gradient_errors(
    space: Recipe | str | PathLike[str],
    *,
    points: int = 5,
    batches: int = 16,
    strategies: Sequence[Mapping[str, Any]] | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | PathLike[str] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
) -> GradientErrors:
    """Train a recipe's SSL budget uncompressed and compare gradients at ``points`` equal shares of it, 0 and all too.

    space: a Recipe or a search space's file, whose base recipe is trained, without mix and SL epochs; batches: of the
    recipe's batch size, at each point, with every strategy; strategies: by the names of ``ssl.compression``
    (``{"token_dropout": 0.5, "patch_size": 4}``), in place of our own; out: a folder for ``profile.csv``,
    ``profile.html`` and, where the batches suffice, ``stages.yaml``; on_line: receives progress. Raises RequestError,
    DataError or TrainingError.
    """
    recipe = space if isinstance(space, Recipe) else load_recipe(space, overrides or {})
    recipe = override(recipe, overrides or {})
    given = None if strategies is None else [_read_strategy(each) for each in strategies]
    if points < 2:
        raise RequestError(f"--points {points}: should be at least 2, the start and the end of the training")
    with ExitStack() as held:
        if out is not None:
            held.enter_context(hold_folder(Path(out), "gradient-error", _is_ours))
        made = _measure(recipe, points, batches, given, on_line)
        if out is not None:
            _write(made, Path(out))
    return made


def _is_ours(folder: Path) -> bool:
    """Return whether an older version wrote a folder."""
    return (folder / "profile.csv").is_file() and (folder / "profile.html").is_file()


def _measure(
    recipe: Recipe, points: int, batches: int, given: Sequence[Strategy] | None, on_line: Callable[[str], None]
) -> GradientErrors:
    started, found = time.perf_counter(), []
    shares = [number / (points - 1) for number in range(points)]
    try:
        for errors in measure_profile(recipe, choose_device(), shares, batches, given):
            found.append(tuple(errors))
            took = duration(time.perf_counter() - started)
            on_line(f"point {len(found)} of {points}: after {errors[0].epoch} of {recipe.epochs.ssl} epochs, {took}")
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full: lower optim.batch_size ({one_line(error)})") from error
    first = found[0]
    about = (
        f"{recipe.ssl.objective}, {recipe.epochs.ssl} epochs, {first[0].batches} batches of {first[0].batch_size} "
        "images at each point"
    )
    stages, epochs = find_stages(found)
    return GradientErrors(tuple(found), tuple(stages), epochs, about, _describe_undecided(found[:-1]))


def _read_strategy(given: Mapping[str, Any]) -> Strategy:
    try:
        return Shortenings.model_validate(given).to_strategy()
    except ValidationError as error:
        path, message = describe_mistake(Shortenings, error)
        raise RequestError(f"strategy {show(dict(given))}: {'.'.join(path)}: {message}") from error


def _write(made: GradientErrors, folder: Path) -> None:
    write_whole(folder / "profile.csv", made.frame.to_csv(index=False, lineterminator="\n"))
    write_whole(folder / "profile.html", plotly.io.to_html(made.plot()))
    (folder / "stages.yaml").unlink(missing_ok=True)  # of an earlier time
    if made.undecided is None:
        write_whole(folder / "stages.yaml", made.to_yaml())


def _describe_undecided(profile: Sequence[Sequence[GradientError]]) -> str | None:
    found = find_undecided(profile)
    if found is None:
        return None
    error, needed = found
    return (
        f"no schedule: after {error.epoch} epochs {error.batches} batches do not tell the least CA-MSE from no "
        f"compression's by two standard errors; about --batches {float(f'{needed:.2g}'):.0f} would"
    )
