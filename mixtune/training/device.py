"""Where a trial trains, and at which precision."""

from __future__ import annotations

import functools
import gc
import platform
from contextlib import suppress
from pathlib import Path

import torch


def choose_device() -> torch.device:
    """Return the GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's and the threads that this process uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


@functools.cache
def _cpu_name() -> str:
    """Return the CPU's model name where Linux tells it, else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name":
                return " ".join(name.split())
    return f"{platform.machine()} CPU"


_limits: dict[int | None, int] = {}  # bytes, of GPUs that are shared


def limit_memory(device: torch.device, limit_bytes: int | None) -> None:
    """Let PyTorch allocate at most ``limit_bytes`` on a GPU from now on, in this process; None and a CPU: as before."""
    if limit_bytes is None or device.type != "cuda":
        return
    _, total = torch.cuda.mem_get_info(device)
    _limits[device.index] = min(total, max(1, limit_bytes))
    torch.cuda.set_per_process_memory_fraction(_limits[device.index] / total, device.index)


def allowed_memory(device: torch.device) -> int:
    """Return the bytes of a GPU that this process may allocate: limit_memory()'s, or what is free now."""
    return _limits.get(device.index) or torch.cuda.mem_get_info(device)[0]


def peak_memory_mb(device: torch.device) -> float | None:
    """Return what PyTorch held at most on a GPU, in megabytes, since release_memory(); None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def release_memory(compiled: bool) -> None:
    """Give back what a training held, once nothing refers to it any more; ``compiled``: by torch.compile.

    PyTorch compiles a function for a few settings only, and then no more, without a word; and a compiled module is
    freed by the garbage collector alone.
    """
    if compiled:
        torch.compiler.reset()
        gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products for a recipe's ``precision``: float32, bfloat16 or auto.

    auto: float32, but bfloat16 on a GPU that has the hardware for it.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return dtypes.get(precision) or (torch.bfloat16 if _has_bfloat16(device) else torch.float32)


@functools.cache
def _has_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass at a recipe's ``precision``."""
    dtype = choose_dtype(precision, device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
