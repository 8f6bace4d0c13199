"""Any folder of pictures with one subfolder a class."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from tokred.data.tensors import Transform
from tokred.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Unreadable:
    """What stands in for a picture that cannot be read; :class:`tokred.data.Batches` leaves it out and keeps it."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ImageFolder(Dataset[Any]):
    """Pictures of ``root/<class>/**``, as (picture, label); labels follow the sorted names of the class folders.

    A file that is no picture, or is cut off, comes out as :class:`Unreadable` instead of ending the run.

    Args:
        root: the folder of class folders. If it holds a folder named ``split``, that one is taken.
        transform: from a PIL picture in RGB to a tensor; :func:`tokred.data.transform_for` makes a model's own.
        classes: class names in the order of the model's outputs, where that is not the sorted order.

    Raises:
        DataError: no such folder, no class folders, or no pictures in them.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Transform | None = None,
        *,
        split: str | None = None,
        classes: Sequence[str] | None = None,
    ):
        root = Path(root)
        if split is not None and (root / split).is_dir():
            root = root / split
        if not root.is_dir():
            raise DataError(f"{root} is no folder. Expected one with a subfolder of pictures for every class.")
        found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not found:
            raise DataError(f"{root} has no class folders. Expected root/<class>/<picture>.")
        if classes is not None and (missing := sorted(set(found) - set(classes))):
            raise DataError(f"{root}: the class folders {missing[:5]} are not among the {len(classes)} named classes.")
        self.root, self.transform = root, transform
        self.classes = tuple(classes) if classes is not None else tuple(found)
        index = {name: i for i, name in enumerate(self.classes)}
        self.files = [
            (path, index[name])
            for name in found
            for path in sorted((root / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        if not self.files:
            raise DataError(f"{root}: no pictures in its {len(found)} class folders. Looked for {', '.join(SUFFIXES)}.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int] | Unreadable:
        path, label = self.files[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        # What PIL raises on broken files of various formats; a bomb is a file that unpacks to gigabytes.
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
            return Unreadable(str(path), f"{type(error).__name__}: {error}")
        return (image if self.transform is None else self.transform(image)), label
