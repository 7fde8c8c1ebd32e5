"""What every test shares: real digits, a model that trains in a second, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images out of the user's cache, in this process and in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTUNE_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _small_space() -> dict[str, Any]:
    return {
        "recipe": {
            "data": {"dataset": "digits", "fraction": 0.2},
            "model": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
            "epochs": {"ssl": 2, "sl": 3},
            "optim": {"batch_size": 32, "ssl": {"base_lr": 0.02}, "sl": {"base_lr": 0.04}},
        },
        "space": {
            "alpha": {"uniform": [0.05, 0.95]},
            "rho": {"quniform": [0.0, 1.0, 0.25]},
            "epochs.sl": {"randint": [1, 5]},
        },
        "search": {"trials": 6},
    }


@pytest.fixture
def small_space() -> Callable[..., dict[str, Any]]:
    """Return a function that gives a space's values on digits, sections replaced by name; a trial takes a second."""
    return lambda **sections: _small_space() | sections


@pytest.fixture(scope="session")
def small_space_values() -> dict[str, Any]:
    """The same values for fixtures that outlive a test."""
    return _small_space()
