"""Named random streams: every draw is a function of (seed, stream, epoch), and of nothing else.

So an interrupted run continues as if it had not been, and two recipes that agree up to an epoch draw the same there.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch

Stream = Literal[
    "init.backbone",
    "init.objective",
    "init.classifier",
    "split",
    "ssl_split",
    "order",  # of the supervised images in an epoch
    "ssl_order",  # of the self-supervised images in an epoch
    "augmentation",
    "ssl_augmentation",
    "masks",
    "partners",  # the SSL images of Eq. 2
    "representation",  # the labelled images that frozen features are compared with
]


def stream_seed(seed: int, stream: Stream, epoch: int = 0) -> int:
    """Return a 63-bit seed, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{stream}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, stream: Stream, epoch: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator at the start of the stream. Draws differ between device types."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, stream, epoch))


def numpy_generator(seed: int, stream: Stream) -> np.random.Generator:
    """Return a numpy generator at the start of the stream."""
    return np.random.default_rng(stream_seed(seed, stream))
