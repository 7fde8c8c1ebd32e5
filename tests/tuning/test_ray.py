"""Why Ray gave a trial up, in one line, whatever it left behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.tune import TuneError

from mixtune.errors import DataError, RequestError
from mixtune.training.loop import DivergedError
from mixtune.tuning.ray import failure_reason, read_error, why_lost
from mixtune.tuning.trial import failure_cause


class TwoArgumentError(Exception):
    """An exception that pickles and does not unpickle."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


def left_behind(folder: Path, error: Exception | None, text: str) -> Any:
    """The two files that Ray writes into a failed trial's folder; the pickle not always."""
    (folder / "error.txt").write_text(text)
    pickled = None
    if error is not None:
        pickled = str(folder / "error.pkl")
        Path(pickled).write_bytes(ray.cloudpickle.dumps(error))
    return SimpleNamespace(pickled_error_file=pickled, error_file=str(folder / "error.txt"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first line:\nwhat to do"), "ValueError: first line: what to do"),
        (ValueError(), "ValueError"),
        (TwoArgumentError("fire", "the attic"), "the last line of Ray's text"),
        (None, "the last line of Ray's text"),
    ],
)
def test_a_failure_has_a_reason(tmp_path: Path, error: Exception | None, reason: str) -> None:
    trial = left_behind(tmp_path, error, "Failure # 1\n  the last line of Ray's text\n")
    assert failure_reason(trial, read_error(trial)) == reason


def test_a_breakdown_of_ray_is_told_in_our_words_however_tune_wraps_it() -> None:
    """Never a paragraph of Ray's manual; what is not Ray's is none, and comes as it is."""
    for error, words in (
        (ray.exceptions.LocalRayletDiedError(), "Ray's process for this machine (raylet) has ended"),
        (ray.exceptions.OutOfMemoryError("Task was killed due to the node running low. " * 9), "memory is full"),
        (ray.exceptions.ObjectLostError("a" * 56, "", ""), "what a lost process held for others is gone"),
        (ray.exceptions.ActorDiedError(), "the worker process died"),
        (ray.exceptions.RaySystemError("GCS"), "Ray's processes have lost each other"),
    ):
        wrapped = TuneError(f"Traceback (most recent call last): {error}")
        wrapped.__context__ = error  # Tune raises it while it handles the other
        told = why_lost(wrapped)
        assert told is not None
        assert words in told
        assert len(told) < 80
    assert why_lost(AssertionError("a bug of ours")) is None
    assert why_lost(DataError("the disk does not answer")) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory"),
        (DivergedError("the loss is nan in epoch 1"), "permanent"),  # the same bits would diverge again
        (RequestError("optim.batch_size 4096 is more than there are images"), "permanent"),
        (DataError("the disk does not answer"), "crash"),
        (ray.exceptions.RayActorError(), "crash"),
        (ValueError("anything"), "crash"),
        (None, "crash"),
    ],
)
def test_what_a_failed_trial_needs(error: BaseException | None, cause: str) -> None:
    assert failure_cause(error) == cause
