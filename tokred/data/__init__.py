"""Data sets by name or folder, the sample that ships, and how pictures become batches."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from tokred.data.batches import Batches
from tokred.data.captions import CaptionedImages, read_captions
from tokred.data.easy_vqa import easy_vqa, easy_vqa_sample
from tokred.data.fashion_mnist import fashion_mnist
from tokred.data.huggingface import HuggingFaceImages, is_huggingface
from tokred.data.image_folder import ImageFolder
from tokred.data.mosaic import mosaic
from tokred.data.pictures import Unreadable
from tokred.data.samples import fashion_mnist_sample
from tokred.data.scenes import scenes, single_shapes
from tokred.data.shapes import shapes
from tokred.data.shards import ShardImages, find_shards
from tokred.data.tensors import TensorImages, Transform
from tokred.data.transforms import transform_for
from tokred.data.vqa import Question, VQADataset, VQAExample, as_thumbnails, read_vqa
from tokred.errors import DataError

__all__ = [
    "Batches",
    "CaptionedImages",
    "ImageFolder",
    "Question",
    "TensorImages",
    "Transform",
    "Unreadable",
    "VQADataset",
    "VQAExample",
    "as_thumbnails",
    "caption_names",
    "dataset_names",
    "easy_vqa",
    "easy_vqa_sample",
    "fashion_mnist",
    "fashion_mnist_sample",
    "load_captions",
    "load_dataset",
    "load_vqa",
    "mosaic",
    "read_captions",
    "read_vqa",
    "scenes",
    "shapes",
    "single_shapes",
    "transform_for",
    "vqa_names",
]

_DATASETS: dict[str, Callable[[str, Transform | None], Dataset[Any]]] = {
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-sample": fashion_mnist_sample,
    "shapes": shapes,
    "single-shapes": single_shapes,
}
_CAPTIONS: dict[str, Callable[[str], CaptionedImages]] = {"scenes": scenes}
_QUESTIONS: dict[str, Callable[[str], VQADataset]] = {
    "easy-vqa": easy_vqa,
    "easy-vqa-sample": easy_vqa_sample,
    "mosaic": mosaic,
}


def dataset_names() -> tuple[str, ...]:
    """Return the names that :func:`load_dataset` knows."""
    return tuple(_DATASETS)


def load_dataset(
    name_or_path: str | os.PathLike[str],
    split: str = "test",
    transform: Transform | None = None,
    *,
    strict: bool = False,
) -> Dataset[Any]:
    """Return a data set of (picture, label): a known name, a folder, Parquet files, shards, or one of the hub.

    Args:
        name_or_path: "fashion-mnist", "fashion-mnist-sample" (ships with tokred), "shapes" and "single-shapes"
            (drawn when asked for); a folder with one subfolder a class; Parquet files, a folder of them, or "hf:" and
            the name of a data set of the hub (:class:`~tokred.data.huggingface.HuggingFaceImages`); or shards of
            webdataset, a pattern or a folder of them (:func:`~tokred.data.shards.find_shards`).
        split: "train" or "test" for the named ones. Where a folder has a subfolder of that name, that one is read.
        transform: applied to every picture; :func:`transform_for` makes a model's own.
        strict: refuse data that have no such split, instead of reading them as a whole.

    Raises:
        DataError: none of these, or data that cannot be read.

    >>> image, label = load_dataset("fashion-mnist-sample")[0]
    >>> tuple(image.shape)
    (1, 28, 28)
    """
    if isinstance(name_or_path, str) and name_or_path in _DATASETS:
        return _DATASETS[name_or_path](split, transform)
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    if is_huggingface(name, split):
        return HuggingFaceImages(name, split, transform, strict=strict)
    if shards := find_shards(name, split, strict):
        return ShardImages(shards, transform)
    if path.is_dir():
        if strict and not (path / split).is_dir():
            raise DataError(f"{path} has no subfolder {split!r}. Name the folder that holds all splits of the data.")
        return ImageFolder(path, transform, split=split)
    near = difflib.get_close_matches(name, _DATASETS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known names: {', '.join(_DATASETS)}; or hf:<name on the hub>."
    raise DataError(f"{name!r} is neither a known data set nor a folder. {hint}")


def vqa_names() -> tuple[str, ...]:
    """Return the names that :func:`load_vqa` knows."""
    return tuple(_QUESTIONS)


def load_vqa(name_or_path: str | os.PathLike[str], split: str = "test") -> VQADataset:
    """Return questions about pictures: a known name, or a JSONL file (:func:`tokred.data.vqa.read_vqa`).

    Args:
        name_or_path: "easy-vqa", "easy-vqa-sample" (ships with tokred), "mosaic" (drawn when asked for; its test split
            needs nothing that does not ship), or a file.
        split: "train" or "test" for the named ones.

    Raises:
        DataError: neither a known name nor a file, or data that cannot be read.

    >>> len(load_vqa("easy-vqa-sample"))
    9673
    """
    if isinstance(name_or_path, str) and name_or_path in _QUESTIONS:
        return _QUESTIONS[name_or_path](split)
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return read_vqa(path)
    near = difflib.get_close_matches(str(name_or_path), _QUESTIONS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known names: {', '.join(_QUESTIONS)}."
    raise DataError(f"{str(name_or_path)!r} is neither a known set of questions nor a JSONL file. {hint}")


def caption_names() -> tuple[str, ...]:
    """Return the names that :func:`load_captions` knows."""
    return tuple(_CAPTIONS)


def load_captions(
    name_or_path: str | os.PathLike[str], split: str = "test", transform: Transform | None = None
) -> CaptionedImages:
    """Return pictures with captions: "scenes", drawn when asked for, or a JSONL file (:func:`read_captions`).

    Args:
        name_or_path: a known name, or a file.
        split: "train" or "test" for the named ones.
        transform: applied to every picture.

    Raises:
        DataError: neither a known name nor a file, or data that cannot be read.
    """
    if isinstance(name_or_path, str) and name_or_path in _CAPTIONS:
        found = _CAPTIONS[name_or_path](split)
        return CaptionedImages(found.images, found.captions, transform)
    if Path(name_or_path).expanduser().is_file():
        return read_captions(name_or_path, transform)
    raise DataError(
        f"{str(name_or_path)!r} is no known set of pictures with captions, and no JSONL file. "
        f"Known names: {', '.join(_CAPTIONS)}."
    )
