"""Decoded images on disk: a folder a dataset and layout, with .npy files and meta.json, in the user's cache folder.

A cache is written into a sibling folder and renamed, so that it is there whole or not at all; what a killed process had
decoded is kept there, and the next one goes on after it. Of several processes that want the same one, one builds it and
the others wait; on a file system without locks all build it, the first to rename wins and the others use its files.
Readers map the files, so the processes of a machine share one copy in memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from mixtune.datasets._decode import (
    DEFAULT_SIZE,
    UNREADABLE,
    Layout,
    any_size,
    decode,
    digest_item,
    dimensions,
    is_gray,
    mode_of,
    open_item,
    reduce_early,
)
from mixtune.datasets._types import INDEX, Account, Dataset, Images, ImageSet, Part, Parts, Reading
from mixtune.errors import DataError

FORMAT = 3
DEFAULT_LIMIT_GB = 50.0

_META = "meta.json"
_LOCK = ".lock-"
_SCRATCH = "building-"
_SCRATCH_KEPT_S = 24 * 3600
_IN_USE_S = 3600.0  # caches used so recently are not removed to make room
_CHUNK = 64  # at most so many images, of so many bytes, are decoded by one thread and written at once
_CHUNK_BYTES = 1_000_000
_AHEAD = 2  # chunks for each thread that may wait to be written
_IN_FLIGHT = 600_000_000  # bytes of undecoded pixels at once: bounds memory, however many cores there are
_PIXEL_BYTES = 12  # of an image while it is decoded
_COEFFICIENT_BYTES = 6  # a pixel of a progressive JPEG, which is held whole however much it is reduced
_FREE = 250_000  # an image of no more bytes is not counted
_BLOCK = 256  # images whose statistics are taken at once
_STATISTICS_IMAGES = 10_000
_LOG_EVERY_S = 5.0
_NAMED = 10  # bad files in a message
_PARTS = ("train", "val", "test")
_TITLES = {"train": "training", "val": "validation", "test": "test"}
_HEADER = 128  # bytes of an .npy file before its values

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
                arrays[f"{part}_images"],
                arrays.get(f"{part}_labels"),
                **shared,
                source=meta["source"][part],
                groups=arrays.get(f"{part}_groups"),
                index=arrays[f"{part}_index"],
            )
            for part in _PARTS
            if f"{part}_images" in arrays
        }
        reading, account = dict(meta["reading"]), dict(meta["account"])
        reading["range"] = reading["range"] if isinstance(reading["range"], str) else tuple(reading["range"])
        account |= {"bad": tuple(map(tuple, account["bad"])), "notes": tuple(account["notes"])}
        with suppress(OSError):
            os.utime(place / _META, (time.time(), (place / _META).stat().st_mtime))  # when it was last used
        return Dataset(
            parts["train"], parts.get("test"), parts.get("val"), reading=Reading(**reading), account=Account(**account)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Guess:
    """A layout that was chosen by some of the images: which of its parts are the images' own, and a line for each."""

    layout: Layout
    own_size: bool
    own_channels: bool
    lines: Sequence[str]


def build_cache(parts: Parts, guess: Guess, place: Path, root: Path, *, alone: bool) -> Dataset:
    """Decode ``parts`` into ``place``, and return the dataset cached there.

    root: what names of files are relative to in the digests of the source; alone: whether no other process builds it,
    so that what a killed one had decoded can be continued. Raises DataError where images cannot be read (all are named)
    and where the disk is full, and WrongGuess where the layout is not that of all images.
    """
    layout = guess.layout
    text = repr((FORMAT, layout))
    unique = hashlib.sha256(text.encode()).hexdigest()[:8] if alone else uuid.uuid4().hex
    scratch = place.with_name(f"{_SCRATCH}{place.name}-{unique}")
    named = {name: part for name in _PARTS if (part := getattr(parts, name)) is not None}
    bad: list[tuple[str, str]] = []
    try:
        make_room(place.parent, sum(len(p.images) for p in named.values()) * layout.channels * layout.size**2)
        scratch.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, dict[str, Any]] = {}
        source: dict[str, str] = {}
        frames = 0
        for name, part in named.items():
            index = _write_images(scratch, name, part, layout, root, bad)
            kept = np.flatnonzero(index["ok"])
            if not len(kept):
                _refuse_bad(bad, len(index))
            _check_guess(index["entry"][kept], guess)
            frames += int(index["entry"]["frames"][kept].sum())
            source[name] = hashlib.sha256(index["entry"]["named"][kept].tobytes()).hexdigest()
            columns = {"index": index["entry"][kept], "labels": part.labels, "groups": part.groups}
            for column, values in columns.items():
                if values is not None:
                    values = values if column == "index" else np.asarray(values, dtype=np.int64)[kept]
                    np.save(scratch / f"{name}_{column}.npy", values)
            arrays |= {
                path.stem: {"shape": np.load(path, mmap_mode="r").shape, "bytes": path.stat().st_size}
                for path in scratch.glob(f"{name}_*.npy")
            }
        if bad and layout.reading.on_bad_file == "stop":
            _refuse_bad(bad, sum(len(part.images) for part in named.values()))
        mean, std = statistics(np.load(scratch / "train_images.npy", mmap_mode="r"))
        meta = {
            "format": FORMAT,
            "classes": parts.classes,
            "mirror": parts.mirror,
            "mean": mean,
            "std": std,
            "arrays": arrays,
            "source": source,
            "reading": asdict(layout.reading),
            "account": asdict(_account(parts, bad, frames, guess.lines)),
        }
        (scratch / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        for path in scratch.glob("*.raw"):
            path.unlink()
        _publish(scratch, place)
    except (DataError, WrongGuess):
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        needed = sum(len(part.images) for part in named.values()) * layout.channels * layout.size**2
        raise DataError(
            f"decoded images cannot be written to {place.parent} ({error.strerror or error}; {needed / 1e6:,.0f} MB "
            "are needed): free space there, choose a smaller data.image_size, or set the environment variable "
            "MIXTUNE_DATA to another folder"
        ) from error
    dataset = open_cache(place)
    if dataset is None:
        raise DataError(f"the decoded images in {place} cannot be read back: remove this folder and try again")
    return dataset


def drop_dead_links(folder: Path) -> None:
    """Remove what share_cache() left of caches that are gone."""
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.is_symlink() and not place.exists():
            place.unlink(missing_ok=True)


def share_cache(place: Path, other: Path) -> None:
    """Let what is cached in one place be found in another one, too."""
    if other != place:
        with suppress(OSError):  # where there is one already, or no links are possible, images are decoded twice
            other.symlink_to(place.name)


@contextmanager
def building_alone(place: Path) -> Iterator[bool]:
    """Keep other processes of this machine from building a cache; yield False on a file system without locks."""
    path = place.with_name(f"{_LOCK}{place.name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise DataError(
            f"decoded images cannot be written to {place.parent} ({error.strerror}): set the environment variable "
            "MIXTUNE_DATA to a folder that can be written"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
        path.unlink(missing_ok=True)  # what it guarded is there


def cached(folder: Path) -> list[tuple[Path, int, float]]:
    """Return each cache in a folder, its bytes and when it was last used, the least recently used first."""
    found = []
    for place in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if place.is_dir() and not place.is_symlink():
                meta = place / _META
                used = meta.stat().st_atime if meta.exists() else place.stat().st_mtime
                found.append((place, sum(path.stat().st_size for path in place.iterdir()), used))
    return sorted(found, key=lambda each: each[2])


def make_room(folder: Path, needed: int) -> None:
    """Remove what killed processes left a day ago, and caches that were not used for longest, to keep within the limit.

    The limit is $MIXTUNE_CACHE_GB, by default 50; what was used within the hour stays. needed: bytes to come.
    """
    try:
        limit = 1e9 * float(os.environ.get("MIXTUNE_CACHE_GB") or DEFAULT_LIMIT_GB)
    except ValueError as error:
        raise DataError(f"the environment variable MIXTUNE_CACHE_GB should be a number: {error}") from error
    held, now = cached(folder), time.time()
    total = needed + sum(size for _, size, _ in held)
    for place, size, used in held:
        is_left = place.name.startswith(_SCRATCH) and now - used > _SCRATCH_KEPT_S
        if is_left or (total > limit and now - used > _IN_USE_S):
            shutil.rmtree(place, ignore_errors=True)
            total -= size
    drop_dead_links(folder)


def _publish(scratch: Path, place: Path) -> None:
    if place.is_symlink():  # what it led to was removed
        place.unlink(missing_ok=True)
    while True:
        try:
            scratch.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        if open_cache(place) is not None:  # another process was first
            shutil.rmtree(scratch, ignore_errors=True)
            return
        damaged = place.with_name(f"{_SCRATCH}{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            place.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)


_RECORD = np.dtype([("ok", "?"), ("entry", INDEX)])


def _write_images(
    folder: Path, name: str, part: Part, layout: Layout, root: Path, bad: list[tuple[str, str]]
) -> npt.NDArray[Any]:
    """Write a part's decoded images and what is known of each file; return that, (N,), after what is there already."""
    count, shape = len(part.images), (layout.channels, layout.size, layout.size)
    each, images, records = int(np.prod(shape)), folder / f"{name}_images.npy", folder / f"{name}.raw"
    done = _resume(images, records, each)
    for index in np.flatnonzero(~done["ok"]):
        bad.append(_decode_one(part.images, int(index), name, layout, root, _InFlight())[2] or ("", ""))
    title = _TITLES[name]
    there = f", {len(done):,} of which are there already" if len(done) else ""
    _log.info("decoding %s %s images%s", f"{count:,}", title, there)
    with images.open("r+b") as pixels_file, records.open("r+b") as records_file:
        pixels_file.seek(0, os.SEEK_END)
        records_file.seek(0, os.SEEK_END)
        for entries, pixels in _decoded_chunks(part.images, len(done), name, layout, root, bad):
            pixels_file.write(pixels)
            pixels_file.flush()
            records_file.write(entries.tobytes())
            records_file.flush()
        written = np.fromfile(records, dtype=_RECORD)
        pixels_file.seek(0)
        _write_header(pixels_file, (int(written["ok"].sum()), *shape))
    return written


def _resume(images: Path, records: Path, each: int) -> npt.NDArray[Any]:
    """Return the records of images that are on disk whole, and cut both files to them; new files have a header."""
    for path in (images, records):
        path.touch()
    done = np.fromfile(records, dtype=_RECORD)
    whole = max(0, images.stat().st_size - _HEADER) // each
    done = done[: int(np.searchsorted(done["ok"].cumsum(), whole, side="right"))]
    os.truncate(records, len(done) * _RECORD.itemsize)
    os.truncate(images, _HEADER + int(done["ok"].sum()) * each)
    return done


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    """Write the first 128 bytes of an .npy file of uint8."""
    before = file.tell()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert file.tell() - before == _HEADER


class _InFlight:
    """Bounds the bytes of pixels that threads hold at once. One image larger than all is decoded by itself."""

    def __init__(self) -> None:
        self._free, self._changed = _IN_FLIGHT, threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        amount = min(amount, _IN_FLIGHT)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


_Decoded = tuple[Any, bytes, "tuple[str, str] | None"]


def _decoded_chunks(
    images: Images, first: int, name: str, layout: Layout, root: Path, bad: list[tuple[str, str]]
) -> Iterator[tuple[npt.NDArray[Any], bytes]]:
    """Yield what is known of each image from ``first`` on, (n,), and the pixels of those that could be read."""
    count, in_flight, threads = len(images), _InFlight(), os.cpu_count() or 1
    size = min(_CHUNK, _CHUNK_BYTES // (layout.channels * layout.size**2), (count - first) // (4 * threads))
    size = max(1, size)
    begun = logged = time.monotonic()
    taken = 0

    def decode_some(start: int) -> list[_Decoded]:
        stop = min(start + size, count)
        return [_decode_one(images, index, name, layout, root, in_flight) for index in range(start, stop)]

    with any_size(), ThreadPoolExecutor(threads) as pool:
        starts = iter(range(first, count, size))
        waiting = deque(pool.submit(decode_some, start) for start in islice(starts, _AHEAD * threads))
        while waiting:
            found = waiting.popleft().result()
            waiting.extend(pool.submit(decode_some, start) for start in islice(starts, 1))
            bad += [reason for _, _, reason in found if reason is not None]
            pixels = b"".join(values for _, values, _ in found)
            yield np.array([entry for entry, _, _ in found], dtype=_RECORD), pixels
            taken += len(found)
            if time.monotonic() - logged > _LOG_EVERY_S:
                logged = time.monotonic()
                left = (logged - begun) / taken * (count - first - taken)
                _log.info("decoded %s of %s images, about %.0f s left", f"{first + taken:,}", f"{count:,}", left)


def _decode_one(images: Images, index: int, name: str, layout: Layout, root: Path, in_flight: _InFlight) -> _Decoded:
    """Return an image's record and pixels; of one that cannot be read also its name and the reason."""
    given = None
    try:
        given = images[index]
        item = open_item([given], 0, root, layout.reading.max_megapixels)
        picture, (width, height) = item.picture, dimensions(item.picture)
        about = (width, height, mode_of(picture), str(getattr(picture, "format", None) or ""), is_gray(picture))
        frames = bool(getattr(picture, "is_animated", False))
        is_progressive = "progressive" in getattr(picture, "info", ())
        held = width * height * _COEFFICIENT_BYTES if is_progressive else 0
        reduce_early(picture, layout)
        width, height = dimensions(picture)
        held += width * height * _PIXEL_BYTES
        with in_flight.hold(held) if held > _FREE else nullcontext():
            pixels = decode(picture, layout).tobytes()
    except UNREADABLE as error:
        item_name = str(given) if isinstance(given, str | Path) else f"image {index} of the {_TITLES[name]} part"
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return (False, np.zeros((), INDEX)), b"", (item_name, said)
    plane = layout.size**2
    is_constant = all(
        pixels[first : first + plane] == pixels[first : first + 1] * plane for first in range(0, len(pixels), plane)
    )
    of_pixels = bytes(16) if is_constant else hashlib.blake2b(pixels, digest_size=16).digest()
    return (True, (*digest_item(item), of_pixels, *about, frames)), pixels, None


def _refuse_bad(bad: list[tuple[str, str]], count: int) -> NoReturn:
    """Raise DataError, which names the files that cannot be read."""
    if len(bad) == 1:
        name, reason = bad[0]
        what = name if name.startswith("image ") else f"image {name}"
        raise DataError(
            f"{what} cannot be read ({reason}): remove the file or replace it, or train without it "
            "(data.on_bad_file: skip)"
        )
    shown = "; ".join(f"{name} ({reason})" for name, reason in bad[:_NAMED])
    more = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
    raise DataError(
        f"{len(bad):,} of {count:,} images cannot be read: {shown}{more}: remove or replace the files, or train "
        "without them (data.on_bad_file: skip)"
    )


def _account(parts: Parts, bad: list[tuple[str, str]], frames: int, lines: Sequence[str]) -> Account:
    named = {name: part for name in _PARTS if (part := getattr(parts, name)) is not None}
    return Account(
        origins={name: part.origin for name, part in named.items()},
        left_out=dict(parts.left_out),
        bad=tuple(bad),
        notes=(*parts.notes, *lines),
        frames=frames,
    )


class WrongGuess(Exception):
    """The images that a layout was not chosen by do not have it; ``layout`` is what all of them have."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.layout = layout


def _check_guess(entries: npt.NDArray[Any], guess: Guess) -> None:
    """Raise WrongGuess where images beyond the sample differ in size, or have colour."""
    layout, size = guess.layout, guess.layout.size
    if guess.own_size and not ((entries["width"] == size) & (entries["height"] == size)).all():
        size = DEFAULT_SIZE
    channels = 3 if guess.own_channels and layout.channels == 1 and not entries["gray"].all() else layout.channels
    if (size, channels) != (layout.size, layout.channels):
        raise WrongGuess(replace(layout, size=size, channels=channels))


def statistics(
    images: npt.NDArray[np.uint8], among: npt.NDArray[np.int64] | None = None
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of (N, C, H, W), in units of 0..1; among: indices, default all."""
    among = np.arange(len(images)) if among is None else among
    chosen = among[np.linspace(0, len(among) - 1, min(len(among), _STATISTICS_IMAGES)).astype(np.int64)]
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
