"""Which images an epoch shows: splits, order, Eq. 2, and the requests that cannot be met."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.cost.flops import Size, recipe_flops
from mixtune.errors import RequestError
from mixtune.space.recipe import parse_recorded, with_former_defaults
from mixtune.training.augmentation import crop_and_flip, resized_crop_and_flip
from mixtune.training.data import load_test_pools, load_training_data
from mixtune.training.loop import train
from mixtune.training.plan import PHASES, make_plan
from mixtune.training.randaugment import rand_augment
from mixtune.training.sources import load_image_sets
from mixtune.training.streams import torch_generator

STILL = {"augment.pad": 0, "augment.flip": 0.0}


def epochs_of(recipe, phase):
    return [epoch for epoch in make_plan(recipe) if epoch.phase == phase]


def numbers_of(images, source):
    """Return which image of the source each of ``images``, drawn without augmentation, is."""
    everything = source.plain(torch.arange(len(source.images)))
    where = {image.numpy().tobytes(): i for i, image in enumerate(everything)}
    assert len(where) == len(everything)  # no two images are equal
    return [where[image.numpy().tobytes()] for image in images]


def test_a_batch_has_images_in_units_of_standard_deviation_and_their_labels(make_recipe):
    recipe = make_recipe(STILL)
    data = load_training_data(recipe)
    images, labels = next(data.batches(recipe, epochs_of(recipe, "sl")[0]))
    assert images.shape == (32, 1, 8, 8)
    assert images.dtype == torch.float32
    source = data.tasks[0].train
    pixels = source.images.numpy() / 255
    for image, label, number in zip(images, labels[0], numbers_of(images, source), strict=True):
        expected = (pixels[number] - pixels.mean()) / pixels.std()
        np.testing.assert_allclose(image.numpy(), expected, rtol=1e-4, atol=1e-5)
        assert label == source.labels[number]


def test_an_epoch_is_one_pass_over_the_training_images_without_the_incomplete_batch(make_recipe):
    recipe = make_recipe(STILL | {"rho": 0.5})
    data = load_training_data(recipe)
    assert len(data.tasks[0].train.indices) == 129
    for phase in PHASES:
        orders = []
        for epoch in (epochs_of(recipe, phase)[0], *epochs_of(make_recipe({"rho": 0.0}), phase)[1:]):
            batches = [images for images, _ in data.batches(recipe, epoch)]
            assert [len(images) for images in batches] == [32] * 4
            orders.append(numbers_of(torch.cat(batches), data.tasks[0].train))
            assert len(set(orders[-1])) == 128
            assert set(orders[-1]) <= set(data.tasks[0].train.indices.tolist())
        assert all(order != orders[0] for order in orders[1:]), phase


def test_validation_images_are_never_trained_on(make_recipe):
    recipe = make_recipe({"data.fraction": 1.0})
    data = load_training_data(recipe)
    train, val = data.tasks[0].train.indices.tolist(), data.tasks[0].held_out.indices.tolist()
    assert (len(train), len(val)) == (1293, 144)
    assert sorted(train + val) == list(range(1437))


def test_the_supervised_set_named_as_the_ssl_set_is_no_second_set(make_recipe, tmp_path):
    root = str(tmp_path)
    for changes in (
        {},
        {"data.root": root},
        {"data.root": root, "data.ssl_root": f"{root}/../{tmp_path.name}"},
        {"data.ssl_root": f"{root}/elsewhere"},
    ):
        data = load_training_data(make_recipe({"data.ssl_dataset": "digits", **changes}))
        assert not data.mixes_partners, changes
        assert torch.equal(data.tasks[0].ssl.indices, data.tasks[0].train.indices)  # no validation image is among them


def test_ssl_may_see_all_training_images_while_sl_sees_a_tenth_of_the_labels(make_recipe):
    few = load_training_data(make_recipe({"data.fraction": 0.1, "data.ssl_fraction": 1.0}))
    every = load_training_data(make_recipe({"data.fraction": 1.0}))
    ssl, train, held_out = (set(getattr(few.tasks[0], pool).indices.tolist()) for pool in ("ssl", "train", "held_out"))
    assert ssl == set(every.tasks[0].train.indices.tolist())
    assert train < ssl
    assert not ssl & held_out
    assert few.steps_of("sl") == len(train) // 32


FEW_LABELS = {"data.fraction": 0.1, "data.ssl_fraction": 1.0, "rho": 1.0, **STILL}


def test_a_mix_phase_of_few_labels_reads_the_images_without_labels(make_recipe):
    recipe = make_recipe({**FEW_LABELS, "lambda": 0.0, "epochs.ssl": 10, "epochs.sl": 10})
    data = load_training_data(recipe)
    task = data.tasks[0]
    labelled, pool = set(task.train.indices.tolist()), set(task.ssl.indices.tolist())
    seen = set()
    for epoch in make_plan(recipe):
        batches = list(data.batches(recipe, epoch))
        assert [len(images) for images, _ in batches] == [32] * 4
        seen |= set(numbers_of(torch.cat([images for images, _ in batches]), task.ssl))
    expected = 1293 * (1 - (1 - 1 / 1293) ** 1280)  # of so many draws
    assert len(seen) == pytest.approx(expected, rel=0.1)
    assert seen <= pool
    assert len(seen - labelled) > 0.8 * len(seen)

    def first_batch(changes):
        recipe = make_recipe({**FEW_LABELS, **changes})
        return next(load_training_data(recipe).batches(recipe, make_plan(recipe)[0]))[0]

    alone = first_batch({"data.ssl_fraction": None})
    assert not torch.equal(first_batch({}), alone)
    assert torch.equal(first_batch({"lambda": 1.0}), alone)
    for partners in ("own", "ssl_dataset"):  # what runs recorded without the field meant
        assert torch.equal(first_batch({"data.partners": partners}), alone)
    assert parse_recorded({"data": {"dataset": "digits"}}).data.partners == "ssl_dataset"


def test_an_ssl_epoch_may_be_one_pass_over_its_images(make_recipe, make_state, write_crops):
    crops = {"data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(200)}
    for changes, steps in (
        ({"data.ssl_fraction": 1.0}, 1293 // 32),
        ({"data.ssl_fraction": 0.05}, 65 // 32),
        (crops, 200 // 32),
        ({**crops, "data.ssl_fraction": 0.1}, 1),  # 20 images, passed over again
        ({}, 4),
    ):
        state = make_state({**STILL, "rho": 0.5, "data.ssl_epoch": "pool", **changes})
        data, recipe = state.data, state.recipe
        assert {phase: data.steps_of(phase) for phase in PHASES} == {"ssl": steps, "mix": 4, "sl": 4}
        assert Size.of(data).steps(recipe) == state.bill.steps == {"ssl": steps, "mix": 4, "sl": 4}
        batches = {p: [i for i, _ in data.batches(recipe, epochs_of(recipe, p)[0])] for p in PHASES}
        assert {phase: len(each) for phase, each in batches.items()} == state.bill.steps
        numbers = numbers_of(torch.cat(batches["ssl"]), data.tasks[0].ssl)
        assert len(set(numbers)) == min(len(numbers), len(data.tasks[0].ssl))
        assert recipe_flops(recipe, Size.of(data)) == pytest.approx(
            {
                phase: sum(data.steps_of(p) * flops for p, _, flops in state.bill.epochs if p == phase)
                for phase in PHASES
            }
        )
        assert [result.steps for result in train(state)] == [steps, 4, 4, 4]


def test_a_share_of_another_ssl_set_is_kept_by_seed(make_recipe, write_crops):
    other = {"data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(40)}
    quarter, half, reseeded = (
        set(load_training_data(make_recipe(other | changes)).tasks[0].ssl.indices.tolist())
        for changes in ({"data.ssl_fraction": 0.25}, {"data.ssl_fraction": 0.5}, {"data.ssl_fraction": 0.25, "seed": 1})
    )
    assert (len(quarter), len(half)) == (10, 20)
    assert quarter < half
    assert reseeded != quarter


def test_split_and_order_of_the_images_depend_on_the_seed_and_on_neither_rho_alpha_nor_lambda(make_recipe):
    for phase in PHASES:
        splits, orders = [], []
        for changes in ({"alpha": 0.1, "lambda": 0.2}, {"alpha": 0.9, "lambda": 0.7, "rho": 0.75}, {"seed": 1}):
            recipe = make_recipe({"rho": 0.5, **changes})
            data = load_training_data(recipe)
            splits.append(data.tasks[0].held_out.indices.tolist())
            orders.append(torch.cat([images for images, _ in data.batches(recipe, epochs_of(recipe, phase)[0])]))
        assert splits[0] == splits[1] != splits[2]
        assert torch.equal(orders[0], orders[1]), phase
        assert not torch.equal(orders[0], orders[2]), phase


def test_eq_2_mixes_each_labelled_image_with_a_random_one_of_the_ssl_set(make_recipe, write_crops):
    for count, lambda_ in ((20, 0.3), (200, 0.0), (200, 0.3), (200, 1.0)):  # fewer and more than the 129 of SL
        changes = {"data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(count)}
        recipe = make_recipe({**changes, "rho": 0.5, "lambda": lambda_, "augment.pad": 1, "augment.flip": 0.5})
        data = load_training_data(recipe)
        sl, ssl = data.tasks[0].train, data.tasks[0].ssl
        assert ssl.images.shape == (count, 1, 8, 8)  # the supervised size and channels, from 24 x 30 RGB
        assert ssl.labels is None
        epoch = epochs_of(recipe, "mix")[0]
        batches = list(data.batches(recipe, epoch))
        assert len(batches) == 4

        names = ("order", "augmentation", "ssl_augmentation", "partners")
        order_draws, draws, ssl_draws, partners = (torch_generator(recipe.seed, name, epoch.index) for name in names)
        order = sl.indices[torch.randperm(129, generator=order_draws)]
        for step, (images, labels) in enumerate(batches):
            chosen = order[32 * step : 32 * step + 32]
            x_sl = shown(sl, chosen, draws)
            x_ssl = shown(ssl, torch.randint(count, (32,), generator=partners), ssl_draws)
            torch.testing.assert_close(images.double(), lambda_ * x_sl + (1 - lambda_) * x_ssl, rtol=1e-5, atol=1e-5)
            assert labels[0].tolist() == sl.labels[chosen].tolist(), (count, lambda_)


def shown(source, chosen, draws):
    """Return normalised images in float64, padded by 1 and half of them mirrored."""
    pixels = crop_and_flip(source.images[chosen], 1, 0.5, draws).double() / 255
    return (pixels - source.mean) / source.std


def test_lambda_1_shows_the_supervised_batches(make_recipe, write_crops):
    other = {"lambda": 1.0, "data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(20)}
    own, mixed = make_recipe({"rho": 0.5}), make_recipe({"rho": 0.5, **other})
    epoch = epochs_of(own, "mix")[0]
    batches = (load_training_data(recipe).batches(recipe, epoch) for recipe in (own, mixed))
    for (images, labels), (mixed_images, mixed_labels) in zip(*batches, strict=True):
        assert torch.equal(images, mixed_images)
        assert torch.equal(labels, mixed_labels)


def test_an_ssl_epoch_of_another_set_keeps_the_supervised_pace_and_repeats_no_image_early(make_recipe, write_crops):
    for count in (20, 128, 200):
        recipe = make_recipe({"data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(count), **STILL})
        data = load_training_data(recipe)
        batches = list(data.batches(recipe, epochs_of(recipe, "ssl")[0]))
        assert [len(images) for images, _ in batches] == [32] * 4
        assert all(labels is None for _, labels in batches)
        numbers = numbers_of(torch.cat([images for images, _ in batches]), data.tasks[0].ssl)
        for start in range(0, 128, count):
            seen = numbers[start : start + count]
            assert len(set(seen)) == len(seen), count
        assert len(set(numbers)) == min(count, 128)


def test_pad_and_flip_by_default_are_an_eighth_and_what_the_images_bear(make_recipe, write_crops):
    changes = {"data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(20)}
    data = load_training_data(make_recipe(changes))

    def pads_and_flips(data):
        return [(pool.augmentation.pad, pool.augmentation.flip) for pool in (data.tasks[0].train, data.tasks[0].ssl)]

    assert pads_and_flips(data) == [(1, 0.0), (1, 0.5)]  # a mirrored 2 is no 2
    assert pads_and_flips(load_training_data(make_recipe({"data.image_size": 32})))[0][0] == 4  # the paper's
    given = load_training_data(make_recipe({**changes, "augment.pad": 3, "augment.flip": 0.25}))
    assert pads_and_flips(given) == [(3, 0.25)] * 2


def test_a_batch_larger_than_the_training_set_is_refused_with_the_numbers(make_recipe):
    with pytest.raises(RequestError) as refused:
        load_training_data(make_recipe({"optim.batch_size": 130}))
    message = str(refused.value)
    assert message.startswith("optim.batch_size 130 is more than the 129 training images of digits (of 1437,")
    assert message.endswith("lower it to at most 129")
    assert "\n" not in message
    assert load_training_data(make_recipe({"optim.batch_size": 129})).steps_of("sl") == 1


def test_a_supervised_set_without_classes_is_refused(make_recipe, write_crops):
    root = write_crops(40)
    with pytest.raises(RequestError, match=f"image_folder at {root} has no classes") as refused:
        load_training_data(make_recipe({"data.dataset": "image_folder", "data.root": root}))
    assert "data.ssl_dataset" in str(refused.value)


def test_the_papers_tinyimagenet_preprocessing_is_a_recipes_augmentation(make_recipe):
    """Crop by area, flip and RandAugment for SL, nothing for SSL, ImageNet's statistics."""
    changes = {
        "augment.crop_scale": (0.6, 1.0),
        "augment.crop_ratio": (0.9, 1.1),
        "augment.randaugment": (2, 9),
        "augment.flip": 0.5,
        "augment.ssl": False,
        "data.statistics": "imagenet",
    }
    recipe = make_recipe({**changes, "rho": 0.5})
    task = load_training_data(recipe).tasks[0]
    pixels = torch.arange(4)
    gray_mean, gray_std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    expected = (task.train.images[pixels] / 255 - gray_mean) / gray_std
    torch.testing.assert_close(task.train.plain(pixels), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(task.ssl.batch(pixels, torch.Generator()), expected, rtol=1e-5, atol=1e-5)

    def generator():
        return torch.Generator().manual_seed(5)

    shared = generator()
    cropped = resized_crop_and_flip(task.train.images[pixels], (0.6, 1.0), (0.9, 1.1), 0.5, shared)
    changed = rand_augment(cropped, 2, 9, shared)
    assert not torch.equal(cropped, changed)
    torch.testing.assert_close(
        task.train.batch(pixels, generator()), (changed / 255 - gray_mean) / gray_std, rtol=1e-5, atol=1e-5
    )


def test_statistics_of_training_images_alone_are_those_that_numpy_finds_without_the_validating_ones(make_recipe):
    recipe = make_recipe({"data.statistics": "train", "data.fraction": 0.3, "data.ssl_fraction": 0.6})
    data = load_training_data(recipe)
    task = data.tasks[0]
    pixels = task.train.images.numpy() / 255
    trained = np.delete(pixels, task.held_out.indices.numpy(), axis=0)
    assert len(trained) == len(pixels) - len(task.held_out) < len(pixels)
    for pool in (task.train, task.ssl, task.held_out, *load_test_pools(recipe, data)):
        assert pool.mean.item() == pytest.approx(trained.mean(), rel=1e-6)
        assert pool.std.item() == pytest.approx(trained.std(), rel=1e-6)
    own = load_training_data(make_recipe({"data.statistics": "own"})).tasks[0].train
    assert own.mean.item() == pytest.approx(pixels.mean(), rel=1e-6) != pytest.approx(trained.mean(), rel=1e-6)
    paper = load_training_data(make_recipe({"data.statistics": "train", "protocol": "paper"})).tasks[0].train
    assert torch.equal(paper.mean, own.mean)  # nothing validates


def test_pretrained_weights_bring_their_statistics(make_recipe, write_crops, tmp_path):
    """Half and a half for timm's vit_tiny, OpenAI's for CLIP; the mean of the colours for gray images."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    file = str(tmp_path / "weights.safetensors")  # what is in it does not matter here
    clip = {"model.name": "vit_base_patch16_clip_224", "model.pretrained": True}
    gray = [sum(mean) / 3], [sum(std) / 3]

    def statistics_of(changes):
        pool = load_training_data(make_recipe(changes)).tasks[0].train
        return pool.mean.flatten().tolist(), pool.std.flatten().tolist()

    own = statistics_of({})
    for changes, expected in (
        ({"model.pretrained": True}, ([0.5], [0.5])),
        ({"model.pretrained": file}, ([0.5], [0.5])),
        ({"model.pretrained": file, "data.statistics": "weights"}, ([0.5], [0.5])),
        (clip, gray),
        ({**clip, "data.statistics": "own"}, own),
        ({"data.statistics": "own"}, own),
    ):
        for found, wanted in zip(statistics_of(changes), expected, strict=True):
            assert found == pytest.approx(wanted), changes
    crops = load_training_data(
        make_recipe({**clip, "data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(20)})
    )
    assert crops.tasks[0].ssl.mean.flatten().tolist() == pytest.approx(gray[0])
    recorded = with_former_defaults(make_recipe({**clip, "data.statistics": "auto"}).to_dict())
    assert recorded["data"]["statistics"] == "auto"
    del recorded["data"]["statistics"]
    assert parse_recorded(recorded).data.statistics == "own"


def test_a_process_places_the_images_of_many_trials_once(make_recipe):
    one, other = (load_training_data(make_recipe({"alpha": alpha})) for alpha in (0.1, 0.9))
    assert one.tasks[0].train.images is other.tasks[0].train.images


def write_random(folder, count):
    """Write so many different images, 8 x 8."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([*str(folder).encode()])
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number}.png")


def test_a_sources_own_validation_images_validate(make_recipe, tmp_path):
    """`val/` was never used, and a share of `train/` validated (ultralytics 1677)."""
    for part, count in (("train", 40), ("val", 9)):
        for label in "ab":
            write_random(tmp_path / part / label, count)
    values = {"data.dataset": "image_folder", "data.root": str(tmp_path), "data.fraction": 1.0}
    (task,) = load_training_data(make_recipe(values)).tasks
    assert (len(task.train), len(task.held_out)) == (64, 18), "a fifth of train/ is the test part"
    recorded = load_training_data(make_recipe({**values, "data.reading": 1})).tasks[0]
    assert (len(recorded.train), len(recorded.held_out)) == (72, 8), "as in runs of version 0.1: val/ is the test part"


def test_groups_of_a_table_are_on_one_side_of_every_split(make_recipe, tmp_path):
    """Images of one patient on both sides made the validation too good (autofocus 12)."""
    write_random(tmp_path / "scans", 200)
    rows = "".join(f"scans/{i}.png,{'ill' if i % 2 else 'well'},p{i // 5}\n" for i in range(200))
    (tmp_path / "labels.csv").write_text(f"path,label,patient\n{rows}")
    values = {"data.dataset": "manifest", "data.root": str(tmp_path / "labels.csv"), "data.val_fraction": 0.2}
    recipe = make_recipe({**values, "data.fraction": 1.0})
    data = load_training_data(recipe)
    patients = {}
    for part, images in load_image_sets(recipe).items():
        patients[part] = images.groups
    train, test = patients["manifest/train"], patients["manifest/test"]
    (task,) = data.tasks
    sides = [set(train[task.train.indices]), set(train[task.held_out.indices]), set(test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40
    assert len(task.held_out) == pytest.approx(0.2 * 160, abs=5)


def test_rare_classes_are_trained_on_and_told(make_recipe, tmp_path):
    """Twenty classes of 30 images, one of 1 and one of 2 (ludwig 2831): "raise val_fraction", then "lower it"."""
    for number in range(20):
        write_random(tmp_path / f"c{number:02}", 30)
    write_random(tmp_path / "rare", 1)
    write_random(tmp_path / "scarce", 2)
    data = load_training_data(
        make_recipe({"data.dataset": "image_folder", "data.root": str(tmp_path), "data.fraction": 1.0})
    )
    assert data.lines == ("too rare to be validated, so in training alone: rare, scarce",)
    trained = data.tasks[0].train
    assert set(trained.labels[trained.indices].tolist()) == set(range(22))


def test_all_problems_of_a_split_are_told_before_anything_is_decoded(make_recipe, tmp_path):
    write_random(tmp_path / "a", 6)
    write_random(tmp_path / "b", 6)
    (tmp_path / "a/0.png").write_bytes(b"no image")
    recipe = make_recipe({"data.dataset": "image_folder", "data.root": str(tmp_path), "data.val_fraction": 0.01})
    with pytest.raises(
        RequestError, match=r"data.val_fraction 0.01 of 9 images is none.*; optim.batch_size 32 is more"
    ):
        load_training_data(recipe)
