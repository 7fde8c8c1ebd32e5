"""Results of other runs inform a search, and are none of its trials; what they trained is not trained again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from plain_search import continue_here, open_here, search_here

import mixtune
from mixtune.cost.machine import Machine
from mixtune.cost.model import Cost
from mixtune.errors import RequestError
from mixtune.run.directory import RunDirectory
from mixtune.run.ledger import Ledger, read_ledger
from mixtune.space.space import space_from_dict
from mixtune.stages.opened import Opened
from mixtune.tuning.learning import learn, read_sources
from mixtune.tuning.prepare import known_machine
from mixtune.tuning.search import RunningSearch
from mixtune.tuning.suggestions import draw

Values = Callable[..., dict[str, Any]]
CHOICES = {"alpha": {"choice": [0.2, 0.4, 0.6, 0.8]}, "rho": {"choice": [0.5, 1.0]}}


def open_run(folder: Path, **changes: Any) -> None:
    """Note what a run's keys rest on, as every start of a search does."""
    run = RunDirectory(folder)
    machine = known_machine(run)
    opened = Opened.of(run.space, machine.device, machine.threads).to_dict()
    Ledger(run.ledger_file).append("opened", **{**opened, **changes})


@pytest.fixture(scope="module")
def old(small_space_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three trials and a baseline, which the space of the others does not hold."""
    folder = tmp_path_factory.mktemp("runs") / "old"
    sections = {"space": CHOICES, "search": {"trials": 3, "sampler": "random"}, "baselines": ["sl"]}
    search_here(small_space_values | sections, folder)
    open_run(folder)
    return folder


def copy_of(old: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(old, tmp_path / "old", copy_function=shutil.copyfile))


@pytest.mark.parametrize("sampler", ["cost_aware", "tpe"])
def test_learned_recipes_are_trained_for_nearly_nothing_and_their_source_may_go(
    small_space: Values, old: Path, tmp_path: Path, sampler: str
) -> None:
    source, before = copy_of(old, tmp_path), mixtune.load(old).trials
    given = [{"alpha": row["alpha"], "rho": row["rho"]} for _, row in before.iterrows()]
    section = {"trials": 5, "sampler": sampler, "first": given, "learn_from": [str(source)]}
    folder = tmp_path / "run"
    values = small_space(space=CHOICES, search=section, baselines=[])
    started = search_here({**values, "search": {**section, "trials": 1}}, folder)  # ends after one trial
    assert started.counts()["complete"] == len(started.trials) == 1
    names = [f"{source}/{trial}" for trial in ("t0001", "t0002", "t0003")]
    assert list(RunDirectory(folder).state.learned) == names
    (source,) = (
        event for event in read_ledger(folder / "ledger.jsonl") if event["event"] == "learned" and "source" in event
    )
    assert source["count"] == 3
    assert source["left_out"] == {"epochs.ssl is 0": 1}
    shutil.copytree(folder, tmp_path / "other")
    shutil.rmtree(tmp_path / "old")
    after = continue_here(folder, trials=5).trials.set_index("trial")
    assert list(after["val_accuracy"])[:3] == list(before["val_accuracy"])
    assert list(after["epochs_trained"])[1:3] == [0, 0]  # the first one's steps had still to be timed
    assert (after["train_latency_s"].iloc[:3] > 0).all()
    told = optuna_trials(open_here(folder))
    assert set(names) <= set(told)
    assert {told[name].state for name in names} == {optuna.trial.TrialState.COMPLETE}


def optuna_trials(search: RunningSearch) -> dict[str, optuna.trial.FrozenTrial]:
    return {trial.user_attrs["trial"]: trial for trial in search.suggester.study.trials}


MACHINE = Machine("a CPU", 1, "float32", {"ssl": 1e9, "mix": 1e9, "sl": 1e9})


def cost_of(params: Any, *_: Any) -> Cost:
    seconds = float(params.get("epochs.sl", 3))
    return Cost({"train_latency_s": seconds, "train_flops": seconds}, seconds, seconds)


def accuracy(params: dict[str, Any]) -> float:
    return 0.9 - abs(params["alpha"] - 0.3)


GOALS = {"val_accuracy": "max", "train_flops": "min"}


@pytest.fixture
def study(small_space: Values, tmp_path: Path) -> str:
    """An Optuna study of 22 recipes and one that the space does not hold, in a file with another one."""
    storage = f"sqlite:///{tmp_path / 'old.db'}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(study_name="empty", storage=storage)
    drawn = draw(space_from_dict(small_space()), 2, 22)
    unit = optuna.distributions.FloatDistribution(0, 1)
    kinds = {"alpha": unit, "rho": unit, "epochs.sl": optuna.distributions.IntDistribution(1, 9)}
    optuna.create_study(study_name="alphas", storage=storage, directions=["maximize", "minimize"]).add_trials(
        optuna.trial.create_trial(
            values=[accuracy(params), cost_of(params).seconds],
            params=params,
            distributions=kinds,
        )
        for params in [*drawn, {"alpha": 0.99, "rho": 0.5, "epochs.sl": 2}]
    )
    return f"{storage}#alphas"


def search_of(folder: Path, values: dict[str, Any]) -> RunningSearch:
    folder.mkdir(exist_ok=True)
    reference = lambda complete: {"val_accuracy": 0.1, "train_flops": 9.0}  # noqa: E731
    return RunningSearch(space_from_dict(values), folder / "ledger.jsonl", costs=cost_of, reference=reference)


@pytest.mark.parametrize("sampler", ["cost_aware", "tpe", "nsga2", "gp"])
def test_a_study_informs_the_first_suggestion_and_is_on_no_front(
    small_space: Values, study: str, tmp_path: Path, sampler: str
) -> None:
    section = {"sampler": sampler, "trials": 4, "learn_from": [study]}
    own = sampler == "cost_aware"  # Optuna's begin with the paper's point where that is no baseline
    values = small_space(search=section, objectives=GOALS, baselines=[] if own else ["paper"])
    search, alone = (search_of(tmp_path / name, values) for name in ("run", "alone"))
    (source,) = read_sources(search.space)
    line = learn(search, source, MACHINE, tmp_path / "stages")
    assert line == (
        f"learned from {study}: 22 of 23 complete recipes; that its data are the same cannot be checked; "
        "left out: 1 (alpha is outside of this space)"
    )
    assert read_sources(search.space, search.state.sources) == []
    ledger = tmp_path / "run/ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(b"".join(whole.splitlines(keepends=True)[:9]))  # a kill meanwhile: it is read again
    search = search_of(tmp_path / "run", values)
    assert len(search.state.learned) == 9
    learn(search, read_sources(search.space, search.state.sources)[0], MACHINE, tmp_path / "stages")
    assert (search.done, list(search.records), len(search.state.learned)) == (0, [], 22)
    (tmp_path / "old.db").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    searches = (search, search_of(tmp_path / "again", values), alone)
    asked = [one.ask() if own else [one.ask(), one.ask()][1] for one in searches]
    first, same, other = (each.params for each in asked if each is not None)
    assert first == same != other
    if own:
        assert accuracy(first) > 0.85  # the model decides, and the front is still to be found
    assert sum(t.state == optuna.trial.TrialState.COMPLETE for t in search.suggester.study.trials) == 22


def test_seconds_of_another_device_stay_there(small_space: Values, old: Path, tmp_path: Path) -> None:
    """What the sampler forecasts itself it need not learn; Optuna's samplers cannot do without."""
    source = copy_of(old, tmp_path)
    open_run(source, device="an abacus", threads=1)
    lines = {}
    for sampler in ("cost_aware", "tpe"):
        section = {"sampler": sampler, "learn_from": [str(source)]}
        search = search_of(tmp_path / sampler, small_space(space=CHOICES, search=section))
        lines[sampler] = learn(search, read_sources(search.space)[0], MACHINE, tmp_path / "stages")
        metrics = [{*record.metrics} for record in search.state.learned.values()]
        assert metrics == ([{"val_accuracy", "epoch"}] * 3 if sampler == "cost_aware" else [])
    said = f"learned from {source}: 3 of 4 complete recipes; without train_latency_s, of an abacus; left out: 1 ("
    assert lines["cost_aware"] == f"{said}epochs.ssl is 0)"
    assert lines["tpe"].endswith("left out: 3 (train_latency_s is not of this device), 1 (epochs.ssl is 0)")


def test_a_recipe_that_differs_elsewhere_and_one_without_an_objective_are_left_out(
    small_space: Values, old: Path, tmp_path: Path
) -> None:
    source = str(copy_of(old, tmp_path))
    for sections, reason in (
        ({"objectives": {"val_macro_f1": "max", "train_latency_s": "min"}, "space": CHOICES}, None),
        ({"space": CHOICES | {"alpha": {"choice": [0.9]}}}, "alpha is outside of this space"),
        ({"space": CHOICES, "constraints": {"rho < 0.5": True}}, "rho is "),
    ):
        search = search_of(tmp_path / "run", small_space(search={"learn_from": [source]}, **sections))
        line = learn(search, read_sources(search.space)[0], known_machine(RunDirectory(old)), tmp_path / "stages")
        assert (reason or "3 of 4 complete recipes") in line
        shutil.rmtree(tmp_path / "run")
    deeper = small_space(space=CHOICES, search={"learn_from": [source]})
    deeper["recipe"]["model"]["depth"] = 2
    (found,) = read_sources(space_from_dict(deeper))
    assert (found.records, found.left_out) == ([], {"model.depth is 1": 4})


def test_what_cannot_be_learned_from_is_a_line_before_anything_is_written(
    small_space: Values, old: Path, study: str, tmp_path: Path
) -> None:
    source = copy_of(old, tmp_path)
    open_run(source, labels={"digits/train": "others"})
    (tmp_path / "text.db").write_text("no database, but a text")
    storage = study.partition("#")[0]
    wrong = {
        str(tmp_path / "odl"): f"there is no run directory {tmp_path / 'odl'}; did you mean 'old'?",
        str(source): f"{source}: the labels of digits/test, digits/train are not those of this search",
        f"sqlite:///{tmp_path / 'odl.db'}": f"there is no file {tmp_path / 'odl.db'}; did you mean 'old.db'?",
        f"sqlite:///{tmp_path / 'text.db'}": "cannot be read as an Optuna storage",
        storage: f"name one study, as in {storage}#NAME; it holds alphas, empty",
        f"{storage}#alpha": "it holds alphas, empty; did you mean 'alphas'?",
    }
    for given, said in wrong.items():
        values = small_space(search={"learn_from": [given]})
        with pytest.raises(RequestError) as error:
            mixtune.search(values, out=tmp_path / "run", gpus=0)
        assert str(error.value).startswith("search.learn_from: ")
        assert said in str(error.value)
        assert not (tmp_path / "run").exists()
