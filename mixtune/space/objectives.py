"""The settings of our self-supervised objectives: what ``ssl`` may hold; the objectives are in mixtune.objectives."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Strict

from mixtune.space.compression import Compression
from mixtune.space.section import (
    Count,
    NonNegative,
    Positive,
    PositiveCount,
    PositiveShare,
    Share,
    ShareBelowOne,
    SslSettings,
)
from mixtune.space.views import Strategy, View


class MaeSettings(SslSettings):
    """Masked autoencoding (He et al. 2022), the paper's objective (A.2)."""

    encode: Literal["visible", "full"] = "visible"
    """In the SSL phase encode the kept tokens only (He et al.), or all, and then drop features (paper A.2)."""
    loss_on: Literal["masked", "unmasked", "all"] = "masked"
    """The patches in the mean squared error: He et al. use masked, the paper's A.2 says unmasked."""
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    """Share of the patches that is masked."""
    norm_pix: bool = False
    """Whether the decoder fills in each patch normalised by its own mean and standard deviation."""
    decoder_depth: PositiveCount = 2
    """Transformer blocks of the decoder."""


class InvarianceSettings(SslSettings):
    """Views and compression, which the augmentation-invariance objectives share.

    Views are mirrored as ``augment.flip`` says, and not at all with ``augment.ssl: false``; the rest of ``augment`` is
    of the first view in the mix phase alone, which the classifier reads.
    """

    later: ClassVar[tuple[str, ...]] = ()  # fields that were added, which change nothing where they are false or 0

    crop_scale: Annotated[tuple[PositiveShare, PositiveShare], Strict(False)] = (0.2, 1.0)
    """Least and largest share of the area of a view's random crop, which is resized to the image."""
    color_jitter: NonNegative = 0.5
    """Strength of the change of a view's colours; the default is SimCLR's on CIFAR-10."""
    grayscale: Share = 0.2
    """Probability that a view has no colour."""
    compression: Compression = Compression()
    """How the views' token sequences are shortened."""

    def views(self, joint: bool) -> tuple[View | None, ...]:
        """Return two views; see :class:`SslSettings`."""
        view = View(self.crop_scale, self.color_jitter, self.grayscale)
        return (None if joint else view, view)

    def for_budget(self, epochs: int) -> Self:
        """Return these settings with each stage's share of the epochs as the epoch that it begins with."""
        resolved = self.compression.for_budget(epochs)
        return self if resolved is self.compression else self.model_copy(update={"compression": resolved})

    def strategy(self, ssl_epoch: int) -> Strategy:
        """Return the compression of an epoch."""
        return self.compression.strategy(ssl_epoch)

    def constants(self) -> dict[str, Any]:
        """Return all but the compression, and but what is off of later fields: recorded step times stay known by it."""
        off = {name for name in self.later if not getattr(self, name)}
        return self.model_dump(mode="json", exclude={"compression", *off})


class SimclrSettings(InvarianceSettings):
    """SimCLR: the head has two layers; query and key are the first and the second view, both trained."""

    least_batch: ClassVar[int] = 2  # one to be distinguished from the other

    hidden_dim: PositiveCount = 512
    """Width of the head's hidden layers."""
    output_dim: PositiveCount = 128
    """Width of the projections that are compared."""
    temperature: Positive = 0.2
    """What cosines are divided by before the softmax."""


class Mocov3Settings(InvarianceSettings):
    """MoCo-v3: query and key are the first and the second view."""

    least_batch: ClassVar[int] = 2  # one to be distinguished from the other
    later: ClassVar[tuple[str, ...]] = ("symmetric", "frozen_patches")

    hidden_dim: PositiveCount = 512
    """Width of the head's hidden layers."""
    output_dim: PositiveCount = 128
    """Width of the projections that are compared."""
    temperature: Positive = 0.2
    """What cosines are divided by before the softmax."""
    momentum: ShareBelowOne = 0.99
    """Of the momentum encoder; constant, where MoCo-v3 lets it rise to 1 (ours: no epoch may depend on the budget)."""
    symmetric: bool = False
    """Whether each view is the query of the other one's key, the two losses summed, as MoCo-v3 has it (Algorithm 1)."""
    frozen_patches: bool = False
    """Whether SSL and mix epochs leave the patch projection as it is drawn, as MoCo-v3 has it (Section 4.2)."""


class DinoSettings(InvarianceSettings):
    """DINO: student and teacher are query and key; both see both views, and none is cropped smaller (no multi-crop)."""

    later: ClassVar[tuple[str, ...]] = ("frozen_epochs",)

    hidden_dim: PositiveCount = 512
    """Width of the head's hidden layers."""
    bottleneck_dim: PositiveCount = 128
    """Width of the head's output, which is compared with the prototypes."""
    prototypes: PositiveCount = 1024
    """How many prototypes student and teacher choose among."""
    student_temperature: Positive = 0.1
    """What the student's scores are divided by before the softmax."""
    teacher_temperature: Positive = 0.04
    """What the teacher's scores are divided by; constant (ours: no epoch may depend on the budget)."""
    momentum: ShareBelowOne = 0.99
    """Of the teacher's weights; constant (ours: no epoch may depend on the budget)."""
    center_momentum: ShareBelowOne = 0.9
    """Of the running mean that is taken off the teacher's scores."""
    frozen_epochs: Count = 0
    """SSL and mix epochs, from the first on, that leave the prototypes as they are drawn; DINO's code has 1."""


SETTINGS: dict[str, type[SslSettings]] = {
    "mae": MaeSettings,
    "simclr": SimclrSettings,
    "mocov3": Mocov3Settings,
    "dino": DinoSettings,
}
