"""The table of metrics: what each is called, what it means, which way is better; and how numbers are written.

A metric is one row of METRICS. What a trial reports under a row's name is a column of trials.csv; a row with a
direction may be an objective or a constraint; the report writes it with its title and unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["max", "min"]
Known = Literal["before", "epoch", "end"]
Worst = Literal["chance", "certain and wrong"]

DISTURBED = "~"  # before figures that were measured while others computed
METHODS = {"sl": "SL", "ssl_sl": "SSL+SL", "mixtraining": "MixTraining"}  # as the paper writes them
_UNITS = {
    "_accuracy": "%",
    "_f1": "%",
    "_calibration_error": "%",
    "_s": "s",
    "_ms": "ms",
    "_mb": "MB",
    "_flops": "FLOP",
}

COST_UNITS = ("s", "ms", "FLOP")  # of what a recipe costs
MOST = 1e100  # of any figure: more than 32 bits hold, and sums and volumes of such figures are finite


@dataclass(frozen=True)
class Metric:
    """One metric. A stored value times ``scale`` is in ``unit``: shares of 1 are shown in percent.

    direction: which way is better, None for what is not a goal; known: before training, of each epoch (and so in the
    ledger's epoch events), or at the end alone; worst: what the hypervolume's reference point is of a score, None for
    costs, of which it follows from the trials; forecast: the metric that forecasts this one during training; of_device:
    whether values of two devices cannot be compared; disturbed: the metric that says how much of it was measured while
    others disturbed it; last: whether its column comes last in a table.
    """

    name: str
    title: str = ""
    direction: Direction | None = None
    known: Known = "end"
    worst: Worst | None = None
    forecast: str | None = None
    of_device: bool = False
    disturbed: str | None = None
    last: bool = False
    about: str = ""

    @cached_property
    def unit(self) -> str:
        """The unit for people, which follows from how the name ends, as in ``_ms``."""
        return next((unit for end, unit in _UNITS.items() if self.name == end[1:] or self.name.endswith(end)), "")

    @property
    def is_share(self) -> bool:
        """Whether values are shares of 1."""
        return self.unit == "%"

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest stored value that it can have: shares are from 0 to 1, errors and costs from 0."""
        low = 0.0 if self.unit or self.name.endswith("_se") else -MOST
        return low, 1.0 if self.is_share else MOST

    @property
    def scale(self) -> float:
        """What a stored value is multiplied by for people."""
        return 100.0 if self.is_share else 1.0

    @property
    def axis_title(self) -> str:
        """The title with its unit: "training time (s)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None, error: float | None = None, disturbed: float | None = None) -> str:
        """Return "97.0 ± 1.4 %" for a stored value and its standard error, "12.3 s", or "-" for no value.

        A value has the digits that its error carries, which has one, or two from 1.0 to 1.9: "4.4 ± 1.0 s". Shares are
        tenths of a percent. disturbed: what the metric of this one's ``disturbed`` says; where that is not nothing, the
        text is "~12.3 s".
        """
        if value is None or not math.isfinite(value):
            return "-"
        if self.is_share:
            numbers = [f"{each * self.scale:.1f}" for each in (value, error) if each is not None and each == each]
        elif error is not None and math.isfinite(error) and error > 0:
            digits, _, exponent = f"{error:.1e}".partition("e")
            decimals = max(0, (1 if digits < "2" else 0) - int(exponent))
            numbers = [f"{value:.{decimals}f}", f"{error:.{decimals}f}"]
        else:
            numbers = [significant(value)]
        return f"{DISTURBED * is_disturbed(disturbed)}{' ± '.join(numbers)} {self.unit}".rstrip()


def _scores(split: str, words: str) -> list[Metric]:
    """Return the rows of a split's scores; only those of validation images can be searched by."""
    known: Known = "epoch" if split == "val" else "end"

    def row(name: str, title: str, direction: Direction, worst: Worst, about: str) -> Metric:
        goal = direction if split == "val" else None
        return Metric(f"{split}_{name}", title, goal, known, worst if goal else None, about=about)

    return [
        row("accuracy", f"{words} accuracy", "max", "chance", "top-1, the mean over several tasks"),
        Metric(f"{split}_accuracy_se", about="binomial standard error"),
        row("balanced_accuracy", f"balanced {words} accuracy", "max", "chance", "mean recall of the classes"),
        Metric(f"{split}_balanced_accuracy_se", about="standard error, each recall being binomial"),
        row("macro_f1", f"{words} macro F1", "max", "chance", "mean F1 of the classes"),
        row(
            "calibration_error",
            f"{words} calibration error",
            "min",
            "certain and wrong",
            "expected calibration error, 15 bins of the top-1 probability (Guo et al. 2017, Eq. 3)",
        ),
    ]


def _representation(prefix: str, words: str, moment: str) -> list[Metric]:
    """Return the rows of a backbone's frozen features, judged on held-out images at one moment."""
    judges = {
        "knn": ("nearest-neighbour", "20 neighbours by cosine similarity (Wu et al. 2018)"),
        "probe": ("linear probe", "logistic regression on standardised features"),
    }
    rows = []
    for name, (title, how) in judges.items():
        about = f"of frozen features {moment}, fitted to at most 10,000 training images a task: {how}"
        rows.append(Metric(f"{prefix}{name}_accuracy", f"{title} accuracy{words}", "max", worst="chance", about=about))
        rows.append(Metric(f"{prefix}{name}_accuracy_se", about="binomial standard error"))
    return rows


_ROWS = [
    *_scores("val", "validation"),
    *_scores("test", "test"),
    Metric("best_accuracy", "accuracy of the best epoch", about="the highest so far, of the images of the accuracy"),
    *_representation("ssl_", " after SSL", "before the first supervised epoch"),
    *_representation("", "", "at the end"),
    Metric(
        "train_latency_s",
        "training time",
        "min",
        "epoch",
        forecast="forecast_latency_s",
        of_device=True,
        disturbed="disturbed",
        about="the training steps so far on a device of their own, from step times measured in quiet windows; revised "
        "as more windows are measured, exact at the end",
    ),
    Metric("train_latency_se_s", about="its standard error, the machine's drift between moments included"),
    Metric("latency_ssl_s", last=True, about="its part of the SSL phase"),
    Metric("latency_mix_s", last=True, about="its part of the mix phase"),
    Metric("latency_sl_s", last=True, about="its part of the SL phase"),
    Metric("latency_reused_s", last=True, about="its part of epochs_reused"),
    Metric("wall_s", last=True, about="the last attempt's, from its start to its end"),
    Metric("forecast_latency_s", known="epoch", about="the same for the whole recipe, untimed phases by their FLOPs"),
    Metric("training_s", known="epoch", about="the sum of the epochs' training times, each as known when it ended"),
    Metric("disturbed", about="the share of train_latency_s of steps that were never timed while others were quiet"),
    Metric("infer_disturbed", about="1 where infer_latency_ms was not measured while others were quiet, else 0"),
    Metric("train_clock_s", about="the steps of epochs_trained by the wall clock, slowed by whatever else ran"),
    Metric("validation_s", about="the clock of held-out images and of frozen features, of epochs_trained"),
    Metric("compile_s", about="the clock of torch.compile, of epochs_trained"),
    Metric("checkpoint_s", about="the clock of storing checkpoints"),
    Metric("waiting_s", about="the clock of waiting for quiet windows, one's own and others'"),
    Metric(
        "train_flops",
        "training compute",
        "min",
        "before",
        forecast="train_flops",
        about="floating-point operations of the whole recipe, counted from shapes",
    ),
    Metric(
        "infer_latency_ms",
        "inference time",
        "min",
        of_device=True,
        disturbed="infer_disturbed",
        about="one image from its pixels to its class, measured as the training steps are, after the last epoch",
    ),
    Metric("infer_latency_ms_se", about="its standard error, the machine's drift between moments included"),
    Metric(
        "peak_memory_mb",
        "peak memory",
        "min",
        of_device=True,
        about="the most that PyTorch allocated on the GPU, in 10**6 bytes; NaN on a CPU",
    ),
    Metric("ssl_loss", known="epoch", about="mean over the latest epoch"),
    Metric("sl_loss", known="epoch", about="mean over the latest epoch"),
    Metric("method", known="before", about="sl, ssl_sl or mixtraining"),
    Metric("phase", known="epoch", about="of the latest epoch: ssl, mix or sl"),
    Metric("epoch", known="epoch", about="how many are done"),
    Metric("epochs_asked", known="before", last=True, about="of the whole recipe"),
    Metric("epochs_trained", last=True, about="by the trial's latest attempt"),
    Metric("epochs_reused", last=True, about="from a stored checkpoint"),
    Metric("sl_progress", known="epoch", about="the share of the SL budget's epochs (mix and SL) that are done"),
    Metric("train_images", known="before", about="labelled ones that are trained on"),
    Metric("lr_ssl", known="before", about="the peak rate used: base_lr * batch / 256"),
    Metric("lr_sl", known="before", about="the peak rate used: base_lr * batch / 256"),
    Metric("precision", known="before", about="float32 or bfloat16"),
    Metric("device", known="before", about="the GPU, or the CPU and its threads"),
    Metric("threads", known="before", about="of the process that trained"),
    Metric("protocol", known="before", about="search or paper"),
]
METRICS = {row.name: row for row in _ROWS}
DEFAULT_OBJECTIVES: dict[str, Direction] = {"val_accuracy": "max", "train_latency_s": "min"}


def find_metric(name: str) -> Metric:
    """Return a metric's row, with its name for a title where it has none; one of its own for an unknown name."""
    row = METRICS.get(name) or Metric(name)
    return row if row.title else replace(row, title=name)


def directions() -> dict[str, Direction]:
    """Return which way is better of each metric that may be an objective or a constraint."""
    return {row.name: row.direction for row in METRICS.values() if row.direction is not None}


def epoch_metrics() -> list[str]:
    """Return the names of what each epoch's event in the ledger holds: what is known then, of whole recipes FLOPs."""
    return [row.name for row in METRICS.values() if row.known == "epoch" or row.forecast == row.name]


def last_columns() -> list[str]:
    """Return the names of the last columns of every table: where a trial's time and epochs went."""
    return [row.name for row in METRICS.values() if row.last]


def learned_scores() -> list[str]:
    """Return the objectives that training has to find out, epoch by epoch: scores on validation images."""
    return [row.name for row in METRICS.values() if row.direction and row.known == "epoch" and row.forecast is None]


def named_judges(names: Iterable[str]) -> set[str]:
    """Return what judges frozen features, ``knn`` or ``probe``, for the metrics among ``names`` that need it."""
    asked = {name.removeprefix("ssl_").removesuffix("_accuracy") for name in names}
    return asked & {"knn", "probe"}


def metric_text(metrics: Mapping[str, Any] | pd.Series[Any], name: str) -> str:
    """Return a metric with its standard error, and a mark where it was disturbed: "97.0 ± 1.4 %", "~12.3 s"."""
    row = find_metric(name)
    disturbed = None if row.disturbed is None else metrics.get(row.disturbed)
    return row.text(metrics[name], metrics.get(error_name(name)), disturbed)


def error_name(name: str) -> str:
    """Return the column of a metric's standard error: ``val_accuracy_se``, ``train_latency_se_s``."""
    return f"{name.removesuffix('_s')}_se_s" if name.endswith("_s") else f"{name}_se"


def is_disturbed(share: float | None) -> bool:
    """Return whether a figure in seconds was disturbed, by the metric that its row names."""
    return share is not None and share > 0


def disturbed_note(names: Iterable[str]) -> list[str]:
    """Return what a table with marked figures of these rows needs alongside: a line, or none."""
    listed = ", ".join(names)
    quiet = f"{DISTURBED} {listed}: timed while other processes computed, so the seconds may be too long"
    return [quiet] if listed else []


def metric_value(metrics: Mapping[str, Any], name: str) -> float:
    """Return a metric of a ledger's event as a number, NaN where it is missing."""
    value = metrics.get(name)
    return math.nan if value is None else float(value)


def significant(value: float, digits: int = 3) -> str:
    """Return ``value`` with so many significant digits: 0.412, 12.0, 1230; 1.5e+15 where that is long."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits}g}")
    magnitude = math.floor(math.log10(abs(rounded)))
    if not -4 <= magnitude < 6:
        return f"{value:.{digits}g}"
    return f"{rounded:.{max(0, digits - 1 - magnitude)}f}"


def counted(count: int, noun: str) -> str:
    """Return "1 trial", "2 trials", "1,200 trials"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def setting(value: Any) -> str:
    """Return a parameter's value in short: a float with three significant digits, "" for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Return ``1:02:03``, hours, minutes and seconds, or ``2:03`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_channels(channels: int) -> str:
    """Return the colours of images in words."""
    return {1: "grayscale", 3: "RGB"}.get(channels, f"{channels} channels")
