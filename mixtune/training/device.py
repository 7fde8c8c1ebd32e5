"""Where a trial trains, and at which precision."""

from __future__ import annotations

import functools
import time

import torch

PROBE_SIZE = 2048
PROBE_ROUNDS = 20


def choose_device() -> torch.device:
    """Return the GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of ``precision: auto``: float32, but bfloat16 on a GPU that multiplies faster in it.

    A GPU is asked by timing: cards without the hardware take bfloat16 and emulate it.
    """
    if device.type != "cuda":
        return torch.float32
    seconds = {dtype: _product_seconds(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return min(seconds, key=lambda dtype: seconds[dtype])


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of some matrix products, after a first one that loads the kernel."""
    matrix = torch.ones(PROBE_SIZE, PROBE_SIZE, device=device, dtype=dtype)
    times = []
    for rounds in (1, PROBE_ROUNDS):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(rounds):
            matrix @ matrix
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return times[-1]
