"""Any image, as files and libraries hand it out, to a uint8 array of the wanted size and channels."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from mixtune.datasets._files import known_formats
from mixtune.datasets._types import Images, Parts, Reading
from mixtune.errors import RequestError
from mixtune.files import read_regular

LARGEST_OWN_SIZE = 96
DEFAULT_SIZE = 64
SAMPLE = 1000  # images of a part whose headers decide the layout
SAMPLE_PIXELS = 200  # images whose pixels decide range and background
LOSES_HALF = 0.1  # share of images that may lose half of themselves to a crop before `fit: auto` pads
VANISHING = 16  # levels from white or black within which the visible pixels of an image cannot be told from it
STRIP = 2_000_000  # pixels converted at once
_COMMON = ("JPEG", "PNG")  # tried first: Pillow may ask formats that look into the file before it comes to these

ORIENTATION = 0x0112  # the one EXIF tag that is looked at
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what Pillow raises for files that are not whole, not images, or not ones that it can read
_MISTAKES = (OSError, ValueError, TypeError, SyntaxError, IndexError, KeyError, AttributeError, EOFError, RuntimeError)
MAX_BYTES = 2**31  # of an image file
UNREADABLE = (*_MISTAKES, struct.error, OverflowError, ZeroDivisionError, MemoryError, Image.DecompressionBombError)

Picture: TypeAlias = "Image.Image | npt.NDArray[Any]"  # an array where Pillow has no mode for it: (H, W) or (H, W, C)


@dataclass(frozen=True)
class Item:
    """An undecoded image: the picture, its pixels unread; its name and its bytes, by which it is told from others."""

    picture: Picture
    name: str
    content: bytes


@dataclass(frozen=True)
class Layout:
    """How all images of a dataset are decoded: height and width in pixels, channels, and a reading without ``auto``."""

    size: int
    channels: int
    reading: Reading


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open images of any size meanwhile: `Reading.max_megapixels` is the limit."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_item(images: Images, index: int, root: Path, max_megapixels: float) -> Item:
    """Return image ``index``, its pixels unread. Raises one of UNREADABLE.

    A file's name is its path below ``root``.
    """
    item: Any = images[index]
    if isinstance(item, Image.Image):
        return Item(_of_allowed_size(item, max_megapixels), f"{item.mode} {item.size}", item.tobytes())
    if isinstance(item, np.ndarray):
        return Item(as_picture(item), f"{item.dtype} {item.shape}", np.ascontiguousarray(item).tobytes())
    if isinstance(item, bytes):
        name, content = "", item
    else:
        path = item if isinstance(item, Path) else Path(item)
        text, above = str(path), f"{root}/"
        if text.startswith(above):
            name = text[len(above) :]
        else:
            name = str(path.relative_to(root) if path.is_relative_to(root) else path.name)
        content = _read_bytes(path)
    return Item(_of_allowed_size(_open_content(content), max_megapixels), name, content)


def _read_bytes(path: Path) -> bytes:
    """Return what read_regular() does, by half as many system calls: small files feel each."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.fstat(file).st_size
        content = os.read(file, min(size, MAX_BYTES))
    finally:
        os.close(file)
    return content if 0 < size == len(content) else read_regular(path, MAX_BYTES)


def _open_content(content: bytes) -> Image.Image:
    with suppress(UnidentifiedImageError):
        return Image.open(io.BytesIO(content), formats=_COMMON)
    try:
        return Image.open(io.BytesIO(content), formats=known_formats())
    except UnidentifiedImageError as error:
        raise ValueError(_what_else(content)) from error


def _what_else(content: bytes) -> str:
    """Say what a file without an image is, as far as that can be told."""
    start = content[:512].lstrip().lower()
    if not content:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: git lfs pull brings the image"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    if content[4:8] == b"ftyp":
        return "HEIC, or a video: pip install pillow-heif reads the former"
    return "not an image that Pillow reads"


def as_picture(array: npt.NDArray[Any]) -> Picture:
    """Return a PIL image of a uint8 array (H, W) or (H, W, C) with C in {1, 3, 4}; any other one as it is."""
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    fits = array.dtype == np.uint8 and (array.ndim == 2 or array.shape[-1] in (3, 4))
    return Image.fromarray(array) if fits else array


def _of_allowed_size(image: Image.Image, max_megapixels: float) -> Image.Image:
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise ValueError(f"it has {megapixels:.0f} megapixels: data.max_megapixels allows {max_megapixels:g}")
    return image


def reduce_early(picture: Picture, layout: Layout) -> None:
    """Have a JPEG decoded at the least of 1/8, 1/4, 1/2 and 1 of its size that leaves twice the sides needed."""
    if layout.reading.rules == 1 or isinstance(picture, np.ndarray) or picture.format not in ("JPEG", "MPO"):
        return
    if min(picture.size) >= 4 * layout.size:
        picture.draft(None, (2 * layout.size, 2 * layout.size))


def decode(picture: Picture, layout: Layout) -> npt.NDArray[np.uint8]:
    """Return an image as uint8 (C, H, W) with C = channels and H = W = size. Raises one of UNREADABLE.

    In this order: a JPEG is reduced, EXIF orientation applied, values beyond 8 bits scaled by ``range``, transparency
    laid over ``background``, the square made by ``fit`` (bicubic, antialiased).
    """
    size, channels, reading = layout.size, layout.channels, layout.reading
    if isinstance(picture, np.ndarray):
        return _decode_array(picture, layout)
    picture.load()
    image = _to_eight_bits(turn_upright(picture), reading)
    image = _to_square(_in_mode(image, "L" if channels == 1 else "RGB"), size, reading)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def turn_upright(image: Image.Image) -> Image.Image:
    """Return an image as the camera was held. No EXIF tag but the orientation is looked at, since any may be odd."""
    try:
        turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
    except UNREADABLE:  # a damaged block of EXIF says nothing about the pixels
        return image
    return image if turn is None else image.transpose(turn)


def is_gray(picture: Picture) -> bool:
    """Return whether an image is stored in grayscale (a palette of grays counts)."""
    if isinstance(picture, np.ndarray):
        return picture.ndim == 2
    if picture.mode == "P":
        palette = np.reshape(picture.getpalette() or [], (-1, 3))
        return bool((palette == palette[:, :1]).all())
    return picture.mode in {"1", "L", "LA", "La"} or is_deep(picture)


def is_deep(picture: Picture) -> bool:
    """Return whether an image's values need more than 8 bits each."""
    if isinstance(picture, np.ndarray):
        return picture.dtype != np.uint8
    return picture.mode == "F" or picture.mode.startswith("I")


def is_transparent(picture: Picture) -> bool:
    """Return whether an image has transparency."""
    if isinstance(picture, np.ndarray):
        return False
    return "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info


def mode_of(picture: Picture) -> str:
    """Return Pillow's name of an image's form, or an array's type: "RGB", "I;16", "float32"."""
    return str(picture.dtype) if isinstance(picture, np.ndarray) else picture.mode


def dimensions(picture: Picture) -> tuple[int, int]:
    """Return (width, height) in pixels."""
    return (picture.shape[1], picture.shape[0]) if isinstance(picture, np.ndarray) else picture.size


class _Header(NamedTuple):
    """What is known of an image whose pixels are unread; the image itself would hold its file's bytes."""

    size: tuple[int, int]
    bands: int  # of an array (H, W, C), otherwise 0
    is_gray: bool
    is_deep: bool
    is_transparent: bool


def _header(picture: Picture) -> _Header:
    bands = picture.shape[2] if isinstance(picture, np.ndarray) and picture.ndim == 3 else 0
    return _Header(dimensions(picture), bands, is_gray(picture), is_deep(picture), is_transparent(picture))


def choose_layout(
    parts: Parts, image_size: int | None, channels: int | None, reading: Reading, root: Path
) -> tuple[Layout, list[str]]:
    """Return a layout with what was left open filled in from the images, and a line for each unusual choice.

    Size: the images' own where all are square, equal and at most 96 pixels, otherwise 64. Channels: 1 where every image
    is stored in grayscale, otherwise 3, or the arrays' own number. Looks at SAMPLE evenly spaced headers of each part,
    and at SAMPLE_PIXELS images where range or background depend on pixels; files that cannot be read are passed over.
    """
    named = [part for part in (parts.train, parts.val, parts.test) if part is not None]
    headers = [_header(picture) for part in named for picture in _some(part.images, SAMPLE, root, reading)]
    sizes = {header.size for header in headers}
    own = next(iter(sizes)) if len(sizes) == 1 else (0, 1)
    size = image_size or (own[0] if own[0] == own[1] <= LARGEST_OWN_SIZE else DEFAULT_SIZE)
    bands = {header.bands for header in headers if header.bands not in (0, 3)}
    all_gray = bool(headers) and all(header.is_gray for header in headers)
    found_channels = channels or (max(bands) if bands else 1 if all_gray else 3)
    if found_channels not in (1, 3, *bands):
        raise RequestError(f"data.channels must be 1 (grayscale) or 3 (RGB), not {found_channels}")
    lines: list[str] = []
    fit = (
        reading.fit
        if reading.fit != "auto"
        else _choose_fit(np.array([header.size for header in headers]).reshape(-1, 2), lines)
    )
    low_high = reading.range
    if low_high == "auto":
        deep = any(header.is_deep for header in headers)
        low_high = _choose_range(_some(parts.train.images, SAMPLE_PIXELS, root, reading), lines) if deep else "full"
    background = reading.background
    if background == "auto":
        clear = any(header.is_transparent for header in headers)
        shown = _some(parts.train.images, SAMPLE_PIXELS, root, reading) if clear else iter(())
        background = _choose_background(shown, lines)
    return Layout(size, found_channels, replace(reading, fit=fit, range=low_high, background=background)), lines


def share_cut(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return which share of each image a crop of the centre cuts away, (N,); sizes: (N, 2)."""
    cut: npt.NDArray[np.float64] = 1.0 - sizes.min(axis=1) / sizes.max(axis=1)
    return cut


def _some(images: Images, count: int, root: Path, reading: Reading) -> Iterator[Picture]:
    """Yield evenly spaced images, without those that cannot be opened."""
    for index in np.linspace(0, len(images) - 1, num=min(count, len(images)), dtype=int):
        try:
            yield open_item(images, int(index), root, reading.max_megapixels).picture
        except UNREADABLE:
            continue


def _choose_fit(sizes: npt.NDArray[np.int64], lines: list[str]) -> str:
    halved = float((share_cut(sizes) >= 0.5).mean()) if len(sizes) else 0.0
    if halved <= LOSES_HALF:
        return "crop"
    lines.append(
        f"{halved:.0%} of the images would lose half or more to a square crop: they are padded instead "
        "(data.fit: crop or stretch changes that)"
    )
    return "pad"


def _choose_range(pictures: Iterator[Picture], lines: list[str]) -> str | tuple[float, float]:
    """Return the values that become 0 and 255: all of 16 bits where at least half of them are used."""
    low, high, whole = np.inf, -np.inf, True
    for picture in filter(is_deep, pictures):
        try:
            values = np.asarray(picture)
        except UNREADABLE:
            continue
        if np.isfinite(values).all():
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole &= bool(np.issubdtype(values.dtype, np.integer))
    if high < low or (whole and low >= 0 and high <= 65535 and 2 * (high - low) > 65535):
        return "full"
    power = 2.0 ** max(8, int(high).bit_length())
    if whole and low >= 0 and 4 * (high - low) >= power:
        low, high = 0.0, power - 1
    elif not whole and low >= 0:
        low, high = next(((0.0, top) for top in (1.0, 255.0) if high <= top <= 4 * (high - low)), (low, high))
    high = max(high, low + 1e-6)
    lines.append(
        f"values from {low:g} to {high:g} become black to white, for they leave most of 16 bits unused"
        if whole
        else f"floating-point values from {low:g} to {high:g} become black to white"
    )
    lines[-1] += " (data.range changes that)"
    return low, high


def _choose_background(pictures: Iterator[Picture], lines: list[str]) -> str:
    """Return "black" where the visible pixels of most transparent images are almost white, else "white"."""
    vanish: list[tuple[bool, bool]] = []
    for picture in pictures:
        if isinstance(picture, np.ndarray) or not is_transparent(picture):
            continue
        try:
            values = np.asarray(picture.convert("RGBA"))
        except UNREADABLE:
            continue
        seen = values[values[..., 3] >= 128][:, :3]
        if seen.size:
            vanish.append((255 - seen.mean() < VANISHING, seen.mean() < VANISHING))
    on_white, on_black = np.mean(vanish, axis=0) if vanish else (0.0, 0.0)
    if on_white <= 0.5 or on_black > 0.5:
        return "white"
    lines.append(f"{on_white:.0%} of the transparent images vanish on white: black lies under them (data.background)")
    return "black"


def _to_square(image: Image.Image, size: int, reading: Reading) -> Image.Image:
    if image.size == (size, size):
        return image
    if reading.fit == "stretch":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if reading.fit == "pad":
        colour = ImageColor.getcolor(reading.background, image.mode)
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=colour)
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _to_eight_bits(image: Image.Image, reading: Reading) -> Image.Image:
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    gray = is_gray(image)
    if is_deep(image):
        return Image.fromarray(_scaled(np.asarray(image), reading.range))
    if is_transparent(image):
        image = _in_strips(image, "L" if gray else "RGB", lambda strip: _laid_over(strip, reading.background))
    return _in_mode(image, "L" if gray else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert() would copy it


def _laid_over(image: Image.Image, background: str) -> Image.Image:
    under = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(under, image.convert("RGBA"))


def _in_strips(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Return an image changed strip by strip, in another mode: a large one is not held several times."""
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        return change(image).convert(mode)
    changed = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip.info = image.info
        changed.paste(change(strip).convert(mode), (0, top))
    return changed


def _scaled(values: npt.NDArray[Any], low_high: str | tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Return values of any type as uint8, the same shape; "full" is 0 to 65535."""
    if isinstance(low_high, str):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError("its pixels are floating-point: say with data.range which values are black and white")
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels need more than 16 bits: say with data.range which values are black and white")
        low, high = 0.0, 65535.0
    else:
        low, high = low_high
    change: Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]]
    if values.dtype in (np.uint8, np.uint16) or values.dtype == np.dtype(">u2"):
        change = _level_of_each(low, high).__getitem__
    elif np.isfinite(values).all():
        change = partial(_levels, low=low, high=high)
    else:
        raise ValueError("it has pixels that are not finite numbers")
    rows = max(1, STRIP // max(1, values[0].size))
    return np.concatenate([change(values[top : top + rows]) for top in range(0, len(values), rows)])


@lru_cache(maxsize=1)
def _level_of_each(low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return the level of each value of 16 bits, (65536,)."""
    return _levels(np.arange(65536), low, high)


def _levels(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    shares = (values.astype(np.float64) - low) / (high - low)
    levels: npt.NDArray[np.uint8] = np.clip(np.round(shares * 255), 0, 255).astype(np.uint8)
    return levels


def _decode_array(array: npt.NDArray[Any], layout: Layout) -> npt.NDArray[np.uint8]:
    """Return what decode() does for arrays that Pillow has no mode for: each channel by itself."""
    if is_deep(array):
        array = _scaled(array, layout.reading.range)
        picture = array if array.shape[2:] == (4,) else as_picture(array)  # four bands: transparency is in bytes
    else:
        picture = as_picture(array)
    if not isinstance(picture, np.ndarray):
        return decode(picture, layout)
    bands = [Image.fromarray(np.ascontiguousarray(array[..., band])) for band in range(array.shape[2])]
    if layout.channels != len(bands):
        raise ValueError(f"it has {len(bands)} channels, and the set {layout.channels}")
    return np.stack([np.asarray(_to_square(band, layout.size, layout.reading)) for band in bands])


def shown_picture(picture: Picture) -> Image.Image:
    """Return an image as a person would see it in a viewer that knows no range: in RGB, upright."""
    if isinstance(picture, np.ndarray):
        values = picture if picture.ndim == 2 else picture.mean(axis=2)
        return Image.fromarray(np.clip(values.astype(np.float64), 0, 255).astype(np.uint8)).convert("RGB")
    if is_deep(picture):
        values = np.asarray(picture).astype(np.float64) / (1.0 if picture.mode == "F" else 257)
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    return turn_upright(picture).convert("RGB")


def digest_item(item: Item) -> tuple[bytes, bytes]:
    """Return digests of an image before decoding: of its name and bytes, 32 bytes, and of its bytes alone, 16."""
    named = hashlib.sha256(item.name.encode(errors="surrogateescape") + b"\0")
    named.update(item.content)
    return named.digest(), hashlib.blake2b(item.content, digest_size=16).digest()
