"""Arrays in ``.npy`` files: what ``mixtune.search(space, data=...)`` keeps in its run, or a folder of your own.

``data.root`` is a folder with

=======================  ===========================================================================================
``images.npy``           (N, H, W), (N, H, W, C) or (N, C, H, W), uint8, uint16 or floats, any number of channels
``labels.npy``           (N,), numbers or text; its sorted values are the classes
``groups.npy``           (N,) integers, if there are any: images of one group are on one side of a split
``test_images.npy``, ..  the same of the test images, and ``val_images.npy``, ... of the validation images, where there
                         are such; ``train_images.npy``, ... is another name of the first three
=======================  ===========================================================================================

Files are mapped into memory, not read as a whole. What a search wrote has a ``meta.json`` besides: classes in their
order, a file for each of images of unequal size, notes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixtune.datasets._convert import channels_last, to_parts
from mixtune.datasets._decode import turn_upright
from mixtune.datasets._files import PARTS, digest_lines, require_folder, stamp
from mixtune.datasets._types import Images, Part, Parts, Source
from mixtune.errors import DataError, RequestError, one_line

META = "meta.json"


def read(source: Source) -> Parts:
    """Return the parts in a folder. Raises RequestError where it does not hold images and labels."""
    folder, meta = source.root, _read_meta(source)
    if meta:
        made = {name: _read_part(folder, name, about) for name, about in meta["parts"].items()}
        notes, left_out = tuple(meta["notes"]), meta["left_out"]
        classes, mirror = tuple(meta["classes"]), meta["mirror"]
        return Parts(made["train"], made.get("test"), classes, mirror, made.get("val"), left_out, notes)
    given = {
        name: (images, *_labels_of(folder, name))
        for name in PARTS
        if (images := _open(folder, name, "images")) is not None
    }
    if "train" not in given:
        raise RequestError(
            f"data.root {folder} holds no images.npy: it should, and labels.npy (see mixtune.datasets.arrays)"
        )
    if given["train"][1] is None:
        return Parts(Part(channels_last(given["train"][0], f"data.root {folder}")), None, (), mirror=True)
    parts = to_parts(given, f"data.root {folder}")
    named = {name: part for name in PARTS if (part := getattr(parts, name)) is not None}
    return replace(
        parts, **{name: replace(part, origin=_file(folder, name, "images").name) for name, part in named.items()}
    )


def fingerprint(source: Source) -> str:
    """Return a digest of the files' paths, sizes and times."""
    folder, meta = source.root, _read_meta(source)
    files = [name for about in meta.get("parts", {}).values() for name in about["files"] or ()]
    names = [*sorted(path.name for path in folder.glob("*.npy")), *([META] if meta else []), *files]
    return digest_lines(f"{name}\0{stamp(folder / name)}" for name in names)


def holds_arrays(folder: Path) -> bool:
    """Return whether a folder is one that this dataset reads."""
    return any((folder / name).is_file() for name in ("images.npy", "train_images.npy"))


def is_written(folder: Path) -> bool:
    """Return whether a folder is one that write_parts() has written."""
    try:
        return not folder.is_symlink() and bool(_read_meta(Source("arrays", folder, root_given=True, download=False)))
    except (RequestError, DataError):
        return False


def write_parts(parts: Parts, folder: Path) -> None:
    """Write parts to a folder, whole or not at all, in the form that read() reads; one that is there is replaced.

    Images that are arrays of one shape and type are one file, as they are; of others each is a file: an array, the
    bytes that were given, or a PNG. Files that are given by path are not copied. Raises DataError where the folder
    cannot be written.
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
        about = {}
        for name in PARTS:
            part: Part | None = getattr(parts, name)
            if part is not None:
                about[name] = {"origin": part.origin, "files": _write_images(part.images, scratch, name)}
                for column, values in (("labels", part.labels), ("groups", part.groups)):
                    if values is not None:
                        np.save(scratch / f"{name}_{column}.npy", np.asarray(values))
        meta = {
            "classes": parts.classes,
            "mirror": parts.mirror,
            "notes": parts.notes,
            "left_out": dict(parts.left_out),
        }
        (scratch / META).write_text(json.dumps(meta | {"parts": about}), encoding="utf-8")
        if os.path.lexists(folder) and not is_written(folder):
            raise DataError(f"{folder} holds what mixtune did not write: move it away")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        raise DataError(f"data cannot be written to {folder}: {one_line(error)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_images(images: Images, folder: Path, name: str) -> list[str] | None:
    """Write a part's images; return None where they are one file, else each one's, below the folder or elsewhere."""
    first = _as_stored(images[0])
    if isinstance(first, np.ndarray):
        path, form = folder / f"{name}_images.npy", (first.dtype, first.shape)
        with path.open("wb") as file:
            about = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, about | {"shape": (len(images), *first.shape)})
            for index in range(len(images)):
                item = _as_stored(images[index])
                if not isinstance(item, np.ndarray) or (item.dtype, item.shape) != form:
                    break
                file.write(np.ascontiguousarray(item).data)
            else:
                return None
        path.unlink()
    files = []
    (folder / f"{name}_images").mkdir()
    for index in range(len(images)):
        item = _as_stored(images[index])
        if isinstance(item, Path):
            files.append(os.path.abspath(item))
            continue
        files.append(f"{name}_images/{index:07d}{'.npy' if isinstance(item, np.ndarray) else ''}")
        if isinstance(item, np.ndarray):
            np.save(folder / files[-1], item)
        else:
            (folder / files[-1]).write_bytes(item)
    return files


def _as_stored(item: Any) -> npt.NDArray[Any] | bytes | Path:
    """Return an image as an array, or as the bytes or the path of a file where it is more than an array."""
    if isinstance(item, str):
        return Path(item)
    if not isinstance(item, Image.Image):
        return item  # type: ignore[no-any-return]
    image = turn_upright(item)
    if image.mode in ("L", "RGB", "I", "F") or image.mode.startswith("I;16"):
        if "transparency" not in image.info:
            return np.asarray(image)
    elif image.mode not in ("1", "P", "LA", "RGBA"):
        image = image.convert({"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(image.mode, "RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class _Files:
    """Images that are a file each; arrays are loaded when they are asked for."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self._folder, self._files = folder, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        path = self._folder / self._files[index]
        return np.load(path) if path.parent.parent == self._folder and path.suffix == ".npy" else path


def _read_meta(source: Source) -> dict[str, Any]:
    """Return what meta.json says, nothing where there is none. Raises RequestError for a folder that is not there."""
    if not source.root_given:
        raise RequestError("dataset arrays needs data.root: the folder of images.npy and labels.npy")
    require_folder(source.root)
    path = source.root / META
    if not path.is_file():
        return {}
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"classes", "mirror", "notes", "left_out", "parts"} <= meta.keys():
            raise ValueError("keys are missing")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is not what mixtune wrote there: {one_line(error)}") from error
    return meta


def _read_part(folder: Path, name: str, about: dict[str, Any]) -> Part:
    files = about["files"]
    images = _open(folder, name, "images") if files is None else _Files(folder, files)
    if images is None:
        raise DataError(f"{folder} holds no {name}_images.npy any more: restore it")
    return Part(images, *_labels_of(folder, name), origin=about["origin"])


def _labels_of(folder: Path, name: str) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """Return labels and groups of a part, as far as there are any."""
    return _open(folder, name, "labels"), _open(folder, name, "groups")


def _file(folder: Path, name: str, column: str) -> Path:
    short = folder / f"{column}.npy"
    return short if name == "train" and short.is_file() else folder / f"{name}_{column}.npy"


def _open(folder: Path, name: str, column: str) -> npt.NDArray[Any] | None:
    """Return an array, mapped into memory, or None where it is not there."""
    path = _file(folder, name, column)
    if not path.is_file():
        return None
    try:
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
    except (ValueError, EOFError) as error:
        raise RequestError(f"{path} cannot be read as an array of numbers or text: {one_line(error)}") from error
