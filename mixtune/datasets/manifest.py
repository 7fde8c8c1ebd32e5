"""Tables that name images and their classes, or hold the images themselves: CSV, TSV, JSON lines, Parquet.

``data.root`` is such a file, or a folder that holds one: ``labels.csv``, ``metadata.jsonl``; a table for each part
(``train.csv`` and ``test.csv``, ``train/metadata.csv``); or Hugging Face's ``data/train-00000-of-00001.parquet``.

=========  =============================================================================================================
column     meaning (a family of names each, in any case)
=========  =============================================================================================================
``path``   an image file, relative to the table's folder; or, in Parquet, the bytes of one
``label``  its class: text, or a number; rows without one are left out
``split``  train, val or test; without this column a share of the rows validates and a fifth is held out
``group``  images of one group (a patient, say) are never on both sides of a split
=========  =============================================================================================================
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixtune.datasets import image_folder
from mixtune.datasets._files import (
    HEIC,
    PARTS,
    TABLE_NAMES,
    TABLES,
    digest_lines,
    name_some,
    part_of,
    read_folder,
    reads_heic,
    require_folder,
    stamp,
)
from mixtune.datasets._parquet import ParquetImages
from mixtune.datasets._split import Chosen
from mixtune.datasets._types import Images, Part, Parts, Source
from mixtune.errors import RequestError, one_line
from mixtune.metrics import counted

if TYPE_CHECKING:
    import pandas as pd

TAKES_PARTS = True  # data.train, data.val and data.test

_IMAGE = (
    *("path", "paths", "file_path", "filepath", "image_path", "img_path", "file", "files", "file_name", "filename"),
    *("filenames", "image_file", "img_file", "image_name", "img_name", "image", "images", "img", "photo", "picture"),
    *("fname", "image_index", "image_id", "id_code", "id"),
)
_LABEL = (
    *("label", "labels", "class", "class_name", "classname", "class_label", "target", "targets", "category"),
    *("category_name", "cls", "y", "class_id", "label_name", "label_id", "category_id", "fine_label"),
)
_SPLIT = ("split", "splits", "data_split", "set", "subset", "partition")
_FLAGS = {"is_test": "test", "is_val": "val", "is_valid": "val"}  # the first that is true counts
_GROUP = ("group", "groups", "group_id", "patient", "patient_id", "patientid", "subject", "subject_id", "subjectid")
_SHARD = re.compile(r"[-_.]\d+(?:-of-\d+(?:-[0-9a-f]{16})?)?$")  # of train-00000-of-00002


@dataclass
class Rows:
    """The rows of one table or several: lists of equal length. stored: images that are not files of their own."""

    images: list[Any] = field(default_factory=list)  # a path, an index into ``stored``, or an image
    labels: list[str | None] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)  # "" where no part is named
    groups: list[str | None] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    stored: Images | None = None
    order: tuple[str, ...] = ()  # the classes' order, where a file tells it
    group_column: str = ""
    notes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read(source: Source) -> Parts:
    """Return the parts that the tables at ``source.root`` describe. Raises RequestError for unclear tables."""
    return parts_of_rows(_load(source), source.labelled)


def fingerprint(source: Source) -> str:
    """Return a digest of the paths, sizes and times of the tables and of the files that they name."""
    tables, _ = _find_tables(source)
    rows = _load(source)
    files = [path for path, _ in tables] + ([] if rows.stored else rows.images)
    around = f"{source.root.parent if source.root.is_file() else source.root}{os.sep}"
    lines = [f"{source.labelled} {reads_heic()}", *(f"{name}\0{path}" for name, path in source.parts)]
    return digest_lines([*lines, *(f"{str(path).removeprefix(around)}\0{stamp(path)}" for path in files)])


def read_table(table: pd.DataFrame, folder: Path, name: str = "the table") -> Parts:
    """Return the parts that a table describes, whose columns are those of a file.

    folder: what paths are relative to; an image may also be the bytes of a file, {"bytes": ..., "path": ...}, a PIL
    image or an array. name: for messages. Raises RequestError.
    """
    rows = Rows()
    add_table(rows, table, folder, name, split="")
    return parts_of_rows(rows, labelled=True)


def is_manifest(path: Path) -> bool:
    """Return whether ``path`` is a table, or a folder that is described by a table and not by class folders."""
    if path.is_file():
        return path.suffix.lower() in TABLES
    source = Source("manifest", path, root_given=True, download=False)
    try:
        tables, _ = _find_tables(source)
        if not tables:
            return False
        with suppress(RequestError):  # neither is certain, or there are no class folders
            if len(image_folder.read(source).classes) > 1:
                return False
        _load_table(Rows(), *tables[0], path)
    except RequestError:
        return False
    return True


def _load(source: Source) -> Rows:
    tables, notes = _find_tables(source)
    if not tables:
        raise RequestError(
            f"data.root {source.root} holds no table ({', '.join(TABLES)}) that describes images: name the file "
            "itself, or set data.dataset: image_folder where folders are the classes"
        )
    rows = Rows(notes=notes)
    for path, split in tables:
        _load_table(rows, path, split, source.root)
    if rows.stored is not None and len(rows.stored) != len(rows.images):
        raise RequestError(f"data.root {source.root}: some tables hold images, and others name files: one kind is read")
    return rows


def _find_tables(source: Source) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return (table, its part or "" for that of its rows) each, and notes."""
    if not source.root_given and "train" not in dict(source.parts):
        raise RequestError("dataset manifest needs data.root: a table, or the folder of one")
    notes: list[str] = []
    tables: list[tuple[Path, str]] = []
    given = dict(source.parts)
    if "train" not in given:
        if not source.root.is_file():
            require_folder(source.root)
        elif source.root.suffix.lower() not in TABLES:
            raise RequestError(f"data.root {source.root} is not a table: known are {', '.join(TABLES)}")
        tables = [(source.root, "")] if source.root.is_file() else _tables_in(source.root, notes)
        tables = [(path, split) for path, split in tables if split not in given and path not in given.values()]
    for name, path in given.items():
        if not path.is_file():
            require_folder(path, f"data.{name}")
        inside = [path] if path.is_file() else [table for table, _ in _tables_in(path, notes)]
        if not inside:
            raise RequestError(f"data.{name} {path} holds no table ({', '.join(TABLES)})")
        tables += [(table, name) for table in inside]
    return tables, notes


def _tables_in(folder: Path, notes: list[str]) -> list[tuple[Path, str]]:
    with os.scandir(folder) as scan:
        entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    files = [Path(entry.path) for entry in entries if _is_table(entry.name) and entry.is_file()]
    folders = [Path(entry.path) for entry in entries if entry.is_dir()]
    named = {path: part_of(_SHARD.sub("", path.stem)) or "" for path in files}
    if "train" in named.values():
        chosen = [(path, split) for path, split in named.items() if split in PARTS]
        for split, count in Counter(split for path, split in chosen if path.suffix.lower() != ".parquet").items():
            if count > 1:
                same = [path.name for path, other in chosen if other == split]
                raise RequestError(f"{folder} holds {name_some(same)}: say which is which by data.train and data.test")
        unused = [path.name for path in files if named[path] not in PARTS]
        notes += [f"{name_some(unused)} of {folder} {'is' if len(unused) == 1 else 'are'} not used"] if unused else []
        return chosen
    known = [path for path in files if path.stem.lower() in TABLE_NAMES]
    if len(files) == 1 or len(known) == 1:
        return [((known or files)[0], "")]
    if files and all(path.suffix.lower() == ".parquet" for path in files):
        return [(path, "") for path in files]
    if files:
        raise RequestError(
            f"{folder} holds several tables, {name_some([path.name for path in files], 8)}: name one by data.root, or "
            "one for each part by data.train and data.test"
        )
    parts = {path: name for path in folders if (name := part_of(path.name)) in PARTS}
    if "train" in parts.values():
        return [(table, name) for path, name in parts.items() for table, _ in _tables_in(path, notes)]
    inner = [path for path in folders if path.name.lower() in ("data", "default")] or folders
    return _tables_in(inner[0], notes) if len(inner) == 1 else []


def _is_table(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in TABLES


def _load_table(rows: Rows, path: Path, split: str, root: Path) -> None:
    import pandas as pd

    name = str(path.relative_to(root)) if path.is_relative_to(root) and path != root else path.name
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            _load_parquet(rows, path, split, name)
            return
        if suffix == ".jsonl":
            table = pd.DataFrame(_json_lines(path))
        else:
            with path.open(encoding="utf-8-sig") as file:
                head = file.readline()
            sep = "\t" if suffix == ".tsv" else max(",;\t", key=head.count)
            table = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 ({one_line(error)}): save it as UTF-8") from error
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} cannot be read as a table: {one_line(error)}") from error
    if not len(table):
        raise RequestError(f"{path} has no rows")
    add_table(rows, table, path.parent, name, split)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"line {number} is not a JSON object")
                lines.append(entry)
    return lines


def _load_parquet(rows: Rows, path: Path, split: str, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow

        def holds_bytes(kind: Any) -> bool:
            if pa.types.is_struct(kind):
                return any(holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
            return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

        binary = [column.name for column in schema if holds_bytes(column.type)]
        image = image_column(binary) or (binary[0] if len(binary) == 1 else None)
        if binary and image is None:
            raise RequestError(f"{path}: several columns hold bytes, {name_some(binary)}: call the images' one image")
        plain = [column.name for column in schema if not pa.types.is_nested(column.type) and column.name not in binary]
        table = file.read(columns=plain).to_pandas()
        if image is not None:
            if not isinstance(rows.stored, ParquetImages):
                rows.stored = ParquetImages()
            table = with_indices(table, len(rows.stored), file.metadata.num_rows)
            rows.stored.add(path, image, file.metadata)
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = {column: about["names"] for column, about in features.items() if _is_class_label(about)}
    add_table(rows, table, path.parent, name, split, names, stored=image is not None)


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)


def add_table(
    rows: Rows,
    table: pd.DataFrame,
    folder: Path,
    name: str,
    split: str,
    class_names: Mapping[str, Sequence[str]] | None = None,
    *,
    stored: bool = False,
) -> None:
    """Add a table's rows: find its columns, and bring their values into one form.

    split: the part of all rows, "" where a column may tell; class_names: by column, where its values are numbers of
    them; stored: whether the column of images holds indices into ``rows.stored``.
    """
    columns = [str(column) for column in table.columns]
    table = table.set_axis(columns, axis=1)
    image = image_column(columns)
    if image is None:
        raise RequestError(
            f"{name} has no column of images: it has {name_some(columns)}; its first line should name "
            "the columns, such as path,label"
        )
    label = _pick(columns, _LABEL)
    split_column, group = _pick(columns, _SPLIT), _pick(columns, _GROUP)
    flags = {column: part for flag, part in _FLAGS.items() for column in columns if _plain(column) == flag}
    if label is None:
        rest = [
            c for c in columns if c not in (image, split_column, group, *flags) and not _plain(c).startswith("unnamed")
        ]
        if len(rest) == 1:
            (label,) = rest
            rows.notes.append(f"{name}: the classes are taken from column {label!r}")
    else:
        several = [column for column in columns if _plain(column) in _LABEL]
        if len(several) > 1:
            rows.notes.append(f"{name}: of the columns {name_some(several)}, {label!r} holds the classes")
    values = table[image].tolist()
    if not stored:
        values = _resolve(values, folder, name, rows.notes)
    splits = [split] * len(table)
    if not split and split_column is not None:
        splits = _read_splits(table[split_column].tolist(), f"{name}, column {split_column!r}", rows)
    elif not split and flags:
        held = {part: [_is_true(value) for value in table[column]] for column, part in flags.items()}
        splits = [next((part for part, flag in held.items() if flag[i]), "train") for i in range(len(table))]
    elif not split and not stored:
        splits = _splits_by_folder(values, folder) or splits
    known = (class_names or {}).get(label or "")
    if known:
        rows.order = rows.order or tuple(known)
    where = f"{name}, column {label!r}"
    rows.labels += [None] * len(table) if label is None else _read_labels(table[label].tolist(), where, known)
    rows.images += values
    rows.splits += splits
    rows.groups += [None] * len(table) if group is None else [_text(value) for value in table[group].tolist()]
    rows.origins += [name] * len(table)
    rows.group_column = rows.group_column or group or ""
    if label is None:
        rows.notes.append(f"{name} has no column of classes: it has {name_some(columns)}")


def with_indices(table: pd.DataFrame, first: int, count: int) -> pd.DataFrame:
    """Return a table with the indices of stored images in place of its own columns of images."""
    table = table[[column for column in table.columns if _plain(str(column)) not in _IMAGE]]
    table.insert(0, "image", np.arange(first, first + count))
    return table


def _plain(column: str) -> str:
    return re.sub(r"[-\s]+", "_", column.strip().lower())


def image_column(columns: Sequence[str]) -> str | None:
    """Return the column whose name says that it holds images, or their paths."""
    return _pick(columns, _IMAGE)


def _pick(columns: Sequence[str], family: Sequence[str]) -> str | None:
    """Return the column whose name comes first in a family."""
    by_name = {_plain(column): column for column in reversed(columns)}
    return next((by_name[name] for name in family if name in by_name), None)


def _text(value: Any) -> str | None:
    """Return a cell as text, or None where it is empty; 3.0 is "3", for a column with empty cells holds no integers."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    text = unicodedata.normalize("NFC", str(value).strip())
    return text if text not in ("", "<NA>", "NaT") else None


def _is_true(value: Any) -> bool:
    return str(value).strip().lower() in ("true", "1", "1.0", "yes")


def _read_labels(values: list[Any], where: str, names: Sequence[str] | None) -> list[str | None]:
    odd = [value for value in values if isinstance(value, list | dict | tuple | set | np.ndarray)]
    if odd:
        raise RequestError(f"{where} holds {odd[0]!r}: a class should be text or a number, one for each image")
    texts = [_text(value) for value in values]
    known = [text for text in texts if text is not None]
    if names is not None:
        if any(not re.fullmatch(r"-?\d+", text) or int(text) >= len(names) for text in known):
            raise RequestError(f"{where} holds numbers that are not of its {len(names)} classes")
        return [
            None if text is None or int(text) < 0 else unicodedata.normalize("NFC", names[int(text)]) for text in texts
        ]
    if known and all(re.fullmatch(r"-?\d+\.0+", text) for text in known):
        return [None if text is None else text.partition(".")[0] for text in texts]
    decimals = [text for text in known if re.fullmatch(r"-?\d*\.\d+(?:[eE][-+]?\d+)?", text)]
    fractions = [text for text in decimals if not float(text).is_integer()]
    if known and len(fractions) > len(known) / 2:
        raise RequestError(f"{where} holds numbers such as {fractions[0]}, which are measurements, not classes")
    return texts


def _read_splits(values: list[Any], where: str, rows: Rows) -> list[str]:
    texts = [_text(value) or "" for value in values]
    part = {text: part_of(text) for text in dict.fromkeys(texts)}
    unknown = [text or "(empty)" for text, name in part.items() if name is None]
    if unknown:
        raise RequestError(f"{where} holds {name_some(unknown)}: should be train, val or test in each row")
    return [part[text] or "" for text in texts]


def _splits_by_folder(paths: list[Any], folder: Path) -> list[str] | None:
    """Return the parts that the first folders of the paths name, or None where not all do."""
    around = f"{folder}{os.sep}"
    first: dict[str, str | None] = {}
    splits = []
    for path in paths:
        text = str(path)
        if not isinstance(path, Path) or not text.startswith(around):
            return None
        name = text[len(around) :].partition(os.sep)[0]
        part = first.setdefault(name, part_of(name))
        if part not in PARTS:
            return None
        splits.append(part)
    return splits if "train" in splits else None


def _resolve(values: list[Any], folder: Path, name: str, notes: list[str]) -> list[Any]:
    """Return files as paths that exist; what is no path stays as it is.

    A name that is not there is looked for below the folder, with any suffix, as ids are often given.
    """
    found: list[Any] = []
    absent: list[int] = []
    empty = 0

    @functools.cache
    def listed(parent: Path) -> frozenset[str]:  # faster than a look at each file
        try:
            with os.scandir(parent) as entries:
                return frozenset(entry.name for entry in entries if not entry.is_dir())
        except OSError:
            return frozenset()

    def exists(path: Path) -> bool:
        return path.name in listed(path.parent)

    for value in values:
        if isinstance(value, Mapping) and "bytes" in value:
            value = value["bytes"] if value["bytes"] is not None else value.get("path")
        if isinstance(value, str | Path | int | float | np.integer) or value is None:
            text = _text(value) if not isinstance(value, Path) else str(value)
            empty += text is None
            path = folder / (text or "")
            if text is not None and not exists(path):
                path = folder / text.replace("\\", "/")
                if not exists(path):
                    absent.append(len(found))
            value = path
        found.append(value)
    if empty:
        raise RequestError(
            f"{name} has {counted(empty, 'row')} without an image: fill in their paths or remove the rows"
        )
    if absent:
        known: dict[str, list[Path]] = {}
        for path in read_folder(folder).all_images():
            for key in (path.name, path.stem):
                known.setdefault(key, []).append(path)
        missing = []
        for index in absent:
            matches = dict.fromkeys(known.get(found[index].name, []))
            if len(matches) == 1:
                found[index] = next(iter(matches))
            else:
                missing.append(found[index])
        if missing:
            some = name_some(os.path.relpath(path, folder) for path in missing[:3])
            raise RequestError(
                f"{name}: {len(missing):,} of {len(values):,} images do not exist in {folder}, such as {some}: add the "
                "files, correct the paths, or remove the rows"
            )
        where = os.path.relpath(os.path.commonpath([found[index].parent for index in absent]), folder)
        notes.append(f"{name}: {len(absent):,} images are found by their names in {where}/")
    return found


def parts_of_rows(rows: Rows, labelled: bool) -> Parts:
    """Return the parts that rows describe. Raises RequestError where they are unclear."""
    if not labelled:
        keep = [index for index, split in enumerate(rows.splits) if split not in ("val", "test")]
        keep = _drop_heic(rows, keep)
        part = _part(rows, keep, None, None, rows.origins[0])
        return Parts(part, None, (), mirror=True, left_out=dict(rows.left_out), notes=tuple(rows.notes))
    parts_of = {
        name: [i for i, split in enumerate(rows.splits) if (split or "train") == name] for name in (*PARTS, "unused")
    }
    if not parts_of["train"]:
        raise RequestError(f"{rows.origins[0]} has no row of the training part")
    if all(rows.labels[index] is None for index in parts_of["train"]):
        raise RequestError(
            f"{rows.origins[0]} gives no classes to the training images: call their column label; where folders are "
            f"the classes, set data.dataset: image_folder{f' ({rows.notes[-1]})' if rows.notes else ''}"
        )
    rows.left_out["not of a part"] += len(parts_of["unused"])
    kept: dict[str, list[int]] = {}
    for name in PARTS:
        with_label = [index for index in parts_of[name] if rows.labels[index] is not None]
        if parts_of[name] and not with_label:
            instead = "a fifth of the others is the test part" if name == "test" else "a share of the others validates"
            rows.notes.append(f"{len(parts_of[name]):,} {name} images have no class and are not used: {instead}")
        rows.left_out["no label"] += len(parts_of[name]) - len(with_label)
        kept[name] = with_label
    kept = _drop_repeated(rows, kept)
    kept = {name: _drop_heic(rows, indices) for name, indices in kept.items()}
    classes = _order_classes({str(rows.labels[index]) for index in kept["train"]}, rows.order)
    label_of = {name: label for label, name in enumerate(classes)}
    for name in ("val", "test"):
        present = {str(rows.labels[index]) for index in kept[name]}
        extra = _order_classes(present - set(classes), rows.order)
        if extra:
            one = len(extra) == 1
            raise RequestError(
                f"class{'' if one else 'es'} {name_some(extra)} {'has' if one else 'have'} {name} images but no "
                f"training images in {rows.origins[kept[name][0]]}: add some, or remove the rows"
            )
        missing = [each for each in classes if each not in present]
        if present and missing:
            done = "validated" if name == "val" else "tested"
            rows.notes.append(f"no {name} images of {name_some(missing)}: not {done}")
    labels = np.array([label_of.get(str(label), -1) for label in rows.labels], dtype=np.int64)
    groups = _number_groups(rows, kept)
    made = {
        name: _part(rows, indices, labels, groups, _origin(rows, indices, name))
        for name, indices in kept.items()
        if indices
    }
    left_out = {reason: count for reason, count in rows.left_out.items() if count}
    return Parts(
        made["train"],
        made.get("test"),
        classes,
        mirror=True,
        val=made.get("val"),
        left_out=left_out,
        notes=tuple(rows.notes),
    )


def _part(
    rows: Rows, indices: list[int], labels: npt.NDArray[Any] | None, groups: npt.NDArray[Any] | None, origin: str
) -> Part:
    chosen = [rows.images[index] for index in indices]
    images: Images = chosen if rows.stored is None else Chosen(rows.stored, np.array(chosen, dtype=np.int64))
    return Part(
        images, None if labels is None else labels[indices], None if groups is None else groups[indices], origin=origin
    )


def _origin(rows: Rows, indices: list[int], name: str) -> str:
    tables = list(dict.fromkeys(rows.origins[index] for index in indices))
    text = tables[0] if len(tables) == 1 else f"{tables[0]} and {len(tables) - 1} more"
    return f"{text}, split {name}" if rows.splits[indices[0]] and len({*rows.origins}) == 1 else text


def _drop_repeated(rows: Rows, kept: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the rows without those that list an image again. Raises RequestError where two contradict each other."""
    if rows.stored is not None:
        return kept
    first: dict[str, tuple[str | None, str]] = {}
    contradicted: dict[str, None] = {}
    result: dict[str, list[int]] = {name: [] for name in kept}
    for name, indices in kept.items():
        for index in indices:
            path = rows.images[index]
            said = (rows.labels[index], name)
            if not isinstance(path, Path) or str(path) not in first:
                result[name].append(index)
                if isinstance(path, Path):
                    first[str(path)] = said
            elif first[str(path)] == said:
                rows.left_out["listed again"] += 1
            else:
                contradicted[path.name] = None
    if contradicted:
        raise RequestError(
            f"{rows.origins[0]} lists {len(contradicted):,} images several times with different classes or splits: "
            f"{name_some(contradicted, 5)}: keep one row of each"
        )
    return result


def _drop_heic(rows: Rows, indices: list[int]) -> list[int]:
    if reads_heic():
        return indices
    files = rows.images
    kept = [i for i in indices if not isinstance(files[i], Path) or files[i].suffix.lower() not in HEIC]
    dropped = len(indices) - len(kept)
    if dropped:
        rows.left_out[".heic"] += dropped
        rows.notes.append(f"{dropped:,} HEIC files are left out: {image_folder.INSTALL_HEIC}")
    if indices and not kept:
        raise RequestError(f"all images of {rows.origins[0]} are HEIC: {image_folder.INSTALL_HEIC}")
    return kept


def _order_classes(names: Iterable[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return names in the order that a file gives, else by number where all are numbers, else as text."""
    present = set(names)
    if order:
        known = dict.fromkeys(unicodedata.normalize("NFC", name) for name in order)
        return (*(name for name in known if name in present), *sorted(present - set(known)))
    if all(re.fullmatch(r"-?\d+", name) for name in present):
        return tuple(sorted(present, key=lambda name: (int(name), name)))
    return tuple(sorted(present))


def _number_groups(rows: Rows, kept: dict[str, list[int]]) -> npt.NDArray[np.int64] | None:
    """Return a number for each group; rows without one are groups of their own."""
    if not rows.group_column:
        return None
    numbers: dict[str, int] = {}
    groups = np.array(
        [-1 if name is None else numbers.setdefault(name, len(numbers)) for name in rows.groups], dtype=np.int64
    )
    alone = np.flatnonzero(groups < 0)
    groups[alone] = len(numbers) + np.arange(len(alone))
    names = [name for indices in kept.values() for name in {rows.groups[index] for index in indices}]
    both = sum(count > 1 for name, count in Counter(names).items() if name is not None)
    rows.notes.append(f"images that share a {rows.group_column} stay together: {len(numbers):,} groups")
    if both:
        rows.notes.append(f"{both:,} of them are in several parts, as the table says")
    return groups
