"""Every way in which a file may hold an image; the expected pixels come from PIL or NumPy directly."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from mixtune.datasets import Reading, load_dataset
from mixtune.errors import DataError


@pytest.fixture
def crop(photos):
    return np.ascontiguousarray(photos[1][100:132, 200:232])


def load_all(folder, **options):
    """Images of an unlabelled folder, (N, C, H, W), in order of file name."""
    return load_dataset("image_folder", str(folder), **options).train.images


def test_own_size_is_kept_where_images_are_square_equal_and_small(tmp_path, crop):
    for number in range(3):
        Image.fromarray(np.roll(crop, number, axis=0)).save(tmp_path / f"{number}.png")
    images = load_all(tmp_path)
    assert images.shape == (3, 3, 32, 32)
    np.testing.assert_array_equal(images[2], np.roll(crop, 2, axis=0).transpose(2, 0, 1))


def test_other_images_become_64_by_64(tmp_path, photos):
    for shapes in ([(32, 32), (40, 40)], [(32, 40)], [(97, 97)]):
        (tmp_path / str(shapes)).mkdir()
        for number, (height, width) in enumerate(shapes):
            Image.fromarray(photos[0][:height, :width]).save(tmp_path / str(shapes) / f"{number}.png")
        assert load_all(tmp_path / str(shapes)).shape == (len(shapes), 3, 64, 64)


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path, photos):
    for height, width in ((128, 256), (300, 150), (64, 96), (20, 40)):
        photo = Image.fromarray(photos[0][:height, :width])
        photo.save(tmp_path / "a.png")
        scale = 64 / min(height, width)
        large = photo.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        left, top = (large.width - 64) // 2, (large.height - 64) // 2
        by_hand = np.asarray(large.crop((left, top, left + 64, top + 64))).transpose(2, 0, 1)
        difference = np.abs(load_all(tmp_path, image_size=64, reading=Reading(fit="crop"))[0].astype(int) - by_hand)
        assert difference.max() <= 4, (height, width)  # PIL rounds a cropped resize here and there by one
        assert difference.mean() < 0.2, (height, width)


def test_channels_are_1_where_every_image_is_gray_3_otherwise_and_those_asked_for(tmp_path, crop):
    Image.fromarray(crop).convert("L").save(tmp_path / "a.png")
    Image.fromarray(crop).convert("L").convert("P").save(tmp_path / "b.gif")
    assert load_all(tmp_path).shape == (2, 1, 32, 32)
    Image.fromarray(crop).save(tmp_path / "c.png")
    images = load_all(tmp_path)
    assert images.shape == (3, 3, 32, 32)
    assert (images[0] == images[0][0]).all()
    np.testing.assert_array_equal(load_all(tmp_path, channels=1)[2, 0], Image.fromarray(crop).convert("L"))


def test_of_every_kind_of_file_the_pixels_are_what_one_sees(tmp_path, crop):
    """Transparency over white, also in gray and as a palette's colour; 16 bits, two levels, inks; a turned camera."""
    alpha = np.repeat(np.uint8([[[0]], [[255]]]), 16, axis=0).repeat(32, axis=1)
    over_white = np.where(alpha == 0, 255, crop)
    palette, bits, inks = (Image.fromarray(crop).quantize(16), *map(Image.fromarray(crop).convert, ("1", "CMYK")))
    seen = np.where(np.asarray(palette)[..., None] == 0, 255, np.asarray(palette.convert("RGB")))
    deep = Image.fromarray(crop[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6  # show it rotated by 90 degrees clockwise
    for name, image, options, expected in (
        ("alpha.png", Image.fromarray(np.concatenate([crop, alpha], axis=-1)), {}, over_white),
        ("gray-alpha.png", Image.fromarray(np.concatenate([crop[..., :1], alpha], axis=-1)), {}, over_white[..., :1]),
        ("palette.png", palette, {"transparency": bytes([0, *[255] * 15])}, seen),
        ("16.png", deep, {}, crop[..., :1]),
        ("16.tif", deep, {}, crop[..., :1]),
        ("bits.png", bits, {}, np.asarray(bits, dtype=np.uint8)[..., None] * 255),
        ("inks.tif", inks, {}, np.asarray(inks.convert("RGB"))),
        ("turned.png", Image.fromarray(crop), {"exif": turned}, np.rot90(crop, -1)),
    ):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / name, **options)
        np.testing.assert_array_equal(load_all(tmp_path / name)[0], expected.transpose(2, 0, 1), name)


def test_files_that_cannot_be_read_are_all_named_at_once_or_skipped(tmp_path, write_photos):
    """As people met them: a truncated JPEG, an empty file, a web page, a broken PNG, a Git LFS pointer."""
    paths = write_photos(tmp_path, 10)
    whole = paths[0].read_bytes()
    png = tmp_path / "flower/broken.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(png)
    bad = {
        paths[3]: (whole[: len(whole) // 2], "[Tt]runcated"),
        paths[5]: (b"", "the file is empty"),
        paths[6]: (b"<!DOCTYPE html><title>404</title>", "a web page, not an image"),
        paths[15]: (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        png: (png.read_bytes()[:-30], "truncated|broken|not an image"),
    }
    for path, (content, _) in bad.items():
        path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"5 of 21 images cannot be read: .*train without them .data.on_bad_file: skip"
    ) as e:
        load_dataset("image_folder", str(tmp_path))
    for path, (_, reason) in bad.items():
        assert re.search(rf"{path} \([^;]*({reason})", str(e.value)), str(e.value)
    dataset = load_dataset("image_folder", str(tmp_path), reading=Reading(on_bad_file="skip"))
    assert len(dataset.train.images) + len(dataset.test.images) == 16
    assert {name for name, _ in dataset.account.bad} == {str(path) for path in bad}
    counts = np.bincount(np.concatenate([dataset.train.labels, dataset.test.labels]))
    assert counts.tolist() == [7, 9]


def test_a_pipe_or_a_device_is_no_image_and_nothing_waits_for_it(tmp_path, write_photos):
    write_photos(tmp_path, 10)
    os.mkfifo(pipe := tmp_path / "flower/pipe.jpg")
    (device := tmp_path / "flower/zero.jpg").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="2 of 22 images cannot be read") as told:
        load_dataset("image_folder", str(tmp_path))
    for path in (pipe, device):
        assert f"{path} (it is not a regular file" in str(told.value)


def test_orientation_is_read_from_its_tag_alone_however_odd_the_others_are(tmp_path, crop):
    """A rational where text belongs and a negative rational broke Pillow's own rotation (its issues 4665, 8965)."""
    expected = np.rot90(crop, -1)
    for number, odd in enumerate([b"\x31\x01\x05\x00\x01\x00\x00\x00", b"\x1a\x01\x0a\x00\x01\x00\x00\x00"]):
        # two entries, sorted by tag: the orientation, and a (signed) rational -1/1 at offset 38
        orientation = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
        entries = orientation + odd + b"\x26\x00\x00\x00"
        exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + b"\0\0\0\0" + b"\xff\xff\xff\xff\x01\0\0\0"
        Image.fromarray(crop).save(tmp_path / f"{number}.jpg", exif=exif, quality=95, subsampling=0)
    for image in load_all(tmp_path):
        assert np.abs(image.transpose(1, 2, 0).astype(int) - expected).mean() < 6


def test_values_beyond_8_bits_keep_their_signal(tmp_path, photos):
    """12 bits in 16, as cameras and scanners write them (Pillow 3838): one scale for the set, and it is said."""
    gray = photos[0][200:264, 200:264, 0].astype(np.uint16)
    for number, scale in enumerate((16, 8)):
        Image.fromarray(gray * scale).save(tmp_path / f"{number}.png")
    dataset = load_dataset("image_folder", str(tmp_path))
    assert dataset.reading.range == (0.0, 4095.0)
    assert "values from 0 to 4095 become black to white" in dataset.account.notes[0]
    np.testing.assert_array_equal(dataset.train.images[0, 0], np.round(gray * 16 / 4095 * 255))
    assert len(np.unique(dataset.train.images[1])) > 64
    assert len(np.unique(load_all(tmp_path, reading=Reading(range="full"))[0])) < 18
    clipped = load_all(tmp_path, reading=Reading(range=(1000.0, 2000.0)))[0, 0]
    np.testing.assert_array_equal(clipped, np.round(np.clip((gray * 16.0 - 1000) / 1000, 0, 1) * 255))


def test_floating_point_pixels_are_scaled_by_what_the_set_holds(tmp_path, crop):
    values = crop[..., 0].astype(np.float32) / 255
    Image.fromarray(values).save(tmp_path / "a.tif")
    dataset = load_dataset("image_folder", str(tmp_path))
    assert dataset.reading.range == (0.0, 1.0)
    np.testing.assert_array_equal(dataset.train.images[0, 0], crop[..., 0])
    with pytest.raises(DataError, match=r"a\.tif cannot be read \(its pixels are floating-point: say with data\.range"):
        load_all(tmp_path, reading=Reading(range="full"))


def test_images_that_vanish_on_white_are_laid_over_black(tmp_path):
    """White shapes on a transparent ground (DIGITS 85) were one white image."""
    for number in range(3):
        alpha = np.zeros((32, 32), np.uint8)
        alpha[number * 8 : number * 8 + 8] = 255
        Image.fromarray(np.dstack([np.full((32, 32, 3), 255, np.uint8), alpha])).save(tmp_path / f"{number}.png")
    dataset = load_dataset("image_folder", str(tmp_path))
    assert dataset.reading.background == "black"
    assert "vanish on white: black lies under them" in dataset.account.notes[0]
    np.testing.assert_array_equal(dataset.train.images[1, 0], np.repeat([0, 255, 0, 0], 8)[:, None].repeat(32, 1))
    assert load_all(tmp_path, reading=Reading(background="white")).min() == 255
    assert load_all(tmp_path, reading=Reading(background="#102030"))[0, :, -1, 0].tolist() == [16, 32, 48]


def test_wide_images_keep_their_edges(tmp_path):
    """The class of a 3:1 image may be shown at an edge (ultralytics 9896): a crop made all of them one image."""
    for number in range(4):
        pixels = np.zeros((20, 60, 3), np.uint8)
        pixels[:, [0, 4, 52, 56][number] :][:, :4] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    dataset = load_dataset("image_folder", str(tmp_path))
    assert dataset.reading.fit == "pad"
    assert "would lose half or more to a square crop" in dataset.account.notes[0]
    distinct = {
        fit: len(np.unique(load_all(tmp_path, reading=Reading(fit=fit)), axis=0)) for fit in ("crop", "pad", "stretch")
    }
    assert distinct == {"crop": 1, "pad": 4, "stretch": 4}


def test_an_image_beyond_the_limit_names_the_setting(tmp_path, crop):
    Image.new("1", (15_000, 13_000)).save(tmp_path / "huge.png")
    with pytest.raises(
        DataError, match=r"huge\.png cannot be read \(it has 195 megapixels: data\.max_megapixels allows 178"
    ):
        load_all(tmp_path)
    assert load_all(tmp_path, reading=Reading(max_megapixels=200)).shape == (1, 1, 64, 64)


def test_large_images_are_decoded_within_a_gigabyte(tmp_path):
    """Whatever their number and that of the cores: JPEGs are reduced early, others wait for their turn."""
    for number in range(3):
        Image.new("RGB", (8000, 5000), (number, 90, 60)).save(tmp_path / f"{number}.jpg")
        Image.new("I;16", (8000, 4000), 1000 * number).save(tmp_path / f"{number}.png", compress_level=1)
    Image.new("RGBA", (9000, 5000), (9, 8, 7, 100)).save(tmp_path / "clear.png", compress_level=1)
    code = (
        "import resource, sys; from mixtune.datasets import load_dataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "load_dataset('image_folder', sys.argv[1])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 1.0


def test_a_recorded_recipe_is_read_as_it_was(tmp_path, write_photos, photos):
    """The rules of version 0.1: no early reduction, a crop, white, all of 16 bits."""
    Image.fromarray(photos[0]).save(tmp_path / "a.jpg")
    former = Reading("crop", "white", "full", rules=1)
    by_hand = ImageOps.fit(Image.open(tmp_path / "a.jpg"), (32, 32), Image.Resampling.BICUBIC)
    images = load_all(tmp_path, image_size=32, reading=former)
    np.testing.assert_array_equal(images[0].transpose(1, 2, 0), by_hand)
    reduced = load_all(tmp_path, image_size=32, reading=Reading(fit="crop"))[0].transpose(1, 2, 0)
    difference = np.abs(reduced.astype(int) - np.asarray(by_hand))
    assert 0 < difference.mean() < 4
