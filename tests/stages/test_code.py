"""The code that computes a training run is in its keys: all of it, and nothing that only stands alongside it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mixtune
from mixtune.space.objectives import SETTINGS
from mixtune.stages.code import NOT_COMPUTING, computing_modules, digest_modules, read_source

ROOT = Path(mixtune.__file__).parent
RECIPE: dict[str, Any] = {
    "data": {"dataset": "digits", "fraction": 0.1},
    "model": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "epochs": {"ssl": 2, "sl": 2},
    "optim": {"batch_size": 32},
    "augment": {"crop_scale": [0.6, 1.0], "randaugment": [1, 3]},
}


def executed_modules(recipe: dict[str, Any]) -> set[str]:
    """Return mixtune's modules of which a line runs while a recipe is trained."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        files.add(frame.f_code.co_filename)

    train = mixtune.train
    train(recipe)  # what is imported and cached on the way is not training
    sys.setprofile(note)
    try:
        train(recipe)
    finally:
        sys.setprofile(None)
    ours = [Path(file).relative_to(ROOT.parent) for file in files if Path(file).is_relative_to(ROOT)]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in ours}


def is_named(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in NOT_COMPUTING)


@pytest.mark.parametrize("objective", SETTINGS)
def test_every_module_that_a_training_run_executes_is_in_the_key_or_named_with_a_reason(objective: str) -> None:
    executed = executed_modules({**RECIPE, "ssl": {"objective": objective}})
    computing = set(computing_modules(objective))
    assert {module for module in executed if module not in computing and not is_named(module)} == set()
    assert {"mixtune.backbone", f"mixtune.objectives.{objective}", "mixtune.training.loop"} <= executed & computing
    assert all(reason.strip() for reason in NOT_COMPUTING.values())


def negate_what_is_returned(source: str) -> str:
    """Return a module whose first returned value is negated; where nothing is returned, one with a line more."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.UnaryOp(ast.Not(), node.value)
            return ast.unparse(tree)
    return f"{source}\nADDED = 1 + 1\n"


def test_a_comment_changes_no_key_and_an_operator_in_any_module_does() -> None:
    modules = sorted({module for objective in SETTINGS for module in computing_modules(objective)})
    before = digest_modules(modules)

    def edited(module: str, change: Any) -> str:
        return digest_modules(
            modules, lambda each: change(str(read_source(each))) if each == module else read_source(each)
        )

    for module in modules:
        assert edited(module, lambda text: f"{text}\n# a comment\n\n") == before, module
        assert edited(module, lambda text: text.replace('"""', '"""In other words. ', 1)) == before, module
        assert edited(module, lambda text: f'{text}\n"""What a field below which this stands means."""\n') == before
        assert edited(module, negate_what_is_returned) != before, module


def test_what_other_objectives_compute_is_not_in_a_key() -> None:
    assert "mixtune.objectives.dino" not in computing_modules("mae")
    assert "mixtune.objectives._invariance" in computing_modules("simclr")


def test_the_whole_package_of_a_plug_in_is_in_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somebodys"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "heads.py").write_text("WIDTH = 8\n")
    (package / "unused.py").write_text("WIDTH = 9\n")
    (package / "own.py").write_text("from somebodys.heads import WIDTH\n\n\nclass Own:\n    width = WIDTH\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = computing_modules("somebodys.own:Own")
    assert {"somebodys.own", "somebodys.heads"} <= set(modules)
    assert "somebodys.unused" not in modules
    for name in [name for name in sys.modules if name.split(".")[0] == "somebodys"]:
        monkeypatch.delitem(sys.modules, name)
