"""What the sections of a recipe are made of: their types, and the base of an objective's settings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from mixtune.space.views import Strategy, View

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
PositiveCount = Annotated[int, Field(ge=1, le=1_000_000)]
Magnitude = Annotated[int, Field(ge=0, le=30)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A part of a recipe: strict types, finite numbers, no unknown keys, no change after validation.

    The text below a field is what ``mixtune fields`` prints of it.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class SslSettings(Section):
    """Base of the settings that an objective plug-in (``mixtune.objectives``) declares as ``Settings``."""

    least_batch: ClassVar[int] = 1  # images that a step needs

    objective: str = "mae"
    """The self-supervised objective: a plug-in of mixtune, or package.module:name for one of your own."""

    def views(self, joint: bool) -> tuple[View | None, ...]:
        """Return the views of an image in the SSL phase, or in the mix phase (``joint``).

        None is the image as ``augment`` changes it, which the first one is in the mix phase: the classifier reads it.
        """
        return (None,)

    def for_budget(self, epochs: int) -> Self:
        """Return these settings with what depends on how many SSL epochs there are spelled out: :meth:`strategy`."""
        return self

    def strategy(self, ssl_epoch: int) -> Strategy | None:
        """Return how sequences are shortened after so many epochs of the SSL budget; None for an objective without.

        It may depend on nothing that comes later: trials that agree so far share their epochs.
        """
        return None

    def constants(self) -> dict[str, Any]:
        """Return the plain values that hold in every epoch, besides :meth:`strategy`."""
        return self.model_dump(mode="json")
