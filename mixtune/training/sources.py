"""A recipe's images as datasets, before they are split: loaded, checked, described, compared with a run's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixtune.datasets import (
    Dataset,
    ImageSet,
    Parts,
    Reading,
    Survey,
    count_dataset,
    load_dataset,
    read_parts,
    split_indices,
    survey_dataset,
)
from mixtune.errors import RequestError
from mixtune.space.recipe import Recipe, Task
from mixtune.training.streams import numpy_generator

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


def load_tasks(recipe: Recipe) -> list[Dataset]:
    """Return each task's dataset, all of one image size and number of channels."""
    section = recipe.data

    def load(task: Task, size: int | None, channels: int | None) -> Dataset:
        dataset = load_dataset(
            task.dataset,
            task.root,
            download=section.download,
            image_size=size,
            channels=channels,
            reading=reading_of(recipe),
            parts=section.parts,
        )
        if dataset.test is None:  # it comes with labels alone
            raise RequestError(
                f"data.dataset {task.dataset} at {task.root} has no classes: supervised training needs a folder "
                "for each class; images without classes can serve as data.ssl_dataset"
            )
        return dataset

    sets = [load(task, section.image_size, None) for task in section.tasks]
    channels, size = (max(dataset.train.images.shape[axis] for dataset in sets) for axis in (1, 2))
    return [
        dataset if dataset.train.images.shape[1:3] == (channels, size) else load(task, size, channels)
        for task, dataset in zip(section.tasks, sets, strict=True)
    ]


def load_ssl_set(recipe: Recipe, supervised: Dataset) -> ImageSet:
    """Return data.ssl_dataset, read as the supervised images were."""
    section, (_, channels, size, _) = recipe.data, supervised.train.images.shape
    assert section.ssl_dataset is not None
    return load_dataset(
        section.ssl_dataset,
        section.ssl_root,
        download=section.download,
        image_size=size,
        channels=channels,
        reading=supervised.reading,
        labelled=section.reading == 1,
    ).train


def load_image_sets(recipe: Recipe) -> dict[str, ImageSet]:
    """Return all images that a recipe may touch, by task and part: ``digits/train``, ``digits/test``, ``ssl``."""
    sets: dict[str, ImageSet] = {}
    datasets = load_tasks(recipe)
    for task, dataset in zip(recipe.data.tasks, datasets, strict=True):
        for part in ("train", "val", "test"):
            if (images := getattr(dataset, part)) is not None:
                sets[f"{task.name}/{part}"] = images
    if recipe.data.ssl_dataset is not None:
        sets["ssl"] = load_ssl_set(recipe, datasets[0])
    return sets


def survey_tasks(recipe: Recipe) -> dict[str, Survey]:
    """Return what was read of each task's images, decoding them if need be, by the tasks' names."""
    section = recipe.data
    return {
        task.name: survey_dataset(
            task.dataset,
            task.root,
            image_size=section.image_size,
            reading=reading_of(recipe),
            parts=section.parts,
            download=section.download,
        )
        for task in section.tasks
    }


def digest_sets(sets: Mapping[str, ImageSet]) -> dict[str, dict[str, str]]:
    """Return the digests of "source" (images before decoding), "labels" and "classes", each by part."""
    digests: dict[str, dict[str, str]] = {"source": {}, "labels": {}, "classes": {}}
    for part, images in sets.items():
        digests["source"][part] = images.source
        if images.labels is not None:
            labels = np.asarray(images.labels)
            about = f"torch.int64{labels.shape}"
            digests["labels"][part] = hashlib.sha256(about.encode() + labels.tobytes()).hexdigest()
            digests["classes"][part] = hashlib.sha256("\0".join(images.classes).encode()).hexdigest()
    return digests


def other_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between two of digest_sets(), "the images of digits/train", or "" where nothing does.

    What ``before`` does not hold, since an older version did not record it, is not compared.
    """
    for kind in ("source", "labels", "classes"):
        known, found = before.get(kind), now[kind]
        if isinstance(known, Mapping):
            parts = sorted(part for part in {*known, *found} if known.get(part) != found.get(part))
            if parts:
                return f"the {'images' if kind == 'source' else kind} of {', '.join(parts)}"
    return ""


def count_images(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Return how many undecoded images each of a recipe's datasets has, and their bytes; the first one is decoded.

    Raises RequestError or DataError for data that are not there or cannot be read.
    """
    section = recipe.data
    counts = {
        task.name: count_dataset(
            task.dataset, task.root, download=section.download, parts=section.parts, rules=section.reading
        )
        for task in section.tasks
    }
    if section.ssl_dataset is not None:
        counts["data.ssl_dataset"] = count_dataset(
            section.ssl_dataset,
            section.ssl_root,
            download=section.download,
            labelled=section.reading == 1,
            rules=section.reading,
        )
    return counts


def reading_of(recipe: Recipe) -> Reading:
    """Return how a recipe wants images to be read."""
    data = recipe.data
    return Reading(data.fit, data.background, data.range, data.max_megapixels, data.on_bad_file, data.reading)


def split_labels(
    recipe: Recipe,
    labels: Indices,
    classes: Sequence[str],
    groups: Indices | None,
    fraction: float,
    val_fraction: float,
) -> tuple[Indices, Indices]:
    """Return (training, validation) indices into labels (N,); see split_indices(), whose seed is the recipe's."""
    rng = numpy_generator(recipe.seed, "split")
    return split_indices(labels, classes, val_fraction=val_fraction, fraction=fraction, rng=rng, groups=groups)


def check_before_decoding(recipe: Recipe) -> None:
    """Raise RequestError, with all problems in its line, where images that are to be decoded cannot be trained on."""
    section = recipe.data
    problems: list[str] = []
    for task in section.tasks:
        try:
            parts = read_parts(
                task.dataset,
                task.root,
                download=section.download,
                image_size=section.image_size,
                reading=reading_of(recipe),
                parts=section.parts,
            )
            if parts is not None:
                problems += _problems_of(recipe, task, parts)
        except RequestError as error:
            problems.append(str(error))
    size, patch = section.image_size, recipe.model.patch_size
    if problems and size and patch and size % patch:
        problems.append(f"model.patch_size {patch} does not divide data.image_size {size}")
    if problems:
        raise RequestError("; ".join(problems))


def _problems_of(recipe: Recipe, task: Task, parts: Parts) -> Iterator[str]:
    """Yield what keeps a task's undecoded images from being trained on."""
    section, train = recipe.data, parts.train
    if train.labels is None:
        return  # said by whoever needs classes
    unwritable = [
        name for name in parts.classes if not name.isprintable() or name.encode(errors="ignore").decode() != name
    ]
    if unwritable:
        shown = ", ".join(map(ascii, unwritable[:5]))
        yield f"{task.name}: class names that cannot be written as text: {shown}: rename them"
    val_fraction = 0.0 if parts.val is not None or recipe.protocol == "paper" else section.val_fraction
    labels = np.asarray(train.labels, dtype=np.int64)
    groups = None if train.groups is None else np.asarray(train.groups, dtype=np.int64)
    try:
        kept = len(split_labels(recipe, labels, parts.classes, groups, section.fraction, val_fraction)[0])
    except RequestError as error:
        yield str(error)
        kept = len(labels)
    if kept < recipe.optim.batch_size:
        yield batch_too_large(recipe, task, kept, len(labels), val_fraction)


def batch_too_large(recipe: Recipe, task: Task, kept: int, count: int, val_fraction: float) -> str:
    """Return what to say where a batch has more images than there are to train on."""
    share = f"data.val_fraction {recipe.data.val_fraction} and " if val_fraction else ""
    return (
        f"optim.batch_size {recipe.optim.batch_size} is more than the {kept} training images of {task.name} "
        f"(of {count}, after {share}data.fraction {recipe.data.fraction}): lower it to at most {kept}"
    )
