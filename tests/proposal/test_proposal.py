"""mixtune init: a space that runs, its budget, its comments, and what it refuses."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import mixtune
from mixtune.backbone import choose_patch_size
from mixtune.cli import main
from mixtune.datasets import Account, Dataset, ImageSet, Survey, find_data
from mixtune.datasets._types import INDEX
from mixtune.errors import RequestError
from mixtune.files import refuse_existing
from mixtune.proposal import Draft, propose_space
from mixtune.proposal._choice import MAX_EPOCHS, MAX_TRIALS, SHAPES, _choose_budget, _fill_with_trials
from mixtune.proposal._text import wall_seconds
from mixtune.tuning.forecast import SearchForecast
from mixtune.tuning.slots import Slots


def survey_of(
    counts: dict[str, int] | None = None,
    size: int = 32,
    files: tuple[tuple[int, int], ...] = ((32, 32),),
    root: str = "/x",
    mirror: bool = True,
) -> Survey:
    """Return a survey of black images, of files of so many pixels."""
    counts = counts or {"a": 5_000, "b": 5_000}
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    index = np.zeros(len(labels), INDEX)
    index["width"], index["height"] = np.resize(np.array(files), (len(labels), 2)).T
    images = np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint8), (len(labels), 3, size, size))
    part = ImageSet(images, labels, tuple(counts), mirror, (0.5,) * 3, (0.2,) * 3, index=index)
    return Survey("image_folder", root, None, Dataset(part, part))


SURVEY = survey_of()
DRAFT = Draft(SURVEY, SHAPES[0], cpus=1, epochs=20, trials=20)


def forecast(trial_s: float, slots: Slots | None = None) -> SearchForecast:
    """Return the forecast of a draft of 20 epochs whose trials take so many seconds."""
    return SearchForecast(20, 2, trial_s, 2 * trial_s, 600, 1e6, slots or Slots(1, 0, 2), "a CPU")


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a command here; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["mixtune", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(scope="module")
def written(even_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``mixtune init`` writes for three digits and a minute."""
    path = tmp_path_factory.mktemp("spaces") / "space.yaml"
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, "init", str(even_folder), "-o", str(path), "--hours", "0.02") == 0
    return path


def test_the_space_passes_a_dry_run_as_it_is(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "search", str(written), "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "image_folder: 115 training and 29 validation images, 8x8 grayscale, 3 classes" in printed
    assert "nothing was trained" in printed


def test_its_base_recipe_trains_and_what_mixes_is_searched_by_cost(written: Path) -> None:
    space = mixtune.load_space(written)
    assert space.search.sampler == "cost_aware"
    assert list(space.space) == ["alpha", "rho", "epochs.ssl", "epochs.sl"]
    metrics = mixtune.train(written, {"epochs.ssl": 2, "epochs.sl": 4, "model.embed_dim": 16}).metrics
    assert metrics.epochs_trained == 5  # rho is 0.5: an epoch of two is mixed
    assert 0.0 <= metrics.val_accuracy <= 1.0


def test_it_says_what_it_saw_and_what_it_costs(written: Path, even_folder: Path) -> None:
    text = written.read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0] == f"# mixtune search {written}"
    assert head[1] == f"# {even_folder}: 144 training and 36 test images, 8x8 grayscale, 3 classes of 48."
    assert re.search(r"\d+ trials and 4 baselines, .* about \d+ (seconds|minutes)", "\n".join(head))
    assert max(map(len, text.splitlines()[2:])) <= 120
    assert len(text.splitlines()) <= 32


def test_a_file_is_never_overwritten(
    written: Path, even_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written.read_bytes()
    assert command(monkeypatch, "init", str(even_folder), "-o", str(written)) == 2
    error = f"mixtune: {written} is there already: give another name with -o, or move it away\n"
    assert capsys.readouterr().err == error
    assert written.read_bytes() == before


def test_where_classes_are_uneven_each_counts_alike(digit_folder: Callable[..., Path]) -> None:
    proposal = propose_space(str(digit_folder({0: 120, 1: 30, 2: 60})), hours=0.02)
    assert proposal.prepared.space.objectives == {"val_balanced_accuracy": "max", "train_latency_s": "min"}
    line = next(line for line in proposal.text(Path("s.yaml")).splitlines() if line.startswith("objectives:"))
    assert line.endswith("# classes count alike: the largest is 4.0 times the smallest")


def test_a_dataset_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_data("digits", None) == ("digits", None)
    monkeypatch.chdir(tmp_path)
    assert find_data("CIFAR10", "data") == ("CIFAR10", str(tmp_path / "data"))
    (tmp_path / "digits").mkdir()
    assert find_data("./digits", None) == ("image_folder", str(tmp_path / "digits"))


def test_what_is_no_data_is_one_line(digit_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = digit_folder({0: 30, 1: 30})
    (tmp_path / "file.zip").write_bytes(b"")
    wrong: dict[tuple[str, str | None], str] = {
        (
            "digitz",
            None,
        ): "neither a folder, a table nor a dataset, such as digits or CIFAR10; did you mean 'digits'",
        (str(tmp_path / "digit"), None): f"did you mean '{folder}'",
        (str(folder), "/data"): f"--root /data goes with a dataset's name, and {folder} is a folder",
        (str(tmp_path / "file.zip"), None): "file.zip is a file: name the folder of the images",
    }
    for (data, root), message in wrong.items():
        with pytest.raises(RequestError, match=re.escape(message)):
            propose_space(data, root)


def test_hours_and_the_place_of_the_file_are_checked_first(tmp_path: Path) -> None:
    for hours in (0.0, -1.0, float("nan")):
        with pytest.raises(RequestError, match="should be above 0"):
            propose_space("digits", hours=hours)
    with pytest.raises(RequestError, match=r"there is no folder .*nowhere"):
        refuse_existing(tmp_path / "nowhere" / "space.yaml")


def test_patches_divide_images_of_any_size_into_16_or_more() -> None:
    for size in range(1, 97):
        for shape in SHAPES:
            draft = replace(DRAFT, shape=shape, survey=survey_of(size=size))
            assert choose_patch_size(draft.image_size, draft.patch_size) == draft.patch_size
            assert 16 <= draft.tokens <= shape.tokens
            assert abs(draft.image_size - size) <= max(4, 8 - size)


def test_epochs_trials_and_images_take_the_time_that_there_is() -> None:
    for trial_s, fraction, epochs, trials in (
        (10.0, 1.0, 100, MAX_TRIALS),  # little to do: long training runs and many of them
        (130.0, 1.0, 36, 22),
        (250.0, 1.0, 20, 21),
        (1_000.0, 0.5, 8, 24),  # all images would give five epochs
        (4_000.0, 0.05, 8, 23),
        (1e7, 0.01, 8, 8),  # too much for the time whatever one does: the least
    ):
        draft = _choose_budget(DRAFT, forecast(trial_s), 3600.0)
        scaled = forecast(trial_s * draft.epochs / 20 * draft.fraction)
        draft = _fill_with_trials(draft, scaled, 3600.0)
        assert (draft.fraction, draft.epochs, draft.trials) == (fraction, epochs, trials)
        if trials < MAX_TRIALS and epochs < MAX_EPOCHS and trial_s < 1e6:
            assert wall_seconds(draft, replace(scaled, trials=draft.trials)) == pytest.approx(3600.0, rel=0.1), trial_s


def test_a_share_of_the_images_leaves_some_of_each_class() -> None:
    rare = replace(DRAFT, survey=survey_of({"a": 9_950, "b": 50}))
    assert _choose_budget(rare, forecast(1e7), 3600.0).fraction == 0.5


def test_trials_that_share_a_gpu_are_not_faster_for_it() -> None:
    def wall(slots: Slots) -> float:
        return wall_seconds(DRAFT, forecast(10.0, slots))

    assert wall(Slots(1, 0.25, 4)) == wall(Slots(1, 1, 1))
    assert wall(Slots(1, 0.25, 8)) == wall(Slots(1, 0, 2))


def test_lines_appear_where_they_say_something() -> None:
    large = survey_of(size=64, files=((320, 240), (640, 480)))
    lines = replace(DRAFT, survey=large, fraction=0.5).lines()
    assert lines["image_size"] == "    image_size: 64"
    assert lines["fraction"] == "    fraction: 0.5"
    assert not {"image_size", "fraction"} & DRAFT.lines().keys()
    assert DRAFT.lines()["augment"] == "  augment: {flip: 0.5}"
    # with a shift by a pixel the default recipe's accuracy on 8x8 digits was 74 %, without it 95 %
    digits = survey_of(size=8, files=((8, 8),), mirror=False)
    assert replace(DRAFT, survey=digits).lines()["augment"] == "  augment: {pad: 0, flip: 0.0}"


def test_any_folder_is_written_so_that_yaml_reads_it() -> None:
    for root in ("/data/a b", "/data: #1", "/data/ü", "/" + "long/" * 60, "- x", "null"):
        lines = replace(DRAFT, survey=survey_of(root=root)).lines()
        assert yaml.safe_load("\n".join(lines.values()))["recipe"]["data"]["root"] == root


def test_classes_that_a_mirror_swaps_are_not_flipped_and_bad_files_stay_out() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (200, 3, 32, 32), dtype=np.uint8)
    images[:100, :, :, :12], images[100:, :, :, 20:] = 255, 255  # to the left, to the right
    even = survey_of({"left": 100, "right": 100})
    train = replace(even.dataset.train, images=images)
    account = Account(bad=(("left/7.jpg", "the file is empty"),))
    lines = replace(DRAFT, survey=replace(even, dataset=replace(even.dataset, train=train, account=account))).lines()
    assert "flip: 0.0" in lines["augment"]
    assert lines["on_bad_file"].strip() == "on_bad_file: skip"
    assert "flip: 0.5" in DRAFT.lines()["augment"]
    assert not {"on_bad_file", "class_weights"} & DRAFT.lines().keys()
    rare = replace(DRAFT, survey=survey_of({"a": 950, "b": 50}))
    assert rare.lines()["class_weights"].strip() == "class_weights: balanced"


def test_a_folder_whose_name_has_a_line_break_stays_in_its_comment(
    digit_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = digit_folder({0: 40, 1: 40}, "a\nsearch: {trials: 1000}\x1b[2J")
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "init", str(folder), "--out", "new.yaml") == 0
    text = (tmp_path / "new.yaml").read_text()
    assert "\x1b" not in text
    values = yaml.safe_load(text)
    assert values["search"]["trials"] != 1000
    assert values["recipe"]["data"]["root"] == str(folder)
