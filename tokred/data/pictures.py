"""One picture from a file or from bytes, or the reason why there is none."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Unreadable:
    """What stands in for a picture that cannot be read; :class:`tokred.data.Batches` leaves it out and keeps it."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def open_picture(source: Path | bytes, name: str | None = None) -> Image.Image | Unreadable:
    """Return a picture in RGB.

    Args:
        source: a file, or what is in it.
        name: how a picture that cannot be read is called, if not by its file.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            return file.convert("RGB")
    # What PIL raises on broken files of various formats; a bomb is a file that unpacks to gigabytes.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        return Unreadable(name or str(source), f"{type(error).__name__}: {error}")
