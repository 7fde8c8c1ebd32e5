"""A proposed space in words: the file with its comments, and a summary."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mixtune.cost.flops import Size, recipe_bill, recipe_flops
from mixtune.cost.machine import Machine
from mixtune.datasets import Survey
from mixtune.errors import printable
from mixtune.files import refuse_existing, write_whole
from mixtune.meter.times import StepTimes
from mixtune.metrics import describe_channels, duration
from mixtune.proposal._draft import Draft
from mixtune.training.plan import Phase
from mixtune.tuning.forecast import SearchForecast
from mixtune.tuning.prepare import Prepared, warn_of_few_images

OVERHEAD_OF_TRAINING = 0.15  # of the seconds of the training steps: starts, quiet windows, checkpoints, busy neighbours
COLUMN = 48  # where comments begin


@dataclass(frozen=True)
class Proposal:
    """A draft, checked on its machine, with what was measured there."""

    draft: Draft
    prepared: Prepared
    machine: Machine
    forecast: SearchForecast

    @property
    def wall_s(self) -> float:
        """Seconds that the whole search is forecast to take."""
        return wall_seconds(self.draft, self.forecast)

    def summary(self) -> list[str]:
        """Return lines for a terminal: the data, the machine, the model, the search and what it takes."""
        draft, found = self.draft, self.forecast
        share = f" on {draft.fraction:.0%} of the training images" if draft.fraction < 1 else ""
        return [
            describe_data(draft.survey),
            *draft.survey.short_lines(),
            f"machine: {found.device}; trials: {found.slots}",
            f"model: a ViT of width {draft.shape.width} and depth {draft.shape.depth}, {draft.tokens} patches an image",
            f"search: {found.counts}{share}: about {say_time(self.wall_s)}",
            *warn_of_few_images(draft.val_images),
            *([found.possible] if found.possible else []),
        ]

    def text(self, path: Path) -> str:
        """Return the commented space; ``path`` is where it will be."""
        found, comments = self.forecast, self._comments()
        head = [
            f"mixtune search {shlex.quote(str(path))}",
            f"{describe_data(self.draft.survey)}.",
            f"{found.counts}, {found.slots}: about {say_time(self.wall_s)} on",
            f"{found.device}; less where trials have epochs in common, which are trained once.",
            "After a change, --dry-run forecasts again.",
        ]
        body = [
            f"{line:<{COLUMN - 2}}  # {printable(comments[name])}" if comments.get(name) else line
            for name, line in self.draft.lines().items()
        ]
        return "\n".join([*(f"# {printable(line)}" for line in head), *body]) + "\n"

    def _comments(self) -> dict[str, str]:
        """Return what is said alongside the draft's lines, by their names."""
        draft, survey, found = self.draft, self.draft.survey, self.forecast
        epoch = {phase: f"{seconds:.2g} s" for phase, seconds in epoch_seconds(self.prepared, self.machine).items()}
        flip = "0.0 where a mirrored image means something else, such as text"
        square = {"crop": "scaled, then cropped at the centre", "pad": "scaled and padded", "stretch": "stretched"}
        comments = {
            "image_size": f"the files have {survey.size_range}: {square[survey.dataset.reading.fit]}",
            "val_fraction": f"{draft.val_images:,} images to compare by: ± {self._error():.1f} points at most",
            "on_bad_file": f"{len(survey.dataset.account.bad):,} files cannot be read; stop: end with their names",
            "fraction": f"of the others; with all of them: {say_time(self.wall_s / draft.fraction)}",
            "model": f"twice as wide: {self._wider():.1f} times the work",
            "epochs": f"an epoch takes {epoch['ssl']} (SSL), {epoch['mix']} (both), {epoch['sl']} (supervised)",
            "augment": flip if draft.flips else "mirrored, these images mean something else",
            "batch_size": "the rate used is base_lr * batch_size / 256",
            "class_weights": f"the largest class is {survey.imbalance:.0f} times the smallest: each counts alike",
            "ssl": "wsd: longer budgets continue from shorter ones",
            "space": "what trials vary: [lowest, highest, step]",
            "alpha": "weight of the self-supervised loss where both are trained",
            "rho": "share of the epochs that train both losses at once",
            "epochs.ssl": "0: supervised training alone",
            "epochs.sl": f"a trial trains for {duration(found.trial_s)} on average",
            "baselines": f"what one would use without a search: {duration(found.baselines_s)} together",
            "search": "later: mixtune resume DIR --trials N",
            "resources": f"{found.slots.count} at once",
        }
        if draft.accuracy != "val_accuracy":
            comments["objectives"] = f"classes count alike: the largest is {survey.imbalance:.1f} times the smallest"
        return comments

    def _error(self) -> float:
        """Return the largest standard error of an accuracy on the validation images, in points."""
        return 50 / math.sqrt(self.draft.val_images)

    def _wider(self) -> float:
        """Return how many times the FLOPs of the base recipe one of twice the width has."""
        size, space = Size.of(self.prepared.data), self.prepared.space
        wider = space.recipe_at({"model.embed_dim": 2 * self.draft.shape.width})
        return sum(recipe_flops(wider, size).values()) / sum(recipe_flops(space.recipe, size).values())


def epoch_seconds(prepared: Prepared, machine: Machine) -> dict[Phase, float]:
    """Return the seconds of an epoch of each phase of a base recipe that has all three."""
    bill = recipe_bill(prepared.space.recipe, Size.of(prepared.data))
    count = Counter(phase for phase, _, _ in bill.epochs)
    return {phase: s / count[phase] for phase, s in bill.price(StepTimes(), machine.step_seconds).items()}


def write_space(proposal: Proposal, path: Path) -> None:
    """Write a proposed space to a new file. Raises RequestError where there is one, DataError where it cannot be."""
    refuse_existing(path)
    write_whole(path, proposal.text(path))


def wall_seconds(draft: Draft, forecast: SearchForecast) -> float:
    """Return what a draft's search takes by the clock.

    A validation takes about half the time of training on its images. Trials that share a GPU slow each other down.
    """
    validation = 0.5 * draft.val_images / draft.epoch_images
    return (1.0 + OVERHEAD_OF_TRAINING + validation) * forecast.device_s / workers(forecast)


def workers(forecast: SearchForecast) -> float:
    """Return how many devices train at once: CPU slots, or GPUs."""
    slots = forecast.slots
    return slots.count * min(1.0, slots.gpus) if slots.gpus else slots.count


def describe_data(survey: Survey) -> str:
    """Return one line: counts, sizes, channels, classes and how uneven they are."""
    least, most = min(survey.counts.values()), max(survey.counts.values())
    each = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    own = f"{survey.val_images:,} validation " if survey.val_images else ""
    images = f"{survey.train_images:,} training, {own}and {survey.test_images:,} test images".replace(", and", " and")
    classes = f"{len(survey.counts)} classes of {each}"
    return (
        f"{survey.root or survey.name}: {images}, {survey.size_range} {describe_channels(survey.channels)}, {classes}"
    )


def say_time(seconds: float) -> str:
    """Return a time as people say it: 50 seconds, 12 minutes, 1.5 hours."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.2g} hours"
