"""easy-VQA: simple questions about pictures of one coloured shape, 64 x 64 (Victor Zhou, MIT licence)."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokred.data.vqa import Question, VQADataset
from tokred.errors import DataError

SPLITS = ("train", "test")
SAMPLE = Path(__file__).parent / "samples" / "easy_vqa_test.npz"


def easy_vqa(split: str = "test") -> VQADataset:
    """Return one split: 4,000 pictures with 38,575 questions to train, 1,000 with 9,673 to test.

    Reads the files of the package ``easy-vqa`` without importing it.

    Raises:
        DataError: an unknown split, no such package, or a file that cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"easy-vqa has no split {split!r}. It has: {', '.join(SPLITS)}.")
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise DataError(
            "The package easy-vqa is not installed. Try: pip install easy-vqa; or use its whole test split, which "
            "ships with tokred as 'easy-vqa-sample'."
        )
    folder = Path(found.origin).parent / "data" / split
    try:
        entries = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
        count = 1 + max(picture for _, _, picture in entries)
        images = torch.stack([_read_png(folder / "images" / f"{index}.png") for index in range(count)])
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: cannot be read ({error}). Try: pip install --force-reinstall easy-vqa.") from error
    return _dataset(images, entries)


def easy_vqa_sample(split: str = "test") -> VQADataset:
    """Return the test split, which ships with tokred: 1,000 pictures and 9,673 questions.

    >>> example = easy_vqa_sample()[0]
    >>> tuple(example.image.shape), example.question, example.answer
    ((3, 64, 64), 'what is the red shape?', 'triangle')
    """
    if split != "test":
        raise DataError(f"easy-vqa-sample has no split {split!r}. It has: test.")
    try:
        with np.load(SAMPLE, allow_pickle=False) as file:
            images = torch.from_numpy(file["images"])  # [1000, 64, 64, 3]
            entries = json.loads(file["questions"].tobytes().decode("utf-8"))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{SAMPLE}: the shipped sample cannot be read ({error}). Install tokred again.") from error
    return _dataset(images.permute(0, 3, 1, 2).contiguous(), entries)


def _dataset(images: Tensor, entries: list[tuple[str, str, int]]) -> VQADataset:
    questions = [Question(picture, text, answer) for text, answer, picture in entries]
    return VQADataset([(image,) for image in images], questions)


def _read_png(path: Path) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
