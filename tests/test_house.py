"""The house rules that hold for every room."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mixtune
from mixtune import plugins

ROOT = Path(__file__).parents[1]


def test_imports_run_one_way_and_ray_and_optuna_stay_in_their_room() -> None:
    """The contracts stand in pyproject.toml under [tool.importlinter]."""
    lint = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert lint.returncode == 0, lint.stdout


def test_importing_mixtune_loads_nothing_heavy() -> None:
    heavy = ["torch", "ray", "optuna", "pandas", "numpy", "plotly", "timm", "sklearn", "pydantic", "yaml"]
    code = f"import mixtune, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_works_where_ray_and_optuna_are_not_installed() -> None:
    """A machine that only trains needs neither: both are made impossible to import here."""
    code = (
        "import sys; sys.modules['ray'] = sys.modules['optuna'] = None\n"
        "import mixtune\n"
        "recipe = {'data': {'dataset': 'digits', 'fraction': 0.1}, 'epochs': {'ssl': 1, 'sl': 1},"
        " 'model': {'patch_size': 4, 'embed_dim': 16, 'depth': 1, 'num_heads': 2}, 'optim': {'batch_size': 32}}\n"
        "print(mixtune.train(recipe).metrics.epochs_trained)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_every_public_name_can_be_had_and_is_documented() -> None:
    for name in mixtune.__all__:
        assert getattr(mixtune, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        _ = mixtune.serch  # type: ignore[attr-defined]


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]


@pytest.mark.parametrize(
    ("folder", "contract"),
    [
        ("datasets", ("read", "fingerprint")),
        ("objectives", ("Settings", "build")),
        ("tuning.samplers", ("build",)),
        ("tuning.schedulers", ("build",)),
        ("analysis.figures", ("front_data", "draw")),
    ],
)
def test_every_plugin_has_what_its_folder_promises(folder: str, contract: tuple[str, ...]) -> None:
    for name in plugins.names(folder):
        module = importlib.import_module(f"mixtune.{folder}.{name}")
        assert all(hasattr(module, part) for part in contract), name
        assert module.__doc__, name


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ready_space_is_valid_and_opens_with_its_command_time_and_result(path: Path) -> None:
    assert mixtune.load_space(path).space
    first, *others = path.read_text().partition("recipe:")[0].splitlines()
    assert first.startswith(f"# mixtune search search_spaces/{path.name}")
    assert any("CPU cores: " in line and "minutes; a front" in line for line in others)
