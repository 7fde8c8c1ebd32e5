"""TensorBoard: the curves of each trial, and at its end its hyperparameters; ``tensorboard --logdir DIR/logs``.

Curves are in groups: accuracy, loss, time, compute. A trial that continues, after a pause, a failure or in another
process, is logged again from its ledger, so that nothing is there twice and nothing is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixtune.errors import RequestError
from mixtune.metrics import find_metric
from mixtune.run.ledger import AT_REST, ENDED, TrialRecord
from mixtune.tuning.loggers import Logger


def build(folder: Path) -> Logger:
    """Return a logger into a folder a trial. Raises RequestError where tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams
    except ImportError as error:
        raise RequestError("--log-to tensorboard needs tensorboardX: pip install 'mixtune[tensorboard]'") from error
    writers: dict[str, Any] = {}
    logged: dict[str, int] = {}

    def log(record: TrialRecord) -> None:
        """Write the epochs that are new, with the epoch as the step."""
        new = [epoch for epoch in record.epochs if epoch["epoch"] > logged.get(record.trial, 0)]
        if record.trial not in writers:
            if not new:
                return
            for earlier in (folder / record.trial).glob("events.out.tfevents.*"):
                earlier.unlink()
            writers[record.trial] = SummaryWriter(str(folder / record.trial))
        writer = writers[record.trial]
        for epoch in new:
            for name, value in _numbers(epoch).items():
                if (group := _group(name)) is not None:
                    writer.add_scalar(f"{group}/{name}", value, epoch["epoch"])
            logged[record.trial] = epoch["epoch"]
        if record.state in ENDED:
            params = {
                path: v if isinstance(v, bool | int | float | str) else str(v) for path, v in record.params.items()
            }
            for summary in hparams(params, _numbers(record.metrics)):
                writer.file_writer.add_summary(summary)
        if record.state in AT_REST:
            writers.pop(record.trial).close()
            del logged[record.trial]

    return log


def _group(name: str) -> str | None:
    """Return where a curve belongs, None for what is no curve."""
    if name.endswith("_loss"):
        return "loss"
    return {"%": "accuracy", "s": "time", "FLOP": "compute"}.get(find_metric(name).unit)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
