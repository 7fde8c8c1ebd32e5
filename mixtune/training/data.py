"""The images of one trial on its device: split by seed, drawn batch by batch by named streams."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import Tensor

from mixtune.datasets import Dataset, ImageSet, count_dataset, load_dataset, mix_images, split_indices
from mixtune.errors import RequestError
from mixtune.space.effective import choose_statistics, mixes_partners
from mixtune.space.recipe import Recipe, Task
from mixtune.space.views import View
from mixtune.training.augmentation import Augmentation, normalise
from mixtune.training.device import allowed_memory
from mixtune.training.plan import Epoch, Phase
from mixtune.training.streams import Stream, numpy_generator, torch_generator
from mixtune.training.views import make_view

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
RESIDENT_SHARE = 1 / 3  # of the GPU memory that a trial may use: larger image sets stay on the host


@dataclass(frozen=True)
class ImagePool:
    """Images that batches are drawn from.

    images: uint8 (N, C, H, W), on the device, or on the host where they do not fit; labels: int64 (N,) or None;
    indices: int64, the images that may be drawn; mean, std: float32 (C, 1, 1). All but images are on the device.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor
    mean: Tensor
    std: Tensor
    augmentation: Augmentation

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, chosen: Tensor, generator: torch.Generator, view: View | None = None) -> Tensor:
        """Return augmented, normalised images, float32 (B, C, H, W), or a view of them in place of ``augment``."""
        pixels = self._pixels(chosen)
        if view is None:
            return normalise(self.augmentation(pixels, generator), self.mean, self.std)
        return normalise(make_view(pixels, view, self.augmentation.flip, generator), self.mean, self.std)

    def plain(self, chosen: Tensor) -> Tensor:
        """Return normalised images without augmentation."""
        return normalise(self._pixels(chosen), self.mean, self.std)

    def _pixels(self, chosen: Tensor) -> Tensor:
        if self.images.device == chosen.device:
            return self.images[chosen]
        return self.images[chosen.cpu()].to(chosen.device)


@dataclass(frozen=True)
class TaskData:
    """One supervised task. ``held_out`` are its validation images, or the test images under ``protocol: paper``.

    ``ssl`` is what the self-supervised loss alone sees: the task's own training images, labelled or not, or another
    dataset's.
    """

    name: str
    classes: tuple[str, ...]
    train: ImagePool
    ssl: ImagePool
    held_out: ImagePool


@dataclass(frozen=True)
class TrainingData:
    """What a recipe trains on.

    With T tasks a step has T batches, one of each, in the tasks' order (paper, Section 2.2.3). mixes_partners: whether
    the mix phase mixes SSL images into the labelled ones (Eq. 2); ssl_epoch: the recipe's data.ssl_epoch.
    """

    tasks: tuple[TaskData, ...]
    mixes_partners: bool
    batch_size: int
    ssl_epoch: Literal["supervised", "pool"] = "supervised"

    def steps_of(self, phase: Phase) -> int:
        """Return the steps of an epoch: one pass over the smallest supervised set, incomplete last batch dropped.

        In the SSL phase under ``ssl_epoch: pool`` the pass is over the smallest SSL set, and has one step at least.
        """
        if phase == "ssl" and self.ssl_epoch == "pool":
            return max(1, min(len(task.ssl) for task in self.tasks) // self.batch_size)
        return min(len(task.train) for task in self.tasks) // self.batch_size

    @property
    def channels(self) -> int:
        """Colour channels of every image: 1 or 3."""
        return self.tasks[0].train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.tasks[0].train.images.shape[2]

    def batches(self, recipe: Recipe, epoch: Epoch) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield an epoch's (images, labels), float32 (V * T * B, C, H, W) and int64 (T, B).

        By phase: x_ssl and None, x_mix (Eq. 2) and y, or x_sl and y. The objective's V views (SL has one) come one
        after the other, each of all tasks' images; of mixed images a view mixes views of the two.
        """

        def stream(name: Stream) -> torch.Generator:
            return torch_generator(recipe.seed, name, epoch.index, self.tasks[0].train.indices.device)

        if epoch.phase == "ssl":
            order, augmentation = stream("ssl_order"), stream("ssl_augmentation")
            pools, views = [task.ssl for task in self.tasks], recipe.ssl.views(joint=False)
            for chosen in zip(*(self._pass(pool, order, "ssl") for pool in pools), strict=True):
                of_tasks = list(zip(pools, chosen, strict=True))
                yield torch.cat([pool.batch(c, augmentation, view) for view in views for pool, c in of_tasks]), None
            return
        order, augmentation = stream("order"), stream("augmentation")
        partners, ssl_augmentation = stream("partners"), stream("ssl_augmentation")
        views = recipe.ssl.views(joint=True) if epoch.phase == "mix" else (None,)
        for chosen in zip(*(self._pass(task.train, order, epoch.phase) for task in self.tasks), strict=True):
            images, labels = [], []  # images of each task: a list of its views
            for task, c in zip(self.tasks, chosen, strict=True):
                alone = _for_ssl(task.train, recipe)  # for views that the classifier does not read
                x = [
                    task.train.batch(c, augmentation) if view is None else alone.batch(c, ssl_augmentation, view)
                    for view in views
                ]
                if epoch.phase == "mix" and self.mixes_partners:
                    drawn = torch.randint(len(task.ssl), c.shape, generator=partners, device=c.device)
                    theirs = [task.ssl.batch(task.ssl.indices[drawn], ssl_augmentation, view) for view in views]
                    x = [mix_images(*pair, recipe.lambda_) for pair in zip(x, theirs, strict=True)]
                assert task.train.labels is not None
                images.append(x)
                labels.append(task.train.labels[c])
            yield torch.cat([x for view in zip(*images, strict=True) for x in view]), torch.stack(labels)

    def _pass(self, pool: ImagePool, order: torch.Generator, phase: Phase) -> Tensor:
        """Return an epoch's image indices in random order, (steps, B); a small set is passed over again."""
        steps, count = self.steps_of(phase), len(pool)
        wanted = steps * self.batch_size
        rounds = [
            pool.indices[torch.randperm(count, generator=order, device=pool.indices.device)]
            for _ in range(-(-wanted // count))
        ]
        return torch.cat(rounds)[:wanted].view(steps, self.batch_size)


def load_training_data(
    recipe: Recipe, device: torch.device | str = "cpu", given: Dataset | None = None
) -> TrainingData:
    """Load, split and place a recipe's images; ``given`` takes the place of its one dataset.

    The training images are those that the validation split leaves (all, under ``protocol: paper``). SSL sees
    data.fraction of them as the supervised loss does, or data.ssl_fraction where that is given (all images, say,
    though few labels); of another data.ssl_dataset it sees all, or data.ssl_fraction. data.partners says which of them
    the mix phase sees. Several tasks' images are
    brought to the largest size among them, and to RGB where any has colour. Raises RequestError or DataError, one
    line that says what to do, for data that cannot serve.
    """
    device = torch.device(device)
    tasks = recipe.data.tasks
    sets = _load_tasks(recipe) if given is None else [_fitting(recipe, given)]
    other = _other_ssl_pool(recipe, [dataset.train for dataset in sets], device)
    section, another_set = recipe.data, other is not None
    return TrainingData(
        tasks=tuple(_task_data(recipe, *each, other, device) for each in zip(tasks, sets, strict=True)),
        mixes_partners=mixes_partners(section.partners, section.fraction, section.ssl_fraction, another_set),
        batch_size=recipe.optim.batch_size,
        ssl_epoch=section.ssl_epoch,
    )


def load_test_pools(recipe: Recipe, data: TrainingData) -> tuple[ImagePool, ...]:
    """Return each task's test images: size, channels, statistics and device are those of its training images.

    ``data`` is what load_training_data() gave for the recipe. Under ``protocol: search`` nothing else touches test
    images. Raises RequestError or DataError as it does, so also for a dataset that has no test images.
    """
    device = data.tasks[0].train.indices.device
    return tuple(_test_pool(dataset, recipe, device) for dataset in _load_tasks(recipe))


def load_image_sets(recipe: Recipe) -> dict[str, ImageSet]:
    """Return all images that a recipe may touch, by task and part: ``digits/train``, ``digits/test``, ``ssl``."""
    sets: dict[str, ImageSet] = {}
    datasets = _load_tasks(recipe)
    for task, dataset in zip(recipe.data.tasks, datasets, strict=True):
        sets[f"{task.name}/train"] = dataset.train
        if dataset.test is not None:
            sets[f"{task.name}/test"] = dataset.test
    if recipe.data.ssl_dataset is not None:
        sets["ssl"] = _load_ssl_set(recipe, datasets[0].train)
    return sets


def count_images(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Return how many undecoded images each of a recipe's datasets has, and their bytes; the first one is decoded.

    Raises RequestError or DataError for data that are not there or cannot be read.
    """
    section = recipe.data
    asked = {task.name: (task.dataset, task.root) for task in section.tasks}
    if section.ssl_dataset is not None:
        asked["data.ssl_dataset"] = section.ssl_dataset, section.ssl_root
    return {name: count_dataset(*where, download=section.download) for name, where in asked.items()}


def _load_ssl_set(recipe: Recipe, supervised: ImageSet) -> ImageSet:
    """Return data.ssl_dataset at the supervised images' size and channels."""
    section, (_, channels, size, _) = recipe.data, supervised.images.shape
    assert section.ssl_dataset is not None
    return load_dataset(
        section.ssl_dataset, section.ssl_root, download=section.download, image_size=size, channels=channels
    ).train


def _load_tasks(recipe: Recipe) -> list[Dataset]:
    """Return each task's dataset, all of one image size and number of channels."""
    section = recipe.data

    def load(task: Task, size: int | None, channels: int | None) -> Dataset:
        dataset = load_dataset(task.dataset, task.root, download=section.download, image_size=size, channels=channels)
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


def _fitting(recipe: Recipe, given: Dataset) -> Dataset:
    """Return a dataset in memory. Raises RequestError where a recipe cannot train on it."""
    names, size = [task.name for task in recipe.data.tasks], given.train.images.shape[2]
    if len(names) > 1:
        raise RequestError(f"data in memory are one dataset, and data.dataset lists {', '.join(names)}")
    if given.test is None:
        raise RequestError("data in memory have no labels: supervised training needs them")
    if recipe.data.image_size not in (None, size):
        raise RequestError(f"data.image_size {recipe.data.image_size}: the images in memory have {size} pixels a side")
    return given


def _task_data(recipe: Recipe, task: Task, dataset: Dataset, other: ImagePool | None, device: torch.device) -> TaskData:
    section, images = recipe.data, dataset.train
    train, val = _split(images, recipe, section.fraction)
    if len(train) < recipe.optim.batch_size:
        val_fraction = "" if recipe.protocol == "paper" else f"data.val_fraction {section.val_fraction} and "
        raise RequestError(
            f"optim.batch_size {recipe.optim.batch_size} is more than the {len(train)} training images of {task.name} "
            f"(of {len(images.images)}, after {val_fraction}data.fraction {section.fraction}): lower it to at most "
            f"{len(train)}"
        )
    pool = _pool(images, train, recipe, device)
    own_ssl = train if section.ssl_fraction is None else _split(images, recipe, section.ssl_fraction)[0]
    held_out = replace(pool, indices=torch.from_numpy(val).to(device))
    if recipe.protocol == "paper":
        held_out = _test_pool(dataset, recipe, device)
    return TaskData(
        name=task.name,
        classes=images.classes,
        train=pool,
        ssl=other or _for_ssl(replace(pool, indices=torch.from_numpy(own_ssl).to(device)), recipe),
        held_out=held_out,
    )


def _test_pool(dataset: Dataset, recipe: Recipe, device: torch.device) -> ImagePool:
    assert dataset.test is not None
    return _pool(dataset.test, np.arange(len(dataset.test.images)), recipe, device)


def _split(images: ImageSet, recipe: Recipe, fraction: float) -> tuple[Indices, Indices]:
    """Return (training, validation) indices; a smaller fraction's training images are among a larger one's."""
    assert images.labels is not None
    return split_indices(
        images.labels,
        images.classes,
        val_fraction=0.0 if recipe.protocol == "paper" else recipe.data.val_fraction,
        fraction=fraction,
        rng=numpy_generator(recipe.seed, "split"),
    )


def _other_ssl_pool(recipe: Recipe, supervised: Sequence[ImageSet], device: torch.device) -> ImagePool | None:
    """Return the SSL set, brought to the supervised image size and channels, or None where there is no own one.

    A supervised set itself, under whatever root, is not another set: its held-out images must not be trained on.
    """
    section = recipe.data
    if section.ssl_dataset is None:
        return None
    images = _load_ssl_set(recipe, supervised[0])
    for task, own in zip(section.tasks, supervised, strict=True):
        if section.ssl_dataset == task.dataset and np.array_equal(images.images, own.images):
            if len(supervised) == 1:
                return None
            raise RequestError(
                f"data.ssl_dataset {section.ssl_dataset} is one of the tasks, whose held-out images must not be "
                "trained on: drop it, since SSL sees all tasks' training images"
            )
    kept = max(1, round((section.ssl_fraction or 1.0) * len(images.images)))
    order = numpy_generator(recipe.seed, "ssl_split").permutation(len(images.images))
    return _for_ssl(_pool(images, np.sort(order[:kept]), recipe, device), recipe)


def _for_ssl(pool: ImagePool, recipe: Recipe) -> ImagePool:
    return pool if recipe.augment.ssl else replace(pool, augmentation=Augmentation())


def _pool(images: ImageSet, indices: Indices, recipe: Recipe, device: torch.device) -> ImagePool:
    pixels, labels = place_images(images, device)
    augment = recipe.augment
    mean, std = _statistics(recipe, images)
    return ImagePool(
        images=pixels,
        labels=labels,
        indices=torch.from_numpy(indices).to(device),
        mean=torch.tensor(mean, device=device).view(-1, 1, 1),
        std=torch.tensor(std, device=device).view(-1, 1, 1),
        augmentation=Augmentation(
            pad=pixels.shape[-1] // 8 if augment.pad is None else augment.pad,
            flip=(0.5 if images.mirror else 0.0) if augment.flip is None else augment.flip,
            crop_scale=augment.crop_scale,
            crop_ratio=augment.crop_ratio,
            randaugment=augment.randaugment,
        ),
    )


def _statistics(recipe: Recipe, images: ImageSet) -> tuple[Sequence[float], Sequence[float]]:
    """Return each channel's mean and standard deviation that images are normalised by."""
    chosen = choose_statistics(recipe.data.statistics, recipe.model.pretrained)
    if chosen == "own":
        return images.mean, images.std
    colours = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if chosen == "weights":
        known = get_pretrained_cfg(recipe.model.name)
        if known is None:
            raise RequestError(f"data.statistics weights: timm knows none of {recipe.model.name}: set own or imagenet")
        colours = known.mean, known.std
    mean, std = colours if images.images.shape[1] == 3 else ((sum(values) / 3,) for values in colours)
    return mean, std


@functools.lru_cache(maxsize=8)
def place_images(images: ImageSet, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return images and labels for a device; a process that trains trial after trial copies them once."""
    pixels, labels = images.tensors()
    labels = None if labels is None else labels.to(device)
    if device.type == "cuda" and pixels.nbytes > RESIDENT_SHARE * allowed_memory(device):
        return pixels, labels
    return pixels.to(device), labels
