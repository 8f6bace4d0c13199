"""Labelled pictures in shards of webdataset: tar files whose members share a name, such as 0001.jpg and 0001.cls."""

import json
import re
import tarfile
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from tokred.data.pictures import SUFFIXES, Unreadable, open_picture
from tokred.data.tensors import Transform
from tokred.errors import DataError

CLASSES = "classnames.txt"  # beside the shards, a line for every class
_LABELS = (".cls", ".json")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_KEY = re.compile(r"((?:.*/)?[^./]+)(\.[^/]+)")  # a name ends at its first dot
Place = tuple[int, int, int]  # number of the shard, first byte, number of bytes


def find_shards(name: str, split: str, strict: bool = False) -> list[Path]:
    """Return the shards that a name means; none, if it means something else.

    Args:
        name: a tar file, a pattern such as ``val-{000..012}.tar`` or ``val-*.tar``, or a folder of tar files. Where a
            folder has a subfolder named ``split``, that one is meant.
        split: which part.
        strict: refuse what does not tell splits apart.

    Raises:
        DataError: there are such shards, but no subfolder for the split.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted((path / split).glob("*.tar"))
        if found or not (found := sorted(path.glob("*.tar"))):
            return found
    elif path.suffix == ".tar":
        found = [Path(file) for pattern in _expand(str(path)) for file in sorted(glob(pattern)) or [pattern]]
    else:
        return []
    if strict:
        raise DataError(f"{name} has no subfolder {split!r} of shards. Name the folder that holds all splits.")
    return found


class ShardImages(Dataset[Any]):
    """Samples of tar files, as (picture, label), in their order; each is read when it is asked for.

    Shards are looked through once, for where everything lies. A picture that cannot be decoded comes out as
    :class:`~tokred.data.Unreadable`.

    Args:
        shards: tar files on this machine, not compressed.
        transform: from a PIL picture in RGB to a tensor.

    Raises:
        DataError: a shard is missing, compressed or cut off, or no sample has a picture and a label.
    """

    def __init__(self, shards: Sequence[Path], transform: Transform | None = None):
        self.shards, self.transform = list(shards), transform
        self._samples = [sample for number, shard in enumerate(self.shards) for sample in _samples(number, shard)]
        if not self._samples:
            raise DataError(f"{self.shards[0]}: no sample has a picture ({', '.join(SUFFIXES)}) and a .cls or .json.")
        names = self.shards[0].parent / CLASSES
        self.classes = tuple(names.read_text(encoding="utf-8").splitlines()) if names.is_file() else None

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, int] | Unreadable:
        key, picture, kind, label = self._samples[index]
        place = f"{self.shards[picture[0]]}/{key}"
        image = open_picture(self._read(picture), place)
        if isinstance(image, Unreadable):
            return image
        try:
            content: Any = self._read(label).decode()
            if kind == ".json":
                found = json.loads(content)
                content = found["label"] if "label" in found else found["cls"]
            number = int(content)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{place}{kind}: holds no number of a class ({type(error).__name__}: {error}).") from error
        return (image if self.transform is None else self.transform(image)), number

    def _read(self, place: Place) -> bytes:
        number, start, size = place
        with open(self.shards[number], "rb") as file:
            file.seek(start)
            return file.read(size)


def _samples(number: int, shard: Path) -> list[tuple[str, Place, str, Place]]:
    """Name, picture, ending of the label and label of every sample of a shard that has both."""
    found: dict[str, dict[str, Place]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isfile() and (parts := _KEY.fullmatch(member.name)):
                    key, ending = parts.groups()
                    found.setdefault(key, {})[ending.lower()] = (number, member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{shard}: no readable tar file ({error}). Shards must be here, whole and uncompressed."
        ) from error
    samples = []
    for key, parts in found.items():
        picture = next((parts[ending] for ending in SUFFIXES if ending in parts), None)
        kind = next((ending for ending in _LABELS if ending in parts), None)
        if picture is not None and kind is not None:
            samples.append((key, picture, kind, parts[kind]))
    return samples


def _expand(pattern: str) -> list[str]:
    """Write every number of the ranges in braces.

    >>> _expand("val-{08..10}.tar")
    ['val-08.tar', 'val-09.tar', 'val-10.tar']
    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [whole for n in numbers for whole in _expand(pattern[: found.start()] + n + pattern[found.end() :])]
