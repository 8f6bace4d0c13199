"""Pictures that visitors bring: limited in size and pixels, refused with a sentence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from tokred.errors import DataError

MAX_BYTES = 10_000_000
MAX_PIXELS = 40_000_000
MAX_PICTURES = 32
LONGEST_SIDE = 1024
"""Larger pictures are made smaller; no model here looks at more."""

# Formats that only a decoder reads. Pillow would hand some others (EPS) to programs that run what is in them.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError)  # what Pillow raises on broken files


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Return a picture in RGB, upright, its longer side at most :data:`LONGEST_SIDE` pixels.

    The size is looked at before anything is unpacked.

    Raises:
        DataError: too many bytes, too many pixels, or no picture; the message names the file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(
                f"{path.name} has {size / 1e6:.1f} MB; pictures of up to {MAX_BYTES / 1e6:.0f} MB are read."
            )
        with Image.open(path, formats=_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(_too_many_pixels(path, f"{file.width} x {file.height} pixels"))
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except Image.DecompressionBombError as error:
        raise DataError(_too_many_pixels(path, "more pixels than Pillow unpacks")) from error
    except _BROKEN as error:
        raise DataError(
            f"{path.name} cannot be read as a picture ({type(error).__name__}). Try another file; "
            f"{', '.join(_FORMATS[:-1])} and {_FORMATS[-1]} are known."
        ) from error
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture


def read_pictures(paths: Sequence[str | os.PathLike[str]], most: int = MAX_PICTURES) -> list[Image.Image]:
    """:func:`read_picture` of several files.

    Raises:
        DataError: more than ``most``, or one of them is refused.
    """
    if len(paths) > most:
        raise DataError(f"{len(paths)} pictures at once; up to {most} are read.")
    return [read_picture(path) for path in paths]


def _too_many_pixels(path: Path, found: str) -> str:
    return f"{path.name} has {found}; up to {MAX_PIXELS / 1e6:.0f} million are read. Try a smaller one."
