"""Self-supervised objectives: a file is a plug-in, and ``ssl.objective`` names it.

A plug-in module has ``Settings``, a subclass of :class:`mixtune.recipe.SslSettings` that validates the recipe's
``ssl`` section, and ``build(settings, backbone)``, which returns an :class:`Objective`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Generator, Tensor, nn

from mixtune.backbone import Backbone


class Objective(nn.Module, ABC):
    """The head, views and loss of a self-supervised objective."""

    @abstractmethod
    def forward(
        self, backbone: Backbone, images: Tensor, generator: Generator, joint: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss, a scalar, and in the mix phase the tokens that the classifier reads.

        images: float32 (B, C, H, W), augmented and normalised; generator: this epoch's stream of masks;
        joint: the mix phase, in which the backbone sees whole images once and its tokens (B, prefix + L, D) serve
        the classifier too.
        """

    @abstractmethod
    def forward_flops(self, backbone: Backbone, joint: bool) -> float:
        """Return the floating-point operations of :meth:`forward` for one image, backbone included."""
