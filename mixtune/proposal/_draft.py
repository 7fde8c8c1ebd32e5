"""What a proposed space says: lines of YAML that follow from the data, a model and a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

import yaml

from mixtune.datasets import UNEVEN, Survey
from mixtune.space.recipe import BASELINES
from mixtune.tuning.prepare import Prepared, prepare

# of AdamW, for both losses. One seed: on 10 % of CIFAR-10 the best of 0.0007, 0.0015 and 0.003 (46.6, 51.0, 49.4 %),
# on digits 94.8 %, where 0.003 has 96.2 %
PEAK_RATE = 0.0015
SHIFTED_FROM = 16  # pixels: what fills smaller images, a digit say, has no room to be shifted in


@dataclass(frozen=True)
class Shape:
    """A backbone to propose: its size, the tokens that it may see, and how many training images it wants."""

    width: int
    depth: int
    heads: int
    tokens: int
    images: int

    def patch_size(self, image_size: int) -> int | None:
        """Return the smallest patch of 2 pixels or more that gives at most ``tokens``; None where it gives below 16."""
        fitting = (p for p in range(2, image_size + 1) if image_size % p == 0 and (image_size // p) ** 2 <= self.tokens)
        patch = next(fitting, None)
        return patch if patch is not None and (image_size // patch) ** 2 >= 16 else None


@dataclass(frozen=True)
class Draft:
    """A choice: a model, the base recipe's supervised epochs (a multiple of 4), trials, a share of the images.

    cpus: of each trial; ssl_cost: of an SSL epoch, in supervised ones.
    """

    survey: Survey
    shape: Shape
    cpus: int
    epochs: int
    trials: int
    fraction: float = 1.0
    ssl_cost: float = 1.0

    @property
    def image_size(self) -> int:
        """The images' size in pixels, or one close to it that patches divide."""
        size = self.survey.image_size
        return size if self.shape.patch_size(size) else max(8, 8 * round(size / 8))

    @property
    def patch_size(self) -> int:
        """Pixels of a patch's side."""
        patch = self.shape.patch_size(self.image_size)
        assert patch is not None, "a multiple of 8 can be cut into 8 by 8 patches, or 4 by 4 ones"
        return patch

    @property
    def tokens(self) -> int:
        """How many patches an image is cut into."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def resizes(self) -> bool:
        """Whether images are not taken as they are."""
        own = (self.image_size, self.image_size)
        return self.survey.smallest != own or self.survey.largest != own

    @property
    def val_fraction(self) -> float:
        """A fifth where images are few; where they are many, less is enough to compare recipes by; 0 of own ones."""
        images = self.survey.train_images
        if self.survey.val_images:
            return 0.0
        if images <= 10_000 or min(self.survey.counts.values()) < 100:
            return 0.2
        return 0.1 if images <= 25_000 else 0.05

    @property
    def val_images(self) -> int:
        """How many images recipes are compared by."""
        return self.survey.val_images or round(self.val_fraction * self.survey.train_images)

    @property
    def epoch_images(self) -> int:
        """How many images an epoch trains on."""
        return int(self.fraction * (1 - self.val_fraction) * self.survey.train_images)

    @property
    def batch_size(self) -> int:
        """Small where images are few, so that an epoch has steps enough."""
        sizes = {2_000: 32, 10_000: 64, 40_000: 128}
        wanted = next((size for bound, size in sizes.items() if self.epoch_images < bound), 256)
        return min(self.epoch_images, wanted)

    @property
    def flips(self) -> bool:
        """Whether training images are mirrored: not where that changes what they mean."""
        return self.survey.mirror and not self.survey.misled

    @property
    def accuracy(self) -> str:
        """The objective: one in which a rare class counts as much as a frequent one, where there are such."""
        return "val_balanced_accuracy" if self.survey.imbalance > UNEVEN else "val_accuracy"

    def lines(self) -> dict[str, str]:
        """Return the space's lines of YAML, each under a name for its comment."""
        survey, shape, quarter = self.survey, self.shape, self.epochs // 4
        most_sl = (6 + math.ceil(3 * self.ssl_cost)) * quarter  # what the longest recipe with SSL takes
        model = f"patch_size: {self.patch_size}, embed_dim: {shape.width}, depth: {shape.depth}"
        pad = "pad: 0, " if self.image_size < SHIFTED_FROM else ""
        rate, warmup = PEAK_RATE * 256 / self.batch_size, max(1, self.epochs // 20)
        schedule = f"{{base_lr: {rate:.3g}, schedule: wsd, warmup_epochs: {warmup}}}"
        lines = {
            "recipe": "recipe:",
            "data": "  data:",
            "dataset": f"    dataset: {survey.name}",
            "root": f"    root: {_scalar(survey.root)}" if survey.root else "",
            "image_size": f"    image_size: {self.image_size}" if self.resizes else "",
            "val_fraction": f"    val_fraction: {self.val_fraction:g}" if self.val_fraction else "",
            "on_bad_file": "    on_bad_file: skip" if survey.dataset.account.bad else "",
            "fraction": f"    fraction: {self.fraction:g}" if self.fraction < 1 else "",
            "model": f"  model: {{{model}, num_heads: {shape.heads}, pool: avg}}",
            "epochs": f"  epochs: {{ssl: {2 * quarter}, sl: {self.epochs}}}",
            "augment": f"  augment: {{{pad}flip: {0.5 if self.flips else 0.0}}}",
            "optim": "  optim:",
            "batch_size": f"    batch_size: {self.batch_size}",
            "class_weights": "    class_weights: balanced" if survey.imbalance > UNEVEN else "",
            "ssl": f"    ssl: {schedule}",
            "sl": f"    sl: {schedule}",
            "space": "space:",
            "alpha": "  alpha: {quniform: [0.1, 0.9, 0.1]}",
            "rho": "  rho: {quniform: [0.0, 1.0, 0.25]}",
            "epochs.ssl": f"  epochs.ssl: {{qrandint: [0, {3 * quarter}, {quarter}]}}",
            "epochs.sl": f"  epochs.sl: {{qrandint: [{2 * quarter}, {most_sl}, {quarter}]}}",
            "objectives": f"objectives: {{{self.accuracy}: max, train_latency_s: min}}",
            "baselines": f"baselines: [{', '.join(BASELINES)}]",
            "search": f"search: {{sampler: cost_aware, trials: {self.trials}, seed: 0}}",
            "resources": f"resources: {{cpus_per_trial: {self.cpus}}}",
        }
        return {name: line for name, line in lines.items() if line}

    def prepare(self) -> Prepared:
        """Return the space, checked against its data and this machine. Raises RequestError."""
        return prepare(yaml.safe_load("\n".join(self.lines().values())))


def _scalar(value: str) -> str:
    """Return text as YAML spells it on one line."""
    return yaml.safe_dump(value, allow_unicode=True, width=math.inf).removesuffix("\n").removesuffix("\n...")
