"""Classify images with the model in this script's folder: python classify.py IMAGE_OR_FOLDER ...

It needs torch, timm, Pillow and safetensors alone, pillow-heif for HEIC, and prepares an image as the training did.
"""

import argparse
import csv
import functools
import json
import os
import signal
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image, ImageColor, ImageOps
from safetensors.torch import load_file

with suppress(ImportError):  # HEIC, where pip install pillow-heif was done
    import pillow_heif

    pillow_heif.register_heif_opener()

SHOWN = 5  # classes
BATCH = 32  # images
# Pillow's formats that are read, each in this process alone: PostScript, for one, would start another program
FORMATS = (
    *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "HEIF", "ICNS", "ICO"),
    *("IM", "IMT", "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI"),
    *("SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB"),
)
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Return FORMATS as far as this Pillow has them."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_image(path: str | Path, channels: int, size: int, reading: Mapping[str, Any]) -> torch.Tensor:
    """Return an image file as uint8 (channels, size, size), read as the training images were.

    reading: ``fit``, ``background``, ``range`` and ``reduce`` of config.json. Of several frames it is the first. Raises
    ValueError for what cannot be read.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is not a regular file")  # a pipe would wait for ever
        with Image.open(path, formats=known_formats()) as image:
            if reading["reduce"] and image.format in ("JPEG", "MPO"):
                image.draft(None, (2 * size, 2 * size))
            image.load()
            square = to_square(
                to_eight_bits(turn_upright(image), reading), "L" if channels == 1 else "RGB", size, reading
            )
    except Exception as error:  # Pillow raises many
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, channels).permute(2, 0, 1)


def turn_upright(image: Image.Image) -> Image.Image:
    """Return an image as the camera was held."""
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 1))
    except (OSError, ValueError, TypeError, SyntaxError, KeyError, IndexError, struct.error):
        return image  # a damaged block of EXIF says nothing about the pixels
    return image if turn is None else image.transpose(turn)


def to_eight_bits(image: Image.Image, reading: Mapping[str, Any]) -> Image.Image:
    """Return an image in L or RGB: values beyond 8 bits scaled, transparency over the background."""
    if image.mode == "F" or image.mode.startswith("I"):
        whole = image.mode != "F"
        dtype = torch.int32 if whole else torch.float32
        values = torch.frombuffer(bytearray(image.convert("I" if whole else "F").tobytes()), dtype=dtype).double()
        if reading["range"] == "full" and (not whole or values.min() < 0 or values.max() > 65535):
            raise ValueError("its pixels are not whole numbers of 16 bits")
        low, high = (0.0, 65535.0) if reading["range"] == "full" else reading["range"]
        levels = ((values - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
        return Image.frombytes("L", image.size, bytes(levels.tolist()))
    palette = image.getpalette() if image.mode == "P" else None
    gray = image.mode in ("1", "L", "LA", "La") or (
        palette is not None and palette[::3] == palette[1::3] == palette[2::3]
    )
    if image.has_transparency_data:
        under = Image.new("RGBA", image.size, reading["background"])
        image = Image.alpha_composite(under, image.convert("RGBA"))
    return image.convert("L" if gray else "RGB")


def to_square(image: Image.Image, mode: str, size: int, reading: Mapping[str, Any]) -> Image.Image:
    """Return an image in a mode, its height and width ``size``."""
    image = image.convert(mode)
    if image.size == (size, size):
        return image
    if reading["fit"] == "stretch":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if reading["fit"] == "pad":
        colour = ImageColor.getcolor(reading["background"], mode)
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=colour)
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


class Classifier:
    """The model in a folder, built once."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name, classes, sizes = (self.config[key] for key in ("architecture", "num_classes", "model_args"))
        self.model = timm.create_model(name, num_classes=classes, **sizes).eval()
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        data = self.config["pretrained_cfg"]
        self.channels, self.size = data["input_size"][0], data["input_size"][-1]
        self.reading: dict[str, Any] = self.config["reading"]
        self.mean, self.std = (torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def classify(self, images: list[torch.Tensor]) -> list[list[tuple[str, float]]]:
        """Return the classes of each image and their probabilities, the most probable first."""
        pixels = torch.stack(images).float() * (1.0 / 255.0)
        with torch.inference_mode():
            rows = self.model((pixels - self.mean).div(self.std)).softmax(dim=1).tolist()
        return [sorted(zip(self.config["label_names"], row, strict=True), key=lambda pair: -pair[1]) for row in rows]


def find_images(given: list[Path]) -> Iterator[Path]:
    """Yield the given files, and the images in and below each folder, by name; hidden ones are left out."""
    suffixes = Image.registered_extensions()  # of the files in a folder
    for path in given:
        below = sorted(path.rglob("*")) if path.is_dir() else []
        yield from [
            file
            for file in below
            if suffixes.get(file.suffix.lower()) in FORMATS
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        ] or [path]


def main() -> int:
    """Print a line an image, the five lines of a single one, or CSV; return 1 where a file cannot be read."""
    parser = argparse.ArgumentParser(description="Classify images with the model in this script's folder.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an image, or a folder with images below")
    parser.add_argument("--csv", action="store_true", help="print path, class, probability, class_2, ... as CSV")
    asked = parser.parse_args()
    classifier = Classifier(Path(__file__).resolve().parent)
    if classifier.channels not in (1, 3):
        form = f"uint8 tensors ({classifier.channels}, {classifier.size}, {classifier.size})"
        print(f"this model reads {form}, which no image file holds: give them to classify()", file=sys.stderr)
        return 1
    table, paths, status = csv.writer(sys.stdout, lineterminator="\n"), find_images(asked.paths), 0
    if asked.csv:
        ranks = ["", *(f"_{rank}" for rank in range(2, SHOWN + 1))][: len(classifier.config["label_names"])]
        table.writerow(["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))])
    while batch := list(islice(paths, BATCH)):
        named, images = [], []
        for path in batch:
            try:
                images.append(read_image(path, classifier.channels, classifier.size, classifier.reading))
                named.append(os.fsencode(path).decode(errors="replace"))
            except ValueError as error:
                status = 1
                print(f"{path}: {'no image in this folder' if path.is_dir() else error}", file=sys.stderr)
        for path_name, found in zip(named, classifier.classify(images) if images else [], strict=True):
            if asked.csv:
                table.writerow([path_name, *(cell for name, p in found[:SHOWN] for cell in (name, f"{p:.6f}"))])
            elif len(asked.paths) == 1 and asked.paths[0].is_file():
                print("\n".join(f"{100 * p:5.1f} %  {name}" for name, p in found[:SHOWN]))
            else:
                print(f"{path_name}: {', '.join(f'{name} {100 * p:.1f} %' for name, p in found[:SHOWN])}")
    return status


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(
            signal.SIGPIPE, signal.SIG_DFL
        )  # ends quietly where its reader does, as in classify.py ... | head
    sys.exit(main())
