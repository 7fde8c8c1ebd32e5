"""Recipes that a user names are tried before what the sampler suggests, once, whatever ends the search meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from plain_search import continue_here, open_here, search_here

from mixtune import plugins
from mixtune.cost.model import Cost
from mixtune.errors import RequestError
from mixtune.run.ledger import read_ledger
from mixtune.space.placing import complete_params
from mixtune.space.space import load_space, parse_recipe_to_try, space_from_dict
from mixtune.training.bill import Bill
from mixtune.training.plan import PHASES
from mixtune.tuning.run import resume
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.trial import EpochReport

SPACE = {
    "alpha": {"choice": [0.2, 0.4, 0.6]},
    "rho": {"quniform": [0.0, 1.0, 0.5]},
    "epochs.sl": {"randint": [1, 3]},  # the base recipe has 3
}


def train_next(search: RunningSearch) -> str | None:
    """Train a trial in no time."""
    asked = search.ask()
    if asked is None:
        return None
    search.start(asked.trial)
    metrics = {"epoch": 3, "epochs_asked": 3, "val_accuracy": 0.5 + asked.params["alpha"] / 3, "device": "a CPU"}
    bill = Bill(dict.fromkeys(PHASES, 10), (("sl", "steps", 1.0),) * 3, "inference")
    windows = [("steps", 0.1, True, {"device": "a CPU"}), ("inference", 1e-3, True, {"device": "a CPU"})]
    search.report(asked.trial, EpochReport([{"epoch": 3}], metrics, windows, bill))
    search.end(asked.trial)
    return asked.trial


def events_of(path: Path) -> list[tuple[str, Any, Any]]:
    events = read_ledger(path)
    return [(e["event"], e["params"], e.get("given")) for e in events if e["event"] in ("asked", "known", "rejected")]


@pytest.mark.parametrize("sampler", plugins.names("tuning.samplers"))
def test_given_recipes_go_first_and_each_has_one_turn_whatever_ends_the_search(
    small_space: Any, tmp_path: Path, sampler: str
) -> None:
    """Under every sampler, in a process for each trial; a grid still tries all that it holds, once."""
    first = [{"alpha": 0.6, "rho": 0.5}, {"alpha": 0.6, "rho": 0.5, "epochs.sl": 2}, {"alpha": 0.4}]
    search_section = {"sampler": sampler, "trials": 18, "first": first}
    space = space_from_dict(small_space(space=SPACE, search=search_section, baselines=[]))
    path = tmp_path / "ledger.jsonl"
    costs = lambda *_: Cost({"train_latency_s": 1.0, "train_flops": 1.0}, 1.0, 1.0)  # noqa: E731
    wanted = [
        ("asked", {"alpha": 0.6, "rho": 0.5, "epochs.sl": 2}, True),
        ("known", {"alpha": 0.6, "rho": 0.5, "epochs.sl": 2}, True),
        ("asked", {"alpha": 0.4, "rho": 0.5, "epochs.sl": 2}, True),  # the base recipe's rho, and all but its epochs
    ]
    search = RunningSearch(space, path, costs=costs)
    while train_next(search):
        if sampler != "cost_aware" or len(search.records) < 6:
            search = RunningSearch(space, path, costs=costs)
    assert events_of(path)[:3] == wanted
    assert all(given is None for _, _, given in events_of(path)[3:])
    assert search.is_done
    tried = [tuple(record.params.values()) for record in search.records.values() if record.state == "complete"]
    assert len(tried) == len(set(tried))
    assert sampler != "grid" or len(tried) == (1 + 3) + (
        1 + 3 + 3
    )  # of one SL epoch and of two: none mixed, or by alpha


def test_what_is_to_be_tried_survives_a_kill_and_is_judged_like_any_suggestion(
    small_space: Any, tmp_path: Path
) -> None:
    limited = {"constraints": {"train_latency_s": "<= 2"}, "baselines": []}
    space = space_from_dict(small_space(space=SPACE, search={"trials": 6, "sampler": "random"}, **limited))
    path, costs = tmp_path / "ledger.jsonl", lambda params, *_: Cost({"train_latency_s": params["epochs.sl"]}, 1.0, 1.0)
    search = RunningSearch(space, path, costs=costs)
    done = train_next(search)
    known = search.records[str(done)].params
    slow = complete_params(space, {"alpha": 0.2, "epochs.sl": 2})
    later = complete_params(space, {"alpha": 0.6, "rho": 0.0, "epochs.sl": 1})
    search = RunningSearch(
        space, path, costs=lambda params, *_: Cost({"train_latency_s": 9.0 * (params == slow)}, 1, 1)
    )
    search.give([known, slow, later])
    search = RunningSearch(space, path, costs=search._costs)  # killed before it asked
    assert search.records[str(train_next(search))].params == later
    given = [(event, params) for event, params, is_given in events_of(path) if is_given]
    assert given == [("known", known), ("rejected", slow), ("asked", later)]
    assert search.done == 2  # in the budget
    search.give([later])  # asked for once more
    search = RunningSearch(space, path, costs=search._costs)
    train_next(search)
    assert [event for event, params, is_given in events_of(path) if is_given and params == later] == ["asked", "known"]


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (
            {"alhpa": 0.2},
            "alhpa: the space does not search it; it searches alpha, rho, epochs.sl; did you mean 'alpha'?",
        ),
        ({"epochs.sl": 3}, "epochs.sl: randint [1, 3] never gives 3"),
        ({"rho": 0.3}, "rho: quniform [0.0, 1.0, 0.5] never gives 0.3"),
        ({"epochs.sl": 2, "alpha": 0.6}, "epochs.sl is 2, not < 2"),
    ],
)
def test_a_recipe_that_the_space_does_not_hold_is_a_line_with_its_place(
    small_space: Any, tmp_path: Path, first: dict[str, Any], said: str
) -> None:
    relations = {"constraints": {"epochs.sl < 2": True}}
    values = small_space(space=SPACE, search={"trials": 6, "first": [{"epochs.sl": 1}, first]}, **relations)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(RequestError) as error:
        load_space(tmp_path / "space.yaml")
    line = (tmp_path / "space.yaml").read_text().splitlines().index("  first:") + 1
    assert str(error.value) == f"{tmp_path / 'space.yaml'}:{line}: search.first: recipe 2: {said}"


def test_the_command_lines_recipes_are_read_and_refused_before_anything_begins(
    small_space: Any, tmp_path: Path
) -> None:
    text = "alpha=0.3, optim.sl.betas=[0.9, 0.95],ssl.objective=mae"
    assert parse_recipe_to_try(text) == {"alpha": 0.3, "optim.sl.betas": [0.9, 0.95], "ssl.objective": "mae"}
    with pytest.raises(RequestError, match=r"--try alpha: should be path=value"):
        parse_recipe_to_try("alpha")
    search_here(small_space(search={"trials": 1}, baselines=[]), tmp_path / "run")
    before = (tmp_path / "run/ledger.jsonl").read_bytes()
    with pytest.raises(RequestError, match=r"--try alpha=1.5: alpha: uniform \[0.05, 0.95\] never gives 1.5"):
        resume(tmp_path / "run", trials=3, first=[{"alpha": 1.5}])
    assert (tmp_path / "run/ledger.jsonl").read_bytes() == before
    search = open_here(tmp_path / "run")
    search.give([complete_params(search.space, {"alpha": 0.3, "rho": 0.5})])
    result = continue_here(tmp_path / "run", trials=2)
    assert list(result.trials["alpha"])[1:] == [0.3]
