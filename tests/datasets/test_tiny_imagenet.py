from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mixtune.datasets import load_dataset
from mixtune.errors import DataError, RequestError

WNIDS = ("n01443537", "n01629819", "n01641577")


@pytest.fixture
def folder(tmp_path, photos):
    """Three classes, four training and two validation images each, laid out as published; one is gray."""
    base = tmp_path / "tiny-imagenet-200"
    (base / "val/images").mkdir(parents=True)
    (base / "test/images").mkdir(parents=True)
    rows = []
    for label, wnid in enumerate(WNIDS):
        (base / "train" / wnid / "images").mkdir(parents=True)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
        for number in range(4):
            crop = photos[label % 2][50 * number : 50 * number + 64, 90 * label : 90 * label + 64]
            image = Image.fromarray(crop) if number else Image.fromarray(crop).convert("L")
            image.save(base / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
        for number in range(2):
            name = f"val_{2 * number + 4 * label}.JPEG"
            Image.fromarray(photos[0][60 * label :][:64, 64 * number :][:, :64]).save(base / "val/images" / name)
            rows.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (base / "val/val_annotations.txt").write_text("".join(reversed(rows)))
    return base


def test_the_folder_or_its_parent_is_read_with_the_odd_validation_layout(folder):
    for root in (folder.parent, folder):
        dataset = load_dataset("tiny_imagenet", str(root))
        assert dataset.train.images.shape == (12, 3, 64, 64)
        assert dataset.train.labels.tolist() == np.repeat([0, 1, 2], 4).tolist()
        assert dataset.train.classes == WNIDS
        assert dataset.test.labels.tolist() == [2, 2, 1, 1, 0, 0]
        for position, name in enumerate(["val_10", "val_8", "val_6", "val_4", "val_2", "val_0"]):
            pixels = np.asarray(Image.open(folder / f"val/images/{name}.JPEG"))
            np.testing.assert_array_equal(dataset.test.images[position], pixels.transpose(2, 0, 1))


def test_words_txt_names_the_classes(folder):
    words = "n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\nn99\tother\n"
    (folder / "words.txt").write_text(words)
    classes = load_dataset("tiny_imagenet", str(folder)).train.classes
    assert classes == ("goldfish", "European fire salamander", "n01641577")


def test_a_missing_folder_says_where_to_get_it_or_names_the_closest_sibling(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (None, str(tmp_path / "empty")):
        with pytest.raises(RequestError, match=r"download http.*tiny-imagenet-200\.zip, unpack it, and set data\.root"):
            load_dataset("tiny_imagenet", root)
    with pytest.raises(RequestError, match="did you mean 'tiny-imagenet-200'"):
        load_dataset("tiny_imagenet", str(folder.parent / "tiny-imagenet"))


def test_what_is_missing_or_broken_inside_is_named(folder):
    (folder / "train/n01700000").mkdir()
    with pytest.raises(RequestError, match="n01700000 has no images"):
        load_dataset("tiny_imagenet", str(folder))
    (folder / "train/n01700000").rmdir()
    (folder / "val/images/val_4.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_4\.JPEG cannot be read"):
        load_dataset("tiny_imagenet", str(folder))
    table = folder / "val/val_annotations.txt"
    table.write_text(table.read_text() + "val_99.JPEG\tn00000000\t0\t0\t1\t1\n")
    with pytest.raises(RequestError, match=r"val_annotations\.txt, line 7: expected a file name, a tab and a class"):
        load_dataset("tiny_imagenet", str(folder))
    table.unlink()
    with pytest.raises(RequestError, match=r"val_annotations\.txt is missing.*image_folder"):
        load_dataset("tiny_imagenet", str(folder))
