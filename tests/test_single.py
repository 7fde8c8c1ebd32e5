"""Training one recipe from Python shows its progress where somebody watches."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

import mixtune


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
    assert "val_accuracy" in last
    assert lines(Terminal(), progress=False) == []
    assert lines(Terminal(), on_epoch=lambda _: None) == []
    assert lines(io.StringIO()) == []
    assert len(lines(io.StringIO(), progress=True)) == 2
