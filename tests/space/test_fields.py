"""What `mixtune fields` says is what the sections say, of every field."""

from __future__ import annotations

import pytest

from mixtune.errors import RequestError
from mixtune.space.fields import find_fields
from mixtune.space.objectives import SETTINGS
from mixtune.space.recipe import flatten, parse_recipe


def test_every_field_of_every_objective_is_explained() -> None:
    told = {(field.path, objective) for field in find_fields() for objective in field.objectives or SETTINGS}
    for objective in SETTINGS:
        recipe = parse_recipe({"data": {"dataset": "digits"}, "ssl": {"objective": objective}})
        assert {(path, objective) for path in flatten(recipe.to_dict())} <= told
    for field in find_fields():
        assert field.about.endswith("."), field.path
        assert field.values and field.default and field.sources, field.path  # noqa: PT018


def test_a_field_has_its_meaning_values_default_and_source() -> None:
    (rho,) = find_fields("rho")
    assert (rho.values, rho.default) == ("number from 0 to 1", "0.5")
    assert "(Eq. 1)" in rho.about
    (rate,) = find_fields("optim.ssl.base_lr")  # its text is the base's, its default its own
    assert (rate.values, rate.default) == ("number above 0", "0.00015")
    assert "base_lr * batch_size / 256" in rate.about
    assert rate.sources == (
        "mixtune.space.recipe.SslSchedule: The paper's values for SSL on CIFAR-10, CIFAR-100 and SVHN.",
    )
    (mask,) = find_fields("ssl.mask_ratio")
    assert (mask.values, mask.objectives) == ("number above 0 below 1", ("mae",))
    (temperature,) = find_fields("ssl.temperature")  # of two objectives, with the same words
    assert (temperature.objectives, len(temperature.sources)) == (("simclr", "mocov3"), 2)
    assert [field.objectives for field in find_fields("ssl.momentum")] == [("mocov3",), ("dino",)]
    assert find_fields("lambda")[0].default == "0.5"
    assert find_fields("data.dataset")[0].default == "none: it has to be given"
    assert find_fields("data.root")[0].values == "text or list of (text or null) or null"
    assert find_fields("augment.crop_scale")[0].values == "[number above 0 to 1, number above 0 to 1] or null"
    assert find_fields("optim.mix_schedule")[0].values == "sl or ssl or blend"


def test_a_section_is_its_fields_and_an_unknown_path_names_the_closest() -> None:
    assert [field.path for field in find_fields("epochs")] == ["epochs.ssl", "epochs.sl"]
    assert len({field.path for field in find_fields("ssl.compression")}) == 6
    assert {"search.trials", "resources.device"} <= {field.path for field in find_fields()}
    for path, meant in (("epochs.sll", "epochs.sl"), ("optm", "optim"), ("search.trails", "search.trials")):
        with pytest.raises(RequestError) as caught:
            find_fields(path)
        assert str(caught.value) == f"{path}: no field of a recipe; did you mean {meant!r}?"
