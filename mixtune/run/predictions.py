"""Which class a trained recipe gives each held-out image, as the ledger holds it: what paired differences rest on."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_BYTES = 2**28  # of class numbers, inflated
Classes = npt.NDArray[np.int64]  # (images,), class numbers


@dataclass(frozen=True)
class HeldOut:
    """The images that accuracies are of, by task: the number of classes, and each image's true class (encode_classes).

    digest: equal where they are the same images in the same order, of whatever size.
    """

    digest: str
    classes: Mapping[str, int]
    labels: Mapping[str, str]

    @classmethod
    def of(cls, tasks: Mapping[str, tuple[int, Classes, Classes]]) -> HeldOut:
        """Return it for (number of classes, true classes (images,), positions in the dataset (images,)) by task."""
        classes = {name: count for name, (count, _, _) in tasks.items()}
        labels = {name: encode_classes(own) for name, (_, own, _) in tasks.items()}
        positions = {name: encode_classes(own) for name, (_, _, own) in tasks.items()}
        known = json.dumps([classes, labels, positions], sort_keys=True)
        return cls(hashlib.sha256(known.encode()).hexdigest()[:16], classes, labels)

    @classmethod
    def read(cls, event: Mapping[str, Any]) -> HeldOut:
        """Return what an event ``validation`` holds."""
        return cls(str(event["digest"]), dict(event["classes"]), dict(event["labels"]))


def encode_classes(classes: npt.NDArray[Any]) -> str:
    """Return class numbers, (images,), as text: the bytes of a number, then the numbers, deflated, in base64."""
    size = next(size for size in (1, 2, 4) if not len(classes) or int(classes.max()) < 256**size)
    content = bytes([size]) + classes.astype(f"<u{size}").tobytes()
    return base64.b64encode(zlib.compress(content, 9)).decode()


def decode_classes(text: str) -> Classes:
    """Return the class numbers that encode_classes() wrote. Raises ValueError for what it did not."""
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"not deflated: {error}") from error
    if not content or content[0] not in (1, 2, 4) or (len(content) - 1) % content[0]:
        raise ValueError("no class numbers")
    return np.frombuffer(content[1:], dtype=f"<u{content[0]}").astype(np.int64)
