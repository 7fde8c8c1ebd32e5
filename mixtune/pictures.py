"""PNG files that say by whom they were drawn, so that the next one may replace them and nobody else's."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mixtune.files import refuse_other_file, write_whole

_MADE_BY = "Software", "mixtune"


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG, whole or not at all.

    Raises RequestError where a file is there that mixtune did not draw, and DataError where it cannot be written.
    """
    refuse_other_picture(path)
    buffer, about = io.BytesIO(), PngInfo()
    about.add_text(*_MADE_BY)
    picture.save(buffer, format="PNG", pnginfo=about)
    write_whole(path, buffer.getvalue())


def refuse_other_picture(path: Path) -> None:
    """Raise RequestError where a file is there that mixtune did not draw."""
    refuse_other_file(path, "\0".join(_MADE_BY).encode(), "a picture that mixtune drew")
