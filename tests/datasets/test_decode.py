"""Every way in which a file may hold an image; the expected pixels come from PIL or NumPy directly."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mixtune.datasets import load_dataset
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
        difference = np.abs(load_all(tmp_path, image_size=64)[0].astype(int) - by_hand)
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


def test_transparency_is_laid_over_white(tmp_path, crop):
    alpha = np.full((32, 32, 1), 255, dtype=np.uint8)
    alpha[:16] = 0
    Image.fromarray(np.concatenate([crop, alpha], axis=-1)).save(tmp_path / "a.png")
    Image.fromarray(np.concatenate([crop[..., :1], alpha], axis=-1)).save(tmp_path / "b.png")
    over_white = np.where(alpha == 0, 255, crop).transpose(2, 0, 1)
    images = load_all(tmp_path)
    np.testing.assert_array_equal(images[0], over_white)
    np.testing.assert_array_equal(images[1], np.broadcast_to(over_white[:1], (3, 32, 32)))


def test_a_palette_with_a_transparent_colour_is_read(tmp_path, crop):
    palette = Image.fromarray(crop).quantize(16)
    palette.save(tmp_path / "a.png", transparency=bytes([0, *[255] * 15]))
    indices = np.asarray(palette)
    expected = np.where((indices == 0)[..., None], 255, np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(load_all(tmp_path)[0], expected.transpose(2, 0, 1))


def test_16_bit_images_are_scaled_to_8_bits(tmp_path, crop):
    deep = crop[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "b.tif")
    images = load_all(tmp_path)
    assert images.shape == (2, 1, 32, 32)
    np.testing.assert_array_equal(images[:, 0], np.stack([crop[..., 0]] * 2))


def test_black_and_white_and_cmyk_images_are_read(tmp_path, crop):
    bits = Image.fromarray(crop).convert("1")
    bits.save(tmp_path / "a.png")
    inks = Image.fromarray(crop).convert("CMYK")
    inks.save(tmp_path / "b.tif")
    images = load_all(tmp_path)
    np.testing.assert_array_equal(images[0, 0], np.asarray(bits, dtype=np.uint8) * 255)
    np.testing.assert_array_equal(images[1], np.asarray(inks.convert("RGB")).transpose(2, 0, 1))


def test_exif_orientation_is_respected(tmp_path, crop):
    photo = Image.fromarray(crop)
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    photo.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_all(tmp_path)[0], np.rot90(crop, -1).transpose(2, 0, 1))


def test_an_unreadable_image_is_named_with_a_remedy(tmp_path, write_photos):
    victim = write_photos(tmp_path)[3]
    for content in (victim.read_bytes()[: victim.stat().st_size // 2], b"<html>404</html>", b"", None):
        victim.unlink()
        if content is None:
            victim.symlink_to(tmp_path / "nowhere.jpg")
        else:
            victim.write_bytes(content)
        with pytest.raises(DataError, match=rf"{victim} cannot be read .*remove the file or replace it"):
            load_dataset("image_folder", str(tmp_path))


def test_floating_point_pixels_are_refused_by_name(tmp_path, crop):
    Image.fromarray(crop[..., 0].astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif cannot be read \(its pixels are floating-point; save it with 8"):
        load_all(tmp_path)
