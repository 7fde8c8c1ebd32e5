"""What a trial reports, by the names of `trials.csv`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mixtune.training.bill import phase_signature
from mixtune.training.device import describe_device
from mixtune.training.plan import PHASES, Phase, make_plan, method_of, peak_rate
from mixtune.training.scores import SCORES, Scores, mean_scores
from mixtune.training.state import EpochResult, TrainState

TASK_PREFIXES = ("val_accuracy_", "test_accuracy_")  # before a task's name, where there are several


@dataclass(frozen=True)
class Metrics:
    """A trial's figures after its latest epoch; what is not measured in that phase is NaN.

    val_accuracy: top-1 on the validation split, in [0, 1], the mean of several tasks, and its binomial standard
    error; val_balanced_accuracy, val_macro_f1, val_calibration_error: beside it, as mixtune.training.scores says;
    test_*: the same on the test images, under ``protocol: paper`` alone; task_accuracies: of the split
    that is measured, by task, where there are several; train_latency_s: seconds of the training steps so far on a
    device of their own, from step times measured in quiet windows (mixtune.meter.windows), and its shares by phase;
    latency_reused_s: its share of epochs_reused; forecast_latency_s: the same for the whole recipe, phases that were
    not timed yet by their operations; train_clock_s: the steps of epochs_trained by the wall clock, slowed by whatever
    else ran on the device; validation_s, compile_s, checkpoint_s, waiting_s: seconds of what is in neither, of these
    epochs; train_flops: floating-point operations of the
    whole recipe, counted from shapes; infer_latency_ms: milliseconds from one image's pixels to its class, measured
    as the steps are, after the last epoch; peak_memory_mb: megabytes (10**6 bytes) that PyTorch held at most on the
    GPU, NaN on a CPU; ssl_loss, sl_loss: means over the latest epoch; epoch: epochs done, of
    epochs_asked: trained by the trial's latest attempt, or reused from a stored state; sl_progress: the share of the SL
    budget's epochs (mix and SL) that are done; lr_ssl, lr_sl: the peak rates
    used (base_lr * batch / 256); device: the GPU, or the CPU and its threads.
    """

    val_accuracy: float
    val_accuracy_se: float
    val_balanced_accuracy: float
    val_balanced_accuracy_se: float
    val_macro_f1: float
    val_calibration_error: float
    test_accuracy: float
    test_accuracy_se: float
    test_balanced_accuracy: float
    test_balanced_accuracy_se: float
    test_macro_f1: float
    test_calibration_error: float
    task_accuracies: dict[str, float]
    train_latency_s: float
    latency_ssl_s: float
    latency_mix_s: float
    latency_sl_s: float
    latency_reused_s: float
    forecast_latency_s: float
    train_clock_s: float
    validation_s: float
    compile_s: float
    checkpoint_s: float
    waiting_s: float
    train_flops: float
    infer_latency_ms: float
    peak_memory_mb: float
    ssl_loss: float
    sl_loss: float
    method: str
    phase: Phase
    epoch: int
    epochs_asked: int
    epochs_trained: int
    epochs_reused: int
    sl_progress: float
    train_images: int
    lr_ssl: float
    lr_sl: float
    precision: str
    device: str
    protocol: Literal["search", "paper"]

    @property
    def split(self) -> str:
        """What accuracies are of: ``test`` under ``protocol: paper``, else ``val``."""
        return "test" if self.protocol == "paper" else "val"

    @property
    def accuracy(self) -> float:
        """``val_accuracy``, or ``test_accuracy`` where that is measured."""
        return self.val_accuracy if self.split == "val" else self.test_accuracy

    @property
    def accuracy_se(self) -> float:
        """The standard error of ``accuracy``."""
        return self.val_accuracy_se if self.split == "val" else self.test_accuracy_se

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by name; a task's accuracy is ``val_accuracy_<task>`` or ``test_accuracy_<task>``."""
        values = asdict(self)
        tasks = values.pop("task_accuracies")
        return values | {f"{self.split}_accuracy_{task}": accuracy for task, accuracy in tasks.items()}


def score_metrics(tasks: Sequence[Scores], split: str) -> dict[str, float]:
    """Return the means over the tasks by the names of metrics; split: ``val`` or ``test``."""
    return {f"{split}_{name}": value for name, value in asdict(mean_scores(tasks)).items()}


def measure(state: TrainState, epochs: int | None = None) -> Metrics:
    """Return the figures of a state after its first ``epochs`` epochs, at least one; default: all that it has."""
    history, optim = state.history[:epochs], state.recipe.optim
    plan = make_plan(state.recipe)
    reused, own = history[: state.epochs_reused], history[state.epochs_reused :]
    latest = history[-1]
    tasks = state.data.tasks
    scores = latest.scores or (Scores(math.nan, math.nan),) * len(tasks)
    unknown: dict[str, Any] = {f"{split}_{name}": math.nan for split in ("val", "test") for name in SCORES}
    known = score_metrics(scores, "test" if state.recipe.protocol == "paper" else "val")

    signatures = {epoch.work: phase_signature(state, *epoch.work) for epoch in plan[: len(history)]}

    def seconds(results: list[EpochResult], *phases: Phase) -> float:
        return state.step_times.latency(
            (r.steps, signatures[plan[r.epoch - 1].work]) for r in results if r.phase in phases
        )

    return Metrics(
        **(unknown | known),
        task_accuracies={t.name: s.accuracy for t, s in zip(tasks, scores, strict=True)} if len(tasks) > 1 else {},
        train_latency_s=seconds(history, *PHASES),
        latency_ssl_s=seconds(history, "ssl"),
        latency_mix_s=seconds(history, "mix"),
        latency_sl_s=seconds(history, "sl"),
        latency_reused_s=seconds(reused, *PHASES),
        forecast_latency_s=_forecast_latency(state),
        train_clock_s=sum(result.seconds for result in own),
        validation_s=sum(result.validation_seconds for result in own),
        compile_s=sum(result.compile_seconds for result in own),
        checkpoint_s=state.checkpoint_seconds,
        waiting_s=sum(result.waiting_seconds for result in own),
        train_flops=state.flops(),
        infer_latency_ms=1e3 * state.step_times.step_time(phase_signature(state, "infer")),
        peak_memory_mb=max((math.nan if r.peak_memory_mb is None else r.peak_memory_mb) for r in history),
        ssl_loss=math.nan if latest.ssl_loss is None else latest.ssl_loss,
        sl_loss=math.nan if latest.sl_loss is None else latest.sl_loss,
        method=method_of(state.recipe),
        phase=latest.phase,
        epoch=latest.epoch,
        epochs_asked=len(plan),
        epochs_trained=len(own),
        epochs_reused=len(reused),
        sl_progress=sum(epoch.sl_epoch is not None for epoch in plan[: latest.epoch]) / state.recipe.epochs.sl,
        train_images=sum(len(task.train) for task in tasks),
        lr_ssl=peak_rate(optim.ssl, optim.batch_size),
        lr_sl=peak_rate(optim.sl, optim.batch_size),
        device=describe_device(state.device),
        protocol=state.recipe.protocol,
        precision=str(state.autocast_dtype).removeprefix("torch."),
    )


def _forecast_latency(state: TrainState) -> float:
    """Return the seconds of the whole recipe's training steps: untimed epochs go as fast, by operations, as others."""
    plan = make_plan(state.recipe)
    epochs = Counter(epoch.work for epoch in plan)
    flops = {epoch.work: state.step_flops(epoch) for epoch in {epoch.work: epoch for epoch in plan}.values()}
    timed = {work: state.step_times.step_time(phase_signature(state, *work)) for work in epochs}
    known = [work for work in epochs if math.isfinite(timed[work])]
    if not known:
        return math.nan
    pace = sum(timed[work] for work in known) / sum(flops[work] for work in known)
    return sum(
        count * state.data.steps * (timed[work] if work in known else pace * flops[work])
        for work, count in epochs.items()
    )
