"""Which parameters matter: Optuna's importance of each searched parameter, for each objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from mixtune.metrics import find_metric
from mixtune.report.figures._style import GREY, SERIES, Heading, new_figure, run_subtitle
from mixtune.report.tables import IDLE
from mixtune.run.result import Result
from mixtune.space.distributions import Distribution

Floats = npt.NDArray[np.float64]
MIN_TRIALS = 25
RESAMPLINGS = 10
# Of 300 trials 8 trees rank parameters as 32 do (rank correlation with 800 trials 0.89 and 0.90); of 150 neither does.
MAX_TRIALS, MAX_TREES, MAX_LEAVES = 300, 32, 2400


@dataclass(frozen=True)
class ImportanceData:
    """``shares``: a row a parameter, the most important first, a column an objective; each column sums to 1.

    ``spreads``: of the same shape, each share's standard deviation over resamplings of the trials.
    """

    heading: Heading
    shares: pd.DataFrame
    spreads: pd.DataFrame


def compute(result: Result) -> ImportanceData:
    """Return the shares of the objectives' variance that parameters explain, over the complete trials.

    By fANOVA (Hutter, Hoos, Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014)
    as Optuna has it, seeded. Of more than 300 trials a sample is taken; the more trials, the fewer trees. Resamplings
    are bootstrap samples of the trials (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979).
    """
    names = list(result.objectives)
    rows = result.complete().dropna(subset=names)
    space = result.space.space
    varied = {path: d for path, d in space.items() if path in rows and rows[path].astype(str).nunique() > 1}
    title = "Importance of each parameter"
    if len(rows) < MIN_TRIALS or not varied:
        few = len(rows) < MIN_TRIALS and (varied or rows.empty)
        wanted = f"fewer than {MIN_TRIALS} trials are complete" if few else "nothing varied"
        nothing = pd.DataFrame(columns=names, dtype=float)
        return ImportanceData(Heading(title, run_subtitle(result), wanted), nothing, nothing)
    notes = [f"of {MAX_TRIALS:,} trials"] if len(rows) > MAX_TRIALS else []
    rows = rows.sample(MAX_TRIALS, random_state=0) if notes else rows
    params = [_params(result, str(trial)) for trial in rows["trial"]]
    values = {name: rows[name].to_numpy(dtype=float) for name in names}
    rng = np.random.default_rng(0)
    drawn = [np.arange(len(rows)), *(rng.integers(len(rows), size=len(rows)) for _ in range(RESAMPLINGS))]
    shares, *others = (
        pd.DataFrame({name: _importances([params[i] for i in own], values[name][own], varied) for name in names})
        for own in drawn
    )
    deviations = np.std([again.loc[shares.index].to_numpy() for again in others], axis=0, ddof=1)
    spreads = pd.DataFrame(deviations, shares.index, shares.columns)
    order = shares.mean(axis=1).sort_values(ascending=False, kind="stable").index
    missing = None if np.isfinite(shares.to_numpy()).any() else "the objectives do not vary"
    caption = (
        f"By fANOVA over {len(rows):,} complete trials, of each objective's variance. A bar's whisker is the standard "
        f"deviation over {RESAMPLINGS} resamplings of the trials: smaller differences may be chance."
    )
    heading = Heading(title, run_subtitle(result, *notes), missing, caption)
    return ImportanceData(heading, shares.loc[order], spreads.loc[order])


def draw(data: ImportanceData) -> go.Figure:
    """Draw what ``compute`` found."""
    figure = new_figure(data.heading, "share of the variance explained (%)", "")
    for i, name in enumerate(data.shares):
        figure.add_bar(
            y=data.shares.index, x=100 * data.shares[name], orientation="h", name=find_metric(str(name)).title,
            marker={"color": SERIES[i % len(SERIES)], "line": {"width": 0}},
            error_x={"array": 100 * data.spreads[name], "color": GREY, "thickness": 1.5, "width": 4},
            hovertemplate="%{y}: %{x:.0f} %<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure


def _params(result: Result, trial: str) -> dict[str, Any]:
    """Return a trial's active parameters; one that its space did not have yet has the base recipe's value."""
    own, space = result.records[trial].params, result.space
    later = {path: result.values[trial].get(path) for path in space.active(own) if path not in own}
    return {**own, **{path: value for path, value in later.items() if value is not None}}


def _importances(params: list[dict[str, Any]], values: Floats, space: Mapping[str, Distribution]) -> dict[str, float]:
    """Return a share for each parameter; NaN where the values do not vary."""
    import optuna

    if np.ptp(values) == 0:
        return dict.fromkeys(space, math.nan)
    kinds: dict[str, optuna.distributions.BaseDistribution] = {}
    columns: dict[str, list[Any]] = {}
    for path, distribution in space.items():
        given = [own.get(path, distribution.low) for own in params]
        if distribution.values or not all(map(distribution.can_measure, given)):  # by their text: it may be a list
            columns[path] = [str(own[path]) if path in own else IDLE for own in params]
            kinds[path] = optuna.distributions.CategoricalDistribution(sorted(set(columns[path])))
        else:
            columns[path] = [float(value) for value in given]
            low = min(distribution.low, *columns[path])  # the space may have been edited
            high = max(distribution.high, *columns[path])
            kinds[path] = optuna.distributions.FloatDistribution(low, high, log=distribution.log)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study in memory is nobody's news
    study = optuna.create_study()
    optuna.logging.set_verbosity(verbosity)
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    study.add_trials(
        [
            optuna.trial.create_trial(params=row, distributions=kinds, value=float(value))
            for row, value in zip(rows, values, strict=True)
        ]
    )
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=min(MAX_TREES, MAX_LEAVES // len(values)), seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
