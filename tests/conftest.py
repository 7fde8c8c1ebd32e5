"""What every test shares: real digits, a model that trains in a second, one thread."""

from __future__ import annotations

import getpass
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

from mixtune.run.ledger import Ledger
from mixtune.space.recipe import BASELINES, Recipe, parse_recipe, with_values
from mixtune.training.data import load_training_data
from mixtune.training.state import TrainState, start_state


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Take the options that pyproject.toml gives to pytest-xdist where that is missing or switched off."""
    if not pluginmanager.hasplugin("xdist"):
        parser.addoption("--numprocesses", "--dist")
        parser.addoption("--no-loadscope-reorder", action="store_true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that neither of two processes is left with one at the end."""
    longest = ("test_reliability", "test_clusters", "test_notebooks", "test_search", "test_resume")
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))


@pytest.fixture(autouse=True, scope="session")
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep device locks, decoded images and clusters apart from the user's and other workers', in subprocesses too."""
    shared, own = tempfile.gettempdir(), str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", shared)  # for sockets, whose paths may not be long
        patch.setenv("RAY_ADDRESS", "local")  # a plain ray.init(), as in a notebook, joins no other test's cluster
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{shared}/torchinductor_{getpass.getuser()}")
        patch.setenv("MIXTUNE_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("TMPDIR", own)
        patch.setattr(tempfile, "tempdir", own)
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
            "rho": {"quniform": [0.5, 1.0, 0.25]},
            "epochs.sl": {"randint": [2, 6]},  # an epoch is mixed at least: no draw repeats another
        },
        "baselines": ["sl", "ssl_sl"],
        "search": {"trials": 6},
        "resources": {"cpus_per_trial": 1.5},  # one thread, and on two cores one at a time: fewer processes to start
    }


@pytest.fixture
def small_space() -> Callable[..., dict[str, Any]]:
    """Return a function that gives a space's values on digits, sections replaced by name; a trial takes a second."""
    return lambda **sections: _small_space() | sections


@pytest.fixture(scope="session")
def small_space_values() -> dict[str, Any]:
    """The same values for fixtures that outlive a test."""
    return _small_space()


# 16 tokens of width 16; a tenth of the digits, 129 images, makes 4 steps of 32
SMALL: dict[str, Any] = {
    "data": {"dataset": "digits", "fraction": 0.1},
    "model": {"patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "epochs": {"ssl": 2, "sl": 3},
    "optim": {"batch_size": 32, "ssl": {"base_lr": 0.02}, "sl": {"base_lr": 0.02}},
}


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    """The small recipe, with dotted values put over it."""

    def make(changes: Mapping[str, Any] | None = None) -> Recipe:
        return parse_recipe(with_values(SMALL, changes or {}))

    return make


@pytest.fixture(scope="session")
def make_state(make_recipe: Callable[..., Recipe]) -> Callable[..., TrainState]:
    """The small recipe, with dotted values put over it, ready to train."""

    def make(changes: Mapping[str, Any] | None = None) -> TrainState:
        recipe = make_recipe(changes)
        return start_state(recipe, load_training_data(recipe))

    return make


@pytest.fixture
def write_crops(tmp_path: Path) -> Callable[[int], str]:
    """Write ``count`` different RGB crops of 24 x 30 pixels, without classes, into a folder; return its path."""

    def write(count: int) -> str:
        photo = load_sample_images().images[0]
        folder = tmp_path / f"crops{count}"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            top, left = 30 * (number // 20), 30 * (number % 20)
            Image.fromarray(np.ascontiguousarray(photo[top : top + 24, left : left + 30])).save(
                folder / f"{number:03d}.png"
            )
        return str(folder)

    return write


Metrics = Mapping[str, Any]
MakeRun = Callable[..., Path]
OBJECTIVES = {"val_accuracy": "max", "train_latency_s": "min"}
SPACE = {"alpha": {"uniform": [0.0, 1.0]}, "epochs.sl": {"qrandint": [10, 50, 10]}}
RECIPE = parse_recipe({"data": {"dataset": "digits"}, "epochs": {"ssl": 10, "sl": 20}}).to_dict()
REFERENCE = {"val_accuracy": 0.1, "train_latency_s": 60.0}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes runs/<name> with a complete trial for each of ``metrics`` and baselines.

    A pair in ``metrics`` stands for accuracy and seconds. Trial i has alpha i / 10 and takes 42 seconds.
    """

    def make(
        metrics: list[Metrics | tuple[float, float]],
        baselines: Mapping[str, Metrics] | None = None,
        objectives: Mapping[str, str] = OBJECTIVES,
        reference: Mapping[str, Any] | None = REFERENCE,
        name: str = "digits",
        constraints: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Path:
        directory = tmp_path / "runs" / name
        directory.mkdir(parents=True)
        space = {
            "recipe": RECIPE,
            "space": SPACE,
            "objectives": dict(objectives),
            "run": {"reference_point": reference, **(facts or {})},
        }
        space |= {"constraints": dict(constraints)} if constraints else {}
        (directory / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        (directory / "ledger.jsonl").touch()
        ledger = Ledger(directory / "ledger.jsonl")
        for i, given in enumerate(metrics, start=1):
            found = given if isinstance(given, Mapping) else dict(zip(OBJECTIVES, given, strict=True))
            trial = f"t{i:04d}"
            params = {"alpha": i / 10, "epochs.sl": 20}
            ledger.append("asked", trial=trial, time=100.0 * i - 1, params=params)
            ledger.append("started", trial=trial, time=100.0 * i)
            ledger.append("complete", trial=trial, time=100.0 * i + 42, metrics=found)
        for method, found in (baselines or {}).items():
            ledger.append("asked", trial=method, baseline=method, params=BASELINES.get(method, {"rho": 0.0}))
            ledger.append("baseline", trial=method, method=method, metrics=found)
        return directory

    return make


@pytest.fixture(scope="session")
def write_run() -> Iterator[Callable[..., Path]]:
    """The writer of made-up searches of any size that benchmarks/reporting.py measures with."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module("reporting").write_run
        for name in {"reporting", "training_report"} - before:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def disturbances() -> Iterator[SimpleNamespace]:
    """The modules of benchmarks/disturbances."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        names = ("searches", "checks", "damage", "faults", "nodes", "clusters", "fuzz", "commands")
        yield SimpleNamespace(**{name: importlib.import_module(f"disturbances.{name}") for name in names})
        for name in [name for name in sys.modules if name.split(".")[0] == "disturbances"]:
            del sys.modules[name]


@pytest.fixture(scope="session")
def ray_quietly() -> Iterator[None]:
    from mixtune.tuning.session import ray_session

    with ray_session(None, cpus=2, gpus=0):
        yield
