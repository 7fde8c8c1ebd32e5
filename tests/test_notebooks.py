"""The notebooks run from a clean kernel, as they stand in the repository, and keep outputs that read well there."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from plain_search import search_here

from mixtune.space.space import space_from_dict

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_000_000  # of a notebook with its outputs
VALUES = r"\"val_fraction\": 0.2}"  # of a recipe's data, as a notebook's JSON has it
FEWER = {"num_samples=8": "num_samples=3"}


def said(notebook: Any) -> str:
    """Return all text that the cells put out."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), str(output.get("data", {}).get("text/plain", ""))]
    return "\n".join(texts)


def written_space(path: Path) -> dict[str, Any]:
    """Return the values of the space that a notebook searches."""
    for cell in nbformat.read(path, as_version=4).cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "space":
                return dict(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no space")


# two notebooks load their searches where these are done already: one that trains by Ray is enough
RECIPE = {
    "data": {"dataset": "digits", "fraction": 0.2},
    "model": {"patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "epochs": {"ssl": 1, "sl": 2},
    "optim": {"batch_size": 32, "ssl": {"base_lr": 0.02}, "sl": {"base_lr": 0.04}},
}
SEARCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "accelerated": (
        "accelerated",
        {
            "recipe": RECIPE
            | {
                "ssl": {
                    "objective": "mocov3",
                    "hidden_dim": 16,
                    "compression": {"stages": [{"from_epoch": 0, "token_dropout": 0.5}]},
                }
            },
            "space": {
                "ssl.objective": {"choice": ["simclr", "mocov3", "dino"]},
                "ssl.compression.schedule": {"choice": ["none", "auto"]},
            },
            "baselines": ["sl"],
            "search": {"sampler": "grid"},
        },
    ),
    "pareto": (
        "notebook",
        {
            "recipe": RECIPE,
            "space": {
                "alpha": {"uniform": [0.05, 0.95]},
                "rho": {"choice": [0.0, 0.5, 1.0]},
                "epochs.ssl": {"choice": [1, 2]},
                "epochs.sl": {"choice": [2, 3]},
            },
            "search": {"trials": 4},
        },
    ),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_clean_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of a copy, alongside the ready spaces; a fifth of the images and half the trials are enough."""
    shutil.copytree(ROOT / "search_spaces", tmp_path / "search_spaces")
    (tmp_path / "notebooks" / "runs").mkdir(parents=True)
    if path.stem in SEARCHED:
        name, space = SEARCHED[path.stem]
        search_here(space, tmp_path / "notebooks" / "runs" / name)
    if path.stem == "pareto":
        assert space_from_dict(written_space(path)).budget == 10
    monkeypatch.setenv("PLOTLY_RENDERER", "json")
    for name in [name for name in os.environ if name.startswith("TUNE_")]:  # of a session that another test holds
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    text = path.read_text()
    assert text.count(VALUES) == 1
    for wanted, enough in {VALUES: VALUES[:-1] + r", \"fraction\": 0.2}", **FEWER}.items():
        text = text.replace(wanted, enough)
    notebook = nbformat.reads(text, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    ).execute()
    assert "hypervolume" in said(notebook)
    assert "\x1b[" not in said(notebook)  # no escape codes of a terminal


def test_a_notebook_keeps_its_outputs_and_is_small() -> None:
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells), path
        assert "hypervolume" in said(notebook), path
        assert not any(output.output_type == "error" for cell in cells for output in cell.outputs), path
        assert "/tmp/" not in path.read_text(), path
        assert path.stat().st_size < MAX_BYTES, path
        pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
        shows_figures = any("plot" in cell.source for cell in cells)
        assert bool(pictures) == shows_figures, path  # as pictures, which a code host shows
