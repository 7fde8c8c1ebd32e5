"""Self-supervised objectives: a file is a plug-in, and ``ssl.objective`` names it.

A plug-in module has ``Settings``, a subclass of :class:`mixtune.space.recipe.SslSettings` that validates the recipe's
``ssl`` section and says which views the objective sees, and ``build(settings, backbone)``, which returns an
:class:`Objective`. One that can draw what it makes of masked images has the methods of :class:`Reconstructs` too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor, nn

from mixtune.backbone import Backbone
from mixtune.space.views import Strategy

TRAINED = 3  # forward passes that a forward and a backward pass cost


class Objective(nn.Module, ABC):
    """The head, views and loss of a self-supervised objective."""

    @abstractmethod
    def forward(
        self, backbone: Backbone, images: Tensor, generator: Generator, joint: bool, strategy: Strategy | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss, a scalar, and in the mix phase the tokens that the classifier reads.

        images: float32 (V * B, C, H, W), augmented and normalised: the V views that the settings ask for, one after the
        other; generator: this epoch's stream of masks; joint: the mix phase, in which the backbone sees the first
        view whole, once, and its tokens (B, prefix + L, D) serve the classifier too; strategy: the settings' of this
        epoch. What the state depends on is changed in :meth:`after_step` alone: a loss may be requested twice.
        """

    def after_step(self, backbone: Backbone) -> None:
        """Bring up to date what no gradient updates, after an optimizer step of this loss: a teacher's weights, say."""
        return

    def frozen(self, backbone: Backbone, ssl_epoch: int) -> Iterable[nn.Parameter]:
        """Return the weights, of the backbone too, that an epoch of the SSL budget leaves as they are."""
        return ()

    @abstractmethod
    def train_flops(self, backbone: Backbone, joint: bool, strategy: Strategy | None = None) -> float:
        """Return the floating-point operations of :meth:`forward` and its backward pass for one image, all views.

        Backbone included; a backward pass costs two forward passes (TRAINED).
        """


@runtime_checkable
class Reconstructs(Protocol):
    """What ``mixtune reconstruct`` asks of an objective that fills in masked patches."""

    def draw_kept(self, batch: int, tokens: int, generator: Generator) -> Tensor:
        """Return the positions of the patches that are not masked, int64 (B, K)."""

    def sees_whole(self, joint: bool) -> bool:
        """Return whether the encoder sees masked patches too, in the mix phase (``joint``) or the SSL phase."""

    def reconstruct(self, backbone: Backbone, images: Tensor, keep: Tensor, whole: bool) -> Tensor:
        """Return normalised images (B, C, H, W) with their masked patches filled in, the kept ones as they are."""
