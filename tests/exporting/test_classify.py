"""An export's script prepares every kind of image as the training did."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from mixtune.datasets import Reading, _files
from mixtune.datasets._decode import Layout, decode, open_item, reduce_early
from mixtune.exporting import classify
from mixtune.exporting.classify import read_image
from mixtune.exporting.timm_model import reading_config

pillow_heif.register_heif_opener()


def photo(width=90, height=64):
    return Image.fromarray(load_sample_images().images[0][40 : 40 + height, 60 : 60 + width].copy())


def with_alpha():
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def with_transparent_colour():
    image = photo().convert("P")
    image.info["transparency"] = 7
    return image


def sixteen_bits():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 65536, (64, 90)).astype(np.uint16))


IMAGES = {
    "colour.png": photo,
    "colour.jpg": photo,
    "high.png": lambda: photo(50, 120),
    "square.png": lambda: photo(32, 32),
    "odd.png": lambda: photo(97, 61),
    "tiny.png": lambda: photo(5, 3),
    "gray.png": lambda: photo().convert("L"),
    "gray-alpha.png": lambda: with_alpha().convert("LA"),
    "alpha.png": with_alpha,
    "palette.gif": lambda: photo().convert("P"),
    "palette.png": with_transparent_colour,
    "two-levels.png": lambda: photo().convert("1"),
    "print.tif": lambda: photo().convert("CMYK"),
    "sixteen.png": sixteen_bits,
    "phone.heic": photo,
    "float.tif": lambda: photo().convert("F"),
    "large.jpg": lambda: photo().resize((900, 700)),
}


READINGS = {
    "former": Reading("crop", "white", "full", rules=1),
    "crop": Reading("crop", "black", "full"),
    "pad": Reading("pad", "#336699", (100.0, 5000.0)),
    "stretch": Reading("stretch", "white", "full"),
}


def as_in_training(path, size, channels, reading):
    item = open_item([path], 0, path.parent, 178)
    layout = Layout(size, channels, reading)
    reduce_early(item.picture, layout)
    return decode(item.picture, layout)


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_those_of_the_training(tmp_path, name):
    path = tmp_path / name
    IMAGES[name]().save(path)
    for size, channels, (how, reading) in itertools.product((8, 32), (1, 3), READINGS.items()):
        if name == "float.tif" and reading.range == "full":
            continue
        found = read_image(str(path), channels, size, reading_config(reading))
        assert found.dtype == torch.uint8
        assert np.array_equal(found.numpy(), as_in_training(path, size, channels, reading)), (size, channels, how)


def test_odd_tags_beside_the_orientation_do_not_matter(tmp_path):
    entries = bytes.fromhex("12010300 01000000 06000000 3101 0500 01000000 26000000".replace(" ", ""))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + b"\0\0\0\0" + b"\xff\xff\xff\xff\x01\0\0\0"
    photo().save(tmp_path / "odd.jpg", exif=exif)
    photo().save(tmp_path / "plain.jpg")
    reading = reading_config(READINGS["crop"])
    odd, plain = (read_image(str(tmp_path / f"{name}.jpg"), 3, 32, reading) for name in ("odd", "plain"))
    assert (odd.float() - plain.rot90(-1, (1, 2)).float()).abs().mean() < 1
    assert np.array_equal(odd.numpy(), as_in_training(tmp_path / "odd.jpg", 32, 3, READINGS["crop"]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_camera_is_turned_back(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    photo().save(path, exif=exif)
    reading = READINGS["crop"]
    assert np.array_equal(read_image(str(path), 3, 32, reading_config(reading)), as_in_training(path, 32, 3, reading))


def test_a_pipe_or_a_device_is_no_image_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(ValueError, match="it is not a regular file"):
            read_image(tmp_path / name, 3, 8, {"reduce": True})


def test_the_script_reads_the_formats_that_training_read() -> None:
    assert classify.FORMATS == _files.FORMATS
    assert {"JPEG", "PNG", "WEBP", "TIFF"} < {*classify.known_formats()}
    assert not {"EPS", "PDF", "WMF"} & {*_files.known_formats()}
