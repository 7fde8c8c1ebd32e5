"""`mixtune inspect`: what was read of someone's images, and what a network will receive of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mixtune.datasets import SKIPPING, Survey, find_data, original_images, survey_dataset
from mixtune.errors import RequestError
from mixtune.pictures import write_picture
from mixtune.space.recipe import Recipe, parse_recipe
from mixtune.space.space import load_space
from mixtune.training.data import load_training_data, make_pool
from mixtune.training.sources import survey_tasks
from mixtune.training.streams import torch_generator

SPACES = (".yaml", ".yml")
SHEET_CLASSES, SHEET_IMAGES = 20, 3  # rows of a sheet, and images of each
_CELL, _GAP, _TEXT = 96, 6, 16  # pixels of a sheet's pictures, gaps and lines
_NAMED = 12  # classes in a line


@dataclass(frozen=True)
class Inspection:
    """What was read: a survey of each task's images, and how many images each of a space's own parts has.

    split: by task, images of "train", "val" and "ssl" as the recipe splits them, where a space was named; recipe: whose
    augmentation a sheet shows.
    """

    surveys: Mapping[str, Survey]
    recipe: Recipe
    split: Mapping[str, Mapping[str, int]]
    lines_of_data: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return lines for a terminal."""
        lines: list[str] = []
        for name, survey in self.surveys.items():
            lines += [f"{name}:"] if len(self.surveys) > 1 else []
            lines += [*survey.parts_lines(), *self._split_lines(name), *_class_lines(survey), *survey.reading_lines()]
            lines += [f"note: {line}" for line in survey.dataset.account.notes]
            lines += [f"look: {line}" for line in survey.warnings()]
        return [*lines, *(f"look: {line}" for line in self.lines_of_data)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; of several tasks those of each by its name."""
        found = {}
        for name, survey in self.surveys.items():
            values = survey.to_dict()
            for part, images in self.split.get(name, {}).items():
                origin = values["parts"].get(part, {}).get("from") or _origin(part, survey, self.recipe)
                values["parts"][part] = {"images": images, "from": origin}
            values["warnings"] += self.lines_of_data
            found[name] = values
        return next(iter(found.values())) if len(found) == 1 else {"tasks": found}

    def _split_lines(self, name: str) -> list[str]:
        """Return a line for each part that the recipe makes of the source's own ones."""
        survey, recipe = self.surveys[name], self.recipe
        return [
            f"{part:<6} {images:>8,} images, {_origin(part, survey, recipe)}"
            for part, images in self.split.get(name, {}).items()
            if part not in survey.sets or images != len(survey.sets[part].images)
        ]


def inspect_data(data: str, root: str | None = None) -> Inspection:
    """Read images, or find them in the cache, and return what there is to say.

    data: a folder or a table of images, a dataset's name (root: where its files are), or a space file, whose recipe
    then says how they are read and split. Raises RequestError and DataError, one line.
    """
    if Path(data).suffix.lower() not in SPACES:
        dataset, folder = find_data(data, root)
        survey = survey_dataset(dataset, folder, reading=SKIPPING)
        recipe = parse_recipe({"data": {"dataset": dataset, "root": folder}})
        return Inspection({dataset: survey}, recipe, {})
    if root is not None:
        raise RequestError(f"--root {root} goes with a dataset's name, and {data} is a space file")
    recipe = load_space(data).recipe
    found = load_training_data(recipe)
    split = {
        task.name: {"train": len(task.train), "val": len(task.held_out), "ssl": len(task.ssl)} for task in found.tasks
    }
    return Inspection(survey_tasks(recipe), recipe, split, found.lines)


def draw_sheet(inspection: Inspection, path: str | os.PathLike[str]) -> None:
    """Draw a PNG: a row a class; of each of a few training images the file, what is read of it, and that augmented.

    Raises RequestError where a file is there that mixtune did not draw, DataError where it cannot be written.
    """
    rows = [
        (label, cells)
        for survey in inspection.surveys.values()
        for label, cells in _sheet_rows(survey, inspection.recipe)
    ]
    font = ImageFont.load_default(size=12)
    wide = max(len(cells) for _, cells in rows)
    width = _GAP + wide * (_CELL + _GAP) + 2 * _GAP * (wide // 3 - 1)
    high = _CELL + _TEXT + _GAP
    sheet = Image.new("RGB", (max(width, 420), 2 * _TEXT + _GAP + high * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP // 2), "each image three times: the file; as it is read; augmented", fill="black", font=font)
    for number, (label, cells) in enumerate(rows):
        top = _TEXT + _GAP + number * high
        draw.text((_GAP, top), label, fill="black", font=font)
        for column, cell in enumerate(cells):
            left = _GAP + column * (_CELL + _GAP) + 2 * _GAP * (column // 3)
            sheet.paste(cell, (left, top + _TEXT))
    write_picture(Path(path), sheet)


def _sheet_rows(survey: Survey, recipe: Recipe) -> list[tuple[str, list[Image.Image]]]:
    """Return a class's name and its cells, for up to SHEET_CLASSES of the training part."""
    part = survey.dataset.train
    labels = np.zeros(len(part.images), dtype=np.int64) if part.labels is None else part.labels
    classes = part.classes or ("images",)
    generator = torch_generator(recipe.seed, "augmentation")
    rows = []
    for label, name in list(enumerate(classes))[:SHEET_CLASSES]:
        found = np.flatnonzero(labels == label)
        chosen = np.unique(found[np.linspace(0, len(found) - 1, min(SHEET_IMAGES, len(found)), dtype=int)])
        pool = make_pool(part, chosen, recipe, torch.device("cpu"))
        augmented = pool.augmentation(pool.images[torch.from_numpy(chosen)], generator).numpy()
        cells = []
        for index, original, changed in zip(chosen, original_images(survey, chosen), augmented, strict=True):
            cells += [_cell(original), _cell(_picture(part.images[index])), _cell(_picture(changed))]
        rows.append((f"{name} ({len(found):,})", cells))
    return rows


def _picture(pixels: Any) -> Image.Image:
    """Return uint8 (C, H, W) as a picture; of other channels than 1 or 3 their mean."""
    pixels = np.asarray(pixels)
    if len(pixels) not in (1, 3):
        pixels = pixels.mean(axis=0, keepdims=True).round().astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _cell(picture: Image.Image) -> Image.Image:
    """Return a picture that fills a cell as far as its shape allows; small ones keep their pixels visible."""
    small = max(picture.size) < _CELL
    fitted = ImageOps.contain(picture, (_CELL, _CELL), Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)
    cell = Image.new("RGB", (_CELL, _CELL), (230, 230, 230))
    cell.paste(fitted, ((_CELL - fitted.width) // 2, (_CELL - fitted.height) // 2))
    return cell


def _class_lines(survey: Survey) -> list[str]:
    counts = survey.counts
    if not counts:
        return ["no classes: for self-supervised learning alone"]
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_NAMED])
    more = f" and {len(counts) - _NAMED:,} more" if len(counts) > _NAMED else ""
    return [f"{len(counts):,} classes: {shown}{more}"]


def _origin(part: str, survey: Survey, recipe: Recipe) -> str:
    """Say where a part that the recipe makes is from."""
    source = survey.dataset.account.origins.get("train") or survey.root or survey.name
    if part == "val":
        return f"{recipe.data.val_fraction:.0%} of {source}"
    if part == "ssl" and recipe.data.ssl_dataset is not None:
        return recipe.data.ssl_root or recipe.data.ssl_dataset
    share = (recipe.data.ssl_fraction if part == "ssl" else None) or recipe.data.fraction
    return f"{share:.0%} of what is left of {source}"
