"""A node three times as slow under the same CPU name: whatever time a training step takes, it takes twice more."""

from __future__ import annotations

import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

SLOWDOWN = 3


class SlowLoop(MetaPathFinder):
    """Wraps the training step of mixtune.training.loop when that is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "mixtune.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            step = module.train_step

            def train_step(*given: Any) -> Any:
                started = time.thread_time()
                result = step(*given)
                end = started + SLOWDOWN * (time.thread_time() - started)
                while time.thread_time() < end:
                    pass
                return result

            module.train_step = train_step

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, SlowLoop())
