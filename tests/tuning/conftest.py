"""One Ray session for the tests that need one in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_quietly() -> Iterator[None]:
    from mixtune.tuning.cluster import ray_session

    with ray_session(None, cpus=2, gpus=0):
        yield
