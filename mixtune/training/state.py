"""A trial's state between epochs: models, optimizer, and what each epoch measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixtune import plugins
from mixtune.backbone import Backbone, build_backbone
from mixtune.objectives import Objective
from mixtune.recipe import Recipe
from mixtune.training.data import TrainingData
from mixtune.training.flops import phase_flops
from mixtune.training.optimizer import build_optimizer
from mixtune.training.plan import Phase, make_plan
from mixtune.training.streams import Stream, stream_seed


class Classifier(nn.Module):
    """A linear classifier on the class token, or on the mean of the patch tokens."""

    def __init__(self, backbone: Backbone, classes: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.prefix = backbone.prefix
        self.head = nn.Linear(backbone.embed_dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, prefix + L, D) to logits (B, classes)."""
        pooled = tokens[:, 0] if self.pool == "token" else tokens[:, self.prefix :].mean(dim=1)
        return self.head(pooled)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class EpochResult:
    """What one epoch measured.

    epoch: how many epochs have been trained, this one included; losses are means over the epoch's steps, None
    where the phase has no such loss; val_accuracy: top-1, None in the SSL phase, where no classifier learns;
    seconds: the training steps alone, without validation.
    """

    epoch: int
    phase: Phase
    ssl_loss: float | None
    sl_loss: float | None
    val_accuracy: float | None
    seconds: float


@dataclass
class TrainState:
    """A recipe in training. ``history`` has an entry for each epoch trained, also those of an earlier process."""

    recipe: Recipe
    data: TrainingData
    device: torch.device
    backbone: Backbone
    objective: Objective
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    history: list[EpochResult] = field(default_factory=list)

    @property
    def autocast_dtype(self) -> torch.dtype:
        """The dtype of matrix products; weights and optimizer are float32 always."""
        precision = self.recipe.precision
        if precision == "auto":
            fast_bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bfloat16" if fast_bf16 else "float32"
        return torch.bfloat16 if precision == "bfloat16" else torch.float32

    def flops(self) -> float:
        """Return the training operations of the whole recipe, trained or not."""
        per_image = phase_flops(self.backbone, self.objective, len(self.data.classes))
        images = self.data.steps * self.data.batch_size
        return sum(per_image[epoch.phase] * images for epoch in make_plan(self.recipe))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values that load_state_dict() goes on from, bit for bit on CPU."""
        return {
            "backbone": self.backbone.state_dict(),
            "objective": self.objective.state_dict(),
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [asdict(result) for result in self.history],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over a state that state_dict() gave for the same recipe up to its epoch."""
        self.backbone.load_state_dict(saved["backbone"])
        self.objective.load_state_dict(saved["objective"])
        self.classifier.load_state_dict(saved["classifier"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.history = [EpochResult(**result) for result in saved["history"]]


def start_state(recipe: Recipe, data: TrainingData, device: torch.device | str = "cpu") -> TrainState:
    """Build a recipe's models with weights from its seed. Raises RequestError where they cannot be built."""
    device = torch.device(device)
    with _seeded(recipe, "init.backbone"):
        backbone = build_backbone(recipe.model, data.image_size, data.channels)
    with _seeded(recipe, "init.objective"):
        objective: Objective = plugins.find("objectives", recipe.ssl.objective, "ssl.objective").build(
            recipe.ssl, backbone
        )
    with _seeded(recipe, "init.classifier"):
        classifier = Classifier(backbone, len(data.classes), recipe.model.pool)
    parts = {"backbone": backbone, "objective": objective, "classifier": classifier}
    for part in parts.values():
        part.to(device)
    optimizer = build_optimizer(parts, kept_whole={*backbone.vit.no_weight_decay(), "mask_token"})
    return TrainState(recipe, data, device, backbone, objective, classifier, optimizer)


@contextmanager
def _seeded(recipe: Recipe, stream: Stream) -> Iterator[None]:
    """Let torch's global generator stand at a stream's start: timm draws its weights from it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(recipe.seed, stream))
        yield
