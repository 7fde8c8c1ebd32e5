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
