"""The settings of shortened token sequences: which strategy holds in which epoch. Pure.

After *Accelerating Augmentation Invariance Pretraining* (Lin et al., NeurIPS 2024, arXiv 2410.22364); the form of a
schedule is a reconstruction (ours).
"""

from __future__ import annotations

import math
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

    from_epoch: Count | None = None
    """The first epoch, counted from 0; in place of it `from_share`."""
    from_share: ShareBelowOne | None = None
    """The share of `epochs.ssl` that comes before, whatever that is: as much of the budget, where a space varies it."""


class Compression(Shortenings):
    """How the token sequences of the views are shortened in SSL and mix epochs.

    In the mix phase the first view is whole always, so there the query's fields shorten nothing of SimCLR and MoCo-v3.
    """

    schedule: Literal["none", "constant", "auto"] = "constant"
    """constant: as the fields here say; auto: as `stages` say; none: not at all, whatever else is given here."""
    stages: Annotated[tuple[Period, ...], Strict(False)] = ()
    """What `schedule: auto` follows: fields as here and a `from_share` of `epochs.ssl` each, or a `from_epoch`;
    `mixtune gradient-error` prints them."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        kinds = {(stage.from_epoch is None, stage.from_share is None) for stage in self.stages}
        if not kinds <= {(True, False)} and not kinds <= {(False, True)}:
            raise ValueError("stages should have a from_epoch each, or a from_share each")
        field = "from_share" if kinds == {(True, False)} else "from_epoch"
        starts = [getattr(stage, field) for stage in self.stages]
        if starts and starts[0] != 0:
            raise ValueError(f"stages should begin with {field} 0, not {starts[0]}")
        if any(one >= other for one, other in pairwise(starts)):
            raise ValueError(f"the stages' {field} should ascend, not {', '.join(map(str, starts))}")
        shapes = {stage.to_strategy() for stage in self.stages}
        if len(shapes) > MAX_SHAPES:
            raise ValueError(f"stages should have at most {MAX_SHAPES} different strategies, not {len(shapes)}")
        return self

    def for_budget(self, epochs: int) -> Compression:
        """Return the same with shares of so many SSL epochs as epochs, rounded; of two that meet the later holds."""
        if self.schedule != "auto" or all(stage.from_share is None for stage in self.stages):
            return self
        starts = [math.floor((stage.from_share or 0.0) * epochs + 0.5) for stage in self.stages]
        stages = (
            stage.model_copy(update={"from_epoch": start, "from_share": None})
            for stage, start in zip(self.stages, starts, strict=True)
        )
        return self.model_copy(update={"stages": tuple(stages)})

    def strategy(self, ssl_epoch: int) -> Strategy:
        """Return what holds after so many epochs of the SSL budget; of shares :meth:`for_budget` makes epochs before.

        Raises RequestError for auto without stages.
        """
        if self.schedule == "none":
            return UNCOMPRESSED
        if self.schedule == "constant":
            return self.to_strategy()
        if not self.stages:
            raise RequestError(
                "ssl.compression: schedule auto needs stages: `mixtune gradient-error SPACE.yaml` finds and prints them"
            )
        first, *later = self.stages
        assert first.from_epoch is not None or ssl_epoch == 0
        begun = [stage for stage in later if stage.from_epoch is not None and stage.from_epoch <= ssl_epoch]
        return [first, *begun][-1].to_strategy()
