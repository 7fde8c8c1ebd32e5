"""SimCLR (Chen et al. 2020): two views of an image are alike, views of different images are not."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mixtune.backbone import Backbone
from mixtune.objectives import TRAINED
from mixtune.objectives._invariance import (
    InvarianceObjective,
    InvarianceSettings,
    Pass,
    check_views,
    encode,
    mlp,
    mlp_flops,
    pool,
)
from mixtune.space.recipe import Positive, PositiveCount
from mixtune.space.views import UNCOMPRESSED, Branch, Strategy


class Settings(InvarianceSettings):
    """The head has two layers; query and key are the first and the second view, both trained."""

    least_batch: ClassVar[int] = 2  # one to be told from the other

    hidden_dim: PositiveCount = 512
    output_dim: PositiveCount = 128
    temperature: Positive = 0.2


class SimCLR(InvarianceObjective):
    """A projection head over the backbone's class token."""

    def __init__(self, settings: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.temperature = settings.temperature
        self.head = mlp([backbone.embed_dim, settings.hidden_dim, settings.output_dim])

    def forward(
        self, backbone: Backbone, images: Tensor, generator: Generator, joint: bool, strategy: Strategy | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Encode both views, project and compare; see :class:`Objective`."""
        branches = [each.branch for each in self.passes(joint, strategy or UNCOMPRESSED)]
        views = zip(images.chunk(2), branches, strict=True)
        tokens = [encode(backbone, view, branch, generator) for view, branch in views]
        one, other = (self.head(pool(backbone, each)) for each in tokens)
        return nt_xent(one, other, self.temperature), tokens[0] if joint else None

    def passes(self, joint: bool, strategy: Strategy) -> list[Pass]:
        """Return both views' passes; in the mix phase the first view is whole."""
        return [Pass(Branch() if joint else strategy.query, True), Pass(strategy.key, True)]

    def head_flops(self) -> float:
        """See :class:`InvarianceObjective`."""
        return 2 * TRAINED * mlp_flops(self.head)


def build(settings: Settings, backbone: Backbone) -> SimCLR:
    """Return the objective with fresh weights from torch's global generator. Raises RequestError, see check_views."""
    check_views(settings, backbone)
    return SimCLR(settings, backbone)


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return the normalised, temperature-scaled cross-entropy of projections (B, D) of two views (Eq. 1), a mean.

    Of each of the 2 B projections the other view's is to be told from the 2 B - 2 of other images, by cosine.
    """
    batch = len(one)
    projections = F.normalize(torch.cat([one, other]).float(), dim=1)
    logits = projections @ projections.T / temperature
    logits = logits.masked_fill(torch.eye(2 * batch, dtype=torch.bool, device=logits.device), -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * batch, device=logits.device).roll(batch))
