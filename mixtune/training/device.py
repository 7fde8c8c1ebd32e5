"""Where a trial trains."""

from __future__ import annotations

import torch


def choose_device() -> torch.device:
    """Return the GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
