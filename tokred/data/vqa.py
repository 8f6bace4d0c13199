"""Questions about pictures: what an example is, and the JSONL format for data of your own."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from tokred.errors import DataError

Picture = tuple[Tensor, ...]


@dataclass(frozen=True)
class Question:
    """One question and its answer, with the number of the picture it is about."""

    picture: int
    text: str
    answer: str


@dataclass(frozen=True)
class VQAExample:
    """One question with what it is about: mostly one image, uint8 [3, H, W]."""

    images: Picture
    question: str
    answer: str

    @property
    def image(self) -> Tensor:
        """The image [3, H, W] of an example that has only one."""
        if len(self.images) != 1:
            raise DataError(f"This example has {len(self.images)} images. Read `images` instead of `image`.")
        return self.images[0]


class VQADataset(Dataset[VQAExample]):
    """Pictures and questions about them. One item is one question; many questions may share a picture.

    Args:
        pictures: each a tuple of images, uint8 [3, H, W]. Any sequence: it may read or draw a picture when asked.
        questions: in the order in which the data set counts them.
        source: questions about the single pictures that these are composed of, if they are.
    """

    def __init__(self, pictures: Sequence[Picture], questions: Sequence[Question], source: "VQADataset | None" = None):
        self.pictures, self.questions, self.source = pictures, tuple(questions), source
        self._about: dict[int, list[Question]] = {}
        for question in self.questions:
            self._about.setdefault(question.picture, []).append(question)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> VQAExample:
        found = self.questions[index]
        return VQAExample(self.pictures[found.picture], found.text, found.answer)

    def __iter__(self) -> Iterator[VQAExample]:
        return (self[index] for index in range(len(self)))

    def about(self, picture: int) -> tuple[Question, ...]:
        """Return all questions about one picture."""
        return tuple(self._about.get(picture, ()))


def as_thumbnails(dataset: VQADataset, side: int) -> VQADataset:
    """Return the same questions about pictures that were made ``side`` x ``side`` pixels and then their old size again.

    What a model with a thumbnail and tiles loses on them is what its tiles were good for.
    """
    return VQADataset(_Thumbnails(dataset.pictures, side), dataset.questions)


def read_vqa(path: str | os.PathLike[str]) -> VQADataset:
    """Read a JSONL file: ``{"image": "relative/path.png", "question": ..., "answer": ...}`` on every line.

    Paths are relative to the file; ``image`` may be a list of them. Empty lines are passed over. Images are read when
    they are asked for.

    Raises:
        DataError: no such file, or a line that is no such object or names a missing image; file and line are named.
            An image that cannot be read raises when it is asked for.
    """
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected a JSONL file of questions.") from error
    numbers: dict[tuple[Path, ...], int] = {}
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        files, text, answer = _parse(line, path.parent, f"{path}, line {number}")
        questions.append(Question(numbers.setdefault(files, len(numbers)), text, answer))
    if not questions:
        raise DataError(f"{path}: no questions in it. Expected one JSON object a line.")
    return VQADataset(_Files(tuple(numbers)), questions)


class _Thumbnails(Sequence[Picture]):
    """Pictures made small and large again when asked for."""

    def __init__(self, pictures: Sequence[Picture], side: int):
        self.pictures, self.side = pictures, side

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: Any) -> Any:
        return tuple(_blur(image, self.side) for image in self.pictures[index])


class _Files(Sequence[Picture]):
    """Pictures in files, read when asked for."""

    def __init__(self, files: tuple[tuple[Path, ...], ...]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return tuple(_read_image(path) for path in self.files[index])


def _blur(image: Tensor, side: int) -> Tensor:
    small = interpolate(image[None].float(), (side, side), mode="bicubic", antialias=True)
    large = interpolate(small, image.shape[1:], mode="bicubic", antialias=True)
    return large[0].round().clamp(0, 255).to(torch.uint8)


def _parse(line: str, folder: Path, place: str) -> tuple[tuple[Path, ...], str, str]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}).") from error
    if not isinstance(entry, dict):
        raise DataError(f"{place}: a {type(entry).__name__}, not an object with image, question and answer.")
    for key in ("question", "answer"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise DataError(f"{place}: {key!r} must be a text that is not empty (found {entry.get(key)!r}).")
    image = entry.get("image")
    names: list[Any] = image if isinstance(image, list) else [image]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{place}: 'image' must be a path or a list of paths (found {image!r}).")
    files = tuple(folder / name for name in names)
    for file in files:
        if not file.is_file():
            raise DataError(f"{place}: the image {file} does not exist. Paths are relative to the JSONL file.")
    return files, entry["question"], entry["answer"]


def _read_image(path: Path) -> Tensor:
    try:
        with Image.open(path) as file:
            array = np.array(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({type(error).__name__}: {error}).") from error
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
