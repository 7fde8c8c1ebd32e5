"""Which recipe a run recommends: the rule on known answers, after fresh seeds, and the sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mixtune.run.front import pareto_front
from mixtune.run.ledger import Ledger
from mixtune.run.predictions import HeldOut, encode_classes
from mixtune.run.recommendation import resolution
from mixtune.run.result import Result, load

Wrong = Mapping[str, tuple[range, float]]  # by recipe: the images that it gets wrong, and its seconds
MakeRun = Callable[..., Path]
PARAMS: dict[str, dict[str, Any]] = {"sl": {"epochs.ssl": 0}, "ssl_sl": {"rho": 0.0}}


@pytest.fixture
def make_judged(make_run: MakeRun) -> Callable[..., Path]:
    """Return a function that writes a run whose recipes get certain images wrong, of ``images`` in all."""

    def make(recipes: Wrong, images: int = 1000, name: str = "digits", **options: Any) -> Path:
        directory = make_run([], name=name, **options)
        document = yaml.safe_load((directory / "space.yaml").read_text())
        document["run"]["tasks"] = {"digits": {"classes": 2, "train_images": 9, "val_images": images}}
        (directory / "space.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        held_out = HeldOut.of({"digits": (2, np.zeros(images, dtype=int), np.arange(images))})
        Ledger(directory / "ledger.jsonl").append("validation", **vars(held_out))
        for number, (trial, recipe) in enumerate(recipes.items(), start=1):
            event = {"event": "baseline", "method": trial} if trial in PARAMS else {"event": "complete"}
            params = PARAMS.get(trial, {"alpha": number / 10, "epochs.sl": 20})
            baseline = {"baseline": trial} if trial in PARAMS else {}
            ledger = Ledger(directory / "ledger.jsonl")
            ledger.append("asked", trial=trial, params=params, time=number, **baseline)
            ledger.append(**event, trial=trial, time=number + 0.5, **judge(*recipe, held_out, images))
        return directory

    return make


def judge(wrong: range, seconds: float, held_out: HeldOut, images: int) -> dict[str, Any]:
    accuracy = 1 - len(wrong) / images
    error = (accuracy * (1 - accuracy) / images) ** 0.5
    metrics = {"val_accuracy": accuracy, "val_accuracy_se": error, "train_latency_s": seconds, "device": "CPU"}
    metrics |= {"train_flops": 1e9 * seconds, "test_accuracy": accuracy, "test_accuracy_se": error}
    predictions = np.isin(np.arange(images), list(wrong)).astype(int)
    return {
        "metrics": metrics,
        "validation": held_out.digest,
        "predictions": {"digits": encode_classes(predictions)},
    }


def confirm(
    directory: Path, recipes: Mapping[str, tuple[list[range], float]], time: float = 1e3, n: int = 1000
) -> None:
    """Note training runs on fresh seeds, each with the images that it gets wrong."""
    held_out = next(iter(load(directory).state.held_out.values()))
    for trial, (wrongs, seconds) in recipes.items():
        for seed, wrong in enumerate(wrongs, start=1):
            found = judge(wrong, seconds, held_out, 1000)
            Ledger(directory / "ledger.jsonl").append("confirmed", trial=trial, seed=seed, time=1e3, **found)


def chosen(directory: Path) -> str | None:
    return load(directory).recommendation().trial


def test_the_cheapest_within_one_paired_error_is_recommended(make_judged: Any) -> None:
    """t0002 is the most accurate. Of 1,000 images 20 are 2 points: more than their error of 0.46 where all of them are
    on one side, and less than that of 2.1 where 231 are wrong here and 211 others there."""
    best = (range(50), 20.0)
    one_sided = make_judged({"t0001": (range(70), 10.0), "t0002": best}, name="one sided")
    assert chosen(one_sided) == "t0002"
    spread = make_judged({"t0001": (range(500, 731), 10.0), "t0002": (range(211), 20.0)}, name="spread")
    assert chosen(spread) == "t0001"
    assert load(spread).recommendation().margin == pytest.approx(((442 + 1 - 20**2 / 1000) ** 0.5) / 1000)


def test_neither_an_image_nor_half_of_the_tolerance_is_worth_a_cost(make_judged: Any) -> None:
    assert chosen(make_judged({"t0001": (range(2), 10.0), "t0002": (range(1), 20.0)}, images=10, name="one")) == "t0001"
    for images in (4, 40):
        equal = {"t0001": (range(1), 10.0), "t0002": (range(1), 10.0)}
        assert chosen(make_judged(equal, images=images, name=f"none of {images}")) == "t0001"
    # half a point of 100,000 images is far more than an error, and no reason to pay twice as much
    for missed, expected in ((500, "t0001"), (501, "t0002")):
        run = make_judged({"t0001": (range(missed), 10.0), "t0002": (range(0), 20.0)}, images=100_000, name=str(missed))
        assert chosen(run) == expected


def test_of_equal_costs_the_remaining_objectives_decide(make_judged: Any) -> None:
    objectives = {"val_accuracy": "max", "train_latency_s": "min", "train_flops": "min"}
    directory = make_judged({"t0001": (range(52), 10.0), "t0002": (range(50), 20.0)}, objectives=objectives)
    assert chosen(directory) == "t0001"
    ledger = Ledger(directory / "ledger.jsonl")
    held_out = next(iter(load(directory).state.held_out.values()))
    for trial, flops in (("t0003", 4e9), ("t0004", 3e9)):  # as cheap and as accurate as t0001, of fewer operations
        found = judge(range(52), 10.0, held_out, 1000)
        found["metrics"]["train_flops"] = flops
        ledger.append("asked", trial=trial, params={"alpha": flops / 1e10, "epochs.sl": 20})
        ledger.append("complete", trial=trial, **found)
    assert chosen(directory) == "t0004"


def test_one_candidate_no_baseline_and_nothing_that_is_feasible(make_judged: Any, make_run: MakeRun) -> None:
    alone = load(make_judged({"t0001": (range(50), 10.0)}, name="alone")).recommendation()
    assert (alone.trial, alone.gain, alone.most_accurate, alone.cheapest) == ("t0001", None, "t0001", "t0001")
    assert alone.alternatives == ()
    limits = {"train_latency_s": "<= 5"}
    none = load(make_judged({"t0001": (range(50), 10.0)}, name="none", constraints=limits)).recommendation()
    assert (none.trial, none.next) == (None, None)
    assert none.lines() == ["Nothing to recommend: no complete recipe keeps train_latency_s <= 5."]
    empty = load(make_run([], name="empty")).recommendation()
    assert empty.sentence == "Nothing to recommend: nothing is complete yet."


def test_without_an_error_it_is_the_knee(make_run: MakeRun) -> None:
    rows = [{"val_calibration_error": e, "train_flops": f} for e, f in ((0.30, 1e9), (0.10, 2e9), (0.09, 9e9))]
    result = load(make_run(rows, objectives={"val_calibration_error": "min", "train_flops": "min"}, reference=None))
    found = result.recommendation()
    assert (found.trial, found.margin, found.gain) == (result.knee(), None, None) == ("t0002", None, None)
    assert "the knee" in found.why


def test_a_baseline_can_be_the_answer_and_the_sentence_says_it_in_as_many_words(make_judged: Any) -> None:
    directory = make_judged({"sl": (range(55), 5.0), "ssl_sl": (range(90), 9.0), "t0001": (range(52), 20.0)})
    found = load(directory).recommendation()
    assert (found.trial, found.over, found.most_accurate, found.cheapest) == ("sl", "ssl_sl", "t0001", "sl")
    assert found.lines() == [
        "most accurate: t0001, 94.8 ± 0.7 % of 1,000 validation images, 20.0 s",
        "Supervised training alone is enough here: use sl (SL, 20 epochs): 94.5 ± 0.7 % of 1,000 validation images, "
        "5.00 s. +3.5 ± 0.6 points over self-supervised, then supervised training (ssl_sl) at 0.56x its time. "
        "One seed, with which about a point can be luck; not confirmed.",
        f"next: mixtune confirm {directory}",
    ]


def test_the_sentence_names_the_values_the_gain_and_what_was_not_shown(make_judged: Any) -> None:
    recipes = {"sl": (range(100), 5.0), "t0001": (range(60, 125), 9.0)}
    directory = make_judged(recipes)
    assert load(directory).recommendation().sentence == (
        "Use t0001 (MixTraining, alpha 0.20, rho 0.50, 10 SSL + 20 SL epochs): 93.5 ± 0.8 % of 1,000 validation "
        "images, 9.00 s. +3.5 ± 0.9 points over supervised training alone (sl) at 1.8x its time. One seed, with "
        "which about a point can be luck; not confirmed."
    )
    close = make_judged({"sl": (range(100), 5.0), "t0001": (range(60, 140), 4.0)}, name="close")
    assert "+2.0 ± 1.0 points over supervised training alone (sl) at 0.80x its time." in _sentence(close)
    closer = make_judged({"sl": (range(100), 5.0), "t0001": (range(60, 148), 4.0)}, name="closer")
    assert "at 0.80x its time: nothing was shown to be better than sl." in _sentence(closer)


def test_after_fresh_seeds_these_decide_everywhere(make_judged: Any) -> None:
    """t0002 was lucky in the search: another one is the answer, on the page and in the JSON."""
    directory = make_judged({"sl": (range(200), 5.0), "t0001": (range(50), 10.0), "t0002": (range(20), 20.0)})
    assert chosen(directory) == "t0002"
    seeds = {
        "sl": ([range(200), range(205), range(203)], 5.0),
        "t0001": ([range(40), range(44), range(42)], 10.0),
        "t0002": ([range(120), range(124), range(122)], 21.0),
    }
    confirm(directory, dict(list(seeds.items())[:2]))
    halfway = load(directory)  # an interrupted confirm: nothing is compared that is not judged alike
    assert (halfway.confirmed, halfway.recommendation().trial) == (None, "t0002")
    assert any("do not decide before t0002" in line for line in halfway.recommendation().lines())
    confirm(directory, dict(list(seeds.items())[2:]))
    result = load(directory)
    found = result.recommendation()
    assert (found.trial, found.confirmed, found.seeds, result.fallen) == ("t0001", True, 3, ["t0002"])
    assert list(result.pareto_front()["trial"]) == ["sl", "t0001"]
    assert result.rows.set_index("trial")["val_accuracy"]["t0001"] == pytest.approx(0.958)
    assert result.best("val_accuracy")["trial"] == "t0001"
    document = result.to_json_dict()
    assert (document["recommended"]["trial"], document["knee"]) == ("t0001", "t0001")
    assert [member["trial"] for member in document["front"]] == ["sl", "t0001"]
    assert found.certainty is not None
    assert 0.9 < found.certainty < 1
    certain = f"{100 * found.certainty:.0f} %"
    near = "within 1 point of the best, and nothing cheaper that near"
    assert f"Confirmed with 3 fresh seeds: {near}, with a probability of {certain}." in found.sentence
    assert found.lines()[-1] == f"next: mixtune export {directory}"
    assert "fell off the front on fresh seeds: t0002" in found.lines()


def test_on_fresh_seeds_it_is_what_is_right_most_probably(make_judged: Any) -> None:
    """A race left t0001 after two lucky seeds: its mean is higher at a lower cost than t0002's, which has five."""
    search = {"t0001": (range(90), 8.0), "t0002": (range(54), 10.0), "t0003": (range(80), 4.0)}
    directory = make_judged(search)
    close = ([range(n) for n in (52, 54, 50, 53, 51)], 10.0)
    confirm(directory, {"t0001": ([range(49), range(51)], 8.0), "t0002": close, "t0003": ([range(90)] * 5, 4.0)})
    result = load(directory)
    assert result.confirmed is not None
    certainties = result.confirmed.certainties
    assert max(certainties, key=lambda trial: certainties[trial]) == chosen(directory) == "t0002"
    assert result.recommendation().certainty == certainties["t0002"]
    assert pareto_front(result.rows, result.objectives)["trial"].tolist() == ["t0003", "t0001"]  # by means
    probable = result.confirmed.frame.set_index("trial")["p_front"]
    assert result.pareto_front()["trial"].tolist() == [t for t in ("t0003", "t0001", "t0002") if probable[t] >= 0.5]
    assert "t0002" in set(result.pareto_front()["trial"])


def test_a_line_says_what_the_validation_images_cannot_tell_apart(make_judged: Any) -> None:
    """Two points apart with 443 disagreements: 1.8 * 2 = 4.2 points would be seen, and one of 17 times the images."""
    close = load(make_judged({"t0001": (range(500, 731), 10.0), "t0002": (range(211), 20.0)}))
    assert resolution(close) == (
        "1,000 validation images tell recipes apart that differ by about 4.2 points or more: 1 of 1 neighbours on the "
        "front is closer; one point takes about 18,000 images (data.val_fraction) or fresh seeds (mixtune confirm)"
    )
    assert resolution(load(make_judged({"t0001": (range(70), 10.0), "t0002": (range(50), 20.0)}, name="far"))) is None
    assert resolution(load(make_judged({"t0001": (range(70), 10.0)}, name="alone"))) is None


def test_what_joined_the_front_since_is_to_be_confirmed_next(make_judged: Any) -> None:
    directory = make_judged({"sl": (range(200), 5.0), "t0001": (range(50), 10.0)})
    confirm(directory, {"sl": ([range(200)], 5.0), "t0001": ([range(60)], 10.0)})
    assert load(directory).recommendation().next == f"mixtune export {directory}"
    held_out = next(iter(load(directory).state.held_out.values()))
    ledger = Ledger(directory / "ledger.jsonl")
    ledger.append("asked", trial="t0002", params={"alpha": 0.9, "epochs.sl": 20}, time=2e3)
    ledger.append("complete", trial="t0002", time=2e3, **judge(range(5), 11.0, held_out, 1000))
    found = load(directory).recommendation()
    assert (found.trial, found.confirmed) == ("t0001", True)
    assert found.next == f"mixtune confirm {directory}"
    assert "joined the front since, not confirmed yet: t0002" in found.lines()


def test_of_trials_that_are_one_recipe_the_first_stands_for_all(make_judged: Any) -> None:
    """alpha has no effect where no epoch is mixed."""
    directory = make_judged({"sl": (range(200), 5.0), "ssl_sl": (range(50), 10.0)})
    ledger, held_out = Ledger(directory / "ledger.jsonl"), next(iter(load(directory).state.held_out.values()))
    for trial, alpha in (("t0001", 0.1), ("t0002", 0.9)):
        ledger.append("asked", trial=trial, params={"alpha": alpha, "rho": 0.0})
        ledger.append("complete", trial=trial, **judge(range(50), 10.0, held_out, 1000))
    result = load(directory)
    assert result.same_recipes["ssl_sl"] == ("t0001", "t0002")
    assert list(result.pareto_front()["trial"]) == ["sl", "ssl_sl"]
    assert [record.trial for record in result.to_confirm] == ["sl", "ssl_sl"]


def _sentence(directory: Path) -> str:
    return load(directory).recommendation().sentence


def test_a_recommendation_is_of_the_objectives_that_are_asked_for(make_judged: Any) -> None:
    result: Result = load(make_judged({"t0001": (range(52), 10.0), "t0002": (range(20), 20.0)}))
    assert result.with_objectives({"train_flops": "min"}).recommendation().trial == "t0001"
    assert result.with_objectives({"val_accuracy": "max"}).recommendation().trial == "t0002"
