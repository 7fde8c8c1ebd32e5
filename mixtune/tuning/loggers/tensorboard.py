"""TensorBoard: the curves of each trial, and at its end its hyperparameters; ``tensorboard --logdir DIR/logs``."""

from __future__ import annotations

from ray.tune import Callback
from ray.tune.logger import TBXLoggerCallback

from mixtune.errors import RequestError


def build() -> Callback:
    """Return Ray Tune's own logger. Raises RequestError where tensorboardX is not installed."""
    try:
        return TBXLoggerCallback()
    except ImportError as error:
        raise RequestError("--log-to tensorboard needs tensorboardX: pip install 'mixtune[tensorboard]'") from error
