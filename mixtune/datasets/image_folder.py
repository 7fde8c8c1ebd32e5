"""Folders of images: a folder a class, with or without train/, val/ and test/; or images with no classes at all.

==============================================  ============================================================
``data.root`` holds                             it is read as
==============================================  ============================================================
train/<class>/... and test/<class>/...          training and test part
val/<class>/... besides                         images to validate by, in place of a share of the training images
train/<class>/... or <class>/...                training part; a stratified fifth is held out as the test part
images, or train/ with images                   images without labels, for self-supervised learning
==============================================  ============================================================

Parts go by many names (Training, train_set, seg_test, validation, dev), which count only if all folders beside them are
parts, too: bus/, car/ and train/ are three classes. What stays uncertain is refused, and ``data.train``, ``data.val``
and ``data.test`` say it. A folder that alone holds all images is entered. Images inside a class folder may be nested.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from mixtune.datasets import _layout_1
from mixtune.datasets._files import (
    HEIC,
    PARTS,
    TABLE_NAMES,
    TABLES,
    Folder,
    digest_lines,
    name_some,
    part_of,
    read_folder,
    reads_heic,
    require_folder,
)
from mixtune.datasets._types import Part, Parts, Source
from mixtune.errors import RequestError

TAKES_PARTS = True  # data.train, data.val and data.test

_FOLD = re.compile(r"(?:folds?|splits?|parts?|partition|cv|k)[-_ ]?\d+", re.IGNORECASE)
INSTALL_HEIC = "pillow-heif reads them (pip install pillow-heif)"
_SAY = "say which is which by data.train, data.val and data.test"


@dataclass
class _Found:
    """The folders of the parts, and what is to be told about how they were found."""

    root: Path
    parts: dict[str, Folder] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def name(self, folder: Folder) -> str:
        """Return how a folder is called in messages: relative to the root."""
        path = folder.path
        if path == self.root:
            return f"{path.name}/"
        return f"{path.relative_to(self.root) if path.is_relative_to(self.root) else path}/"


def read(source: Source) -> Parts:
    """Return the parts of ``source.root``, files unopened. Raises RequestError for another or an unclear layout."""
    if source.reading == 1:
        return _layout_1.read(_root(source))
    if not source.labelled:
        return _read_unlabelled(source)
    found = _find_parts(source)
    train = found.parts["train"] = _enter(found, found.parts["train"])
    _refuse_loose(train)
    if train.images or not train.folders:
        return _flat(found, train)
    classes, part = _read_classes(found, train)
    held = {name: _read_held(found, name, classes) for name in ("val", "test") if name in found.parts}
    for folder in found.parts.values():
        found.left_out += folder.all_left_out()
    return Parts(
        part,
        held.get("test"),
        classes,
        mirror=True,
        val=held.get("val"),
        left_out=dict(found.left_out),
        notes=(*found.notes, *_heic_note(found.left_out)),
    )


def fingerprint(source: Source) -> str:
    """Return a digest of the paths, sizes and times of all files that may be images."""
    root = _root(source)
    if source.reading == 1:
        return _layout_1.fingerprint(root)
    given = _given(source)
    lines = [f"{source.labelled}"]
    folders = [] if "train" in given and not source.root_given else [root]
    for name, path in given.items():
        around = next((folder for folder in folders if path.is_relative_to(folder)), None)
        lines.append(f"{name}\0{path if around is None else path.relative_to(around)}")
        folders += [path] if around is None else []
    found: Iterable[str] = lines
    for path in folders:
        folder = read_folder(path)
        found = chain(found, folder.stamps(), [f"heic\0{reads_heic()}"] if folder.has_heic() else [])
    return digest_lines(found)


def _root(source: Source) -> Path:
    if source.root_given:
        require_folder(source.root)
    elif not any(name == "train" for name, _ in source.parts):
        raise RequestError(
            "dataset image_folder needs data.root, or data.ssl_root for data.ssl_dataset: the folder of the images"
        )
    return source.root


def _given(source: Source) -> dict[str, Path]:
    for name, path in source.parts:
        if path.is_file() and path.suffix.lower() in TABLES:
            raise RequestError(
                f"data.{name} {path} is a table: dataset image_folder reads folders, manifest reads tables"
            )
        require_folder(path, f"data.{name}")
    given = dict(source.parts)
    if len({*given.values()}) < len(given):
        named = ", ".join(f"data.{name} {path}" for name, path in given.items())
        raise RequestError(f"{named}: each part needs a folder of its own")
    return given


def _read_unlabelled(source: Source) -> Parts:
    folder = read_folder(_given(source).get("train", _root(source)))
    images = folder.all_images()
    left_out = folder.all_left_out()
    notes = _heic_note(left_out)
    if not images:
        raise RequestError(f"{folder.path} holds no images{_heic_hint(left_out)}: change data.ssl_root")
    return Parts(Part(images, origin=f"{folder.name}/"), None, (), mirror=True, left_out=dict(left_out), notes=notes)


def _find_parts(source: Source) -> _Found:
    """Find the folders of the parts: those that the user names, and for the others those whose names say it."""
    root_path, given = _root(source), _given(source)
    found = _Found(root_path, given=frozenset(given))
    parts: dict[str, Folder] = {}
    if "train" not in given:
        parts = _guess(found, _enter(found, read_folder(root_path).without(given.values()), parts=False))
        found.notes += [
            f"{found.name(parts[name])} is not used, for data.{name} is given" for name in given if name in parts
        ]
    elif source.root_given and given["train"] != root_path:
        parts = _named_beside(root_path, given)
    parts |= {name: read_folder(path) for name, path in given.items()}
    for name, folder in parts.items():
        found.parts[name] = folder.without([other.path for part, other in parts.items() if part != name])
    return found


def _named_beside(root: Path, given: dict[str, Path]) -> dict[str, Folder]:
    """Return the folders in ``root`` whose names say that they are the parts which the user did not give."""
    beside: dict[str, Folder] = {}
    for path in sorted(path for path in root.iterdir() if path.is_dir() and path not in given.values()):
        name = part_of(path.name)
        if name in ("val", "test") and name not in given:
            if name in beside:
                raise RequestError(f"{root} holds {beside[name].name}/ and {path.name}/: {_SAY}")
            beside[name] = read_folder(path)
    return {name: folder for name, folder in beside.items() if folder.total}


def _guess(found: _Found, root: Folder) -> dict[str, Folder]:
    """Return the folders of the parts in ``root``, which is the training part itself where it has class folders."""
    full = root.full
    named = {folder.name: part_of(folder.name) for folder in full}
    parts = [folder for folder in full if named[folder.name]]
    others = [folder for folder in full if not named[folder.name]]
    certain = Counter(name for name in named.values() if name)
    if not others and "train" in certain and all(count == 1 for count in certain.values()):
        found.left_out += root.without([folder.path for folder in parts]).all_left_out()
        found.left_out["image outside the parts"] += len(root.images)
        for folder in root.folders:
            if part_of(folder.name) == "unused" or not folder.total:
                found.notes.append(f"{found.name(folder)} is not used: {folder.total:,} images")
        return {name: folder for folder in parts if (name := named[folder.name]) in PARTS}
    listed = ", ".join(f"{folder.name}/" for folder in full[:8]) + (", ..." if len(full) > 8 else "")
    if not others and parts and "train" not in certain:
        raise RequestError(
            f"{root.path} has {parts[0].name}/ but no train/: add train/, change data.root, or {_SAY} "
            "(data.train: . where each folder is a class)"
        )
    deeper = [folder for folder in full if {"train", "test"} <= {part_of(below.name) for below in folder.full}]
    if len(deeper) == 1:
        raise RequestError(
            f"{root.path} holds {listed}, and {deeper[0].name}/ holds parts ("
            f"{', '.join(f'{below.name}/' for below in deeper[0].full)}): did you mean data.root {deeper[0].path}?"
        )
    why = _why_uncertain(full, parts)
    if why:
        raise RequestError(
            f"{root.path} holds {listed}: {why}; {_SAY}, as in data.train: {full[0].name} (data.train: . where each "
            "folder is a class)"
        )
    return {"train": root}


def _why_uncertain(full: list[Folder], parts: list[Folder]) -> str:
    """Return why folders may or may not be classes; nothing where they are."""
    others = [folder for folder in full if folder not in parts]
    suspects = parts + [folder for folder in others if _FOLD.fullmatch(folder.name)]
    if len(suspects) > 1 or (suspects and any(f.full for f in suspects) and not any(f.full for f in others)):
        return f"{name_some(folder.name for folder in suspects)} may be parts or classes"
    inside = [{_nfc(below.name) for below in folder.full} for folder in full]
    both = inside[0] if len(full) > 1 and all(names == inside[0] for names in inside) else set()
    # many folders with few in each are classes: bus/, car/ and train/, each with own/ and web/
    alike = len(both) >= len(full) or _differ_by_number(full) or all(part_of(name) for name in both)
    if len(both) > 1 and alike:
        return f"each holds {name_some(sorted(both), 8)}, so that either may be the classes"
    return ""


def _differ_by_number(folders: list[Folder]) -> bool:
    """Return whether the folders' names are one word with a number or a letter each (site_a, site_b)."""
    stems = {re.sub(r"(?:\d+|[-_ ][A-Za-z]|(?<=[a-z])[A-Z])$", "", folder.name) for folder in folders}
    return len(stems) == 1 and stems != {""} and any(folder.name not in stems for folder in folders)


def _enter(found: _Found, folder: Folder, *, parts: bool = True) -> Folder:
    """Return the folder that is meant: where one holds nothing but another, which is no class, that one.

    parts: whether a folder that is named like a part is entered, too (seg_train/seg_train/).
    """
    outer = folder
    while not folder.images and len(folder.full) == 1:
        (only,) = folder.full
        beside = [other for other in folder.folders if other is not only]
        if only.images or not only.full or (not parts and part_of(only.name)):
            break
        if not all(other.all_left_out() for other in beside):  # an empty class folder, not something else's files
            break
        folder = only
    if folder is not outer:
        found.notes.append(f"{outer.path} has its images in {folder.path.relative_to(outer.path)}/, which is read")
        found.left_out += outer.without([folder.path]).all_left_out()
    return folder


def _flat(found: _Found, train: Folder) -> Parts:
    if not train.images:
        left_out = train.all_left_out()
        raise RequestError(
            f"{train.path} holds neither class folders nor images{_heic_hint(left_out)}: change data.root"
        )
    tables = sorted({*_tables(train.path), *_tables(found.root)})
    if tables:
        raise RequestError(
            f"{train.path} has no class folders, but {tables[0].name} next to the images: set data.dataset: manifest "
            "to read the classes from it"
        )
    for name, folder in found.parts.items():
        if name != "train" and folder is not train:
            found.notes.append(f"{found.name(folder)} is not used, for {found.name(train)} has no classes")
    left_out = found.left_out + train.all_left_out()
    part = Part(train.images, origin=found.name(train))
    notes = (*found.notes, *_heic_note(left_out))
    return Parts(part, test=None, classes=(), mirror=True, left_out=dict(left_out), notes=notes)


def _tables(folder: Path) -> list[Path]:
    """Return the tables in a folder whose names say that they describe the images beside them."""
    tables = [path for path in folder.iterdir() if path.suffix.lower() in TABLES]
    return [path for path in tables if path.stem.lower() in TABLE_NAMES or part_of(path.stem) in PARTS]


def _refuse_loose(folder: Folder) -> None:
    if folder.full and folder.images:
        raise RequestError(
            f"{folder.path} holds both class folders ({folder.full[0].name}/) and loose images "
            f"({folder.images[0].name}): move the images into class folders, or away"
        )


def _read_classes(found: _Found, train: Folder) -> tuple[tuple[str, ...], Part]:
    folders = _by_class(train.folders)
    empty = [name for name, group in folders.items() if not sum(folder.total for folder in group)]
    if empty:
        left_out = sum((folder.all_left_out() for name in empty for folder in folders[name]), Counter())
        one = len(empty) == 1
        raise RequestError(
            f"class folder{'' if one else 's'} {name_some(empty)} of {train.path} {'has' if one else 'have'} no images"
            f"{_heic_hint(left_out)}: add some or remove the folder{'' if one else 's'}"
        )
    label_of = {name: label for label, name in enumerate(folders)}
    return tuple(folders), _labelled(folders, label_of, found.name(train))


def _labelled(folders: dict[str, list[Folder]], label_of: dict[str, int], origin: str) -> Part:
    images: list[Path] = []
    labels: list[int] = []
    for name, group in folders.items():
        files = [path for folder in group for path in folder.all_images()]
        images += files
        labels += [label_of[name]] * len(files)
    return Part(images, labels, origin=origin)


def _by_class(folders: list[Folder]) -> dict[str, list[Folder]]:
    """Return folders by their class, in the classes' order: names that look alike (NFC) are one class."""
    broken = [folder.name for folder in folders if not _is_utf8(folder.name)]
    if broken:
        raise RequestError(
            f"class folders of {folders[0].path.parent} have names that are not UTF-8: {name_some(broken)}: rename "
            "them (convmv -f latin1 -t utf8 -r --notest FOLDER does so for Latin-1)"
        )
    by_class: dict[str, list[Folder]] = {}
    for folder in folders:
        by_class.setdefault(_nfc(folder.name), []).append(folder)
    return dict(sorted(by_class.items()))


def _read_held(found: _Found, name: str, classes: tuple[str, ...]) -> Part | None:
    """Return the validation or test part, or None where its images have no classes."""
    folder = found.parts[name]
    if not folder.total:
        raise RequestError(f"data.{name} {folder.path} holds no images{_heic_hint(folder.all_left_out())}")
    while not folder.images and len(folder.full) == 1 and _nfc(folder.full[0].name) not in classes:
        (folder,) = folder.full  # test/test/, or a folder of test images without classes
    if not folder.full:
        if name in found.given:
            raise RequestError(f"data.{name} {folder.path} holds images without class folders: its classes are unknown")
        instead = "a fifth of the training images is the test part"
        if name == "val":
            instead = "a share of the training images validates"
        found.notes.append(
            f"{found.name(folder)} holds images without classes: {folder.total:,} images are not used, and {instead}"
        )
        found.left_out["image without a class"] += folder.total
        return None
    _refuse_loose(folder)
    folders = _by_class(folder.full)
    label_of = {key: label for label, key in enumerate(classes)}
    extra = [key for key in folders if key not in label_of]
    if extra:
        one = len(extra) == 1
        raise RequestError(
            f"class{'' if one else 'es'} {name_some(extra)} {'is' if one else 'are'} in {folder.path} but not in the "
            f"training part: remove {'it' if one else 'them'} there, or add {'it' if one else 'them'} to train/"
        )
    missing = [key for key in classes if key not in folders]
    if missing:
        done = "validated" if name == "val" else "tested"
        found.notes.append(f"{found.name(folder)} has no images of {name_some(missing)}: not {done}")
    return _labelled(folders, label_of, found.name(folder))


def _heic_note(left_out: Counter[str]) -> tuple[str, ...]:
    count = sum(left_out[suffix] for suffix in HEIC)
    if not count:
        return ()
    return (f"{count:,} HEIC {'file is' if count == 1 else 'files are'} left out: {INSTALL_HEIC}",)


def _heic_hint(left_out: Counter[str]) -> str:
    count = sum(left_out[suffix] for suffix in HEIC)
    return f" that can be read, but {count:,} HEIC files: {INSTALL_HEIC}" if count else ""


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
