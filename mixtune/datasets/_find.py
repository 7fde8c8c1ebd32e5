"""From what a person names, a folder, a table or a dataset, to a dataset and where it lies."""

from __future__ import annotations

import re
from pathlib import Path

from mixtune.datasets._files import TABLES
from mixtune.datasets._load import known_datasets
from mixtune.datasets.arrays import holds_arrays
from mixtune.datasets.manifest import is_manifest
from mixtune.errors import RequestError, closest


def find_data(data: str, root: str | None = None) -> tuple[str, str | None]:
    """Return (dataset, root) of what was named: a dataset, a folder of images, or a table of paths and labels.

    root: where the files of a named dataset are. Raises RequestError.
    """
    known = known_datasets()
    path = Path(data).expanduser()
    if data in known or (re.fullmatch(r"[\w.]+:\w+", data) and not path.exists()):
        return data, None if root is None else str(Path(root).expanduser().resolve())
    if path.exists() and root is not None:
        kind = "folder" if path.is_dir() else "file"
        raise RequestError(f"--root {root} goes with a dataset's name, and {data} is a {kind}")
    if holds_arrays(path):
        return "arrays", str(path.resolve())
    if path.exists() and is_manifest(path):
        return "manifest", str(path.resolve())
    if path.is_dir():
        return "image_folder", str(path.resolve())
    if path.exists():
        raise RequestError(f"{data} is a file: name the folder of the images, or a table of them ({', '.join(TABLES)})")
    siblings = [entry.name for entry in path.parent.glob("[!.]*") if entry.is_dir() or entry.suffix.lower() in TABLES]
    near = closest(path.name, [*known, *siblings])
    if near in siblings:
        near = str(path.parent / near)
    meant = f"; did you mean {near!r}?" if near else ""
    raise RequestError(f"{data} is neither a folder, a table nor a dataset, such as digits or CIFAR10{meant}")
