"""MoCo-v3 (Chen, Xie and He 2021): a query finds the key that a momentum encoder makes of another view.

Departures from the published method, which are ours: the loss is one way, as in Lin et al. (2024), unless
``ssl.symmetric``; the patch projection is trained, unless ``ssl.frozen_patches``; the momentum is constant, where it
rises from 0.99 to 1; the heads are narrower (512 and 128, for 4096 and 256 there); both views are changed alike,
without blur and solarization; positions are the backbone's own, where they are fixed sines.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mixtune.backbone import Backbone
from mixtune.objectives import TRAINED
from mixtune.objectives._invariance import InvarianceObjective, Pass, check_views, encode, follow, mlp, mlp_flops, pool
from mixtune.space.objectives import Mocov3Settings as Settings
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy


class MoCoV3(InvarianceObjective):
    """A projection and a prediction head, and a momentum copy of backbone and projection."""

    def __init__(self, settings: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.temperature, self.momentum = settings.temperature, settings.momentum
        width, hidden, outputs = backbone.embed_dim, settings.hidden_dim, settings.output_dim
        self.head = mlp([width, hidden, hidden, outputs])
        self.predictor = mlp([outputs, hidden, outputs])
        self.key_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)

    def forward(
        self, backbone: Backbone, images: Tensor, generator: Generator, joint: bool, strategy: Strategy | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Encode each query, and its key by the momentum encoder, and compare; see :class:`Objective`."""
        passes = self.passes(joint, strategy or UNCOMPRESSED)
        ways, views, branches = len(passes) // 2, images.chunk(2), [each.branch for each in passes]
        asking = zip(views[:ways], branches[:ways], strict=True)
        tokens = [encode(backbone, *pair, generator) for pair in asking]
        queries = [self.predictor(self.head(pool(backbone, each))) for each in tokens]
        with torch.no_grad():
            asked = zip(views[::-1][:ways], branches[ways:], strict=True)
            encoded = [encode(self.key_backbone, *pair, generator) for pair in asked]
            keys = [self.key_head(pool(backbone, each)) for each in encoded]
        losses = [contrast(*pair, self.temperature) for pair in zip(queries, keys, strict=True)]
        return sum(losses[1:], losses[0]), tokens[0] if joint else None

    def after_step(self, backbone: Backbone) -> None:
        """Let the momentum encoder follow."""
        follow(self.key_backbone, backbone, self.momentum)
        follow(self.key_head, self.head, self.momentum)

    def frozen(self, backbone: Backbone, ssl_epoch: int) -> Iterable[nn.Parameter]:
        """Return the patch projection with ``frozen_patches``."""
        return backbone.vit.patch_embed.proj.parameters() if self.settings.frozen_patches else ()

    def passes(self, joint: bool, strategy: Strategy) -> list[Pass]:
        """Return the queries' passes, the first whole in the mix phase, and as many keys'."""
        queries = [Pass(Shortening() if joint else strategy.query, True), Pass(strategy.query, True)]
        ways = 2 if self.settings.symmetric else 1
        return [*queries[:ways], *[Pass(strategy.key, False)] * ways]

    def head_flops(self) -> float:
        """See :class:`InvarianceObjective`."""
        one_way = TRAINED * (mlp_flops(self.head) + mlp_flops(self.predictor)) + mlp_flops(self.key_head)
        return one_way * (2 if self.settings.symmetric else 1)


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
