"""The settings of our self-supervised objectives: what ``ssl`` may hold; the objectives are in mixtune.objectives."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Strict

from mixtune.space.compression import Compression
from mixtune.space.section import NonNegative, Positive, PositiveCount, PositiveShare, Share, ShareBelowOne, SslSettings
from mixtune.space.views import Strategy, View


class MaeSettings(SslSettings):
    """``encode``: in the SSL phase encode the kept tokens only (He et al.), or all, then drop features (paper A.2).

    ``loss_on``: the patches in the mean squared error: He et al. use masked, the paper's A.2 says unmasked.
    """

    encode: Literal["visible", "full"] = "visible"
    loss_on: Literal["masked", "unmasked", "all"] = "masked"
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    norm_pix: bool = False
    decoder_depth: PositiveCount = 2


class InvarianceSettings(SslSettings):
    """Views and compression, which the augmentation-invariance objectives share.

    Views are mirrored as ``augment.flip`` says, and not at all with ``augment.ssl: false``; the rest of ``augment`` is
    of the first view in the mix phase alone, which the classifier reads. ``color_jitter``: SimCLR's strength.
    """

    crop_scale: Annotated[tuple[PositiveShare, PositiveShare], Strict(False)] = (0.2, 1.0)
    color_jitter: NonNegative = 0.5  # as SimCLR on CIFAR-10
    grayscale: Share = 0.2
    compression: Compression = Compression()

    def views(self, joint: bool) -> tuple[View | None, ...]:
        """Return two views; see :class:`SslSettings`."""
        view = View(self.crop_scale, self.color_jitter, self.grayscale)
        return (None if joint else view, view)

    def strategy(self, ssl_epoch: int) -> Strategy:
        """Return the compression of an epoch."""
        return self.compression.strategy(ssl_epoch)

    def constants(self) -> dict[str, Any]:
        """Return all but the compression."""
        return self.model_dump(mode="json", exclude={"compression"})


class SimclrSettings(InvarianceSettings):
    """The head has two layers; query and key are the first and the second view, both trained."""

    least_batch: ClassVar[int] = 2  # one to be distinguished from the other

    hidden_dim: PositiveCount = 512
    output_dim: PositiveCount = 128
    temperature: Positive = 0.2


class Mocov3Settings(InvarianceSettings):
    """Query and key are the first and the second view.

    ``momentum``: constant, where MoCo-v3 lets it rise to 1 at the end (ours: no epoch may depend on the budget).
    """

    least_batch: ClassVar[int] = 2  # one to be distinguished from the other

    hidden_dim: PositiveCount = 512
    output_dim: PositiveCount = 128
    temperature: Positive = 0.2
    momentum: ShareBelowOne = 0.99


class DinoSettings(InvarianceSettings):
    """Student and teacher are query and key; both see both views, and none is cropped smaller (no multi-crop).

    ``momentum`` and ``teacher_temperature`` are constant (ours: no epoch may depend on the budget).
    """

    hidden_dim: PositiveCount = 512
    bottleneck_dim: PositiveCount = 128
    prototypes: PositiveCount = 1024
    student_temperature: Positive = 0.1
    teacher_temperature: Positive = 0.04
    momentum: ShareBelowOne = 0.99
    center_momentum: ShareBelowOne = 0.9


SETTINGS: dict[str, type[SslSettings]] = {
    "mae": MaeSettings,
    "simclr": SimclrSettings,
    "mocov3": Mocov3Settings,
    "dino": DinoSettings,
}
