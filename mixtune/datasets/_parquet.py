"""Images that Parquet files hold."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

CACHED_BYTES = 256 * 2**20  # of row groups that are held in memory, besides the latest


class ParquetImages:
    """The images in Parquet files, as bytes: read when asked for, a row group at a time, from any thread."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._groups: list[tuple[Path, int, str]] = []
        self._count = 0
        self._read: dict[int, Any] = {}
        self._lock = threading.Lock()

    def add(self, path: Path, column: str, metadata: Any) -> None:
        """Add a file's rows, whose images are in a column."""
        for number in range(metadata.num_row_groups):
            self._starts.append(self._count)
            self._groups.append((path, number, column))
            self._count += metadata.row_group(number).num_rows

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes | Path:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        with self._lock:
            column = self._read.pop(number, None)
            if column is None:
                column = self._read_group(number)
            self._read[number] = column  # the latest is last
            while len(self._read) > 1 and sum(held.nbytes for held in self._read.values()) > CACHED_BYTES:
                del self._read[next(iter(self._read))]
        value = column[index - self._starts[number]].as_py()
        if isinstance(value, dict):
            held = value.get("bytes")
            value = held if held is not None else self._groups[number][0].parent / (value.get("path") or "")
        if value is None:
            raise ValueError(f"row {index} holds no image")
        return value  # type: ignore[no-any-return]

    def _read_group(self, number: int) -> Any:
        import pyarrow.parquet as pq

        path, group, column = self._groups[number]
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[column]).column(0)
