"""What timm builds from an export's config takes all weights and gives our logits."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from mixtune.errors import DataError
from mixtune.exporting.timm_model import check_logits, timm_config, timm_weights

SMALL = {"model.embed_dim": 24, "model.depth": 2, "model.num_heads": 2}


MODELS = {
    "class token": {},
    "average": {"model.pool": "avg"},
    "one pixel a patch": {"model.patch_size": 1, "model.pool": "avg"},
    "imagenet statistics": {"data.statistics": "imagenet"},
    "statistics of the weights": {"data.statistics": "weights", "model.pretrained": "<weights>"},
    "registers alongside a class token": {"model.name": "vit_small_patch14_reg4_dinov2"},
    "registers alongside a class token, average": {"model.name": "vit_small_patch14_reg4_dinov2", "model.pool": "avg"},
    "registers alone": {"model.name": "vit_little_patch16_reg4_gap_256", "model.pool": "avg"},
    "norm before the blocks": {"model.name": "vit_base_patch16_clip_224"},
    "norm after the pooling": {"model.name": "vit_base_patch16_rpn_224", "model.pool": "avg"},
    "colours": {"photos": True, "model.patch_size": 4},
    "colours, average": {"photos": True, "data.image_size": 20, "model.patch_size": 10, "model.pool": "avg"},
    "the model's own sizes": {"model.embed_dim": None, "model.num_heads": None},
}


@pytest.fixture(params=MODELS.values(), ids=list(MODELS))
def state(request, make_state, photos, tmp_path):
    """A state whose every weight has a random part."""
    given = dict(request.param)
    if "model.pretrained" in given:
        given["model.pretrained"] = str(tmp_path / "weights.pth")
        torch.save(make_state(SMALL).backbone.vit.state_dict(), given["model.pretrained"])
    state = make_state({**SMALL, **(photos if given.pop("photos", False) else {}), **given})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (state.backbone, state.classifiers):
            for weight in part.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
            part.eval()
    return state


def test_timms_model_takes_the_weights_and_gives_the_same_logits(state, tmp_path):
    (task,), (classifier,) = state.data.tasks, state.classifiers
    config = timm_config(state.recipe.model, state.backbone, task)
    weights = timm_weights(state.backbone, classifier)
    check_logits(config, weights, state.backbone, classifier, task)
    images = task.held_out.plain(task.held_out.indices)
    with torch.no_grad():
        expected = classifier(state.backbone(images))
    assert expected.std() > 0.1

    built = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    assert list(weights) == list(built.state_dict())
    built.load_state_dict(weights, strict=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors")
    found = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with torch.no_grad():
        torch.testing.assert_close(built.eval()(images), expected, rtol=0, atol=0)
        torch.testing.assert_close(found.eval()(images), expected, rtol=0, atol=0)
    told = timm.data.resolve_model_data_config(found)
    assert told["input_size"] == (state.data.channels, state.data.image_size, state.data.image_size)
    assert torch.equal(torch.tensor(told["mean"]), task.held_out.mean.flatten())
    assert state.recipe.data.statistics != "weights" or told["mean"] == told["std"] == [0.5]
    assert torch.equal(torch.tensor(told["std"]), task.held_out.std.flatten())
    assert list(found.pretrained_cfg["label_names"]) == list(task.classes)


def test_weights_that_do_not_fit_and_other_logits_are_told(make_state):
    state = make_state()
    (task,), (classifier,) = state.data.tasks, state.classifiers
    config = timm_config(state.recipe.model, state.backbone, task)
    weights = timm_weights(state.backbone, classifier)
    other = {**weights, "norm.weight": weights["norm.weight"] + 1}
    with pytest.raises(DataError, match="timm's vit_tiny_patch16_224 gives other logits"):
        check_logits(config, other, state.backbone, classifier, task)
    del other["head.bias"]
    with pytest.raises(DataError, match="does not take the trained weights"):
        check_logits(config, other, state.backbone, classifier, task)
