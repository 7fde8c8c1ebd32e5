"""`mixtune list` names what there is, and says of each what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtune import plugins
from mixtune.catalog import KINDS, list_kind
from mixtune.errors import RequestError
from mixtune.metrics import METRICS

ROOT = Path(__file__).parents[1]


def test_every_member_is_listed_and_explained() -> None:
    found = {kind: dict(list_kind(kind)) for kind in KINDS}
    assert all(about and "\n" not in about for rows in found.values() for about in rows.values())
    for kind in ("samplers", "schedulers", "loggers"):
        assert list(found[kind]) == plugins.names(f"tuning.{kind}")
    assert list(found["objectives"]) == plugins.names("objectives")
    assert set(plugins.names("datasets")) - set(found["datasets"]) == {"torchvision_sets"}
    assert "CIFAR10, " in found["datasets"]["a torchvision name"]
    assert list(found["metrics"]) == list(METRICS)
    assert found["metrics"]["train_flops"].endswith("a goal: min")
    spaces = [path.stem for path in sorted((ROOT / "search_spaces").glob("*.yaml"))]
    assert list(found["spaces"]) == spaces
    digits = "How much accuracy for how much training time, on scikit-learn's 1,797 handwritten digits?"
    assert found["spaces"]["digits"] == digits


def test_an_unknown_kind_names_the_closest() -> None:
    with pytest.raises(RequestError, match=r"^unknown kind 'sampler': known are .*; did you mean 'samplers'\?$"):
        list_kind("sampler")
