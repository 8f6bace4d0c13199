"""Any folder of pictures with one subfolder a class."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from tokred.data.pictures import SUFFIXES, Unreadable, open_picture
from tokred.data.tensors import Transform
from tokred.errors import DataError


class ImageFolder(Dataset[Any]):
    """Pictures of ``root/<class>/**``, as (picture, label); labels follow the sorted names of the class folders.

    A file that is no picture, or is cut off, comes out as :class:`~tokred.data.Unreadable` instead of ending the run.

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
        image = open_picture(path)
        if isinstance(image, Unreadable):
            return image
        return (image if self.transform is None else self.transform(image)), label
