"""What ends trials early: a scheduler of one's own, one of Ray's, and runs of one that mixtune had before."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain_search import search_here
from rich.console import Console

import mixtune
from mixtune.errors import RequestError
from mixtune.report.page import write_report
from mixtune.space.space import load_space, space_from_dict
from mixtune.tuning.prepare import with_known_plugins

OWN = '''
from ray.tune.schedulers import AsyncHyperBandScheduler


class Halving:
    """Ends every second trial that comes to its first SL epoch."""

    def __init__(self):
        self.seen = []

    def continues(self, trial, metrics):
        if not metrics["sl_progress"]:
            return True
        if trial not in self.seen:
            self.seen.append(trial)
        return self.seen.index(trial) % 2 == 0


class halving:
    build = staticmethod(lambda space: Halving())


class asha:
    @staticmethod
    def build(space):
        return AsyncHyperBandScheduler("sl_progress", "sl_loss", "min", max_t=1, grace_period=0.1, reduction_factor=3)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of somebody's own."""
    (tmp_path / "own_schedulers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def space_of(small_space: Callable[..., dict[str, Any]], scheduler: str) -> dict[str, Any]:
    values = small_space(search={"trials": 6, "sampler": "random", "scheduler": scheduler}, baselines=["sl"])
    values["recipe"]["epochs"] = {"ssl": 2, "sl": 5}
    values["space"] = {"optim.sl.base_lr": {"choice": [0.04, 1e-6]}, "alpha": {"uniform": [0.1, 0.9]}}
    return values


def check_stopped(result: mixtune.Result) -> None:
    """Trials were ended early, and not one of them is on the front."""
    stopped = result.trials[result.trials["state"] == "stopped"]
    assert 0 < len(stopped) < 6
    assert len(stopped) + len(result.complete()) == 6
    assert (stopped["epochs_trained"] + stopped["epochs_reused"] < stopped["epochs_asked"]).all()
    assert set(result.pareto_front()["state"]) == {"complete"}
    assert set(result.baselines["state"]) <= {"complete"}
    account = result.account()
    assert account.epochs_trained + account.epochs_reused < account.epochs_asked


def test_one_of_ones_own_ends_trials_and_hears_of_them_again(own: None, small_space: Any, tmp_path: Path) -> None:
    result = search_here(space_of(small_space, "own_schedulers:halving"), tmp_path / "run")
    check_stopped(result)
    assert list(result.trials["state"]) == ["complete", "stopped"] * 3
    with mixtune.Study(out=tmp_path / "run", trust=True) as study:
        again = study._search._scheduler
    assert again.seen == list(result.trials["trial"])  # type: ignore[union-attr]


def test_one_of_rays_ends_trials(own: None, small_space: Any, ray_quietly: None, tmp_path: Path) -> None:
    values = space_of(small_space, "own_schedulers:asha") | {"baselines": []}
    check_stopped(mixtune.search(values, out=tmp_path / "run", console=Console(file=io.StringIO())))


def test_a_run_of_one_that_is_gone_is_read_and_continues_without(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    gone = "scheduler 'pareto_asha' is gone, since it ended a third and more of what would have been on the front"
    directory = write_run(tmp_path / "made up", 20)
    file = directory / "space.yaml"
    file.write_text(file.read_text().replace("plugin:halving", "pareto_asha"))
    result = mixtune.load(directory)
    assert result.counts()["stopped"] > 0
    assert "stopped" in write_report(result, None).read_text()

    space, lines = with_known_plugins(result.space)  # what resume does first
    assert space.search.scheduler == "fifo"
    assert lines == [f"search.scheduler: {gone}: known are fifo: this run continues with fifo"]
    with pytest.raises(RequestError, match=rf"space.yaml:\d+: search.scheduler: {gone}: known are fifo"):
        load_space(file)  # a new search by an old space


def test_a_new_space_cannot_name_it(small_space: Any) -> None:
    with pytest.raises(RequestError, match=r"search\.scheduler: scheduler 'pareto_asha' is gone, since"):
        space_from_dict(space_of(small_space, "pareto_asha"))
