"""`confirm`, end to end on digits: real training runs on fresh seeds, kept in the ledger of a run written by hand."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixtune.confirmation import confirm
from mixtune.errors import RequestError
from mixtune.run.confirmed import Confirmation
from mixtune.run.ledger import Ledger, read_ledger
from mixtune.run.result import load
from mixtune.space.recipe import change_recipe
from mixtune.space.space import load_space, space_from_dict
from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.state import start_state

MakeRun = Callable[..., Path]
Confirmed = tuple[Path, Confirmation, list[str]]
FOUND = {  # by trial: parameters, validation accuracy, seconds; t0003 is not on the front
    "t0001": ({"alpha": 0.2, "rho": 0.5, "epochs.sl": 2}, 0.20, 1.0),
    "t0002": ({"alpha": 0.5, "rho": 1.0, "epochs.sl": 3}, 0.30, 2.0),
    "t0003": ({"alpha": 0.5, "rho": 0.0, "epochs.sl": 1}, 0.10, 3.0),
}


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory, small_space_values: dict[str, Any]) -> MakeRun:
    """Return a function that writes a run of three complete trials and two baselines, one of which failed."""

    def make(seed: int = 5, trials: dict[str, Any] = FOUND, **base: Any) -> Path:
        directory = tmp_path_factory.mktemp("run")
        values = space_from_dict(small_space_values, {"seed": seed, **base}).to_dict()
        values["space"]["optim.sl.base_lr"] = {"loguniform": [1e-6, 0.1]}
        reference = {"val_accuracy": 0.1, "train_latency_s": 9.0}
        (directory / "space.yaml").write_text(yaml.safe_dump({**values, "run": {"reference_point": reference}}))
        ledger = Ledger(directory / "ledger.jsonl")
        for method, params in (("sl", {"epochs.ssl": 0}), ("ssl_sl", {"rho": 0.0})):
            ledger.append("asked", trial=method, baseline=method, params=params)
        ledger.append("baseline", trial="sl", method="sl", metrics={"val_accuracy": 0.15, "train_latency_s": 0.5})
        ledger.append("failed", trial="ssl_sl", reason="out of memory", metrics={})
        for trial, (params, accuracy, seconds) in trials.items():
            ledger.append("asked", trial=trial, params=params)
            ledger.append("complete", trial=trial, metrics={"val_accuracy": accuracy, "train_latency_s": seconds})
        return directory

    return make


def confirmed_events(directory: Path) -> list[dict[str, Any]]:
    return [event for event in read_ledger(directory / "ledger.jsonl") if event["event"] == "confirmed"]


@pytest.fixture(scope="module")
def confirmed(make_run: MakeRun) -> Confirmed:
    """A run confirmed on two seeds: its folder, what was returned, and the lines that were told."""
    directory, lines = make_run(), []
    return directory, confirm(directory, seeds=2, on_line=lines.append), lines


def test_a_full_disk_ends_it_in_a_line_and_the_same_command_continues(make_run: MakeRun) -> None:
    directory = make_run(seed=11)
    load_training_data(load(directory).space.recipe, "cpu")  # the decoded images are there
    ledger = directory / "ledger.jsonl"
    before, room = ledger.read_bytes(), ledger.stat().st_size + 900  # so a file has no room for the third event

    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [sys.executable, "-m", "mixtune", "confirm", str(directory), "--seeds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=fill_disk)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("mixtune: "))
    says = f"{ledger} cannot be written (File too large): what it holds is kept; make room, then mixtune confirm "
    assert line == f"mixtune: {says}{directory}"
    assert ledger.read_bytes().startswith(before)
    assert sorted(confirm(directory, seeds=1).runs) == ["sl", "t0001", "t0002"]


def test_members_and_baselines_are_trained_in_turn_on_fresh_seeds_and_kept(confirmed: Confirmed) -> None:
    directory, found, lines = confirmed
    events = confirmed_events(directory)
    order = [(event["trial"], event["seed"]) for event in events]
    assert order == [(trial, seed) for seed in (6, 7) for trial in ("sl", "t0001", "t0002")]
    assert list(found.frame["trial"]) == ["sl", "t0001", "t0002"]  # the search's front, cheapest first
    assert list(found.frame["seeds"]) == [2, 2, 2]
    assert (found.frame["train_latency_s"] > 0).all()
    assert found.frame["p_front"].between(0, 1).all()
    assert lines[0].endswith("that they are the same cannot be checked")  # nothing says what the run was begun with
    assert lines[1].startswith("6 training runs (cpu), 0 of them there already; about 0:07 of training steps")
    assert lines[2].startswith("[1/6] sl, seed 6: validation accuracy 0.")
    assert "left" in lines[2]
    assert len(lines) == 8
    assert "left" not in lines[-1]


def test_what_a_seeds_recipes_have_in_common_is_trained_and_timed_once(make_run: MakeRun) -> None:
    alike = ("t1", 2, 0.2, 1), ("t2", 2, 0.5, 1), ("t3", 3, 0.5, 2)  # alpha is idle where nothing is mixed
    trials = {name: ({"rho": 0.0, "epochs.sl": sl, "alpha": a}, 0.1 + 0.05 * sl, s) for name, sl, a, s in alike}
    directory = make_run(trials=trials)
    confirm(directory, seeds=1)
    events = {event["trial"]: event for event in confirmed_events(directory)}
    assert set(events) == {"sl", "t1", "t3"}  # t2 is the recipe t1
    assert [events[trial]["metrics"]["epochs_reused"] for trial in ("sl", "t1", "t3")] == [0, 0, 2]  # of SSL
    assert not events["t3"]["windows"]
    confirm(directory, seeds=2)
    assert [event for event in confirmed_events(directory) if event["seed"] == 6] == list(events.values())


def test_accuracies_are_of_the_test_images_and_the_split_is_the_searchs(confirmed: Confirmed) -> None:
    for event in confirmed_events(confirmed[0]):
        metrics = event["metrics"]
        accuracy = metrics["test_accuracy"]
        assert metrics["test_images"] == 360
        assert accuracy * 360 == pytest.approx(round(accuracy * 360))
        assert 0 < metrics["test_balanced_accuracy"] < 1
        assert 0 < metrics["test_calibration_error"] < 1
        assert metrics["test_accuracy_se"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 360))
        assert metrics["train_images"] == 259  # a fifth of what validation leaves, as in the search
        assert metrics["val_accuracy"] * 144 == pytest.approx(round(metrics["val_accuracy"] * 144))


def test_a_seed_changes_the_training_but_not_what_it_trains_on(confirmed: Confirmed) -> None:
    searched = change_recipe(load_space(confirmed[0] / "space.yaml").recipe, FOUND["t0001"][0])
    losses = []
    for split in (searched, change_recipe(searched, {"seed": 6})):
        state = start_state(change_recipe(searched, {"seed": 6}), load_training_data(split))
        for _ in train(state):
            pass
        losses.append(state.history[-1].sl_loss)
    (first,) = (e for e in confirmed_events(confirmed[0]) if (e["trial"], e["seed"]) == ("t0001", 6))
    assert first["metrics"]["sl_loss"] == losses[0] != losses[1]


def test_seeds_matter_and_a_seed_gives_the_same_again(confirmed: Confirmed, make_run: MakeRun) -> None:
    events = confirmed_events(confirmed[0])
    losses = {(event["trial"], event["seed"]): event["metrics"]["sl_loss"] for event in events}
    assert losses["t0001", 6] != losses["t0001", 7]
    again = make_run(trials={"t0001": FOUND["t0001"]})
    confirm(again, seeds=1)
    repeated = {(e["trial"], e["seed"]): e["metrics"]["sl_loss"] for e in confirmed_events(again)}
    assert repeated == {key: losses[key] for key in (("t0001", 6), ("sl", 6))}


def test_what_is_held_is_not_trained_again_and_more_seeds_are_added(make_run: MakeRun) -> None:
    directory = make_run(trials={"t0001": FOUND["t0001"]})
    seen: list[str] = []

    def stop_after_two(line: str) -> None:
        seen.append(line)
        if line.startswith("[2/4]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        confirm(directory, seeds=2, on_line=stop_after_two)
    before = confirmed_events(directory)
    assert len(before) == 2  # kept before it is told
    lines: list[str] = []
    confirm(directory, seeds=2, on_line=lines.append)
    assert lines[1].startswith("4 training runs (cpu), 2 of them there already")
    assert confirmed_events(directory)[:2] == before
    order = [(event["trial"], event["seed"]) for event in confirmed_events(directory)]
    assert order == [(trial, seed) for seed in (6, 7) for trial in ("sl", "t0001")]
    three = confirm(directory, seeds=3)
    assert list(three.frame["seeds"]) == [3, 3]
    assert {event["seed"] for event in confirmed_events(directory)} == {6, 7, 8}
    held = confirm(directory, seeds=1)
    assert len(confirmed_events(directory)) == 6
    assert held.to_json_dict() == three.to_json_dict()


def test_recipes_race_until_the_answer_is_certain_and_go_on_after_a_stop(make_run: MakeRun) -> None:
    """What cannot be the answer is left after two seeds; killed amid a round, it ends as it would have."""

    def race(directory: Path, stop_at: int | None = None) -> list[str]:
        lines: list[str] = []

        def note(line: str) -> None:
            lines.append(line)
            if stop_at is not None and len(confirmed_events(directory)) >= stop_at:
                raise KeyboardInterrupt

        confirm(directory, until=0.99, seeds=4, on_line=note)
        return lines

    weak = {"alpha": 0.5, "rho": 1.0, "epochs.sl": 2, "optim.sl.base_lr": 1e-6}  # which learns nothing
    good = FOUND["t0002"][0] | {"epochs.sl": 20}
    trials = {**FOUND, "t0002": (good, 0.50, 2.0), "t0004": (weak, 0.12, 0.4)}
    whole, stopped = make_run(trials=trials), make_run(trials=trials)
    lines = race(whole)
    assert any(line.startswith("after 2 seeds: t0002, ") and line.endswith("99 % are requested") for line in lines)
    seeds = {trial: [e["seed"] for e in confirmed_events(whole) if e["trial"] == trial] for trial in ("t0002", "t0004")}
    assert seeds["t0004"] == [6, 7]
    assert seeds["t0002"] == [6, 7, 8, 9][: len(seeds["t0002"])]
    with pytest.raises(KeyboardInterrupt):
        race(stopped, stop_at=4)
    race(stopped)
    one, other = (
        [(event["trial"], event["seed"], event["metrics"]["val_accuracy"]) for event in confirmed_events(directory)]
        for directory in (whole, stopped)
    )
    assert one == other
    assert load(whole).recommendation().trial == "t0002"
    confirm(whole, until=0.1, seeds=10, on_line=lines.append)  # which two seeds are enough for
    assert lines[-1].startswith("after 2 seeds: t0002, ")
    assert len(confirmed_events(whole)) == len(one)


def test_fresh_images_are_each_seeds_own_and_are_not_mixed_with_the_searchs(make_run: MakeRun) -> None:
    directory = make_run()
    confirm(directory, seeds=1)
    found = confirm(directory, seeds=2, fresh_images=True)
    fresh = [event for event in confirmed_events(directory) if event.get("images") == "fresh"]
    assert len({event["validation"] for event in fresh}) == 2  # one a seed, whatever the recipe
    assert len(fresh) == 2 * len(found.frame)
    assert list(found.frame["seeds"]) == [2] * len(found.frame)
    assert "left out: 3 training runs on the search's images" in found.notes
    assert any("labelled and validation images of its own" in note for note in found.notes)


def test_trainings_of_another_device_are_made_again(make_run: MakeRun) -> None:
    directory = make_run(trials={"t0001": FOUND["t0001"]})
    metrics = {"val_accuracy": 0.99, "val_accuracy_se": 0.01, "train_latency_s": 0.1, "device": "NVIDIA H200"}
    for trial in ("t0001", "sl"):
        Ledger(directory / "ledger.jsonl").append("confirmed", trial=trial, seed=6, metrics=metrics)
    found = confirm(directory, seeds=1)
    assert found.frame["val_accuracy"].max() < 0.9
    assert list(found.frame["seeds"]) == [1, 1]
    assert any("left out: 2 on NVIDIA H200" in note for note in found.notes)


def test_a_diverged_training_is_kept_with_its_reason_and_not_repeated(make_run: MakeRun) -> None:
    directory = make_run(trials={"t0001": FOUND["t0001"]}, **{"optim.sl.base_lr": 1e30, "optim.sl.warmup_epochs": 0})
    lines: list[str] = []
    found = confirm(directory, seeds=1, on_line=lines.append)
    assert "seed 6: diverged (the loss is " in lines[2]
    events = confirmed_events(directory)
    assert [event["reason"].startswith("the loss is ") for event in events] == [True, True]
    assert list(found.frame["p_front"]) == [0.0, 0.0]
    assert found.notes[0].startswith("2 of 2 training runs diverged")
    confirm(directory, seeds=1, on_line=lines.append)
    assert confirmed_events(directory) == events


def test_a_run_without_a_front_is_refused_in_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    directory = make_run(trials={})
    run = directory / "ledger.jsonl"
    run.write_text(run.read_text().replace('"event": "baseline"', '"event": "stopped"'))  # not even a baseline
    with pytest.raises(RequestError, match="has no front to confirm: no trial is complete") as refused:
        confirm(directory)
    assert "\n" not in str(refused.value)
    assert confirmed_events(directory) == []
    with pytest.raises(RequestError, match="seeds: should be at least 1, got 0"):
        confirm(directory, seeds=0)
    with pytest.raises(RequestError, match="there is no run directory"):
        confirm(tmp_path / "nowhere")


def test_it_computes_with_the_searchs_threads_and_leaves_the_process_its_own(make_run: MakeRun) -> None:
    directory = make_run(trials={"t0001": FOUND["t0001"]})
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = confirm(directory, seeds=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert found.device is not None
    assert found.device.endswith(", 1 thread")
