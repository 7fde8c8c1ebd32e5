"""What a dataset holds, for someone who sees it for the first time."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixtune.datasets._decode import UNREADABLE, any_size, digest_item, open_item, share_cut, shown_picture
from mixtune.datasets._load import file_errors_named, find_source, load_dataset
from mixtune.datasets._mirror import mirroring_misleads
from mixtune.datasets._same import in_two_classes, is_constant, matches, repeats
from mixtune.datasets._split import with_test_part
from mixtune.datasets._types import DEFAULT_READING, Dataset, ImageSet, Reading
from mixtune.errors import DataError
from mixtune.metrics import describe_channels

SKIPPING = Reading(on_bad_file="skip")  # for a first look: bad files are told, and stop nobody
TITLES = {"train": "training", "val": "validation", "test": "test", "ssl": "SSL"}
MUCH_CUT = 0.25  # mean share of the images that a square crop cuts away, from which on it is said
FEW_LEVELS = 64  # of images whose files hold more than 8 bits a value
UNEVEN = 3.0  # times as many images in the largest class as in the smallest
_SAMPLE = 200  # decoded images whose levels are counted
_NAMED = 3  # classes, files in a line
_KINDS = 4  # of files in a line


@dataclass(frozen=True)
class Survey:
    """A dataset's figures; name, root, parts: as load_dataset() takes them."""

    name: str
    root: str | None
    parts: Mapping[str, str] | None
    dataset: Dataset

    @property
    def sets(self) -> dict[str, ImageSet]:
        """The parts that there are: "train", "val", "test"."""
        parts = {"train": self.dataset.train, "val": self.dataset.val, "test": self.dataset.test}
        return {name: part for name, part in parts.items() if part is not None}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Training images by class name."""
        return _by_class(self.dataset.train)

    @property
    def train_images(self) -> int:
        """How many training images there are."""
        return len(self.dataset.train.images)

    @property
    def test_images(self) -> int:
        """How many test images there are."""
        return 0 if self.dataset.test is None else len(self.dataset.test.images)

    @property
    def val_images(self) -> int:
        """How many validation images the source has of its own."""
        return 0 if self.dataset.val is None else len(self.dataset.val.images)

    @property
    def image_size(self) -> int:
        """Height and width in pixels, as decoded."""
        return int(self.dataset.train.images.shape[2])

    @property
    def channels(self) -> int:
        """Channels as decoded."""
        return int(self.dataset.train.images.shape[1])

    @property
    def mirror(self) -> bool:
        """Whether an image keeps its meaning when mirrored; see ImageSet."""
        return self.dataset.train.mirror

    @cached_property
    def misled(self) -> tuple[float, float] | None:
        """How often an image's nearest neighbour is of its class, as it is and mirrored, if mirroring misleads."""
        return mirroring_misleads(self.dataset.train) if self.mirror else None

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has as the smallest."""
        return max(self.counts.values()) / max(1, min(self.counts.values()))

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(width, height) of every file, int64 (N, 2), all parts together."""
        index = self._index
        return np.stack([index["width"], index["height"]], axis=1).astype(np.int64)

    @property
    def smallest(self) -> tuple[int, int]:
        """(width, height) of the file with the fewest pixels."""
        width, height = self.sizes[self.sizes.prod(axis=1).argmin()]
        return int(width), int(height)

    @property
    def largest(self) -> tuple[int, int]:
        """(width, height) of the file with the most pixels."""
        width, height = self.sizes[self.sizes.prod(axis=1).argmax()]
        return int(width), int(height)

    @cached_property
    def kinds(self) -> dict[str, int]:
        """How many files there are by format and form, the most frequent first: {"JPEG RGB": 120, "PNG I;16": 3}."""
        pairs = zip(self._index["format"].tolist(), self._index["mode"].tolist(), strict=True)
        counted = Counter(b" ".join(filter(None, pair)).decode() for pair in pairs)
        return dict(counted.most_common())

    @cached_property
    def repeated(self) -> dict[str, int]:
        """How many images equal one that comes earlier in the same part, by part."""
        return {name: int(repeats(_indexed(part)).sum()) for name, part in self.sets.items()}

    @cached_property
    def shared(self) -> dict[str, int]:
        """How many images of a part are in another one, too: {"test and training": 3}."""
        sets, pairs = self.sets, (("val", "train"), ("test", "train"), ("test", "val"))
        return {
            f"{TITLES[one]} and {TITLES[other]}": int(matches(_indexed(sets[one]), _indexed(sets[other])).sum())
            for one, other in pairs
            if one in sets and other in sets
        }

    def parts_lines(self) -> list[str]:
        """Return a line for each part: how many images it has, and where they are from."""
        origins = self.dataset.account.origins
        return [
            f"{name:<6} {len(part.images):>8,} images, from {origins.get(name) or self.root or self.name}"
            for name, part in self.sets.items()
        ]

    def short_lines(self) -> list[str]:
        """Return a few lines: where the parts are from, what the files are, and what deserves a look."""
        origins = self.dataset.account.origins
        parts = [f"{TITLES[name]} images from {origins[name]}" for name in self.sets if origins.get(name)]
        return [
            *([", ".join(parts)] if parts else []),
            *(self.reading_lines() if self.root else []),
            *(f"note: {line}" for line in self.dataset.account.notes),
            *(f"look: {line}" for line in self.warnings()),
        ]

    def looks(self) -> list[str]:
        """Return what deserves a look: how the source was understood, and the warnings."""
        return [*self.dataset.account.notes, *self.warnings()]

    def reading_lines(self) -> list[str]:
        """Return lines on the files, and on what is made of them."""
        kinds = [f"{count:,} {kind}" for kind, count in list(self.kinds.items())[:_KINDS]]
        more = [f"{len(self.kinds) - _KINDS} other kinds"] if len(self.kinds) > _KINDS else []
        reading = self.dataset.reading
        wide = ""
        if (self.sizes[:, 0] != self.sizes[:, 1]).any():
            wide = {"crop": ", cropped at the centre", "pad": ", padded", "stretch": ", stretched"}[reading.fit]
        form = f"{self.image_size}x{self.image_size} {describe_channels(self.channels)}"
        return [f"files: {', '.join([*kinds, *more])}; {self.size_range}", f"read as {form}{wide}"]

    @property
    def size_range(self) -> str:
        """The files' smallest and largest size: "32x32", "120x90 to 4000x3000"."""
        return " to ".join(dict.fromkeys(f"{width}x{height}" for width, height in (self.smallest, self.largest)))

    def warnings(self) -> list[str]:
        """Return a line for each thing that may make a search answer another question than the one meant."""
        return [*self._of_files(), *self._of_pixels(), *self._of_classes(), *self._of_copies()]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: `mixtune inspect --format json`."""
        account, reading = self.dataset.account, self.dataset.reading
        return {
            "dataset": self.name,
            "root": self.root,
            "parts": {
                name: {"images": len(part.images), "from": account.origins.get(name, "")}
                for name, part in self.sets.items()
            },
            "classes": self.counts,
            "left_out": dict(account.left_out) | ({"cannot be read": len(account.bad)} if account.bad else {}),
            "files": {"kinds": self.kinds, "smallest": list(self.smallest), "largest": list(self.largest)},
            "read_as": {
                "image_size": self.image_size,
                "channels": self.channels,
                "fit": reading.fit,
                "background": reading.background,
                "range": reading.range if isinstance(reading.range, str) else list(reading.range),
            },
            "duplicates": {"within": self.repeated, "across": self.shared},
            "notes": list(account.notes),
            "warnings": self.warnings(),
        }

    @property
    def _index(self) -> npt.NDArray[Any]:
        return np.concatenate([_indexed(part) for part in self.sets.values()])

    def _of_files(self) -> list[str]:
        account, lines = self.dataset.account, []
        if account.left_out:
            reasons = sorted(account.left_out.items(), key=lambda pair: -pair[1])
            counted = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
            lines.append(f"{_count(sum(account.left_out.values()), 'file')} left out: {counted}")
        if account.bad:
            shown = ", ".join(f"{name} ({why})" for name, why in account.bad[:_NAMED])
            more = f" and {len(account.bad) - _NAMED:,} more" if len(account.bad) > _NAMED else ""
            files = "1 file" if len(account.bad) == 1 else f"{len(account.bad):,} files"
            lines.append(f"{files} cannot be read: {shown}{more}")
        if account.frames:
            lines.append(f"{_count(account.frames, 'file')} with several images: the first of each is taken")
        return lines

    def _of_pixels(self) -> list[str]:
        lines, reading = [], self.dataset.reading
        constant = [part.images[is_constant(_indexed(part))][:, :, 0, 0].min(axis=1) for part in self.sets.values()]
        values = np.concatenate(constant)
        if len(values):
            white = int((values == 255).sum())
            of_them = f", {white:,} of them white" if white else ""
            lines.append(f"{_count(len(values), 'image')} of one colour only after decoding{of_them}")
        if reading.fit == "crop":
            cut = float(share_cut(self.sizes).mean())
            if cut >= MUCH_CUT:
                lines.append(f"a square crop cuts away {cut:.0%} of an image on average (data.fit: pad keeps it all)")
        modes = set(self._index["mode"].tolist()) - {b"uint8"}
        if any(mode.startswith((b"F", b"I", b"uint", b"int", b"float")) for mode in modes):
            chosen = np.linspace(0, self.train_images - 1, num=min(_SAMPLE, self.train_images), dtype=int)
            levels = len(np.unique(self.dataset.train.images[np.unique(chosen)]))
            if levels < FEW_LEVELS:
                lines.append(
                    f"only {levels} levels of brightness are left of the files' values (data.range says which become "
                    "black and white)"
                )
        return lines

    def _of_classes(self) -> list[str]:
        if self.dataset.train.labels is None:
            return []
        lines = []
        for name, part in self.sets.items():
            counts = _by_class(part)
            absent = [label for label, count in counts.items() if not count]
            if absent:
                more = f" and {len(absent) - _NAMED:,} more" if len(absent) > _NAMED else ""
                lines.append(f"no {TITLES[name]} images of {', '.join(absent[:_NAMED])}{more}")
        if self.misled:
            as_is, mirrored = (f"{100 * share:.0f} %" for share in self.misled)
            lines.append(
                f"mirrored, images resemble other classes (the nearest image is of the own class for {as_is}, mirrored "
                f"{mirrored}): set augment.flip to 0"
            )
        if self.imbalance > UNEVEN:
            most, least = max(self.counts, key=self.counts.__getitem__), min(self.counts, key=self.counts.__getitem__)
            lines.append(
                f"{most} has {self.imbalance:.0f} times as many images as {least} (optim.class_weights: balanced makes "
                "classes count alike in training)"
            )
        return lines

    def _of_copies(self) -> list[str]:
        lines = [
            f"{_count(count, 'image')} in both the {pair} parts (data.duplicates: drop trains without them)"
            for pair, count in self.shared.items()
            if count
        ]
        counted = {TITLES[name]: count for name, count in self.repeated.items() if count}
        lines += [f"{_count(count, f'{name} image')} equal to an earlier one" for name, count in counted.items()]
        doubtful = sum(in_two_classes(part) for part in self.sets.values())
        return lines + ([f"{_count(doubtful, 'image')} in two classes"] if doubtful else [])


def _count(count: int, thing: str) -> str:
    """Return such as "1 file is" and "12 files are"."""
    return f"1 {thing} is" if count == 1 else f"{count:,} {thing}s are"


def _indexed(part: ImageSet) -> npt.NDArray[Any]:
    assert part.index is not None, "decoded by this version"
    return part.index


def _by_class(part: ImageSet) -> dict[str, int]:
    if part.labels is None:
        return {}
    counts = np.bincount(part.labels, minlength=len(part.classes))
    return {label: int(count) for label, count in zip(part.classes, counts, strict=True)}


def count_dataset(
    name: str,
    root: str | None = None,
    *,
    download: bool = True,
    parts: Mapping[str, str] | None = None,
    labelled: bool = True,
    rules: int = 2,
) -> tuple[int, int]:
    """Return how many images a dataset has before decoding, and the bytes of their files or arrays.

    The first one is opened. Raises RequestError and DataError as load_dataset() does.
    """
    plugin, source = find_source(name, root, download, parts, labelled, rules)
    with file_errors_named(name):
        found = plugin.read(source)
        files = [part.images for part in (found.train, found.val, found.test) if part is not None]
        size = sum(_size(images[index]) for images in files for index in range(len(images)))
    try:
        open_item(files[0], 0, source.root, math.inf)
    except UNREADABLE as error:
        raise DataError(f"image {files[0][0]} cannot be read ({error}): remove the file or replace it") from error
    return sum(len(images) for images in files), size


def _size(item: Any) -> int:
    """Return an undecoded image's bytes; of a PIL image those of its pixels, one a channel."""
    if isinstance(item, np.ndarray | memoryview):
        return item.nbytes
    if isinstance(item, bytes):
        return len(item)
    return math.prod((*item.size, len(item.getbands()))) if isinstance(item, Image.Image) else os.stat(item).st_size


def survey_dataset(
    name: str,
    root: str | None = None,
    *,
    image_size: int | None = None,
    reading: Reading = DEFAULT_READING,
    parts: Mapping[str, str] | None = None,
    download: bool = True,
) -> Survey:
    """Decode a dataset, or find it in the cache, and return its figures; options and errors are load_dataset()'s."""
    options = {"image_size": image_size, "reading": reading, "parts": parts, "download": download}
    return Survey(name, root, parts, load_dataset(name, root, **options))  # type: ignore[arg-type]


def original_images(survey: Survey, chosen: npt.NDArray[np.int64]) -> list[Image.Image]:
    """Return training images as their files hold them, in RGB; chosen: indices into the decoded ones, ascending.

    Files that were skipped are passed over: an image is found by its name and bytes.
    """
    plugin, source = find_source(survey.name, survey.root, parts=survey.parts, rules=survey.dataset.reading.rules)
    images = with_test_part(plugin.read(source)).train.images
    wanted, shift, found = _indexed(survey.dataset.train)["named"], 0, []
    with any_size():
        for index in chosen:
            while True:
                try:
                    item = open_item(images, int(index) + shift, source.root, math.inf)
                    if digest_item(item)[0] == wanted[index].tobytes():
                        break
                except UNREADABLE:
                    pass
                shift += 1
            found.append(shown_picture(item.picture))
    return found
