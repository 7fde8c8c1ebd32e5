"""A trained recipe in timm's own form: what ``timm.create_model`` builds, and the weights that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mixtune.backbone import Backbone
from mixtune.datasets import Reading
from mixtune.errors import DataError
from mixtune.space.recipe import Model
from mixtune.training.data import TaskData

CHECKED_IMAGES = 16
TOLERANCE = 1e-4  # of a logit: timm's operations are ours, but a GPU may choose other kernels


def timm_config(settings: Model, backbone: Backbone, task: TaskData) -> dict[str, Any]:
    """Return ``config.json`` for a task's classifier: what timm reads from a local folder, or from the hub.

    ``model_args`` are what ``timm.create_model(architecture, num_classes=..., **model_args)`` needs. The norm stands
    before the pooling (see Backbone), as by ``fc_norm: false``.
    """
    size = task.train.images.shape[-1]
    sizes = settings.model_dump(include={"embed_dim", "depth", "num_heads"}, exclude_none=True)
    return {
        "architecture": settings.name,
        "num_classes": len(task.classes),
        "num_features": backbone.embed_dim,
        "global_pool": settings.pool,
        "label_names": list(task.classes),
        "reading": reading_config(task.reading),
        "model_args": {
            "img_size": size,
            "patch_size": backbone.patch_size,
            "in_chans": backbone.channels,
            **sizes,
            "global_pool": settings.pool,
            "fc_norm": False,
        },
        "pretrained_cfg": {
            "input_size": [backbone.channels, size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": {"crop": "center", "pad": "border", "stretch": "squash"}[task.reading.fit],
            "mean": task.train.mean.flatten().tolist(),
            "std": task.train.std.flatten().tolist(),
            "num_classes": len(task.classes),
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def reading_config(reading: Reading) -> dict[str, Any]:
    """Return how images were read, as classify.py reads them; reduce: whether JPEGs are decoded below their size."""
    shown = reading.range if isinstance(reading.range, str) else list(reading.range)
    return {"fit": reading.fit, "background": reading.background, "range": shown, "reduce": reading.rules > 1}


def timm_weights(backbone: Backbone, classifier: nn.Module) -> dict[str, Tensor]:
    """Return the weights by timm's names, the classifier's as those of ``head``: copies, float32, on the CPU."""
    named = {**backbone.vit.state_dict(), **classifier.state_dict()}
    return {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in named.items()}


@torch.no_grad()
def check_logits(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], backbone: Backbone, classifier: nn.Module, task: TaskData
) -> None:
    """Raise DataError unless timm's model takes the weights, all of them, and gives the same logits on a few images."""
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise DataError(f"timm's {config['architecture']} does not take the trained weights: {error}") from error
    images = task.train.plain(task.train.indices[:CHECKED_IMAGES])
    backbone.eval()
    ours = classifier(backbone.forward(images))
    theirs = model.to(images.device).eval()(images)
    if not torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE):
        most = (ours - theirs).abs().max().item()
        raise DataError(f"timm's {config['architecture']} gives other logits with the trained weights, by up to {most}")
