"""DINO (Caron et al. 2021): a student says of one view what a momentum teacher says of the other.

Departures from the published method, which are ours: two views, no smaller crops; the teacher's temperature, its
momentum and the weight decay are constant, where they change over the budget; the prototypes are trained from the first
epoch on, unless ``ssl.frozen_epochs`` is 1; the head is smaller (512, 128 and 1,024 prototypes, for 2048, 256 and
65,536); gradients are not clipped; the views have no blur and no solarization, and the backbone drops no paths.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mixtune.backbone import Backbone
from mixtune.objectives import TRAINED
from mixtune.objectives._invariance import InvarianceObjective, Pass, check_views, encode, follow, mlp_flops, pool
from mixtune.space.objectives import DinoSettings as Settings
from mixtune.space.views import UNCOMPRESSED, Shortening, Strategy


class Head(nn.Module):
    """Three layers with GELU to a bottleneck, and cosines to prototypes of length 1."""

    def __init__(self, width: int, settings: Settings) -> None:
        super().__init__()
        hidden, bottleneck = settings.hidden_dim, settings.bottleneck_dim
        layers = [nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, bottleneck)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.prototypes = nn.Linear(bottleneck, settings.prototypes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to scores (B, prototypes)."""
        return F.linear(F.normalize(self.mlp(features), dim=1), F.normalize(self.prototypes.weight, dim=1))


class DINO(InvarianceObjective):
    """A head, a momentum copy of backbone and head, and the center of what the teacher says."""

    def __init__(self, settings: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.head = Head(backbone.embed_dim, settings)
        self.teacher_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.center: Tensor
        self.latest_mean: Tensor
        self.register_buffer("center", torch.zeros(settings.prototypes))
        self.register_buffer("latest_mean", torch.zeros(settings.prototypes), persistent=False)

    def forward(
        self, backbone: Backbone, images: Tensor, generator: Generator, joint: bool, strategy: Strategy | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compare what the student says of each view with what the teacher says of the other; see :class:`Objective`.

        What the teacher says is kept, as a mean, for :meth:`after_step`.
        """
        settings, views = self.settings, images.chunk(2)
        passes = self.passes(joint, strategy or UNCOMPRESSED)
        tokens = [encode(backbone, view, each.branch, generator) for view, each in zip(views, passes[:2], strict=True)]
        student = [self.head(pool(backbone, each)) for each in tokens]
        with torch.no_grad():
            teacher = [
                self.teacher_head(pool(backbone, encode(self.teacher_backbone, view, each.branch, generator))).float()
                for view, each in zip(views, passes[2:], strict=True)
            ]
            self.latest_mean = torch.cat(teacher).mean(dim=0)
        temperatures = settings.student_temperature, settings.teacher_temperature
        losses = [
            distil(said, taught, self.center, *temperatures)
            for said, taught in zip(student, reversed(teacher), strict=True)
        ]
        return torch.stack(losses).mean(), tokens[0] if joint else None

    @torch.no_grad()
    def after_step(self, backbone: Backbone) -> None:
        """Let the teacher and its center follow."""
        follow(self.teacher_backbone, backbone, self.settings.momentum)
        follow(self.teacher_head, self.head, self.settings.momentum)
        self.center.lerp_(self.latest_mean, 1.0 - self.settings.center_momentum)

    def frozen(self, backbone: Backbone, ssl_epoch: int) -> Iterable[nn.Parameter]:
        """Return the prototypes in the first ``frozen_epochs`` epochs."""
        return self.head.prototypes.parameters() if ssl_epoch < self.settings.frozen_epochs else ()

    def passes(self, joint: bool, strategy: Strategy) -> list[Pass]:
        """Return the student's passes of both views, the first whole in the mix phase, and the teacher's."""
        first = Shortening() if joint else strategy.query
        return [Pass(first, True), Pass(strategy.query, True), Pass(strategy.key, False), Pass(strategy.key, False)]

    def head_flops(self) -> float:
        """See :class:`InvarianceObjective`."""
        return 2 * (TRAINED * mlp_flops(self.head) + mlp_flops(self.teacher_head))


def build(settings: Settings, backbone: Backbone) -> DINO:
    """Return the objective with fresh weights from torch's global generator. Raises RequestError, see check_views."""
    check_views(settings, backbone)
    return DINO(settings, backbone)


def distil(
    student: Tensor, teacher: Tensor, center: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Return the cross-entropy H(teacher, student) of scores (B, K), a mean over the batch (Eq. 2, Algorithm 1).

    center (K,) is taken from the teacher's scores, so that no prototype serves all images; low temperature sharpens
    them, so that not all serve each.
    """
    taught = F.softmax((teacher.float() - center) / teacher_temperature, dim=1)
    return -(taught * F.log_softmax(student.float() / student_temperature, dim=1)).sum(dim=1).mean()
