"""A trial's figures as lines for a terminal or a log."""

from __future__ import annotations

import math

from mixtune.training.metrics import Metrics


def duration(seconds: float) -> str:
    """Return ``1:02:03``, hours, minutes and seconds, or ``2:03`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def epoch_line(metrics: Metrics) -> str:
    """Return one line for the latest epoch."""
    figures = {"ssl loss": metrics.ssl_loss, "sl loss": metrics.sl_loss}
    losses = [f"{name} {value:.4f}" for name, value in figures.items() if not math.isnan(value)]
    accuracy = [] if math.isnan(metrics.accuracy) else [f"{metrics.split}_accuracy {metrics.accuracy:.3f}"]
    seconds = f"{metrics.train_latency_s:.1f} s"
    counted = f"epoch {metrics.epoch}/{metrics.epochs_asked}"
    return "  ".join([counted, f"{metrics.phase:<3}", *losses, *accuracy, seconds])


def final_line(metrics: Metrics) -> str:
    """Return one line for the whole training."""
    phases = {"ssl": metrics.latency_ssl_s, "mix": metrics.latency_mix_s, "sl": metrics.latency_sl_s}
    parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items() if seconds)
    tasks = ", ".join(f"{task} {accuracy:.3f}" for task, accuracy in metrics.task_accuracies.items())
    accuracy = f"{metrics.split}_accuracy {metrics.accuracy:.3f} ± {metrics.accuracy_se:.3f}"
    compiled = f" after {metrics.compile_s:.1f} s of compilation" if metrics.compile_s else ""
    return (
        f"{metrics.method}: {accuracy} {f'({tasks}) ' if tasks else ''}in {metrics.train_latency_s:.1f} s of training "
        f"({parts}){compiled}; peak learning rates: ssl {metrics.lr_ssl:.2g}, sl {metrics.lr_sl:.2g}; "
        f"{metrics.precision}"
    )
