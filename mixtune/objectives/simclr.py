"""SimCLR (Chen et al. 2020): two views of an image are alike, views of different images are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mixtune.backbone import Backbone
from mixtune.objectives import TRAINED
from mixtune.objectives._invariance import InvarianceObjective, Pass, check_views, encode, mlp, mlp_flops, pool
from mixtune.space.objectives import SimclrSettings as Settings
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy


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
        return [Pass(Shortening() if joint else strategy.query, True), Pass(strategy.key, True)]

    def head_flops(self) -> float:
        """See :class:`InvarianceObjective`."""
        return 2 * TRAINED * mlp_flops(self.head)


def build(settings: Settings, backbone: Backbone) -> SimCLR:
    """Return the objective with fresh weights from torch's global generator. Raises RequestError, see check_views."""
    check_views(settings, backbone)
    return SimCLR(settings, backbone)


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return the normalised, temperature-scaled cross-entropy of projections (B, D) of two views (Eq. 1), a mean.

    Of each of the 2 B projections the other view's is to be distinguished from the 2 B - 2 of other images, by cosine.
    """
    batch = len(one)
    projections = F.normalize(torch.cat([one, other]).float(), dim=1)
    logits = projections @ projections.T / temperature
    logits = logits.masked_fill(torch.eye(2 * batch, dtype=torch.bool, device=logits.device), -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * batch, device=logits.device).roll(batch))
