"""From images, a machine and the hours that there are to a model, epochs and trials: by timing a few steps."""

from __future__ import annotations

from dataclasses import replace

from mixtune.datasets import SKIPPING, Survey, find_data, survey_dataset
from mixtune.errors import RequestError
from mixtune.proposal._draft import Draft, Shape
from mixtune.proposal._text import Proposal, epoch_seconds, wall_seconds
from mixtune.tuning.forecast import SearchForecast, forecast_search, look_at_machine_for

SHAPES = (  # smallest first; the last two are the paper's ViT-Tiny
    Shape(64, 4, 4, tokens=64, images=0),
    Shape(96, 4, 4, tokens=64, images=2_000),
    Shape(128, 6, 4, tokens=64, images=5_000),
    Shape(192, 12, 3, tokens=64, images=20_000),
    Shape(192, 12, 3, tokens=256, images=20_000),
)
MIN_TRIALS, TRIALS, MAX_TRIALS = 8, 20, 50
MIN_EPOCHS, ENOUGH_EPOCHS, MAX_EPOCHS = 8, 20, 100  # supervised ones of the base recipe; ENOUGH for a larger model
FRACTIONS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # of the training images
MIN_PER_CLASS = 20  # training images that a fraction leaves


def propose_space(data: str, root: str | None = None, hours: float = 1.0) -> Proposal:
    """Look at images and machine, and return a space whose search is forecast to take about ``hours`` here.

    data: a folder of images, or a dataset's name; root: where the files of a named one are. Images are decoded, and a
    few steps of one model or several are timed. Raises RequestError and DataError, one line.
    """
    if not hours > 0:
        raise RequestError(f"--hours {hours:g}: should be above 0")
    seconds = 3600 * hours
    survey = survey_dataset(*find_data(data, root), reading=SKIPPING)
    if survey.dataset.train.labels is None:
        raise RequestError(
            f"{survey.root or survey.name} has images but no classes: training needs a folder for each class, or a "
            "table with labels (images without classes can serve as data.ssl_dataset alongside such a set)"
        )
    draft = _choose_budget(*_choose_shape(survey, seconds), seconds)
    prepared = draft.prepare()
    machine = look_at_machine_for(prepared)  # again, with the batch size that the budget has led to
    took = epoch_seconds(prepared, machine)
    draft = replace(draft, ssl_cost=took["ssl"] / took["sl"])
    prepared = draft.prepare()
    draft = _choose_budget(draft, forecast_search(prepared, machine), seconds)
    draft = _fill_with_trials(draft, forecast_search(draft.prepare(), machine), seconds)
    prepared = draft.prepare()
    return Proposal(draft, prepared, machine, forecast_search(prepared, machine))


def _choose_shape(survey: Survey, seconds: float) -> tuple[Draft, SearchForecast]:
    """Return the largest model that can train for long enough, with a forecast for its draft."""
    chosen: tuple[Draft, SearchForecast] | None = None
    for shape in SHAPES:
        if survey.train_images < shape.images:
            break
        draft = Draft(survey, shape, cpus=1, epochs=ENOUGH_EPOCHS, trials=TRIALS)
        prepared = draft.prepare()
        if not prepared.gpus and prepared.cpus >= 16:  # a handful of trials at once lets the sampler learn from some
            draft = replace(draft, cpus=prepared.cpus // 8)
            prepared = draft.prepare()
        forecast = forecast_search(prepared)
        if chosen is not None and wall_seconds(draft, forecast) > seconds:
            break
        chosen = draft, forecast
    assert chosen is not None
    return chosen


def _choose_budget(draft: Draft, forecast: SearchForecast, seconds: float) -> Draft:
    """Return the draft with as many epochs, and if need be so small a share of the images, that it takes the time."""
    smallest = min(draft.survey.counts.values())
    fractions = [fraction for fraction in FRACTIONS if fraction == 1 or fraction * smallest >= MIN_PER_CLASS]
    affordable = {fraction: _epochs_within(seconds, draft, forecast, fraction) for fraction in fractions}
    fraction = next((f for f, epochs in affordable.items() if epochs >= MIN_EPOCHS), fractions[-1])
    step = 4 if affordable[fraction] < 40 else 20
    epochs = int(affordable[fraction]) // step * step
    return replace(draft, fraction=fraction, epochs=min(max(epochs, MIN_EPOCHS), MAX_EPOCHS))


def _epochs_within(seconds: float, draft: Draft, forecast: SearchForecast, fraction: float) -> float:
    """Return with how many epochs TRIALS trials of a draft take the time, on another share of the images."""
    share = fraction / draft.fraction
    forecast = replace(
        forecast, trials=TRIALS, trial_s=share * forecast.trial_s, baselines_s=share * forecast.baselines_s
    )
    return draft.epochs * seconds / wall_seconds(replace(draft, fraction=fraction), forecast)


def _fill_with_trials(draft: Draft, forecast: SearchForecast, seconds: float) -> Draft:
    """Return the draft with as many trials as take the time, within limits."""
    baselines_s = wall_seconds(draft, replace(forecast, trials=0))
    trial_s = wall_seconds(draft, replace(forecast, trials=1)) - baselines_s
    trials = round((seconds - baselines_s) / trial_s)
    return replace(draft, trials=min(max(trials, MIN_TRIALS), MAX_TRIALS))
