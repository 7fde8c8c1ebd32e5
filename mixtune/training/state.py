"""A trial's state between epochs: models, optimizer, and what each epoch measured."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixtune import plugins
from mixtune.backbone import Backbone, build_backbone
from mixtune.meter.times import StepTimes
from mixtune.objectives import Objective
from mixtune.space.recipe import Recipe
from mixtune.space.views import Strategy
from mixtune.training.bill import Bill, cost_factors, cost_signature, data_shape, phase_flops
from mixtune.training.data import TaskData, TrainingData
from mixtune.training.device import autocast, choose_dtype, describe_device
from mixtune.training.optimizer import build_optimizer
from mixtune.training.plan import PHASES, Epoch, Phase, Work, make_plan
from mixtune.training.scores import Scores, standard_error
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
        return self.head(self.pooled(tokens))  # type: ignore[no-any-return]

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return what the classifier reads of tokens (B, prefix + L, D): (B, D)."""
        return tokens[:, 0] if self.pool == "token" else tokens[:, self.prefix :].mean(dim=1)


@dataclass(frozen=True)
class EpochResult:
    """What one epoch measured.

    epoch: how many epochs have been trained, this one included; losses are means over the epoch's steps and its
    tasks, None where the phase has no such loss; scores: each task's on its held-out images, None in the SSL phase,
    where no classifier learns, and for test images, until the last epoch; steps: how many it took;
    seconds: the steps by the wall clock, without waiting, held-out images and compilation, slowed by whatever else
    ran on the device; compile_seconds: torch.compile's, where this epoch began with it; validation_seconds: of
    held-out images; waiting_seconds: for others' quiet windows and for quiet ones of its own; peak_memory_mb: what
    PyTorch held at most on the GPU until then, None on a CPU.
    """

    epoch: int
    phase: Phase
    ssl_loss: float | None
    sl_loss: float | None
    scores: tuple[Scores, ...] | None
    steps: int
    seconds: float
    compile_seconds: float
    validation_seconds: float
    waiting_seconds: float
    peak_memory_mb: float | None

    @property
    def accuracies(self) -> tuple[float, ...] | None:
        """Each task's top-1 accuracy, None where there are no scores."""
        return None if self.scores is None else tuple(scores.accuracy for scores in self.scores)


@dataclass
class TrainState:
    """A recipe in training.

    history: an entry for each epoch trained, also those of an earlier process, of which there are ``epochs_reused``;
    step_times: what is known of steps' seconds; it grows while training measures what it lacks; checkpoint_seconds:
    what storing this state has taken, where someone stores it; predictions: the class that each task's classifier gave
    its held-out images, (images,), when they were last judged, on the CPU; None before; representation: by how many
    epochs were trained, what measure_representation() found then.
    """

    recipe: Recipe
    data: TrainingData
    device: torch.device
    backbone: Backbone
    objective: Objective
    classifiers: nn.ModuleList
    optimizer: torch.optim.Optimizer
    history: list[EpochResult] = field(default_factory=list)
    compiled: set[Work] = field(default_factory=set)
    step_times: StepTimes = field(default_factory=StepTimes)
    epochs_reused: int = 0
    checkpoint_seconds: float = 0.0
    predictions: tuple[Tensor, ...] | None = None
    representation: dict[int, dict[str, tuple[float, ...]]] = field(default_factory=dict)

    @property
    def autocast_dtype(self) -> torch.dtype:
        """The dtype of matrix products; weights and optimizer are float32 always."""
        return choose_dtype(self.recipe.precision, self.device)

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return autocast(self.recipe.precision, self.device)

    @functools.cached_property
    def plan(self) -> tuple[Epoch, ...]:
        """The recipe's epochs, trained or not."""
        return make_plan(self.recipe)

    @functools.cached_property
    def class_weights(self) -> tuple[Tensor | None, ...]:
        """Each task's weight of each class in the loss, (C,) on the device; None for none."""
        if self.recipe.optim.class_weights == "none":
            return (None,) * len(self.data.tasks)
        return tuple(map(balanced_weights, self.data.tasks))

    @functools.cached_property
    def bill(self) -> Bill:
        """What each epoch costs, on this device with as many threads as this process has when first asked."""
        works = {epoch.work: epoch for epoch in self.plan}
        costs = {work: (work[0], self.signature(*work), self.step_flops(epoch)) for work, epoch in works.items()}
        steps = {phase: self.data.steps_of(phase) for phase in PHASES}
        return Bill(steps, tuple(costs[epoch.work] for epoch in self.plan), self.signature("infer"))

    def step_flops(self, epoch: Epoch) -> float:
        """Return the training FLOPs of one step of an epoch."""
        classes = [len(task.classes) for task in self.data.tasks]
        per_image = phase_flops(self.backbone, self.objective, classes, epoch.strategy)[epoch.phase]
        return per_image * self.data.batch_size * len(classes)

    def factors(self, phase: Phase | Literal["infer"], strategy: Strategy | None = None) -> dict[str, Any]:
        """Return what the cost of a phase's step, or of inference, depends on, here and now."""
        device, precision = describe_device(self.device), str(self.autocast_dtype).removeprefix("torch.")
        shape = data_shape(self.data)
        return cost_factors(self.recipe, phase, device, torch.get_num_threads(), precision, shape, strategy)

    def signature(self, phase: Phase | Literal["infer"], strategy: Strategy | None = None) -> str:
        """Return the cost signature of a phase's steps, or of inference, here and now."""
        return cost_signature(self.factors(phase, strategy))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values that load_state_dict() continues from, bit for bit on CPU."""
        return {
            "backbone": self.backbone.state_dict(),
            "objective": self.objective.state_dict() if self.recipe.epochs.ssl else None,
            "classifiers": self.classifiers.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [asdict(result) for result in self.history],
            "predictions": None if self.predictions is None else list(self.predictions),
            **({"representation": self.representation} if self.representation else {}),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over a state that state_dict() gave for the same recipe up to its epoch."""
        self.backbone.load_state_dict(saved["backbone"])
        if self.recipe.epochs.ssl:
            self.objective.load_state_dict(saved["objective"])
        self.classifiers.load_state_dict(saved["classifiers"])
        self.optimizer.load_state_dict(saved["optimizer"])
        predictions = saved.get("predictions")  # of before there were any: None
        self.predictions = None if predictions is None else tuple(predictions)
        self.representation = dict(saved.get("representation", {}))
        images = [len(task.held_out) for task in self.data.tasks]
        self.history = [read_result(result, images) for result in saved["history"]]
        self.epochs_reused = len(self.history)


def read_result(saved: dict[str, Any], images: Sequence[int]) -> EpochResult:
    """Return a stored epoch; an older state has nothing but accuracies, of so many images a task."""
    scores = saved.get("scores")
    if saved.get("accuracies") is not None:
        counted = zip(saved["accuracies"], images, strict=True)
        scores = [{"accuracy": accuracy, "accuracy_se": standard_error(accuracy, n)} for accuracy, n in counted]
    others = {name: value for name, value in saved.items() if name not in ("scores", "accuracies")}
    return EpochResult(**others, scores=None if scores is None else tuple(Scores(**each) for each in scores))


def start_state(recipe: Recipe, data: TrainingData, device: torch.device | str = "cpu") -> TrainState:
    """Build a recipe's models with weights from its seed. Raises RequestError where they cannot be built."""
    device = torch.device(device)
    classes = [len(task.classes) for task in data.tasks]
    backbone, objective, classifiers = build_parts(recipe, data.image_size, data.channels, classes)
    parts = {"backbone": backbone, "objective": objective, "classifiers": classifiers}
    for part in parts.values():
        part.to(device)
    if not recipe.epochs.ssl:  # its weights are never trained, so that recipes of any objective share their states
        del parts["objective"]
    optimizer = build_optimizer(parts, kept_whole={*backbone.vit.no_weight_decay(), "mask_token"})
    return TrainState(recipe, data, device, backbone, objective, classifiers, optimizer)


def build_parts(
    recipe: Recipe, image_size: int, channels: int, classes: Sequence[int]
) -> tuple[Backbone, Objective, nn.ModuleList]:
    """Return backbone, objective and a classifier for each task's number of classes, with weights from the seed.

    Raises RequestError where they cannot be built.
    """
    with _seeded(recipe, "init.backbone"):
        backbone = build_backbone(recipe.model, image_size, channels)
    with _seeded(recipe, "init.objective"):
        objective: Objective = plugins.find("objectives", recipe.ssl.objective, "ssl.objective").build(
            recipe.ssl, backbone
        )
    with _seeded(recipe, "init.classifier"):
        classifiers = nn.ModuleList(Classifier(backbone, count, recipe.model.pool) for count in classes)
    return backbone, objective, classifiers


def balanced_weights(task: TaskData) -> Tensor:
    """Return N / (C * n_c) for each class, float32 (C,), of a task's N training images, n_c in class c.

    The definition is scikit-learn's ``class_weight="balanced"``; a class without a training image has weight 0.
    """
    assert task.train.labels is not None
    images = torch.bincount(task.train.labels[task.train.indices], minlength=len(task.classes)).float()
    return (len(task.train) / (len(images) * images)).where(images > 0, 0.0)


@contextmanager
def _seeded(recipe: Recipe, stream: Stream) -> Iterator[None]:
    """Let torch's global generator stand at a stream's start: timm draws its weights from it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(recipe.seed, stream))
        yield
