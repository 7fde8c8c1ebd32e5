"""Classify images with the model in this script's folder: python classify.py IMAGE_OR_FOLDER ...

It needs torch, timm, Pillow and safetensors alone, and prepares an image as the training did.
"""

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

SHOWN = 5  # classes
BATCH = 32  # images
SUFFIXES = "avif|bmp|gif|jfif|jp2|jpeg|jpg|png|tif|tiff|webp|pbm|pgm|pnm|ppm"  # of the files in a folder


def read_image(path: str | Path, channels: int, size: int) -> torch.Tensor:
    """Return an image file as uint8 (channels, size, size): upright, over white, its centre resized.

    Of several frames it is the first. Raises ValueError for what cannot be read.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits a pixel
            levels = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
            if levels.min() < 0 or levels.max() > 65535:
                raise ValueError("its pixels need more than 16 bits")
            image = Image.frombytes("L", image.size, bytes((levels / 257).round().to(torch.uint8).tolist()))
        if image.mode == "F":
            raise ValueError("its pixels are floating-point")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("RGB").convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow raises many
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, channels).permute(2, 0, 1)


class Classifier:
    """The model in a folder, built once."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name, classes, sizes = (self.config[key] for key in ("architecture", "num_classes", "model_args"))
        self.model = timm.create_model(name, num_classes=classes, **sizes).eval()
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        data = self.config["pretrained_cfg"]
        self.channels, self.size = data["input_size"][0], data["input_size"][-1]
        self.mean, self.std = (torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def classify(self, images: list[torch.Tensor]) -> list[list[tuple[str, float]]]:
        """Return the classes of each image and their probabilities, the most probable first."""
        pixels = torch.stack(images).float() * (1.0 / 255.0)
        with torch.inference_mode():
            rows = self.model((pixels - self.mean).div(self.std)).softmax(dim=1).tolist()
        return [sorted(zip(self.config["label_names"], row, strict=True), key=lambda pair: -pair[1]) for row in rows]


def find_images(given: list[Path]) -> Iterator[Path]:
    """Yield the given files, and the images in and below each folder, by name; hidden ones are left out."""
    form = re.compile(rf"([^.][^/]*/)*[^.][^/]*\.({SUFFIXES})", re.IGNORECASE)
    for path in given:
        below = sorted(path.rglob("*")) if path.is_dir() else []
        found = [file for file in below if form.fullmatch(file.relative_to(path).as_posix()) and file.is_file()]
        yield from found or [path]


def main() -> int:
    """Print a line an image, the five lines of a single one, or CSV; return 1 where a file cannot be read."""
    parser = argparse.ArgumentParser(description="Classify images with the model in this script's folder.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an image, or a folder with images below")
    parser.add_argument("--csv", action="store_true", help="print path, class, probability, class_2, ... as CSV")
    asked = parser.parse_args()
    classifier = Classifier(Path(__file__).resolve().parent)
    table, paths, status = csv.writer(sys.stdout, lineterminator="\n"), find_images(asked.paths), 0
    if asked.csv:
        ranks = ["", *(f"_{rank}" for rank in range(2, SHOWN + 1))][: len(classifier.config["label_names"])]
        table.writerow(["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))])
    while batch := list(islice(paths, BATCH)):
        named, images = [], []
        for path in batch:
            try:
                images.append(read_image(path, classifier.channels, classifier.size))
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
    sys.exit(main())
