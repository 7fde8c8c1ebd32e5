"""The settings of shortened token sequences: which strategy holds in which epoch. Pure.

After *Accelerating Augmentation Invariance Pretraining* (Lin et al., NeurIPS 2024, arXiv 2410.22364); the form of a
schedule is a reconstruction (ours).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Strict, model_validator

from mixtune.errors import RequestError
from mixtune.space.section import Count, PositiveCount, Section, ShareBelowOne
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy

MAX_SHAPES = 8  # strategies of a schedule: each has a memory layout, a compiled step and a step time of its own


class Shortenings(Section):
    """Token dropout and patch size of the query's views and of the key's."""

    token_dropout: ShareBelowOne = 0.0
    """Share of the query's patch tokens that is left out, at random."""
    key_token_dropout: ShareBelowOne = 0.0
    """The same of the key's, or of a momentum encoder's or teacher's."""
    patch_size: PositiveCount | None = None
    """Of the query's view in pixels, larger than the backbone's for fewer tokens; default: the backbone's."""
    key_patch_size: PositiveCount | None = None
    """Of the key's view; default: as large as the query's."""

    def to_strategy(self) -> Strategy:
        """Return the same as plain values."""
        key_patch_size = self.patch_size if self.key_patch_size is None else self.key_patch_size
        return Strategy(
            Shortening(self.token_dropout, self.patch_size), Shortening(self.key_token_dropout, key_patch_size)
        )


class Period(Shortenings):
    """What holds from an epoch of the SSL budget on, until the next stage."""

    from_epoch: Count
    """The first epoch, counted from 0."""


class Compression(Shortenings):
    """How the token sequences of the views are shortened in SSL and mix epochs.

    In the mix phase the first view is whole always, so there the query's fields shorten nothing of SimCLR and MoCo-v3.
    """

    schedule: Literal["none", "constant", "auto"] = "constant"
    """constant: as the fields here say; auto: as `stages` say; none: not at all, whatever else is given here."""
    stages: Annotated[tuple[Period, ...], Strict(False)] = ()
    """What `schedule: auto` follows: fields as here and a `from_epoch` each; `mixtune gradient-error` prints them."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        starts = [stage.from_epoch for stage in self.stages]
        if starts and starts[0] != 0:
            raise ValueError(f"stages should begin with from_epoch 0, not {starts[0]}")
        if any(one >= other for one, other in pairwise(starts)):
            raise ValueError(f"the stages' from_epoch should ascend, not {', '.join(map(str, starts))}")
        shapes = {stage.to_strategy() for stage in self.stages}
        if len(shapes) > MAX_SHAPES:
            raise ValueError(f"stages should have at most {MAX_SHAPES} different strategies, not {len(shapes)}")
        return self

    def strategy(self, ssl_epoch: int) -> Strategy:
        """Return what holds after so many epochs of the SSL budget. Raises RequestError for auto without stages."""
        if self.schedule == "none":
            return UNCOMPRESSED
        if self.schedule == "constant":
            return self.to_strategy()
        if not self.stages:
            raise RequestError(
                "ssl.compression: schedule auto needs stages: `mixtune gradient-error SPACE.yaml` finds and prints them"
            )
        return [stage.to_strategy() for stage in self.stages if stage.from_epoch <= ssl_epoch][-1]
