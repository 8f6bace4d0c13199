"""Pictures with captions: what a data set for retrieval holds."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from tokred.data.pictures import Unreadable, open_picture
from tokred.data.tensors import Transform
from tokred.errors import DataError


class CaptionedImages(Dataset[Any]):
    """Pictures, each with one or more captions, as (picture, its number).

    Args:
        images: in memory as bytes, uint8 [N, C, H, W], or files, which are read when they are asked for.
        captions: for every picture the texts that describe it.
        transform: applied to every picture, bytes [C, H, W] or PIL in RGB.

    Raises:
        DataError: no pictures, another number of captions than of pictures, or a picture without a caption.
    """

    def __init__(
        self, images: Tensor | Sequence[Path], captions: Sequence[Sequence[str]], transform: Transform | None = None
    ):
        if len(images) == 0:
            raise DataError("There are no pictures to find captions for. Retrieval needs at least one.")
        if len(images) != len(captions):
            raise DataError(
                f"{len(images)} pictures, but captions for {len(captions)}. Give every picture its list of captions."
            )
        for index, own in enumerate(captions):
            if isinstance(own, str) or not own or not all(isinstance(text, str) and text.strip() for text in own):
                raise DataError(f"Picture {index}: a list of captions that are not empty is needed (found {own!r}).")
        self.images: Any = images
        self.captions, self.transform = tuple(tuple(own) for own in captions), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int] | Unreadable:
        image = self.images[index]
        if not isinstance(image, Tensor):
            image = open_picture(image)
        if isinstance(image, Unreadable):
            return image
        return (image if self.transform is None else self.transform(image)), index

    def part(self, indices: Sequence[int]) -> "CaptionedImages":
        """Return some of the pictures, with their captions."""
        indices = list(indices)
        images = self.images[indices] if isinstance(self.images, Tensor) else [self.images[index] for index in indices]
        return CaptionedImages(images, [self.captions[index] for index in indices], self.transform)


def read_captions(path: str | os.PathLike[str], transform: Transform | None = None) -> CaptionedImages:
    """Read a JSONL file: ``{"image": "relative/path.jpg", "captions": ["...", "..."]}`` on every line.

    Paths are relative to the file; lines about the same image add up, and ``caption`` may stand for one. Empty lines
    are passed over.

    Raises:
        DataError: no such file, or a line that is no such object or names a missing image; file and line are named.
    """
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected a JSONL file of captions.") from error
    found: dict[Path, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            file, captions = _parse(line, path.parent, f"{path}, line {number}")
            found.setdefault(file, []).extend(captions)
    if not found:
        raise DataError(f"{path}: no captions in it. Expected one JSON object a line.")
    return CaptionedImages(list(found), list(found.values()), transform)


def _parse(line: str, folder: Path, place: str) -> tuple[Path, list[str]]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}).") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise DataError(f"{place}: an object with image and captions is needed (found {line[:80]!r}).")
    captions = entry.get("captions", entry.get("caption"))
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise DataError(f"{place}: 'captions' must be texts that are not empty (found {captions!r}).")
    file = folder / entry["image"]
    if not file.is_file():
        raise DataError(f"{place}: the image {file} does not exist. Paths are relative to the JSONL file.")
    return file, captions
