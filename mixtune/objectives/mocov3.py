"""MoCo-v3 (Chen, Xie and He 2021), one way: a query finds the key that a momentum encoder makes of another view."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mixtune.backbone import Backbone
from mixtune.objectives import TRAINED
from mixtune.objectives._invariance import InvarianceObjective, Pass, check_views, encode, follow, mlp, mlp_flops, pool
from mixtune.space.objectives import Mocov3Settings as Settings
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy


class MoCoV3(InvarianceObjective):
    """A projection and a prediction head, and a momentum copy of backbone and projection."""

    def __init__(self, settings: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.temperature, self.momentum = settings.temperature, settings.momentum
        width, hidden, outputs = backbone.embed_dim, settings.hidden_dim, settings.output_dim
        self.head = mlp([width, hidden, hidden, outputs])
        self.predictor = mlp([outputs, hidden, outputs])
        self.key_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)

    def forward(
        self, backbone: Backbone, images: Tensor, generator: Generator, joint: bool, strategy: Strategy | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Encode the query, and the key by the momentum encoder, and compare; see :class:`Objective`."""
        query_pass, key_pass = self.passes(joint, strategy or UNCOMPRESSED)
        query_view, key_view = images.chunk(2)
        tokens = encode(backbone, query_view, query_pass.branch, generator)
        query = self.predictor(self.head(pool(backbone, tokens)))
        with torch.no_grad():
            key = self.key_head(pool(backbone, encode(self.key_backbone, key_view, key_pass.branch, generator)))
        return contrast(query, key, self.temperature), tokens if joint else None

    def after_step(self, backbone: Backbone) -> None:
        """Let the momentum encoder follow."""
        follow(self.key_backbone, backbone, self.momentum)
        follow(self.key_head, self.head, self.momentum)

    def passes(self, joint: bool, strategy: Strategy) -> list[Pass]:
        """Return the query's pass, whole in the mix phase, and the key's."""
        return [Pass(Shortening() if joint else strategy.query, True), Pass(strategy.key, False)]

    def head_flops(self) -> float:
        """See :class:`InvarianceObjective`."""
        return TRAINED * (mlp_flops(self.head) + mlp_flops(self.predictor)) + mlp_flops(self.key_head)


def build(settings: Settings, backbone: Backbone) -> MoCoV3:
    """Return the objective with fresh weights from torch's global generator. Raises RequestError, see check_views."""
    check_views(settings, backbone)
    return MoCoV3(settings, backbone)


def contrast(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of queries (B, D) against keys (B, D), a mean times 2 * temperature (Algorithm 1).

    A query's key is that of its own image, by cosine; the other images' are to be distinguished from it.
    """
    logits = F.normalize(query.float(), dim=1) @ F.normalize(key.float(), dim=1).T / temperature
    return 2.0 * temperature * F.cross_entropy(logits, torch.arange(len(query), device=logits.device))
