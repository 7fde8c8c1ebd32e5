"""What a trial reports, by the names of `trials.csv`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mixtune.training.evaluation import standard_error
from mixtune.training.plan import Phase, make_plan, method_of, peak_rate
from mixtune.training.state import TrainState


@dataclass(frozen=True)
class Metrics:
    """A trial's figures after its latest epoch; what is not measured in that phase is NaN.

    val_accuracy: top-1 on the validation split, in [0, 1], and its binomial standard error;
    train_latency_s: seconds of training steps so far, validation and waiting left out, and its shares by phase;
    train_flops: floating-point operations of the whole recipe, counted from shapes;
    ssl_loss, sl_loss: means over the latest epoch; lr_ssl, lr_sl: the peak rates used (base_lr * batch / 256).
    """

    val_accuracy: float
    val_accuracy_se: float
    train_latency_s: float
    latency_ssl_s: float
    latency_mix_s: float
    latency_sl_s: float
    train_flops: float
    ssl_loss: float
    sl_loss: float
    method: str
    phase: Phase
    epochs_asked: int
    epochs_trained: int
    epochs_reused: int
    train_images: int
    lr_ssl: float
    lr_sl: float
    precision: str


def measure(state: TrainState) -> Metrics:
    """Return the figures of a state that has trained at least one epoch."""
    history, optim = state.history, state.recipe.optim
    latest = history[-1]
    accuracy = math.nan if latest.val_accuracy is None else latest.val_accuracy

    def seconds(*phases: Phase) -> float:
        return sum(result.seconds for result in history if result.phase in phases)

    return Metrics(
        val_accuracy=accuracy,
        val_accuracy_se=standard_error(accuracy, len(state.data.val_indices)),
        train_latency_s=seconds("ssl", "mix", "sl"),
        latency_ssl_s=seconds("ssl"),
        latency_mix_s=seconds("mix"),
        latency_sl_s=seconds("sl"),
        train_flops=state.flops(),
        ssl_loss=math.nan if latest.ssl_loss is None else latest.ssl_loss,
        sl_loss=math.nan if latest.sl_loss is None else latest.sl_loss,
        method=method_of(state.recipe),
        phase=latest.phase,
        epochs_asked=len(make_plan(state.recipe)),
        epochs_trained=len(history),
        epochs_reused=0,
        train_images=len(state.data.supervised.indices),
        lr_ssl=peak_rate(optim.ssl, optim.batch_size),
        lr_sl=peak_rate(optim.sl, optim.batch_size),
        precision=str(state.autocast_dtype).removeprefix("torch."),
    )
