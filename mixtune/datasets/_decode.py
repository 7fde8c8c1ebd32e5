"""Any image, as files and libraries hand it out, to a uint8 array of the wanted size and channels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mixtune.datasets._types import Images, Parts
from mixtune.errors import DataError

LARGEST_OWN_SIZE = 96
DEFAULT_SIZE = 64


def choose_layout(parts: Parts, image_size: int | None, channels: int | None) -> tuple[int, int]:
    """Return (image_size, channels) with what was left open filled in from the images.

    Size: the images' own where all are square, equal and at most 96 pixels, otherwise 64. Channels: 1 where
    every image is stored in grayscale, otherwise 3. Looks at file headers only, and no further than needed.
    """
    own: tuple[int, int] | None = None
    keeps_size, gray = image_size is None, channels is None
    for part, images in _images_by_part(parts):
        for index in range(len(images)):
            if not keeps_size and not gray:
                break
            with open_image(images, index, part) as image:
                own = own or image.size
                keeps_size = keeps_size and image.size == own and own[0] == own[1] <= LARGEST_OWN_SIZE
                gray = gray and is_gray(image)
    found_size = own[0] if own and keeps_size else DEFAULT_SIZE
    found_channels = 1 if gray else 3
    return image_size or found_size, channels or found_channels


def decode(images: Images, index: int, part: str, image_size: int, channels: int) -> npt.NDArray[np.uint8]:
    """Return image ``index`` as uint8 (C, H, W) with C = channels and H = W = image_size.

    The shorter side is resized to image_size (bicubic, antialiased), then the centre is cropped. EXIF
    orientation is applied; transparency is laid over white; 16-bit values are scaled to 8 bits.
    Raises DataError, naming the file, where the image cannot be read.
    """
    with open_image(images, index, part) as image:
        try:
            image.load()
            upright = _to_eight_bits(ImageOps.exif_transpose(image))
        except Exception as error:
            raise _unreadable(getattr(image, "filename", None), index, part, error) from error
    upright = upright.convert("L" if channels == 1 else "RGB")
    if upright.size != (image_size, image_size):
        upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(upright)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def open_image(images: Images, index: int, part: str) -> Image.Image:
    """Return image ``index`` as a PIL image whose pixels may not have been read yet. Raises DataError."""
    item: Any = None
    try:
        item = images[index]
        if isinstance(item, Image.Image):
            return item
        if isinstance(item, np.ndarray):
            return Image.fromarray(item[..., 0] if item.ndim == 3 and item.shape[-1] == 1 else item)
        return Image.open(item)
    except Exception as error:
        raise _unreadable(item, index, part, error) from error


def digest_item(item: Any, root: Path) -> bytes:
    """Return a digest of an image before decoding: a file's name below ``root`` and bytes, else pixels."""
    if isinstance(item, Image.Image):
        content, about = item.tobytes(), f"{item.mode} {item.size}"
    elif isinstance(item, np.ndarray):
        content, about = np.ascontiguousarray(item).tobytes(), f"{item.dtype} {item.shape}"
    else:
        path = Path(item)
        content, about = path.read_bytes(), str(path.relative_to(root) if path.is_relative_to(root) else path.name)
    return hashlib.sha256(about.encode(errors="surrogateescape") + b"\0" + content).digest()


def is_gray(image: Image.Image) -> bool:
    """Return whether the image is stored in grayscale (a palette of grays counts)."""
    if image.mode == "P":
        palette = np.reshape(image.getpalette() or [], (-1, 3))
        return bool((palette == palette[:, :1]).all())
    return image.mode in {"1", "L", "LA", "La", "F"} or image.mode.startswith("I")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    gray = is_gray(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels need more than 16 bits; save it with 8 or 16 bits a channel")
        return Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point; save it with 8 or 16 bits a channel")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if gray else "RGB")


def _images_by_part(parts: Parts) -> list[tuple[str, Images]]:
    named = [("training", parts.train), ("test", parts.test)]
    return [(name, part.images) for name, part in named if part is not None]


def _unreadable(item: object, index: int, part: str, error: Exception) -> DataError:
    is_file = isinstance(item, str | Path) and item != ""
    what = f"image {item}" if is_file else f"image {index} of the {part} part"
    remedy = "remove the file or replace it" if is_file else "replace the dataset's files"
    return DataError(f"{what} cannot be read ({error}): {remedy}")
