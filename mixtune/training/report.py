"""A trial's figures as lines for a terminal or a log."""

from __future__ import annotations

import math

from mixtune.training.metrics import Metrics


def epoch_line(metrics: Metrics) -> str:
    """Return one line for the latest epoch."""
    figures = {"ssl loss": metrics.ssl_loss, "sl loss": metrics.sl_loss}
    losses = [f"{name} {value:.4f}" for name, value in figures.items() if not math.isnan(value)]
    accuracy = [] if math.isnan(metrics.val_accuracy) else [f"val_accuracy {metrics.val_accuracy:.3f}"]
    seconds = f"{metrics.train_latency_s:.1f} s"
    counted = f"epoch {metrics.epochs_trained}/{metrics.epochs_asked}"
    return "  ".join([counted, f"{metrics.phase:<3}", *losses, *accuracy, seconds])


def final_line(metrics: Metrics) -> str:
    """Return one line for the whole training."""
    phases = {"ssl": metrics.latency_ssl_s, "mix": metrics.latency_mix_s, "sl": metrics.latency_sl_s}
    parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items() if seconds)
    return (
        f"{metrics.method}: val_accuracy {metrics.val_accuracy:.3f} ± {metrics.val_accuracy_se:.3f} in "
        f"{metrics.train_latency_s:.1f} s of training ({parts}); peak learning rates: ssl {metrics.lr_ssl:.2g}, "
        f"sl {metrics.lr_sl:.2g}; {metrics.precision}"
    )
