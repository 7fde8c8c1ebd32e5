"""Decoded images on disk: ``<root>/.mixtune/<name>-<digest>/`` with .npy files and meta.json.

A cache is written into a temporary sibling and renamed, so that it is there whole or not at all. Of several
processes that want the same one, one builds it and the others wait; on a file system without locks all build it, the
first to rename wins and the others use its files. Readers map the files, so the processes of a machine share one copy
in memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.datasets._decode import decode, digest_item
from mixtune.datasets._types import Dataset, ImageSet, Part, Parts
from mixtune.errors import DataError

FOLDER = ".mixtune"
FORMAT = 2

_META = "meta.json"
_LOCK = ".lock-"
_SCRATCH = "building-"
_SCRATCH_KEPT_S = 24 * 3600
_BLOCK = 256  # images decoded between two writes: bounds memory
_STATISTICS_IMAGES = 10_000
_LOG_EVERY_S = 10.0

_log = logging.getLogger("mixtune.datasets")


def open_cache(place: Path) -> Dataset | None:
    """Return the dataset cached in ``place``, or None where there is none or it is damaged."""
    try:
        meta = json.loads((place / _META).read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            return None
        arrays = {name: _map(place, name, entry) for name, entry in meta["arrays"].items()}
        shared = {
            "classes": tuple(meta["classes"]),
            "mirror": meta["mirror"],
            "mean": tuple(meta["mean"]),
            "std": tuple(meta["std"]),
        }
        parts = {
            part: ImageSet(
                arrays[f"{part}_images"], arrays.get(f"{part}_labels"), **shared, source=meta["source"][part]
            )
            for part in ("train", "test")
            if f"{part}_images" in arrays
        }
        return Dataset(parts["train"], parts.get("test"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def build_cache(parts: Parts, image_size: int, channels: int, places: Sequence[Path], root: Path) -> Dataset:
    """Decode ``parts`` into the first of ``places`` that can be written, and return the dataset cached there.

    root: what names of files are relative to in the digests of the source. Raises DataError where an image cannot be
    read or the disk is full; nothing half-written stays behind.
    """
    place, scratch = _start(places)
    try:
        arrays: dict[str, dict[str, Any]] = {}
        source: dict[str, str] = {}
        for name, part in (("train", parts.train), ("test", parts.test)):
            if part is not None:
                digest = hashlib.sha256()
                arrays |= _write_part(scratch, name, part, image_size, channels, root, digest)
                source[name] = digest.hexdigest()
        mean, std = statistics(np.load(scratch / "train_images.npy", mmap_mode="r"))
        meta = {
            "format": FORMAT,
            "classes": parts.classes,
            "mirror": parts.mirror,
            "mean": mean,
            "std": std,
            "arrays": arrays,
            "source": source,
        }
        (scratch / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        _publish(scratch, place)
    except OSError as error:
        needed = sum(len(p.images) for p in (parts.train, parts.test) if p) * channels * image_size**2
        raise DataError(
            f"decoded images cannot be written to {place.parent} ({error.strerror or error}; "
            f"{needed / 1e6:,.0f} MB are needed): free space there, or choose a smaller data.image_size"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    dataset = open_cache(place)
    if dataset is None:
        raise DataError(f"the decoded images in {place} cannot be read back: remove this folder and try again")
    return dataset


@contextmanager
def building_alone(places: Sequence[Path]) -> Iterator[None]:
    """Keep other processes of this machine from building a cache in these places; without locks, nobody waits."""
    with ExitStack() as held:
        for place in places:
            with suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                path = place.with_name(f"{_LOCK}{place.name}")
                fcntl.flock(held.enter_context(path.open("ab")), fcntl.LOCK_EX)
                held.callback(path.unlink, missing_ok=True)  # what it guarded is there
                break
        yield


def _start(places: Sequence[Path]) -> tuple[Path, Path]:
    """Return the first place that can be written and a new scratch folder next to it."""
    failures = []
    for place in places:
        scratch = place.parent / f"{_SCRATCH}{uuid.uuid4().hex}"
        try:
            scratch.mkdir(parents=True)
        except OSError as error:
            failures.append(f"{place.parent} ({error.strerror})")
            continue
        _sweep(place.parent)
        return place, scratch
    raise DataError(
        f"decoded images cannot be written to {' or '.join(failures)}: "
        "set the environment variable MIXTUNE_DATA to a folder that can be written"
    )


def _sweep(folder: Path) -> None:
    """Remove the scratch folders that killed processes left behind."""
    for scratch in folder.glob(f"{_SCRATCH}*"):
        with suppress(FileNotFoundError):
            if time.time() - scratch.stat().st_mtime > _SCRATCH_KEPT_S:
                shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, place: Path) -> None:
    while True:
        try:
            scratch.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        if open_cache(place) is not None:  # another process was first
            return
        damaged = place.parent / f"{_SCRATCH}{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):
            place.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)


def _write_part(
    folder: Path, name: str, part: Part, image_size: int, channels: int, root: Path, digest: Any
) -> dict[str, dict[str, Any]]:
    """Write images and labels of a part; return shape and file size of each array by its name; fill the digest."""
    shape = (len(part.images), channels, image_size, image_size)
    _log.info("decoding %s %s images into %s", f"{shape[0]:,}", name, folder.parent)
    blocks = decoded_blocks(part, "training" if name == "train" else name, image_size, channels, root, digest)
    arrays = {f"{name}_images": _write_array(folder / f"{name}_images.npy", shape, np.dtype(np.uint8), blocks)}
    if part.labels is not None:
        labels = np.asarray(part.labels, dtype=np.int64)
        path = folder / f"{name}_labels.npy"
        arrays[f"{name}_labels"] = _write_array(path, labels.shape, labels.dtype, iter([labels]))
    return arrays


def _write_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterator[npt.NDArray[Any]]
) -> dict[str, Any]:
    """Write an .npy file block by block.

    Plain writes, not a writable map: where the disk is full they raise, but a map kills the process (SIGBUS).
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
    return {"shape": shape, "bytes": path.stat().st_size}


def decoded_blocks(
    part: Part, name: str, image_size: int, channels: int, root: Path, digest: Any
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield a part's images, uint8 (n, C, H, W) with C = channels and H = W = image_size; fill the source's digest."""
    count = len(part.images)
    begun = logged = time.monotonic()

    def decode_one(index: int) -> tuple[npt.NDArray[np.uint8], bytes]:
        return decode(part.images, index, name, image_size, channels), digest_item(part.images[index], root)

    with ThreadPoolExecutor() as pool:
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            decoded, digests = zip(*pool.map(decode_one, range(start, stop)), strict=True)
            digest.update(b"".join(digests))
            yield np.stack(decoded)
            if time.monotonic() - logged > _LOG_EVERY_S:
                logged = time.monotonic()
                left = (logged - begun) / stop * (count - stop)
                _log.info("decoded %s of %s images, about %.0f s left", f"{stop:,}", f"{count:,}", left)


def statistics(images: npt.NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of (N, C, H, W), in units of 0..1."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), _STATISTICS_IMAGES)).astype(np.int64)
    channels = images.shape[1]
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for block in np.array_split(chosen, -(-len(chosen) // _BLOCK)):
        for channel in range(channels):
            histogram[channel] += np.bincount(images[block, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    return mean.tolist(), np.maximum(np.sqrt(variance), 1 / 255).tolist()


def _map(place: Path, name: str, entry: dict[str, Any]) -> Any:
    path = place / f"{name}.npy"
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path} is not whole")
    array = np.load(path, mmap_mode="c")
    if list(array.shape) != entry["shape"]:
        raise ValueError(f"{path} has another shape than {_META} says")
    array.flags.writeable = False
    return array
