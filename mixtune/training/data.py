"""The images of one trial on its device: split by seed, drawn batch by batch by named streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from mixtune.datasets import ImageSet, load_dataset, mix_images, split_indices
from mixtune.errors import RequestError
from mixtune.recipe import Recipe
from mixtune.training.augmentation import crop_and_flip, normalise
from mixtune.training.plan import Epoch
from mixtune.training.streams import numpy_generator, torch_generator

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class ImagePool:
    """Images that batches are drawn from.

    images: uint8 (N, C, H, W); labels: int64 (N,) or None; indices: int64, the images that may be drawn;
    mean, std: float32 (C, 1, 1); flip: probability.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor
    mean: Tensor
    std: Tensor
    pad: int
    flip: float

    def on(self, device: torch.device | str) -> ImagePool:
        """Return the same images on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def batch(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented, normalised images, float32 (B, C, H, W)."""
        return normalise(crop_and_flip(self.images[chosen], self.pad, self.flip, generator), self.mean, self.std)

    def plain(self, chosen: Tensor) -> Tensor:
        """Return normalised images without augmentation."""
        return normalise(self.images[chosen], self.mean, self.std)


@dataclass(frozen=True)
class TrainingData:
    """What a recipe trains and validates on; ``two_datasets`` is whether the SSL images are another dataset's."""

    supervised: ImagePool
    ssl: ImagePool
    two_datasets: bool
    val_indices: Tensor
    classes: tuple[str, ...]
    batch_size: int

    def on(self, device: torch.device | str) -> TrainingData:
        """Return the same data on another device."""
        supervised, ssl = self.supervised.on(device), self.ssl.on(device)
        if not self.two_datasets:  # one copy of the images serves both
            ssl = replace(supervised, indices=ssl.indices)
        return replace(self, supervised=supervised, ssl=ssl, val_indices=self.val_indices.to(device))

    @property
    def steps(self) -> int:
        """Steps of an epoch: one pass over the supervised set, the incomplete last batch dropped."""
        return len(self.supervised.indices) // self.batch_size

    @property
    def channels(self) -> int:
        """Colour channels of every image: 1 or 3."""
        return self.supervised.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.supervised.images.shape[2]

    def batches(self, recipe: Recipe, epoch: Epoch) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield an epoch's (images, labels): x_ssl and None, x_mix and y (Eq. 2), or x_sl and y, by its phase."""

        def stream(name: str) -> torch.Generator:
            return torch_generator(recipe.seed, name, epoch.index, self.val_indices.device)  # type: ignore[arg-type]

        if epoch.phase == "ssl":
            augmentation = stream("ssl_augmentation")
            for chosen in self._pass(self.ssl, stream("ssl_order")):
                yield self.ssl.batch(chosen, augmentation), None
            return
        labels = self.supervised.labels
        assert labels is not None
        mixed = epoch.phase == "mix" and self.two_datasets
        augmentation, ssl_augmentation, partners = (
            stream(name) for name in ("augmentation", "ssl_augmentation", "partners")
        )
        for chosen in self._pass(self.supervised, stream("order")):
            images = self.supervised.batch(chosen, augmentation)
            if mixed:
                drawn = torch.randint(len(self.ssl.indices), chosen.shape, generator=partners, device=chosen.device)
                partner = self.ssl.batch(self.ssl.indices[drawn], ssl_augmentation)
                images = mix_images(images, partner, recipe.lambda_)
            yield images, labels[chosen]

    def _pass(self, source: ImagePool, order: torch.Generator) -> Iterator[Tensor]:
        """Yield an epoch's batches of image indices in random order; a small set is passed over again."""
        wanted, count = self.steps * self.batch_size, len(source.indices)
        device = source.indices.device
        rounds = [
            source.indices[torch.randperm(count, generator=order, device=device)] for _ in range(-(-wanted // count))
        ]
        yield from torch.cat(rounds)[:wanted].view(self.steps, self.batch_size)


def load_training_data(recipe: Recipe, device: torch.device | str = "cpu") -> TrainingData:
    """Load, split and place a recipe's images.

    The training images are those that the validation split leaves. SSL sees data.fraction of them as the supervised
    loss does, or data.ssl_fraction where that is given (all images, say, though few labels); of another
    data.ssl_dataset it sees all, or data.ssl_fraction. Raises RequestError or DataError, one line that says what to
    do, for data that cannot serve.
    """
    section = recipe.data
    images = load_dataset(section.dataset, section.root, download=section.download, image_size=section.image_size).train
    if images.labels is None:
        raise RequestError(
            f"data.dataset {section.dataset} at {section.root} has no classes: supervised training needs a folder "
            "for each class; images without classes can serve as data.ssl_dataset"
        )
    train, val = _split(images, recipe, section.fraction)
    if len(train) < recipe.optim.batch_size:
        raise RequestError(
            f"optim.batch_size {recipe.optim.batch_size} is more than the {len(train)} training images (of "
            f"{len(images.images)}, after data.val_fraction {section.val_fraction} and data.fraction "
            f"{section.fraction}): lower it to at most {len(train)}"
        )
    supervised = _source(images, train, recipe)
    other = _other_ssl_source(recipe, images)
    return TrainingData(
        supervised=supervised,
        ssl=other or _own_ssl_source(recipe, images, supervised),
        two_datasets=other is not None,
        val_indices=torch.from_numpy(val),
        classes=images.classes,
        batch_size=recipe.optim.batch_size,
    ).on(device)


def _split(images: ImageSet, recipe: Recipe, fraction: float) -> tuple[Indices, Indices]:
    """Return (training, validation) indices; a smaller fraction's training images are among a larger one's."""
    assert images.labels is not None
    return split_indices(
        images.labels,
        images.classes,
        val_fraction=recipe.data.val_fraction,
        fraction=fraction,
        rng=numpy_generator(recipe.seed, "split"),
    )


def _own_ssl_source(recipe: Recipe, images: ImageSet, supervised: ImagePool) -> ImagePool:
    """Return the supervised set's own images for SSL: data.ssl_fraction of them, of which validation is no part."""
    if recipe.data.ssl_fraction is None:
        return supervised
    train, _ = _split(images, recipe, recipe.data.ssl_fraction)
    return replace(supervised, indices=torch.from_numpy(train))


def _other_ssl_source(recipe: Recipe, supervised: ImageSet) -> ImagePool | None:
    """Return the SSL set, brought to the supervised image size and channels, or None where there is no own one.

    The supervised set itself, under whatever root, is no other set: its validation images must not be trained on.
    """
    section = recipe.data
    if section.ssl_dataset is None:
        return None
    _, channels, size, _ = supervised.images.shape
    images = load_dataset(
        section.ssl_dataset, section.ssl_root, download=section.download, image_size=size, channels=channels
    ).train
    if section.ssl_dataset == section.dataset and np.array_equal(images.images, supervised.images):
        return None
    kept = max(1, round((section.ssl_fraction or 1.0) * len(images.images)))
    order = numpy_generator(recipe.seed, "ssl_split").permutation(len(images.images))
    return _source(images, np.sort(order[:kept]), recipe)


def _source(images: ImageSet, indices: Indices, recipe: Recipe) -> ImagePool:
    pixels, labels = images.tensors()
    pad, flip = recipe.augment.pad, recipe.augment.flip
    return ImagePool(
        images=pixels,
        labels=labels,
        indices=torch.from_numpy(indices),
        mean=torch.tensor(images.mean).view(-1, 1, 1),
        std=torch.tensor(images.std).view(-1, 1, 1),
        pad=pixels.shape[-1] // 8 if pad is None else pad,
        flip=(0.5 if images.mirror else 0.0) if flip is None else flip,
    )
