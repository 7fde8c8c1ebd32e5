"""From a dataset's name to its decoded images: find the plug-in, look into the cache, decode if need be."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from mixtune import plugins
from mixtune.datasets._cache import (
    Guess,
    WrongGuess,
    build_cache,
    building_alone,
    cached,
    drop_dead_links,
    open_cache,
    share_cache,
)
from mixtune.datasets._decode import DEFAULT_SIZE, any_size, choose_layout
from mixtune.datasets._split import with_test_part
from mixtune.datasets._types import DEFAULT_READING, Dataset, Part, Parts, Plugin, Reading, Source
from mixtune.errors import DataError, RequestError, suggest

_OPEN_DATASETS = 32


def load_dataset(
    name: str,
    root: str | None = None,
    *,
    download: bool = True,
    image_size: int | None = None,
    channels: int | None = None,
    reading: Reading = DEFAULT_READING,
    parts: Mapping[str, str] | None = None,
    labelled: bool = True,
) -> Dataset:
    """Return dataset ``name``, decoded once and mapped from the cache ever after.

    name: a plug-in's name, a name that a plug-in lists (torchvision's own, as in CIFAR10), or
        ``package.module:name``.
    root: where the files are, relative to the current folder; None = $MIXTUNE_DATA, or the user's cache folder.
    download: whether missing files may be downloaded, where the plug-in knows how.
    image_size: pixels a side; None = the images' own size where all are square, equal and at most 96 pixels,
        otherwise 64.
    channels: 1 or 3; None = 1 where every image is stored in grayscale, the arrays' own number, or else 3.
    reading: how images are made square and their values bytes; parts: where single parts are, by "train", "val" and
        "test", relative to root; labelled: False for images whose classes, if any, do not matter.

    The result is kept for the life of the process, as long as the files do not change.
    Raises RequestError where the request is wrong (unknown name, missing folder, one class only) and
    DataError where its data cannot be had (no network, unreadable image, full disk).
    """
    if image_size is not None and image_size < 1:
        raise RequestError(f"data.image_size must be at least 1 pixel, not {image_size}")
    plugin, source = find_source(name, root, download, parts, labelled, reading.rules)
    with file_errors_named(name):
        fingerprint = plugin.fingerprint(source)
    return _load(source, fingerprint, image_size, channels, reading)


def same_source(name: str, one: str | None, other: str | None) -> bool:
    """Return whether a dataset's files at two places, see load_dataset(), are the same."""
    if one == other:
        return True
    plugin, here = find_source(name, one)
    with file_errors_named(name):
        return plugin.fingerprint(here) == plugin.fingerprint(find_source(name, other)[1])


def find_source(
    name: str,
    root: str | None,
    download: bool = True,
    parts: Mapping[str, str] | None = None,
    labelled: bool = True,
    rules: int = 2,
) -> tuple[Plugin, Source]:
    """Return dataset ``name``'s plug-in and the request to it; see load_dataset(). Raises RequestError."""
    folder = Path(os.path.abspath(Path(root).expanduser())) if root is not None else default_root()
    below = folder if root is not None else Path()
    own = {part: os.path.abspath(below / Path(path).expanduser()) for part, path in (parts or {}).items()}
    places = tuple((part, Path(path)) for part, path in own.items())
    source = Source(name, folder, root is not None, download, places, rules, labelled)
    plugin = find_plugin(name)
    if parts and not getattr(plugin, "TAKES_PARTS", False):
        raise RequestError(
            f"data.{next(iter(parts))} goes with image_folder and manifest, and data.dataset is {name}: drop it"
        )
    return plugin, source


def known_datasets() -> list[str]:
    """Return the names that load_dataset() knows: plug-ins' own, and those that plug-ins list."""
    return list(_plugins_by_dataset())


def default_root() -> Path:
    """Return the folder for data whose place the user did not name: $MIXTUNE_DATA, or the user's cache folder.

    On Linux the latter is $XDG_CACHE_HOME/mixtune, or ``~/.cache/mixtune``.
    """
    named = os.environ.get("MIXTUNE_DATA")
    return Path(os.path.abspath(Path(named).expanduser())) if named else platformdirs.user_cache_path("mixtune")


def find_plugin(name: str) -> Plugin:
    """Return the plug-in that provides dataset ``name``. Raises RequestError for an unknown one."""
    plugin: Any
    if ":" in name:
        plugin = plugins.find("datasets", name, "dataset")
    else:
        known = _plugins_by_dataset()
        if name not in known:
            files = [key for key, module in known.items() if not hasattr(module, "dataset_names")]
            raise RequestError(
                f"unknown dataset {name!r}: known are {', '.join(files)}, any torchvision classification "
                f"set, such as CIFAR10, and package.module:name for your own{suggest(name, known)}"
            )
        plugin = known[name]
    for function in ("read", "fingerprint"):
        if not callable(getattr(plugin, function, None)):
            raise RequestError(f"dataset {name!r} has no function {function}(source): see mixtune.datasets")
    return plugin  # type: ignore[no-any-return]


def _plugins_by_dataset() -> dict[str, Any]:
    """Return each dataset name's plug-in: the names that a module lists, or else its file's name."""
    known: dict[str, Any] = {}
    for file_name, module in zip(plugins.names("datasets"), plugins.modules("datasets"), strict=True):
        listed = module.dataset_names() if hasattr(module, "dataset_names") else [file_name]
        known |= dict.fromkeys(listed, module)
    return known


@functools.lru_cache(maxsize=_OPEN_DATASETS)
def _load(source: Source, fingerprint: str, image_size: int | None, channels: int | None, reading: Reading) -> Dataset:
    place = _place(source, fingerprint, image_size, channels, reading)
    known = open_cache(place)
    if known is not None:
        return known
    # Decoders warn about oddities that do not keep an image from being read; the errors are ours to raise.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = _read(source)
        with building_alone(place) as alone:
            known = open_cache(place)  # by another process that decoded it meanwhile
            dataset = known or decode_into(parts, image_size, channels, reading, place, source.root, alone)
    # whoever asks for the size that was chosen, or does otherwise with bad files where there are none, has the same
    sizes = {image_size, dataset.train.images.shape[2]}
    ways = {reading.on_bad_file} if dataset.account.bad else {"stop", "skip"}
    for size, way in product(sizes, ways):
        share_cache(place, _place(source, fingerprint, size, channels, replace(reading, on_bad_file=way)))
    return dataset


def _read(source: Source) -> Parts:
    """Return a source's parts, undecoded, with a test part. Raises RequestError and DataError."""
    with file_errors_named(source.name):
        parts = find_plugin(source.name).read(source)
    check_parts(parts, source.name)
    return with_test_part(parts) if source.labelled else unlabelled(parts)


def read_parts(
    name: str,
    root: str | None = None,
    *,
    download: bool = True,
    image_size: int | None = None,
    reading: Reading = DEFAULT_READING,
    parts: Mapping[str, str] | None = None,
) -> Parts | None:
    """Return a dataset's parts before anything is decoded, or None where that is done already; see load_dataset()."""
    plugin, source = find_source(name, root, download, parts, True, reading.rules)
    with file_errors_named(name):
        place = _place(source, plugin.fingerprint(source), image_size, None, reading)
    return None if place.exists() else _read(source)


def decode_into(
    parts: Parts,
    image_size: int | None,
    channels: int | None,
    reading: Reading,
    place: Path,
    root: Path,
    alone: bool,
) -> Dataset:
    with any_size():
        layout, lines = choose_layout(parts, image_size, channels, reading, root)
    while True:
        own_size = image_size is None and layout.size != DEFAULT_SIZE
        try:
            return build_cache(parts, Guess(layout, own_size, channels is None, lines), place, root, alone=alone)
        except WrongGuess as wrong:
            layout = wrong.layout


def cache_folder() -> Path:
    """Return the folder of decoded images."""
    return default_root() / "decoded"


def clean_cache(max_bytes: int = 0) -> tuple[int, int]:
    """Remove decoded images, those that were not used for longest first, until the others are within ``max_bytes``.

    Returns how many datasets went, and their bytes. Who has them open keeps them.
    """
    held = cached(cache_folder())
    total, removed, freed = sum(size for _, size, _ in held), 0, 0
    for place, size, _ in held:
        if total - freed > max_bytes:
            shutil.rmtree(place, ignore_errors=True)
            removed, freed = removed + 1, freed + size
    drop_dead_links(cache_folder())
    return removed, freed


def _place(source: Source, fingerprint: str, image_size: int | None, channels: int | None, reading: Reading) -> Path:
    """Return where the cache is: by what is read and how, wherever it lies."""
    where = [(name, path.name) for name, path in source.parts]
    wanted = repr((source.name, fingerprint, where, source.labelled, image_size, channels, reading))
    digest = hashlib.sha256(wanted.encode(errors="surrogateescape")).hexdigest()[:16]
    return cache_folder() / f"{re.sub('[^A-Za-z0-9]', '_', source.name)}-{digest}"


def unlabelled(parts: Parts) -> Parts:
    """Return the training images of a source whose classes do not matter."""
    train = replace(parts.train, labels=None, groups=None)
    return replace(parts, train=train, val=None, test=None, classes=())


def check_parts(parts: Parts, name: str) -> None:
    """Raise RequestError for parts that cannot be trained on, ValueError for a plug-in's broken contract."""
    _check_part(parts.train, parts.classes, name, "training")
    if parts.val is not None:
        _check_part(parts.val, parts.classes, name, "validation")
    if parts.test is not None:
        _check_part(parts.test, parts.classes, name, "test")
        if (parts.test.labels is None) != (parts.train.labels is None):
            raise ValueError(f"dataset {name!r}: training and test part must both have labels, or neither")
    if parts.train.labels is None:
        return
    present = np.unique(np.asarray(parts.train.labels))
    if len(present) < 2:
        raise RequestError(
            f"dataset {name!r} has one class only, {parts.classes[int(present[0])]!r}: a classifier needs at "
            "least two (for a self-supervised set, point data.root at the folder of images itself)"
        )


def _check_part(part: Part, classes: tuple[str, ...], name: str, kind: str) -> None:
    count = len(part.images)
    if not count:
        raise RequestError(f"dataset {name!r} has no images in its {kind} part: add some, or change data.root")
    if part.labels is None:
        return
    labels = np.asarray(part.labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"dataset {name!r}: {kind} labels must be {count} integers, not {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"dataset {name!r}: {kind} labels run from {labels.min()} to {labels.max()}, "
            f"but {len(classes)} classes are named"
        )


@contextmanager
def file_errors_named(name: str) -> Iterator[None]:
    """Raise DataError, which names the dataset, for a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"dataset {name!r} cannot be read: {error}") from error
