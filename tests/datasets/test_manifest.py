"""Tables of images, as people have them: CSV with odd names, Kaggle's, Hugging Face's folders and Parquet files."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixtune.datasets import _parquet, is_manifest, load_dataset, read_table
from mixtune.datasets._split import with_test_part
from mixtune.datasets._types import Source
from mixtune.datasets.manifest import fingerprint, read
from mixtune.errors import RequestError
from mixtune.proposal._choice import find_data


def source(root, **options):
    parts = tuple((name, root / options.pop(name)) for name in ("train", "val", "test") if name in options)
    return Source("manifest", root, root_given=True, download=False, parts=parts, **options)


def refused(root, message, **options):
    with pytest.raises(RequestError, match=message) as caught:
        read(source(root, **options))
    assert "\n" not in str(caught.value)


@pytest.fixture
def rows(tmp_path, digits):
    """30 images in one folder, a table's rows for them: path, label (ten each of three), patient (two images each)."""
    (tmp_path / "img").mkdir()
    table = []
    for number in range(30):
        path = f"img/{number:02d}.png"
        Image.fromarray(digits[0][number]).save(tmp_path / path)
        table.append(
            {"path": path, "label": ("cat", "dog", "rat")[number % 3], "patient_id": f"p{number // 6}{number % 3}"}
        )
    return table


def write(path, rows, names=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).rename(columns=names or {}).to_csv(path, index=False, **options)
    return path


def test_a_table_in_any_form_gives_images_classes_and_groups(tmp_path, rows):
    upper = {"path": "File Name", "label": "Class", "patient_id": "Patient-ID"}
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "e.parquet")
    tables = [
        write(tmp_path / "a.csv", rows),
        write(tmp_path / "b.csv", rows, upper, sep=";", encoding="utf-8-sig"),
        write(tmp_path / "c.tsv", rows, sep="\t"),
        tmp_path / "d.jsonl",
        tmp_path / "e.parquet",
    ]
    for parts in [*(read(source(table)) for table in tables), read_table(frame, tmp_path)]:
        assert parts.classes == ("cat", "dog", "rat")
        assert parts.train.images == [tmp_path / row["path"] for row in rows]
        assert parts.train.labels.tolist() == [0, 1, 2] * 10
        assert len(np.unique(parts.train.groups)) == 15
        assert (parts.test, parts.val, parts.left_out) == (None, None, {})
        assert parts.notes[0].startswith("images that share a ")
        whole = with_test_part(parts)
        assert not set(whole.train.groups) & set(whole.test.groups)
        assert len(whole.test.images) == 6
    assert read(source(tables[0])).train.origin == "a.csv"
    assert all(is_manifest(table) for table in tables)


def test_a_table_is_decoded_and_found_by_init(tmp_path, rows):
    table = write(tmp_path / "labels.csv", rows)
    dataset = load_dataset("manifest", str(table))
    assert dataset.train.images.shape == (24, 1, 8, 8)
    assert dataset.train.classes == ("cat", "dog", "rat")
    assert find_data(str(table), None) == ("manifest", str(table))
    assert find_data(str(tmp_path), None) == ("manifest", str(tmp_path))


def test_splits_are_told_by_a_column_by_flags_or_by_folders(tmp_path, rows):
    names = ["Training"] * 18 + ["validation"] * 6 + ["TEST"] * 6
    with_column = [row | {"Split": name} for row, name in zip(rows, names, strict=True)]
    flags = [row | {"is_valid": number >= 18, "is_test": number >= 24} for number, row in enumerate(rows)]
    for number, row in enumerate(rows):
        folder = tmp_path / "by folder" / ("train" if number < 18 else "valid" if number < 24 else "test")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / os.path.basename(row["path"])).write_bytes((tmp_path / row["path"]).read_bytes())
    by_folder = [
        row | {"path": f"{'train' if n < 18 else 'valid' if n < 24 else 'test'}/{os.path.basename(row['path'])}"}
        for n, row in enumerate(rows)
    ]
    for table in (
        write(tmp_path / "column.csv", with_column),
        write(tmp_path / "flags.csv", flags),
        write(tmp_path / "by folder/all.csv", by_folder),
    ):
        parts = read(source(table))
        assert [len(part.images) for part in (parts.train, parts.val, parts.test)] == [18, 6, 6], table
        assert parts.val.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert parts.test.origin == f"{table.name}, split test"
    with_column[3]["Split"] = "tomorrow"
    with_column[4]["Split"] = ""
    refused(
        write(tmp_path / "odd.csv", with_column), r"column 'Split' holds 'tomorrow', '\(empty\)': should be train, val"
    )


def test_a_table_for_each_part_and_kaggles_test_without_classes(tmp_path, rows):
    write(tmp_path / "two/train.csv", rows[:24])
    write(tmp_path / "two/test_labels.csv", rows[24:])
    (tmp_path / "two/img").symlink_to(tmp_path / "img")
    parts = read(source(tmp_path / "two"))
    assert [part.origin for part in (parts.train, parts.test)] == ["train.csv", "test_labels.csv"]
    ids = [{"id": os.path.basename(row["path"])[:2], "breed": row["label"]} for row in rows]
    write(tmp_path / "kaggle/train.csv", ids[:24])
    write(tmp_path / "kaggle/test.csv", [{"id": row["id"]} for row in ids[24:]])
    write(tmp_path / "kaggle/sample_submission.csv", [{"id": 1, "cat": 0.3}])
    for number in range(30):
        folder = tmp_path / "kaggle" / ("train" if number < 24 else "test")
        folder.mkdir(exist_ok=True)
        (tmp_path / rows[number]["path"]).rename(folder / f"{number:02d}.png")
    parts = read(source(tmp_path / "kaggle"))
    assert parts.classes == ("cat", "dog", "rat")
    assert (len(parts.train.images), parts.test) == (24, None)
    text = "; ".join(parts.notes)
    for said in (
        "'sample_submission.csv' of",
        "the classes are taken from column 'breed'",
        "24 images are found by their names in train/",
        "6 test images have no class and are not used: a fifth of the others is the test part",
    ):
        assert said in text
    assert find_data(str(tmp_path / "kaggle"), None)[0] == "manifest"


def test_hugging_faces_folders_with_metadata(tmp_path, rows):
    for part, chosen in (("train", rows[:24]), ("test", rows[24:])):
        (tmp_path / "hf" / part).mkdir(parents=True)
        for row in chosen:
            (tmp_path / row["path"]).rename(tmp_path / "hf" / part / os.path.basename(row["path"]))
        named = [{"file_name": os.path.basename(row["path"]), "label": row["label"]} for row in chosen]
        lines = "\n".join(json.dumps(row) for row in named)
        (tmp_path / "hf" / part / "metadata.jsonl").write_text(lines)
    parts = read(source(tmp_path / "hf"))
    assert [len(part.images) for part in (parts.train, parts.test)] == [24, 6]
    assert parts.train.origin == "train/metadata.jsonl"
    assert find_data(str(tmp_path / "hf"), None)[0] == "manifest"
    assert not is_manifest(tmp_path / "hf/train/00.png")


def write_parquet(path, pixels, labels, first=0, rows_per_group=4):
    """Write images as Hugging Face does: bytes in a struct, and classes' names in the schema's metadata."""
    entries = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        entries.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(entries, kind), "label": pa.array(labels, pa.int64())})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["zero", "one", "two"]}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)


def test_parquet_holds_the_images_and_the_names_of_their_classes(tmp_path, digits):
    pixels, labels = (array[digits[1] < 3][:40] for array in digits)
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", pixels[:20], labels[:20])
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", pixels[20:30], labels[20:30])
    write_parquet(tmp_path / "data/test-00000-of-00001-b42a7d76538f4c4c.parquet", pixels[30:], labels[30:])
    parts = read(source(tmp_path))
    assert parts.classes == ("zero", "one", "two")  # in the file's order
    assert parts.train.labels.tolist() == labels[:30].tolist()
    assert parts.test.labels.tolist() == labels[30:].tolist()

    def decoded(part, index):
        return np.asarray(Image.open(io.BytesIO(part.images[index])))

    with ThreadPoolExecutor(8) as pool:  # in any order, from many threads
        order = np.random.default_rng(0).permutation(30).tolist() * 5
        for index, image in zip(order, pool.map(lambda i: decoded(parts.train, i), order), strict=True):
            np.testing.assert_array_equal(image, pixels[index])
    np.testing.assert_array_equal(decoded(parts.test, 3), pixels[33])
    assert find_data(str(tmp_path), None)[0] == "manifest"


def test_parquet_images_are_not_all_in_memory_and_may_lack_classes(tmp_path, digits, monkeypatch):
    write_parquet(tmp_path / "train.parquet", digits[0][:40], [0, 1, 2, -1] * 10)  # -1: Hugging Face's "no label"
    monkeypatch.setattr(_parquet, "CACHED_BYTES", 4_000)
    parts = read(source(tmp_path))
    assert parts.left_out == {"no label": 10}
    assert len(parts.train.images) == 30
    stored = parts.train.images._images
    for index in range(30):
        assert parts.train.images[index].startswith(b"\x89PNG")
        assert len(stored._read) == 1 or sum(column.nbytes for column in stored._read.values()) <= 4_000
    assert len(read(source(tmp_path, labelled=False)).train.images) == 40


def test_numbers_are_classes_in_their_order_and_empty_cells_are_left_out(tmp_path, rows):
    numbered = [row | {"label": 11 - number % 3} for number, row in enumerate(rows)]
    assert read(source(write(tmp_path / "a.csv", numbered))).classes == ("9", "10", "11")
    numbered[0]["label"] = numbered[1]["label"] = None  # turns the column to 9.0, 10.0, 11.0
    parts = read(source(write(tmp_path / "b.csv", numbered)))
    assert parts.classes == read_table(pd.DataFrame(numbered), tmp_path).classes == ("9", "10", "11")
    assert parts.left_out == {"no label": 2}
    named = [row | {"label": ("NA", "None", "007")[number % 3]} for number, row in enumerate(rows)]
    assert read(source(write(tmp_path / "c.csv", named))).classes == ("007", "NA", "None")
    measured = [row | {"label": number / 7} for number, row in enumerate(rows)]
    refused(write(tmp_path / "d.csv", measured), "holds numbers such as 0.14.* measurements, not classes")


def test_what_is_wrong_is_told_all_at_once(tmp_path, rows):
    def table(name, rows, **names):
        return write(tmp_path / f"{name}.csv", rows, names)

    refused(table("no", rows, path="x", label="y1"), "no.csv has no column of images: it has 'x', 'y1', 'patient_id'")
    more = [row | {"sex": "f"} for row in rows]
    refused(
        table("nolabel", more, label="a"), r"no classes to .* call their column label.*\(.* it has 'path', 'a'.*'sex'\)"
    )
    gone = [row | {"path": f"gone/{number}.png"} if number < 4 else row for number, row in enumerate(rows)]
    refused(
        table("gone", gone), "gone.csv: 4 of 30 images do not exist in .*such as 'gone/0.png', .*add the files, corr"
    )
    twice = [*rows, rows[0], rows[1] | {"label": "cat"}, rows[2] | {"label": "dog"}]
    refused(table("twice", twice), r"lists 2 images several times with different classes.*'01\.png', '02\.png'")
    assert read(source(table("again", [*rows, rows[0]]))).left_out == {"listed again": 1}
    held = [row | {"split": "test" if number % 3 else "train"} for number, row in enumerate(rows)]
    refused(table("held", held), "classes 'dog', 'rat' have test images but no training images in held.csv")
    held = [row | {"split": "train" if number < 25 else "test"} for number, row in enumerate(rows)]
    assert "no test images of 'cat': not tested" in "; ".join(read(source(table("few", held[:27]))).notes)
    refused(table("rest", held[25:]), "has no row of the training part")
    (tmp_path / "latin.csv").write_bytes("path,label\nimg/00.png,café\n".encode("latin-1"))
    refused(tmp_path / "latin.csv", r"latin\.csv is not UTF-8")
    (tmp_path / "odd.jsonl").write_text('{"path": "img/00.png"\n')
    refused(tmp_path / "odd.jsonl", "odd.jsonl cannot be read as a table")
    refused(tmp_path, "holds several tables, 'again.csv', .*: name one by data.root, or one for each part")
    refused(tmp_path / "img/00.png", r"is not a table: known are \.csv, \.jsonl, \.parquet, \.tsv")
    refused(tmp_path / "img", "holds no table .*: name the file itself, or set data.dataset: image_folder")
    refused(tmp_path, "lists 27 images several times with different .* splits", train="again.csv", test="few.csv")
    table("later", rows[20:])
    parts = read(source(tmp_path, train=table("early", rows[:20]).name, test="later.csv"))
    assert [len(part.images) for part in (parts.train, parts.test)] == [20, 10]


def test_class_folders_are_read_as_such_whatever_table_is_beside_them(tmp_path, write_classes):
    paths = write_classes(tmp_path)
    write(tmp_path / "labels.csv", [{"path": str(path.relative_to(tmp_path)), "label": "x"} for path in paths])
    assert find_data(str(tmp_path), None)[0] == "image_folder"
    (tmp_path / "notes").mkdir()
    write(tmp_path / "notes/visits.csv", [{"day": 1, "rain": "no"}])
    assert not is_manifest(tmp_path / "notes")


def test_the_fingerprint_changes_with_the_table_and_with_its_files(tmp_path, rows):
    table = write(tmp_path / "labels.csv", rows)
    before = fingerprint(source(table))
    assert fingerprint(source(table)) == before
    os.utime(tmp_path / rows[0]["path"], (1, 1))
    changed = fingerprint(source(table))
    write(table, rows[:-1])
    assert len({before, changed, fingerprint(source(table)), fingerprint(source(table, labelled=False))}) == 4
