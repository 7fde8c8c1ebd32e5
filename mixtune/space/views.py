"""What a self-supervised objective sees of an image: its views, and how much of their token sequences."""

from __future__ import annotations

from typing import NamedTuple


class View(NamedTuple):
    """How an image is changed to one of its views, by draws of its own (SimCLR: Chen et al. 2020, appendix A).

    crop_scale: the least and the largest share of the area of a crop that is resized to the whole image, its width to
    height within 3:4 and 4:3; color_jitter: strength s: brightness, contrast and saturation by factors within
    1 +- 0.8 s, hue turned by up to 0.2 s of the circle, with probability 0.8; grayscale: probability of no colour.
    Mirrored as ``augment`` says. No blur, as SimCLR on CIFAR-10; no solarization (ours).
    """

    crop_scale: tuple[float, float]
    color_jitter: float
    grayscale: float


class Shortening(NamedTuple):
    """How the token sequence of a view is shortened.

    token_dropout: the share of its patch tokens that is left out, at random; patch_size: in pixels, larger than the
    backbone's own for fewer tokens; None is the backbone's own.
    """

    token_dropout: float = 0.0
    patch_size: int | None = None


class Strategy(NamedTuple):
    """How sequences are shortened in an epoch: of the query's views, and of the key's (or a teacher's)."""

    query: Shortening = Shortening()
    key: Shortening = Shortening()


UNCOMPRESSED = Strategy()
