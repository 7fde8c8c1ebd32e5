"""Fig. 4 of the paper: masked images, and what trained runs make of them."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from mixtune.errors import RequestError, show
from mixtune.objectives import Reconstructs
from mixtune.pictures import refuse_other_picture, write_picture
from mixtune.space.effective import Method, choose_statistics
from mixtune.training.data import TrainingData
from mixtune.training.plan import make_plan, method_of
from mixtune.training.saved import SavedRun
from mixtune.training.streams import torch_generator

SAMPLE = 256  # images that the error is taken over, where so many are held out
BATCH = 64
MASKED = 128  # the grey of a masked patch


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What one run makes of masked images that it was not trained on.

    originals, masked, reconstructed: uint8 (N, C, H, W), on the CPU; error: mean squared error on the masked patches
    of ``sample`` images, in units of the normalised images, and mean_image_error: that of their mean image;
    source: which images; whole: whether the encoder saw the masked patches; settings: what the recipe's ``ssl``
    section has besides its defaults.
    """

    originals: Tensor
    masked: Tensor
    reconstructed: Tensor
    error: float
    mean_image_error: float
    sample: int
    source: str
    method: Method
    whole: bool
    settings: str


def reconstruct_images(run: SavedRun, count: int, seed: int) -> Reconstruction:
    """Mask held-out images of a run's dataset and let its decoder fill them in, without augmentation.

    Held out are the validation images, or the test images under ``protocol: paper``; images and masks are the same
    for all runs on equal data with equal ``seed``. The encoder is fed as it was when the decoder was last trained:
    with whole images if that was in a mix epoch, else as ``ssl.encode`` says. So the masked pixels reach the decoder
    of a mixed run, by attention, but not that of SSL+SL with ``encode: visible``.

    Raises RequestError for an objective that cannot reconstruct, for a run whose decoder was never trained and for
    more images than are held out, and DataError where the data are not those of the training.
    """
    objective = run.objective
    if not isinstance(objective, Reconstructs):
        raise RequestError(f"{run.directory}: ssl.objective {run.recipe.ssl.objective} cannot reconstruct images")
    decoding = [epoch for epoch in make_plan(run.recipe) if epoch.ssl_epoch is not None]
    if not decoding:
        raise RequestError(f"{run.directory}: epochs.ssl is 0, so its decoder was never trained: name another run")
    device = next(run.backbone.parameters()).device
    images, mean, std = _draw_images(run, run.load_data(), count, seed)
    keep = objective.draw_kept(len(images), run.backbone.tokens, torch_generator(seed, "masks")).to(device)
    hidden = _hidden_pixels(keep, run.backbone.tokens, run.backbone.patch_size)
    whole = objective.sees_whole(joint=decoding[-1].phase == "mix")
    made = torch.cat(
        [
            objective.reconstruct(run.backbone, batch, kept, whole)
            for batch, kept in zip(torch.split(images, BATCH), torch.split(keep, BATCH), strict=True)
        ]
    )

    def error(guessed: Tensor) -> float:
        squares = (guessed - images).square() * hidden
        return squares.sum().item() / (hidden.sum().item() * run.channels)

    def pixels(values: Tensor) -> Tensor:
        return (values[:count] * std[:count] + mean[:count]).mul(255).round().clamp(0, 255).to(torch.uint8).cpu()

    originals = pixels(images)
    return Reconstruction(
        originals=originals,
        masked=originals.masked_fill(hidden[:count].cpu(), MASKED),
        reconstructed=pixels(made),
        error=error(made),
        mean_image_error=error(images.mean(dim=0)),
        sample=len(images),
        source=_source(run),
        method=method_of(run.recipe),
        whole=whole,
        settings=_settings(run),
    )


def _draw_images(run: SavedRun, data: TrainingData, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return held-out images, normalised (S, C, H, W), and the mean and standard deviation of each (S, C, 1, 1)."""
    places = [(task.held_out, index) for task in data.tasks for index in task.held_out.indices.tolist()]
    if not places:
        raise RequestError(f"{run.directory}: no images are held out, since data.val_fraction is 0")
    if not 1 <= count <= len(places):
        raise RequestError(f"{run.directory}: {count} images: should be 1 to {len(places)}, its {_source(run)}")
    order = torch.randperm(len(places), generator=torch_generator(seed, "order"))[: max(count, SAMPLE)]
    drawn = [places[number] for number in order.tolist()]
    images = torch.cat([pool.plain(torch.tensor([index], device=pool.indices.device)) for pool, index in drawn])
    return images, torch.stack([pool.mean for pool, _ in drawn]), torch.stack([pool.std for pool, _ in drawn])


def _hidden_pixels(keep: Tensor, tokens: int, patch_size: int) -> Tensor:
    """Return which pixels of square images are masked, bool (B, 1, H, W), from the kept patches (B, K)."""
    side = math.isqrt(tokens)
    hidden = torch.ones(len(keep), tokens, dtype=torch.bool, device=keep.device).scatter(1, keep, False)
    grid = hidden.view(-1, 1, side, side)
    return grid.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)


def _source(run: SavedRun) -> str:
    split = "test" if run.recipe.protocol == "paper" else "validation"
    chosen = choose_statistics(run.recipe.data.statistics, run.recipe.model.pretrained)
    named = {"train": "the training images alone", "imagenet": "imagenet", "weights": "the weights' images"}
    units = f" in units of {named[chosen]}" if chosen in named else ""
    return f"{split} images of {', '.join(run.classes)}{units}"


def _settings(run: SavedRun) -> str:
    changed = run.recipe.ssl.model_dump(exclude_defaults=True, exclude={"objective"})
    return ", ".join(f"{name} {value if isinstance(value, str) else show(value)}" for name, value in changed.items())


# --- drawing

_SHOWN = 96  # pixels that a small image is brought to, about
_GAP = 8
_CAPTION = 480  # pixels, at least
_TITLES: dict[Method, str] = {"ssl_sl": "SSL+SL", "mixtraining": "MixTraining"}


def draw_reconstructions(runs: Sequence[tuple[str, Reconstruction]], path: str | os.PathLike[str]) -> None:
    """Draw a PNG: a column an image; a row of originals, one of masked images, and one a run; a caption names them.

    Raises RequestError where the runs' images or masks differ and where the file is someone else's, and DataError where
    it cannot be written.
    """
    refuse_other_picture(Path(path))
    if not runs:
        raise RequestError("there is no run to draw")
    name, first = runs[0]
    for other, made in runs[1:]:
        alike = made.source == first.source and torch.equal(made.originals, first.originals)
        if not (alike and torch.equal(made.masked, first.masked)):
            reasons = "seed, data.val_fraction" if made.source == first.source else f"{first.source}; {made.source}"
            what = "masks differ: model.patch_size, ssl.mask_ratio" if alike else f"images differ: {reasons}"
            raise RequestError(f"{name} and {other} cannot share a figure, since their {what}")
    count, _, _, size = first.originals.shape
    times = max(1, round(_SHOWN / size))
    rows = torch.cat([first.originals, first.masked, *(made.reconstructed for _, made in runs)])
    enlarged = rows.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    if enlarged.shape[1] not in (1, 3):  # no colours that anyone could see
        enlarged = enlarged.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
    grid = make_grid(enlarged, nrow=count, padding=_GAP, pad_value=230)  # not white: white images end somewhere too
    picture = Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())
    font = ImageFont.load_default(size=13)
    width = max(picture.width, _CAPTION)
    letters = int((width - 2 * _GAP) / font.getlength("0"))
    caption = "\n".join(line for text in _caption(runs) for line in textwrap.wrap(text, letters))
    lines = caption.count("\n") + 1
    sheet = Image.new("RGB", (width, picture.height + 18 * lines + 2 * _GAP), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((_GAP, picture.height + _GAP), caption, fill="black", font=font)
    write_picture(Path(path), sheet)


def _caption(runs: Sequence[tuple[str, Reconstruction]]) -> Iterator[str]:
    yield "Rows, from the top: original; masked;"
    for name, made in runs:
        fed = f"{_TITLES[made.method]}, encoder sees {'whole images' if made.whole else 'kept patches'}"
        yield "; ".join(filter(None, [f"{name}: {fed}", made.settings, f"error {made.error:.3f}"]))
    first = runs[0][1]
    given = "; with norm_pix the mean and standard deviation of each masked patch are given"
    yield (
        f"{first.source[0].upper()}{first.source[1:]}; masked patches are grey. The encoder is fed as when the decoder "
        "was last trained: with whole images in a mix epoch, else as ssl.encode says. Kept patches are shown as they "
        f"are{given if any('norm_pix' in made.settings for _, made in runs) else ''}. Error: mean squared error on the "
        f"masked patches of {first.sample} such images, normalised; their mean image has {first.mean_image_error:.3f}."
    )
