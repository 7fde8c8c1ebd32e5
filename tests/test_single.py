"""Training one recipe from Python shows its progress where somebody watches."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import mixtune
from mixtune.reconstruction import draw_reconstructions, reconstruct_images
from mixtune.space.recipe import Recipe
from mixtune.training.saved import load_trained


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_an_epoch_on_a_terminal_and_nothing_elsewhere(
    make_recipe: Callable[..., mixtune.Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe({"epochs.ssl": 1, "epochs.sl": 1, "rho": 0.0})

    def lines(stream: io.StringIO, **options: Any) -> list[str]:
        monkeypatch.setattr(sys, "stderr", stream)
        mixtune.train(recipe, **options)
        return stream.getvalue().splitlines()

    first, last = lines(Terminal())
    assert first.startswith("epoch 1/2  ssl")
    assert "validation accuracy" in last
    assert lines(Terminal(), progress=False) == []
    assert lines(Terminal(), on_epoch=lambda _: None) == []
    assert lines(io.StringIO()) == []
    assert len(lines(io.StringIO(), progress=True)) == 2


def test_what_is_trained_on_bands_can_be_read_back_shown_and_exported_wherever_its_folder_is(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """All that knows colours: jitter and greys of views, masked pixels, a mix phase, and the seconds of its steps."""
    digits = load_digits()
    data = np.stack([np.roll(digits.images, shift, 2) for shift in range(5)], axis=1), digits.target
    simclr = make_recipe({"ssl.objective": "simclr", "epochs.ssl": 1, "epochs.sl": 1, "rho": 1.0})
    assert mixtune.train(simclr, data=data).state.data.channels == 5
    trained = mixtune.train(make_recipe({"epochs.ssl": 1, "epochs.sl": 1}), data=data, out=tmp_path / "one")
    mixtune.train(trained.recipe, data=data, out=tmp_path / "one")  # again
    moved = Path(shutil.move(tmp_path / "one", tmp_path / "other"))
    saved = load_trained(moved)
    assert saved.load_data().channels == saved.channels == 5
    assert saved.recipe.data.root == str(moved / "data")
    assert saved.recipe.data.fraction == trained.recipe.data.fraction
    made = reconstruct_images(saved, count=2, seed=0)
    assert made.originals.shape == (2, 5, 8, 8)
    draw_reconstructions([("other", made)], tmp_path / "made.png")
    config = json.loads((mixtune.export(moved) / "config.json").read_text())
    assert (config["model_args"]["in_chans"], len(config["pretrained_cfg"]["mean"])) == (5, 5)


def test_data_that_someone_else_keeps_in_the_folder_stay(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, digits = make_recipe({"epochs.ssl": 0, "epochs.sl": 1}), load_digits()
    mixtune.train(recipe, out=tmp_path / "one")
    (tmp_path / "one" / "data").mkdir()
    (tmp_path / "one" / "data" / "meta.json").write_text("{}")
    with pytest.raises(mixtune.RequestError, match="choose another folder"):
        mixtune.train(recipe, data=(digits.images, digits.target), out=tmp_path / "one")
    (tmp_path / "one" / "metrics.json").unlink()  # not whole, so that another recipe may come here
    with pytest.raises(mixtune.DataError, match=r"one/data holds what mixtune did not write: move it away$"):
        mixtune.train(recipe, data=(digits.images, digits.target), out=tmp_path / "one")
    assert (tmp_path / "one" / "data" / "meta.json").read_text() == "{}"
