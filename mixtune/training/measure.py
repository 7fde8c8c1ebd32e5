"""What a trial reports, by the names of mixtune.metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mixtune.training.device import describe_device
from mixtune.training.plan import method_of, peak_rate
from mixtune.training.scores import SCORES, Scores, mean_scores, standard_error
from mixtune.training.state import TrainState


class Metrics(dict[str, Any]):
    """A trial's figures by the names of mixtune.metrics, also as attributes; NaN where not measured in that phase.

    ``val_accuracy_<task>`` or ``test_accuracy_<task>`` are those of several tasks. ``epochs_trained`` and the clocks
    are of this process alone; all else is of the whole path through the stage tree.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no metric {name!r}") from None

    @property
    def split(self) -> str:
        """What accuracies are of: ``test`` under ``protocol: paper``, else ``val``."""
        return "test" if self.protocol == "paper" else "val"

    @property
    def accuracy(self) -> float:
        """``val_accuracy``, or ``test_accuracy`` where that is measured."""
        return float(self[f"{self.split}_accuracy"])

    @property
    def accuracy_se(self) -> float:
        """The standard error of ``accuracy``."""
        return float(self[f"{self.split}_accuracy_se"])

    @property
    def task_accuracies(self) -> dict[str, float]:
        """The accuracies by task, where there are several."""
        start = f"{self.split}_accuracy_"
        return {n.removeprefix(start): v for n, v in self.items() if n.startswith(start) and n != f"{start}se"}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by name."""
        return dict(self)


def score_metrics(tasks: Sequence[Scores], split: str) -> dict[str, float]:
    """Return the means over the tasks by the names of metrics; split: ``val`` or ``test``."""
    return {f"{split}_{name}": value for name, value in asdict(mean_scores(tasks)).items()}


def measure(state: TrainState, epochs: int | None = None) -> Metrics:
    """Return the figures of a state after its first ``epochs`` epochs, at least one; default: all that it has."""
    observed = observe(state, epochs)
    seconds = state.bill.seconds(state.step_times, observed["epoch"], observed["epochs_reused"])
    return Metrics({**observed, **seconds})


def _representation_metrics(state: TrainState) -> dict[str, float]:
    """Return what the recipe's ``representation`` names, the means over the tasks; NaN until it is known."""
    start = next(epoch.index for epoch in state.plan if epoch.is_first_supervised)
    images = [len(task.held_out) for task in state.data.tasks]
    values = {}
    for prefix, epochs in (("ssl_", start), ("", len(state.plan))):
        for name in sorted(set(state.recipe.representation)):
            found = state.representation.get(epochs, {}).get(name, (math.nan,) * len(images))
            errors = [standard_error(share, count) for share, count in zip(found, images, strict=True)]
            values[f"{prefix}{name}_accuracy"] = sum(found) / len(found)
            values[f"{prefix}{name}_accuracy_se"] = math.hypot(*errors) / len(errors)
    return values


def observe(state: TrainState, epochs: int | None = None) -> dict[str, Any]:
    """Return the figures of a state without those that follow from its bill and step times."""
    history, optim = state.history[:epochs], state.recipe.optim
    reused, own = history[: state.epochs_reused], history[state.epochs_reused :]
    latest, tasks = history[-1], state.data.tasks
    split = "test" if state.recipe.protocol == "paper" else "val"
    scores = latest.scores or (Scores(math.nan, math.nan),) * len(tasks)
    several = len(tasks) > 1
    return {
        **{f"{each}_{name}": math.nan for each in ("val", "test") for name in SCORES},
        **score_metrics(scores, split),
        "best_accuracy": max((mean_scores(r.scores).accuracy for r in history if r.scores), default=math.nan),
        **{f"{split}_accuracy_{t.name}": s.accuracy for t, s in zip(tasks, scores, strict=True) if several},
        **_representation_metrics(state),
        "train_clock_s": sum(result.seconds for result in own),
        "validation_s": sum(result.validation_seconds for result in own),
        "compile_s": sum(result.compile_seconds for result in own),
        "checkpoint_s": state.checkpoint_seconds,
        "waiting_s": sum(result.waiting_seconds for result in own),
        "train_flops": state.bill.flops,
        "peak_memory_mb": max((math.nan if r.peak_memory_mb is None else r.peak_memory_mb) for r in history),
        "ssl_loss": math.nan if latest.ssl_loss is None else latest.ssl_loss,
        "sl_loss": math.nan if latest.sl_loss is None else latest.sl_loss,
        "method": method_of(state.recipe),
        "phase": latest.phase,
        "epoch": latest.epoch,
        "epochs_asked": len(state.plan),
        "epochs_trained": len(own),
        "epochs_reused": len(reused),
        "sl_progress": sum(e.sl_epoch is not None for e in state.plan[: latest.epoch]) / state.recipe.epochs.sl,
        "train_images": sum(len(task.train) for task in tasks),
        "lr_ssl": peak_rate(optim.ssl, optim.batch_size),
        "lr_sl": peak_rate(optim.sl, optim.batch_size),
        "precision": str(state.autocast_dtype).removeprefix("torch."),
        "device": describe_device(state.device),
        "threads": torch.get_num_threads(),
        "protocol": state.recipe.protocol,
    }
